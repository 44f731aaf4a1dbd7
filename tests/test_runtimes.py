"""Files for other runtimes: the faces of Detector from each; settings, bad and missing files."""

import json
import pickle
import re
import sys
from pathlib import Path

import cv2
import onnx
import pytest
from exported import assert_same_faces, network, scene

import featherface as ff
from featherface import cli, commands, runtimes
from featherface.checkpoint import FORMAT, write_file
from featherface.detector import SHIPPED_WEIGHTS, open_detector
from featherface.errors import CheckpointError, ConfigError, ExportError, MissingExtraError
from featherface.export import build
from featherface.export import runtimes as exporting
from featherface.runtimes import RuntimeDetector
from featherface.structures import Detections

ROOT = Path(__file__).resolve().parents[1]

SIZE = (64, 96)
NEEDED = {"openvino": ("openvino",), "ncnn": ("ncnn", "pnnx"), "pt2": ("torch",),
          "tflite": ("litert_torch", "ai_edge_litert")}  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "some.pth"
    state = {name: value.clone() for name, value in network("v2").state_dict().items()}
    write_file(path, {"format": FORMAT, "architecture": "v2", "model": state})
    return path


@pytest.fixture(scope="module")
def made(weights, tmp_path_factory):
    """The files of a runtime and their parity, exported once; OpenVINO's for any size."""
    done: dict = {}

    def make(runtime):
        for library in NEEDED[runtime]:
            pytest.importorskip(library, reason=f"{runtime} needs {library}, which is not here")
        if runtime not in done:
            patch = pytest.MonkeyPatch()
            with patch.context() as patched:
                patched.setattr(exporting, "pictures", lambda _: [scene(*SIZE), scene(64, 96, 1)])
                patched.setattr("featherface.export.parity.SIDES", (40, 96, 160))
                size = None if runtime == "openvino" else SIZE
                out = tmp_path_factory.mktemp(runtime)
                done[runtime] = exporting.export_runtime(weights, out, runtime=runtime, size=size)
        return done[runtime]

    return make


@pytest.mark.parametrize("runtime", NEEDED)
def test_the_faces_of_detector(made, runtime):
    files, parity = made(runtime)
    file = next(file for file in files if file.suffix in runtimes.OPENERS)
    assert parity["faces"] > 3 and parity["in_one_only"] == 0
    assert parity["box_difference"] < 0.01 and parity["score_difference"] < 1e-4
    detector = open_detector(file, iou_threshold=0.3)
    assert isinstance(detector, RuntimeDetector) and detector.architecture == "FeatherFaceV2"
    assert file.name in repr(detector)
    reference = ff.Detector(network("v2"), iou_threshold=0.3)
    sizes = [(40, 90), SIZE, *([(97, 61), (128, 160)] if runtime == "openvino" else [])]
    for picture in (scene(*size, seed) for seed, size in enumerate(sizes)):
        expected = reference.detect(picture)
        assert len(expected) > 0
        assert_same_faces(detector.detect(picture), expected)
    again = pickle.loads(pickle.dumps(detector))
    assert_same_faces(again.detect(picture), expected)
    if runtime != "openvino":  # of one size: larger pictures are shrunk
        boxes = detector.detect(scene(150, 200)).boxes
        assert len(boxes) and boxes[:, 2].max() > 96
    assert all(str(file.parent).encode() not in file.read_bytes() for file in files)


def test_opencv_finds_the_same_faces_by_the_example_of_the_docs(tmp_path, monkeypatch):
    text = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```py\n(.*?)^```", text, re.M | re.S)
    file = tmp_path / "exported/featherface_v2_deployment_raw_640x640.onnx"
    file.parent.mkdir()
    onnx.save(build(ff.load_model(SHIPPED_WEIGHTS), form="raw", size=(640, 640)), file)
    photo = cv2.imread(str(ROOT / "docs/astronaut.jpg"))
    cv2.imwrite(str(tmp_path / "photo.png"), photo)
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(example, found)
    expected = ff.OnnxDetector(file).detect(photo, bgr=True)
    kept = found["kept"]
    assert len(kept) == len(expected) == 1
    faces = Detections(
        found["boxes"][kept], found["scores"].ravel()[kept], found["landmarks"][kept]
    )
    assert_same_faces(faces, expected)


