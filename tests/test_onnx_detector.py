"""OnnxDetector: Detector's faces from either form, without torch; settings and bad files."""

import pickle
import subprocess
import sys

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exported import assert_same_faces, graph, network, scene
from torchvision.ops import nms

import featherface as ff
from featherface import face_detector
from featherface import onnx_detector as module
from featherface.detect_files import detect_paths
from featherface.detector import open_detector
from featherface.errors import CheckpointError, ConfigError, DataError
from featherface.face_detector import suppress
from featherface.images import fit_long_side
from featherface.onnx_detector import OnnxDetector, fit_inside


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with every form of one network."""
    root = tmp_path_factory.mktemp("graphs")
    forms = {"end": ("end_to_end", None), "raw": ("raw", None), "fixed": ("end_to_end", (64, 96))}
    for name, (form, size) in forms.items():
        onnx.save(graph(form, size), root / f"{name}.onnx")
    return root


@pytest.mark.parametrize("form", ["end", "raw"])
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (97, 61), (128, 160)])
def test_the_faces_of_detector(folder, form, size):
    options = {"score_threshold": 0.5, "iou_threshold": 0.3}
    expected = ff.Detector(network("v2"), **options).detect(scene(*size))
    found = OnnxDetector(folder / f"{form}.onnx", **options).detect(scene(*size))
    assert len(expected) > (3 if min(size) > 50 else 0)
    assert_same_faces(found, expected)


@pytest.mark.parametrize("form", ["end", "raw"])
def test_the_second_look_of_detector(folder, form, monkeypatch):
    for name, pixels in (("SECOND_LOOK", 64), ("FIRST_LOOK_MOST", 32), ("SECOND_LOOK_LEAST", 16)):
        monkeypatch.setattr(face_detector, name, pixels)
    picture = scene(97, 130)
    detector, one = (
        ff.Detector(network("v2"), score_threshold=0.5, second_look=both) for both in (True, False)
    )
    expected = detector.detect(picture)
    assert len(expected) > 3 and len(expected) != len(one.detect(picture))
    found = OnnxDetector(folder / f"{form}.onnx", score_threshold=0.5).detect(picture)
    assert_same_faces(found, expected)


def test_batches_bgr_max_side_and_changed_settings(folder):
    images = [scene(90, 120), scene(64, 200, seed=1)]
    reference = ff.Detector(network("v2"), score_threshold=0.5, max_side=80)
    detector = OnnxDetector(folder / "end.onnx", score_threshold=0.5, max_side=80)
    batch = detector.detect_batch(iter(images))
    for got, wanted in zip(batch, reference.detect_batch(images), strict=True):
        assert len(wanted)
        assert_same_faces(got, wanted)
    assert_same_faces(detector.detect(images[0][..., ::-1], bgr=True), batch[0])
    detector.score_threshold = 1.0
    assert len(detector.detect(images[0])) == 0
    for one in ("photo.jpg", images[0], images[0][..., 0]):
        for each in (detector, reference):
            with pytest.raises(DataError, match="list of images"):
                each.detect_batch(one)
    assert len(detector.detect_batch(np.stack([images[0]] * 2))) == 2


def test_a_model_of_one_size_pads_and_shrinks(folder):
    detector = OnnxDetector(folder / "fixed.onnx", score_threshold=0.5)
    reference = ff.Detector(network("v2"), score_threshold=0.5)
    assert detector.size == (64, 96)
    small = scene(40, 90)
    exact = np.zeros((64, 96, 3), np.uint8) + np.array((123, 117, 104), np.uint8)
    exact[:40, :90] = small
    inside = reference.detect(exact)
    found = detector.detect(small)  # the reference pads 40 only to 64, and 90 to 96: as here
    assert_same_faces(found, reference.detect(small))
    assert len(inside) >= len(found) > 0
    large = scene(150, 200)
    boxes = detector.detect(large).boxes
    assert len(boxes) and boxes[:, 2].max() > 96 and (boxes[:, 2] <= 200).all()


def test_a_shrunk_picture_fills_the_size_as_max_side_does():
    for long in range(641, 1400):  # 1077 and 1162 among them: 640 / n × n is 639.99… in floats
        picture = np.zeros((4, long, 3), np.uint8)
        assert fit_inside(picture, 640, 640).shape == fit_long_side(picture, 640).shape
        assert fit_inside(picture, 640, 640).shape[1] == 640
    for height, width in ((900, 77), (77, 900), (1162, 1077), (1, 4000)):
        shown = fit_inside(np.zeros((height, width, 3), np.uint8), 64, 96).shape
        assert shown[0] <= 64 and shown[1] <= 96 and (shown[0] == 64 or shown[1] == 96)
    assert fit_inside(np.zeros((40, 30, 3), np.uint8), 64, 96).shape == (40, 30, 3)


def test_files_are_read_like_detector_reads_them(folder, tmp_path):
    cv2.imwrite(str(tmp_path / "a.jpg"), scene(100, 130))
    found = OnnxDetector(folder / "end.onnx", score_threshold=0.5).detect(tmp_path / "a.jpg")
    expected = ff.Detector(network("v2"), score_threshold=0.5).detect(tmp_path / "a.jpg")
    assert_same_faces(found, expected)
    (tmp_path / "no.jpg").write_text("no picture")
    with pytest.raises(DataError, match="not an image"):
        OnnxDetector(folder / "end.onnx").detect(tmp_path / "no.jpg")


@pytest.mark.parametrize("blocked", [(), ("PIL",), ("torch", "PIL", "pandas", "onnx")])
def test_it_needs_only_onnxruntime_numpy_and_opencv(folder, tmp_path, blocked):
    cv2.imwrite(str(tmp_path / "a.png"), scene(64, 96)[..., ::-1])
    np.save(tmp_path / "a.npy", scene(64, 96))
    code = f"""
