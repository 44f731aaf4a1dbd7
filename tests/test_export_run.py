"""One export: files that load, a README that says what was measured, errors in one line."""

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported import graph, network

import featherface as ff
from featherface import cli
from featherface.checkpoint import FORMAT, read_file, write_file
from featherface.errors import CheckpointError, ConfigError, DataError, ExportError
from featherface.export import Settings, export, measure, parse_size, run

SCRIPT = Path(__file__).resolve().parents[1] / "scripts/export.py"


@pytest.fixture
def weights(tmp_path):
    """A weights file with a recorded evaluation."""
    part = {"ap": 0.5, "ap_exact": 0.512, "faces": 9}
    evaluation = {"description": "three photos", "protocol": "vga", "images": 3, "easy": part}
    path = tmp_path / "some.pth"
    state = {name: value.clone() for name, value in network("v2").state_dict().items()}
    content = {"format": FORMAT, "architecture": "v2", "model": state}
    write_file(path, {**content, "config": {"epochs": 7}, "evaluations": [evaluation]})
    return path


@pytest.fixture
def quick(monkeypatch):
    """Models that are made already, and four small pictures."""
    monkeypatch.setattr(
        run, "build", lambda model, *, form="end_to_end", size=None, **rest: graph(form, size)
    )
    noise = torch.rand(4, 3, 9, 12, generator=torch.Generator().manual_seed(1))
    grown = torch.nn.functional.interpolate(noise, (72, 96), mode="bicubic").clamp(0, 1)
    photos = [(255 * part).byte().permute(1, 2, 0).numpy().copy() for part in grown]
    monkeypatch.setattr(measure, "pictures", lambda folder="": photos)
    monkeypatch.setattr(measure, "SIDES", (40, 96, 120, 64))
    return photos


def test_everything_that_an_export_writes(weights, quick, tmp_path):
    made = export(weights, tmp_path / "out", Settings(int8=True, rounds=1))
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
    assert package["preprocessing"]["mean_bgr"] == [104, 117, 123]
    assert package["postprocessing"]["iou_threshold"] == 0.4
    assert package["evaluations"][0]["easy"]["ap_exact"] == 0.512
    assert package["metrics"]["parity"]["pictures"]["count"] == 4
    assert package["source"]["file"] == "some.pth" and package["versions"]["python"]
    expected = ff.Detector(network("v2")).detect(quick[0])
    for path in made.files[:4]:
        kind = ff.Detector if path.suffix == ".pth" else ff.OnnxDetector
        found = kind(path).detect(quick[0])
        assert len(found) == len(expected) > 3 or "int8" in path.name


def test_the_readme_has_the_figures_of_the_run(weights, quick, tmp_path):
    made = export(weights, tmp_path, Settings(rounds=2))
    text = (tmp_path / "README.md").read_text()
    for path in made.files[:-1]:
        assert f"| `{path.name}` | {path.stat().st_size:,} |" in text
    parity = made.metrics["parity"]["featherface_v2_deployment.onnx"]
    assert f"{parity['faces']} faces in both, 0 in one only" in text
    row = next(row for row in made.metrics["speed"] if row["network"] == "end_to_end")
    assert f"| picture to faces | end_to_end | {row['median']:.1f} |" in text
    assert "| three photos | vga | 51.20 |" in text
    assert str(tmp_path) not in text and "256,156 parameters" in text


def test_nothing_is_written_when_a_model_differs(weights, quick, tmp_path, monkeypatch):
    wrong = onnx.ModelProto.FromString(graph("raw", None).SerializeToString())
    head = next(i for i in wrong.graph.initializer if "heads.0.bias" in i.name)
    values = onnx.numpy_helper.to_array(head).copy()
    values[2] += 0.05  # pixels: five times what rounding may do
    head.CopyFrom(onnx.numpy_helper.from_array(values, head.name))
    monkeypatch.setattr(run, "build", lambda model, **rest: wrong)
    with pytest.raises(ExportError, match="differs from the trained network"):
        export(weights, tmp_path / "out", Settings(forms=("raw",), rounds=0))
    assert not (tmp_path / "out").exists()


def test_faces_that_differ_are_an_error(quick, tmp_path):
    onnx.save(graph("end_to_end", None), tmp_path / "a.onnx")
    found = ff.OnnxDetector(tmp_path / "a.onnx", score_threshold=0.9)
    with pytest.raises(ExportError, match="finds other faces"):
        measure.face_parity(ff.Detector(network("v2")), found, quick, exact=True)
    assert measure.face_parity(ff.Detector(network("v2")), found, quick, exact=False)["in_one_only"]


def test_pictures_of_a_folder_and_their_sizes(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        measure.pictures(tmp_path / "none")
    (tmp_path / "a.jpg").write_text("no picture")
    with pytest.raises(DataError, match="not an image"):
        measure.pictures(tmp_path)
    photo = np.arange(60 * 40 * 3, dtype=np.uint8).reshape(60, 40, 3)
    sizes = [part.shape for part in measure.of_sizes([photo, photo], None)]
    assert sizes == [(33, 22, 3), (64, 43, 3)]
    assert measure.of_sizes([photo], (32, 96))[0].shape == (32, 96, 3)


def test_sizes_as_text():
    assert parse_size("640x480") == (640, 480) and parse_size("") is None
    assert parse_size("64×96") == (64, 96)
    for bad in ("640", "640x", "0x5", "axb", "1x2x3", "-3x4"):
        with pytest.raises(ConfigError, match="HEIGHTxWIDTH"):
            parse_size(bad)


def test_settings_that_cannot_work(weights, tmp_path):
    for settings, said in (
        (Settings(opset=17), "opset must lie in"),
        (Settings(forms=()), "nothing to export"),
        (Settings(int8=True, size=(64, 64)), "INT8 is made for any size"),
    ):
        with pytest.raises(ConfigError, match=said):
            export(weights, tmp_path / "out", settings)
    with pytest.raises(CheckpointError, match="no such file"):
        export(tmp_path / "absent.pth", tmp_path / "out")


def script(monkeypatch, *arguments):
    """Run scripts/export.py in this process; its exit code."""
    spec = importlib.util.spec_from_file_location("export_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
    try:
        cli.run(module.main)
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
        (("--weights", weights, "--opset", 17), "opset must lie in 18..23"),
        (("--weights", weights, "--size", "big"), "HEIGHTxWIDTH"),
        (("--weights", weights, "--calibration", tmp_path / "photos"), "not an image"),
        (("--weights", weights, "--rounds", -1), "--rounds must be 0 or more"),
    ):
        assert script(monkeypatch, *arguments, "--out", tmp_path / "out") == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0], lines
    assert not (tmp_path / "out").exists()


def test_the_script_writes_the_files(weights, quick, tmp_path, monkeypatch, capsys):
    arguments = ("--weights", weights, "--out", tmp_path / "out", "--form", "end_to_end")
    assert script(monkeypatch, *arguments, "--rounds", 0) == 0
    said = capsys.readouterr().out
    assert "featherface_v2_deployment.onnx" in said and "README.md" in said
    before = (tmp_path / "out/featherface_v2_deployment.onnx").read_bytes()
    assert onnx.load_model_from_string(before).graph.node
    shutil.rmtree(tmp_path / "out")