def test_a_file_that_finds_other_faces_is_not_written(weights, tmp_path, monkeypatch):
    def other(model, stem, size):
        made = stem.with_suffix(".pt2")
        made.write_bytes(b"")
        return [made]

    def shifted(path, threads):
        reference = exporting._network(network("v2"), SIZE)[0]

        def run(image):
            boxes, *rest = (part.numpy() for part in reference(exporting.torch.from_numpy(image)))
            return boxes + 0.6, *rest

        return run

    monkeypatch.setitem(exporting.WRITERS, "pt2", other)
    monkeypatch.setitem(runtimes.OPENERS, ".pt2", shifted)
    monkeypatch.setattr(exporting, "pictures", lambda _: [scene(*SIZE)])
    with pytest.raises(ExportError, match="finds other faces"):
        exporting.export_runtime(weights, tmp_path / "out", runtime="pt2", size=SIZE)
    assert not (tmp_path / "out").exists()


def test_settings_that_cannot_work(weights, tmp_path):
    for options, message in (
        ({"runtime": "caffe"}, "one of openvino, ncnn"),
        ({"runtime": "ncnn", "size": (64, 100)}, "multiples of 32"),
    ):
        with pytest.raises(ConfigError, match=message):
            exporting.export_runtime(weights, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", [".xml", ".param", ".tflite", ".pt2"])
def test_bad_and_missing_files(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"some{suffix}"
    with pytest.raises(CheckpointError, match=r"some\.json: no description"):
        open_detector(path)
    facts = {"format": "featherface/1", "architecture": "v2", "size": "64x96"}
    path.with_suffix(".json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="no such file"):
        open_detector(path)
    path.write_text("no network")
    path.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(ConfigError, match="device must be auto or cpu"):
        open_detector(path, "cuda")
    with pytest.raises(ConfigError, match="threads"):
        RuntimeDetector(path, threads=0)
    try:
        runtimes.open_network(path)
    except MissingExtraError as error:
        pytest.skip(str(error))
    except CheckpointError as error:
        assert str(path) in str(error) and "not loaded" in str(error)


def test_a_missing_runtime_is_named(tmp_path, monkeypatch, weights):
    path = tmp_path / "some.param"
    for suffix in (".param", ".bin"):
        path.with_suffix(suffix).touch()
    monkeypatch.setitem(sys.modules, "ncnn", None)
    with pytest.raises(MissingExtraError, match=r"some.param needs ncnn.*featherface\[ncnn\]"):
        runtimes.open_network(path)
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    monkeypatch.setattr(exporting, "pictures", lambda _: [scene(*SIZE)])
    with pytest.raises(MissingExtraError, match=r"tflite needs litert_torch.*\[tflite\]"):
        exporting.export_runtime(weights, tmp_path / "out", runtime="tflite")


def test_the_command_passes_its_flags_on(monkeypatch, tmp_path, capsys):
    asked = {}
    file = tmp_path / "some.xml"
    file.write_text("12345")
    parity = {"faces": 3, "in_one_only": 0, "score_threshold": 0.5, "box_difference": 0.001,
              "score_difference": 1e-6}  # fmt: skip

    def export_runtime(weights, out, **options):
        asked.update(options, weights=weights, out=out)
        return [file], parity

    monkeypatch.setattr(exporting, "export_runtime", export_runtime)
    flags = ["--weights", "w.pth", "--out", "here", "--size", "64x96", "--calibration", "photos"]
    monkeypatch.setattr(sys, "argv", ["export", "--format", "openvino", *flags])
    cli.run(commands.export)
    assert asked == {"weights": "w.pth", "out": "here", "runtime": "openvino", "size": (64, 96),
                     "photos": "photos"}  # fmt: skip
    assert "some.xml: 5 bytes" in (shown := capsys.readouterr().out)
    assert "3 faces over a score of 0.5 in both, 0 in one only" in shown
    monkeypatch.setattr(sys, "argv", ["export", "--format", "ncnn", "--int8"])
    with pytest.raises(SystemExit) as stop:
        cli.run(commands.export)
    assert stop.value.code == 2 and "for --format onnx" in capsys.readouterr().err
