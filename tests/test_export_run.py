"""One export: files that load, a README that says what was measured, errors in one line."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from exported import graph, network

import featherface as ff
from featherface import cli, commands
from featherface.checkpoint import FORMAT, read_file, write_file
from featherface.errors import CheckpointError, ConfigError, DataError, ExportError
from featherface.export import OPSET, Settings, export, parity, parse_size, run
from featherface.export.int8 import Quantised
from featherface.export.run import _check
from featherface.structures import Detections


@pytest.fixture
def weights(tmp_path):
    """A weights file with a recorded evaluation."""
    part = {"ap": 0.5, "ap_exact": 0.512, "faces": 9}
    evaluation = {"description": "three photos", "protocol": "vga", "images": 3, "easy": part}
    path = tmp_path / "some.pth"
    state = {name: value.clone() for name, value in network("v2").state_dict().items()}
    content = {"format": FORMAT, "architecture": "v2", "model": state}
    facts = {"config": {"epochs": 7}, "history": [{"epoch": 3}], "evaluations": [evaluation]}
    facts |= {"data": {"photos": 9}, "mean_of": [{"file": "a.pth", "sha256": "0"}]}
    write_file(path, {**content, **facts})
    return path


@pytest.fixture
def quick(monkeypatch):
    """Models that are made already, and four small pictures."""

    def made(model, *, form="end_to_end", size=None, opset=OPSET):
        return graph(form, size, model.name, opset)

    monkeypatch.setattr(run, "build", made)
    noise = torch.rand(4, 3, 9, 12, generator=torch.Generator().manual_seed(1))
    grown = torch.nn.functional.interpolate(noise, (72, 96), mode="bicubic").clamp(0, 1)
    photos = [(255 * part).byte().permute(1, 2, 0).numpy().copy() for part in grown]
    monkeypatch.setattr(run, "pictures", lambda folder="": photos)
    monkeypatch.setattr(parity, "SIDES", (40, 96, 120, 64))
    return photos


def test_everything_that_an_export_writes(weights, quick, tmp_path):
    made = export(weights, tmp_path / "out", Settings(int8=True))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "featherface_v2_deployment.onnx",
        "featherface_v2_deployment.pth",
        "featherface_v2_deployment_int8.onnx",
        "featherface_v2_deployment_raw.onnx",
    ]
    assert {path.name for path in made.files} == {p.name for p in (tmp_path / "out").iterdir()}
    package = read_file(tmp_path / "out/featherface_v2_deployment.pth")
    assert package["kind"] == "deployment" and package["config"] == {"epochs": 7}
    assert package["history"] == [{"epoch": 3}] and package["data"] == {"photos": 9}
    assert package["mean_of"] == [{"file": "a.pth", "sha256": "0"}]
    assert package["preprocessing"]["mean_bgr"] == [104, 117, 123]
    assert package["postprocessing"]["iou_threshold"] == 0.4
    assert package["evaluations"][0]["easy"]["ap_exact"] == 0.512
    assert package["metrics"]["pictures"] == "4 drawn pictures (long side 40 to 120 pixels)"
    assert package["source"]["file"] == "some.pth" and package["versions"]["python"]
    expected = ff.Detector(network("v2")).detect(quick[0])
    for path in made.files[:4]:
        kind = ff.Detector if path.suffix == ".pth" else ff.OnnxDetector
        found = kind(path).detect(quick[0])
        assert len(expected) > 3
        assert abs(len(found) - len(expected)) <= 0.2 * len(expected) * ("int8" in path.name)
    text = (tmp_path / "out/README.md").read_text()
    facts = made.metrics["int8"]
    assert f"INT8: {facts['layers']} convolutions compute in 8 bits" in text
    assert f"change by {facts['score_error']:.4f} on average" in text
    assert "in PyTorch on 4 drawn pictures (long side 40 to 120 pixels)" in text


def test_the_readme_has_the_figures_of_the_run(weights, quick, tmp_path):
    made = export(weights, tmp_path, Settings())
    text = (tmp_path / "README.md").read_text()
    for path in made.files[:-1]:
        assert f"| `{path.name}` | {path.stat().st_size:,} |" in text
    found = made.metrics["parity"]["featherface_v2_deployment.onnx"]
    assert f"{found['faces']} faces over a score of 0.5 in both, 0 in one only" in text
    assert "- three photos, vga: easy 51.20" in text and "$" not in text
    assert str(tmp_path) not in text and "256,156 parameters" in text


def test_one_size_is_added_to_the_other_files(weights, quick, tmp_path):
    export(weights, tmp_path, Settings(forms=("end_to_end",)))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    settings = Settings(forms=("end_to_end",), size=(64, 96), opset=18)
    made = export(weights, tmp_path, settings)
    name = "featherface_v2_deployment_64x96.onnx"
    assert [path.name for path in made.files[1:]] == [name, "README_64x96.md"]
    assert onnx.load(tmp_path / name).opset_import[0].version == 18
    assert all((tmp_path / name).read_bytes() == content for name, content in before.items())
    text = (tmp_path / "README_64x96.md").read_text()
    assert f'OnnxDetector("{name}")' in text and f'InferenceSession("{name}"' in text
    assert "# exactly (64, 96, 3) uint8 BGR" in text
    content = read_file(weights)
    write_file(weights, {**content, "config": {"epochs": 8}})  # other weights: another package
    export(weights, tmp_path, settings)
    package = read_file(tmp_path / "featherface_v2_deployment.pth")
    assert package["config"] == {"epochs": 8}


def test_v1_is_exported_too(quick, tmp_path):
    state = {name: value.clone() for name, value in network("v1").state_dict().items()}
    write_file(tmp_path / "v1.pth", {"format": FORMAT, "architecture": "v1", "model": state})
    settings = Settings(forms=("raw",), size=(40, 64), opset=19)
    made = export(tmp_path / "v1.pth", tmp_path / "out", settings)
    assert [path.name for path in made.files] == [
        "featherface_v1_deployment.pth",
        "featherface_v1_deployment_raw_40x64.onnx",
        "README_raw_40x64.md",
    ]
    text = made.files[-1].read_text()
    assert 'OnnxDetector("featherface_v1_deployment_raw_40x64.onnx")' in text
    assert "without this project" not in text and "## Before and after the network" in text


def test_int8_alone(weights, quick, tmp_path, monkeypatch):
    same = Quantised(graph("end_to_end", None), ("a", "b"), ("c",), 0.0123)
    monkeypatch.setattr(run, "quantise", lambda model, pictures: same)
    export(weights, tmp_path, Settings(forms=(), int8=True))
    text = (tmp_path / "README_int8.md").read_text()
    assert "nan" not in text and "2 convolutions" in text and "change by 0.0123" in text
    assert 'OnnxDetector("featherface_v2_deployment_int8.onnx")' in text


def test_pictures_without_faces_are_compared_at_a_lower_score(quick, tmp_path):
    onnx.save(graph("end_to_end", None), tmp_path / "a.onnx")
    found = ff.OnnxDetector(tmp_path / "a.onnx", score_threshold=1.0)
    expected = ff.Detector(network("v2"), score_threshold=1.0)
    result = parity.face_parity(expected, found, quick[:1], exact=True)
    assert result["score_threshold"] == 0.02 and result["faces"] > 3
    assert expected.score_threshold == found.score_threshold == 1.0
    assert "faces over a score of 0.02 in both, 0 in one only, box IoU" in _check("a.onnx", result)
    text = _check("a.onnx", {**result, "faces": 0, "in_one_only": 0})
    assert text.endswith("0 faces over a score of 0.02 in both, 0 in one only")
    silent = SimpleNamespace(
        path=tmp_path / "a.onnx", detect_batch=lambda photos: [_none()] * len(photos)
    )
    silent.score_threshold = 1.0
    with pytest.raises(ExportError, match="other faces"):
        parity.face_parity(expected, silent, quick[:1], exact=True)
    deaf = SimpleNamespace(score_threshold=1.0, detect_batch=silent.detect_batch)
    deaf.model = network("v2")
    with pytest.raises(ExportError, match="other faces"):  # nothing at all was compared
        parity.face_parity(deaf, silent, quick[:1], exact=True)


def _none():
    return Detections(*(np.zeros(shape, np.float32) for shape in ((0, 4), (0,), (0, 5, 2))))


@pytest.mark.parametrize(("above", "allowed"), [(5e-5, True), (3e-4, False)])
@pytest.mark.parametrize("name", ["v1", "v2"])
def test_a_face_within_rounding_of_the_threshold_may_be_in_one_only(name, above, allowed):
    box, points = np.array([[4, 4, 20, 20]], np.float32), np.zeros((2, 5, 2), np.float32)
    second = Detections(np.concatenate((box, box + 40)), np.float32([0.9, 0.5 + above]), points)
    first = Detections(box, np.float32([0.9]), points[:1])
    for one, other in ((first, second), (second, first)):
        expected = SimpleNamespace(
            score_threshold=0.5, model=network(name), detect_batch=lambda photos, one=one: [one]
        )
        found = SimpleNamespace(score_threshold=0.5, path=Path("a.onnx"))
        found.detect_batch = lambda photos, other=other: [other]
        if allowed:
            result = parity.face_parity(expected, found, [box], exact=True)
            assert result["in_one_only"] == 0 and result["smallest_iou"] == 1
            continue
        with pytest.raises(ExportError):
            parity.face_parity(expected, found, [box], exact=True)


def test_what_cannot_work_is_said_before_anything_is_built(weights, quick, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("built")

    monkeypatch.setattr(run, "build", never)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match="file is a file"):
        export(weights, tmp_path / "file/out")
    monkeypatch.setattr(run, "pictures", parity.pictures)
    with pytest.raises(DataError, match="does not exist"):
        export(weights, tmp_path / "out", Settings(photos=str(tmp_path / "none")))
    assert list(tmp_path.glob("out/*")) == []


# 0.05 pixels: five times what rounding may do
@pytest.mark.parametrize("change", [0.05, np.nan])
def test_nothing_is_written_when_a_model_differs(change, weights, quick, tmp_path, monkeypatch):
    wrong = onnx.ModelProto.FromString(graph("raw", None).SerializeToString())
    head = next(i for i in wrong.graph.initializer if "heads.0.bias" in i.name)
    values = onnx.numpy_helper.to_array(head).copy()
    values[2] += change
    head.CopyFrom(onnx.numpy_helper.from_array(values, head.name))
    monkeypatch.setattr(run, "build", lambda model, **rest: wrong)
    with pytest.raises(ExportError, match=r"differs from the trained .*--form end_to_end"):
        export(weights, tmp_path / "out", Settings(forms=("raw",)))
    assert not (tmp_path / "out").exists()


def test_faces_that_differ_are_an_error(quick, tmp_path):
    onnx.save(graph("end_to_end", None), tmp_path / "a.onnx")
    found = ff.OnnxDetector(tmp_path / "a.onnx", score_threshold=0.9)
    with pytest.raises(ExportError, match="finds other faces"):
        parity.face_parity(ff.Detector(network("v2")), found, quick, exact=True)
    assert parity.face_parity(ff.Detector(network("v2")), found, quick, exact=False)["in_one_only"]


def test_pictures_of_a_folder_and_their_sizes(tmp_path):
    with pytest.raises(DataError, match=r"--calibration: folder .*none does not exist"):
        parity.pictures(tmp_path / "none")
    (tmp_path / "a, b").mkdir()
    with pytest.raises(DataError, match=r"--calibration: no photo in .*a, b or below"):
        parity.pictures(tmp_path / "a, b")
    (tmp_path / "a.jpg").write_text("no picture")
    with pytest.raises(DataError, match="not an image"):
        parity.pictures(tmp_path)
    photo = np.arange(60 * 40 * 3, dtype=np.uint8).reshape(60, 40, 3)
    sizes = [part.shape for part in parity.of_sizes([photo, photo], None)]
    assert sizes[:2] == [(33, 22, 3), (64, 43, 3)] and len(sizes) == 20
    assert {max(shape) for shape in sizes} == set(parity.SIDES)
    assert parity.of_sizes([photo], (32, 96))[0].shape == (32, 96, 3)


def test_sizes_as_text():
    assert parse_size("640x480") == (640, 480) and parse_size("") is None
    assert parse_size("64×96") == (64, 96)
    for bad in ("640", "640x", "0x5", "axb", "1x2x3", "-3x4"):
        with pytest.raises(ConfigError, match="HEIGHTxWIDTH"):
            parse_size(bad)


def test_settings_that_cannot_work(weights, tmp_path):
    for settings, said in (
        (Settings(opset=17), "opset must be 18 to 23; got 17"),
        (Settings(forms=()), "nothing to export"),
        (Settings(int8=True, size=(64, 64)), "INT8 is made for any size"),
    ):
        with pytest.raises(ConfigError, match=said):
            export(weights, tmp_path / "out", settings)
    with pytest.raises(CheckpointError, match="no such file"):
        export(tmp_path / "absent.pth", tmp_path / "out")


def script(monkeypatch, *arguments):
    """Run the command export in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
    try:
        cli.run(commands.export)
    except SystemExit as end:
        return end.code
    return 0


