"""Weights files: ours, the original project's, ImageNet's, and broken ones."""

import resource
from pathlib import Path

import pytest
import torch
from conftest import shared
from torch import nn

import featherface as ff
from featherface.checkpoint import FORMAT, load_backbone, load_model, read_file, write_file
from featherface.errors import CheckpointError
from featherface.models.networks import FeatherFaceV1, FeatherFaceV2


def save(path, model: nn.Module, **more) -> None:
    content = {"format": FORMAT, "architecture": model.name, "model": model.state_dict()}
    write_file(path, content | more)


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("network", [FeatherFaceV1, FeatherFaceV2])
def test_round_trip(tmp_path, network):
    model = network()
    save(tmp_path / "w.pth", model)
    loaded = ff.load_model(tmp_path / "w.pth")
    assert type(loaded) is network and same(loaded, model) and not loaded.training


def test_averaged_weights_are_preferred(tmp_path):
    model, averaged = FeatherFaceV2(), FeatherFaceV2()
    save(tmp_path / "w.pth", model, ema=averaged.state_dict())
    assert same(load_model(tmp_path / "w.pth"), averaged)


@pytest.mark.parametrize(("prefix", "counts"), [("", True), ("module.", False)])
def test_the_originals_v1_loads_in_every_form(tmp_path, prefix, counts):
    path = shared("weights", "featherface_v1_592371.pth")
    state = read_file(path)
    assert any("total_ops" in key for key in state)
    changed = {prefix + k: v for k, v in state.items() if counts or "total_" not in k}
    torch.save(changed, tmp_path / "v1.pth")
    loaded = load_model(tmp_path / "v1.pth")
    assert isinstance(loaded, FeatherFaceV1) and same(loaded, load_model(path))


def test_the_originals_v1_is_loaded_strictly(tmp_path):
    state = read_file(shared("weights", "featherface_v1_592371.pth"))
    del state["ssh2.conv5X5_2.0.regular_conv.weight"]
    torch.save(state, tmp_path / "v1.pth")
    with pytest.raises(CheckpointError, match=r"1 tensors are missing.*context\.1\.middle"):
        load_model(tmp_path / "v1.pth")


@pytest.mark.parametrize("network", [FeatherFaceV1, FeatherFaceV2])
def test_imagenet_backbone_loads_into_either(network):
    path = shared("weights", "mobilenetV1X0.25_pretrain.tar")
    model = network()
    before = model.backbone.stage1[0][0].weight.clone()
    load_backbone(model, path)
    stored = read_file(path)["state_dict"]
    assert torch.equal(model.backbone.stage1[0][0].weight, stored["module.stage1.0.0.weight"])
    assert not torch.equal(before, model.backbone.stage1[0][0].weight)


def test_a_backbone_can_come_from_any_detector(tmp_path):
    source, model = FeatherFaceV2(), FeatherFaceV1()
    save(tmp_path / "v2.pth", source)
    load_backbone(model, tmp_path / "v2.pth")
    assert same(model.backbone, source.backbone)
    torch.save({"stage1.0.0.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"not weights of the MobileNetV1.*missing"):
        load_backbone(model, tmp_path / "part.pth")


def test_imagenet_backbone_is_not_a_detector():
    with pytest.raises(CheckpointError, match="ImageNet backbone"):
        load_model(shared("weights", "mobilenetV1X0.25_pretrain.tar"))


class Sneaky:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_bad_files_say_what_is_wrong(tmp_path, capsys):
    good = tmp_path / "good.pth"
    save(good, FeatherFaceV2())
    cut = tmp_path / "cut.pth"
    cut.write_bytes(good.read_bytes()[:100_000])
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.pth").write_text("not weights at all\n")
    (tmp_path / "log.pth").write_text("epoch,lr,loss\n1,0.1,2\n")  # e, a pickle opcode
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save({"x": Sneaky()}, tmp_path / "code.pth")
    write_file(tmp_path / "v9.pth", {"format": FORMAT, "architecture": "v9", "model": {}})
    write_file(tmp_path / "none.pth", {"format": FORMAT, "architecture": "v2"})
    save(tmp_path / "mixed.pth", FeatherFaceV1())
    mixed = torch.load(tmp_path / "mixed.pth", weights_only=True) | {"architecture": "v2"}
    write_file(tmp_path / "mixed.pth", mixed)
    messages = {
        "missing.pth": "no such file; train it",
        ".": "is a folder",
        "empty.pth": "is empty",
        "cut.pth": "damaged or cut short",
        "text.pth": "not loaded|damaged",
        "log.pth": "not a PyTorch file",
        "list.pth": "holds a list",
        "other.pth": "of another project",
        "code.pth": "more than tensors",
        "v9.pth": "network 'v9'",
        "none.pth": "tensors are missing",
        "mixed.pth": "not weights of FeatherFace V2",
    }
    for name, message in messages.items():
        with pytest.raises(CheckpointError, match=message) as caught:
            load_model(tmp_path / name, "train it")
        assert "\n" not in str(caught.value)
    assert "must not run" not in capsys.readouterr().out


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = FeatherFaceV2().state_dict()
    state["heads.boxes.0.bias"][1] = float("nan")
    state["heads.classes.1.bias"][0] = float("inf")
    write_file(tmp_path / "w.pth", {"format": FORMAT, "architecture": "v2", "model": state})
    with pytest.raises(CheckpointError, match=r"w\.pth: 2 of \d+ tensors.*heads") as caught:
        load_model(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)
    model = FeatherFaceV2()
    model.heads.boxes[0].bias.data[1] = float("nan")
    with pytest.raises(CheckpointError, match=r"FeatherFaceV2: 1 of \d+ tensors.*heads"):
        ff.Detector(model)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    save(path, FeatherFaceV2())
    before = path.read_bytes()

    def fail(target, content):
        target.open("wb").write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(KeyboardInterrupt):
        write_file(path, {"format": FORMAT})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]


def test_a_full_disk_is_named(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as a quota
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save(tmp_path / "a.pth", FeatherFaceV2())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(tmp_path / "a.pth") and not list(tmp_path.iterdir())