import sys
for name in {blocked!r}:
    sys.modules[name] = None
import numpy as np
from featherface.onnx_detector import OnnxDetector
detector = OnnxDetector({str(folder / "end.onnx")!r}, score_threshold={0.5!r}, threads=1)
from_file = detector.detect({str(tmp_path / "a.png")!r})
from_array = detector.detect(np.load({str(tmp_path / "a.npy")!r}))
assert len(from_file) and np.array_equal(from_file.boxes, from_array.boxes)
heavy = {{"torch", "torchvision", "onnx", "pandas", "matplotlib"}}
print(sorted(m for m in heavy if sys.modules.get(m)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_threads_and_providers(folder):
    detector = OnnxDetector(
        folder / "end.onnx", threads=2, providers=["CPUExecutionProvider"], iou_threshold=0.25
    )
    assert detector.session.get_session_options().intra_op_num_threads == 2
    assert detector.session.get_providers() == ["CPUExecutionProvider"]
    assert detector.device == "cpu" and detector.architecture == "FeatherFaceV2"
    alone = OnnxDetector(folder / "end.onnx", providers="CPUExecutionProvider")
    assert alone.session.get_providers() == ["CPUExecutionProvider"]
    assert "iou_threshold=0.25" in repr(detector) and "end.onnx" in repr(detector)
    for options, said in (
        ({"providers": ["NoSuchProvider"]}, "no NoSuchProvider"),
        ({"device": "tpu"}, "auto, cpu, cuda or cuda:1"),
        ({"device": torch.device("mps")}, "for an ONNX file; got 'mps'"),
        ({"device": "cuda:one"}, "got 'cuda:one'"),
        ({"threads": 0}, "threads must be a whole number"),
        ({"threads": 1.5}, "threads must be a whole number of at least 1"),
        ({"providers": "NoSuchProvider"}, "no NoSuchProvider here"),
        ({"score_threshold": 2}, "score_threshold must be between 0 and 1"),
        ({"max_side": 0}, "max_side must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            OnnxDetector(folder / "end.onnx", **options)


def test_devices_as_detector_names_them(folder, monkeypatch):
    assert OnnxDetector(folder / "end.onnx", torch.device("cpu")).device == "cpu"
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    assert module._providers("auto", None) == [(both[0], {"device_id": 0}), both[1]]
    assert module._providers("cuda:1", None) == [(both[0], {"device_id": 1}), both[1]]
    assert module._providers("cpu", None) == [both[1]]


def test_a_detector_can_be_pickled(folder, monkeypatch):
    monkeypatch.chdir(folder)
    detector = OnnxDetector("end.onnx", "cpu", 0.6, 0.3, 90, threads=1, second_look=False)
    data = pickle.dumps(detector)
    monkeypatch.chdir("/")
    again = pickle.loads(data)
    assert repr(again) == repr(detector)
    assert again.session.get_session_options().intra_op_num_threads == 1
    assert_same_faces(again.detect(scene(97, 130)), detector.detect(scene(97, 130)))


def test_bad_files(folder, tmp_path):
    whole = (folder / "end.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "text.onnx").write_text("no model")
    foreign = onnx.ModelProto.FromString(whole)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    for name, said in (
        ("cut", "damaged or cut short"),
        ("empty", "damaged or cut short"),
        ("text", "not an ONNX model"),
        ("foreign", "not one that scripts/export.py"),
        ("absent", "no such file"),
    ):
        with pytest.raises(CheckpointError, match=said) as caught:
            OnnxDetector(tmp_path / f"{name}.onnx")
        assert "\n" not in str(caught.value) and f"{name}.onnx" in str(caught.value)


def test_photos_and_folders_with_an_onnx_file(folder, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), scene(64, 96))
    detector = open_detector(str(folder / "end.onnx"), "cpu")
    report = detect_paths(detector, [tmp_path / "a.png"], tmp_path / "out", draw_pictures=False)
    assert report.faces == len(detector.detect(tmp_path / "a.png")) > 0
    with pytest.raises(CheckpointError, match="no such file"):
        open_detector("absent.onnx", "cpu")


def test_suppression_equals_torchvision():
    random = np.random.default_rng(0)
    corners = random.uniform(0, 90, (400, 2)).astype(np.float32)
    sizes = random.uniform(5, 40, (400, 2)).astype(np.float32)
    boxes = np.concatenate((corners, corners + sizes), axis=1)
    scores = random.random(400, np.float32)
    for level, pre_nms, keep in ((0.0, 5000, 750), (0.5, 5000, 750), (0.2, 60, 9)):
        above = np.flatnonzero(scores > level)
        order = above[np.argsort(-scores[above])][:pre_nms]
        expected = order[nms(torch.from_numpy(boxes[order]), torch.from_numpy(scores[order]), 0.4)]
        found = suppress(
            boxes, scores, score_threshold=level, iou_threshold=0.4, pre_nms=pre_nms, keep=keep
        )
        assert found.tolist() == expected[:keep].tolist() and len(found) > 5
    assert len(suppress(boxes, scores, score_threshold=1.0, iou_threshold=0.4)) == 0