def test_the_script_ends_with_one_line_for_wrong_input(weights, tmp_path, monkeypatch, capsys):
    other = tmp_path / "other.pth"
    torch.save({"layer.weight": torch.zeros(3)}, other)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(weights.read_bytes()[:9999])
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_text("no picture")
    for arguments, said in (
        (("--weights", other), "of another project"),
        (("--weights", cut), "damaged or cut short"),
        (("--weights", weights, "--opset", 17), "opset must be 18 to 23; got 17"),
        (("--weights", weights, "--size", "big"), "HEIGHTxWIDTH"),
        (("--weights", weights, "--calibration", tmp_path / "photos"), "not an image"),
    ):
        assert script(monkeypatch, *arguments, "--out", tmp_path / "out") == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0], lines
    assert not (tmp_path / "out").exists()


def test_the_script_writes_the_files(weights, quick, tmp_path, monkeypatch, capsys):
    arguments = ("--weights", weights, "--out", tmp_path / "out", "--form", "end_to_end")
    assert script(monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    assert "featherface_v2_deployment.onnx" in said and "README.md" in said
    before = (tmp_path / "out/featherface_v2_deployment.onnx").read_bytes()
    assert onnx.load_model_from_string(before).graph.node
    shutil.rmtree(tmp_path / "out")
