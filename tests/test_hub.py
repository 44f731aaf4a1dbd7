"""Weights and model card for the Hub: the same network, and only figures that were measured."""

import json

import pytest
import torch
import yaml

from featherface.checkpoint import FORMAT, load_model, write_file, write_safetensors
from featherface.errors import CheckpointError, ConfigError
from featherface.export.hub import write_hub_folder
from featherface.files import sha256
from featherface.models.networks import FeatherFaceV1, FeatherFaceV2

RECORD = {"description": "4 photos", "protocol": "vga", "hard": {"ap_exact": 0.12345, "faces": 9}}


@pytest.mark.parametrize("network", [FeatherFaceV1, FeatherFaceV2])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_plain_state_dict_loads(tmp_path, network, suffix):
    model, path = network(), tmp_path / f"plain{suffix}"
    if suffix == ".pth":
        torch.save({f"module.{k}": v for k, v in model.state_dict().items()}, path)
    else:
        write_safetensors(path, model)
    loaded = load_model(path)
    assert type(loaded) is network and not loaded.training
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in model.state_dict().items())


def test_damaged_and_foreign_files_are_refused(tmp_path):
    state = FeatherFaceV2().state_dict()
    torch.save(dict(list(state.items())[:-1]), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="not weights of FeatherFace V2: 1 tensors are miss"):
        load_model(tmp_path / "a.pth")
    write_safetensors(tmp_path / "b.safetensors", FeatherFaceV2())
    data = (tmp_path / "b.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(data[:-5])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load_model(tmp_path / "b.safetensors")


def weights_file(path, **content):
    state = {"format": FORMAT, "architecture": "v2", "model": FeatherFaceV2().state_dict()}
    write_file(path, state | content)
    return path


def test_the_card_holds_what_was_measured(tmp_path):
    path = weights_file(tmp_path / "w.pth", evaluations=[RECORD])
    measured = {"easy": {"ap_exact": 0.5, "faces": 3}, "none": {"ap_exact": None, "faces": 0}}
    record = {"description": "2 photos", "protocol": "original", "detectors": {"v2": measured},
              "sources": {"v2": {"sha256": sha256(path)}}}  # fmt: skip
    (tmp_path / "e.json").write_text(json.dumps(record))
    files = write_hub_folder(path, tmp_path / "out", evaluation=tmp_path / "e.json")
    assert [file.name for file in files] == ["model.safetensors", "README.md"]
    _, front, text = files[1].read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["license"] == "mit" and "face-detection" in card["tags"]
    metrics = [result["metrics"] for result in card["model-index"][0]["results"]]
    assert [metric["value"] for (metric,) in metrics] == [12.35, 50.0]
    assert "| 4 photos | vga | hard | 9 | 12.35 |" in text and "256,156 parameters" in text
    load_model(files[0])


def test_an_evaluation_of_other_weights_is_refused(tmp_path):
    path = weights_file(tmp_path / "w.pth")
    for content, message in (
        ({"sources": {"x": {"sha256": "0"}}, "detectors": {}} | RECORD, "measures other weights"),
        ([], "not an evaluation.json"),
    ):
        (tmp_path / "e.json").write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=message):
            write_hub_folder(path, tmp_path / "out", evaluation=tmp_path / "e.json")
    assert not (tmp_path / "out").exists()
    assert "Not measured." in write_hub_folder(path, tmp_path / "out")[1].read_text()
