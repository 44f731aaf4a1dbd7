"""From photos to numbers: protocols, batches, evaluation sets, and the script."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_evaluation import write_ground_truth

from featherface.checkpoint import FORMAT, load_model, read_file, write_file
from featherface.data.widerface import Photo
from featherface.errors import CheckpointError, ConfigError, DataError
from featherface.evaluation import evaluate, read_submission, write_submission
from featherface.evaluation.command import labels
from featherface.evaluation.run import PROTOCOLS, View, detect_photos, views, vote
from featherface.evaluation.sets import find_evaluation_set
from featherface.models.networks import FeatherFaceV1, FeatherFaceV2
from featherface.structures import Detections

SCRIPT = Path(__file__).parents[1] / "scripts" / "evaluate.py"
EYES = ((0, 0, 255), (0, 255, 0))  # BGR of the left and the right half of a "face"


def paint(path, *, size=(320, 240), box=(40, 60, 120, 180), exif=None):
    """A black photo with a face: its left half red, its right half green."""
    x1, y1, x2, y2 = box
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[y1:y2, x1 : (x1 + x2) // 2] = EYES[0]
    pixels[y1:y2, (x1 + x2) // 2 : x2] = EYES[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels[..., ::-1])
    image.save(path, quality=100, subsampling=0, **({"exif": exif} if exif else {}))
    return path


class ColourDetector:
    """Finds the painted face by its colours, and notes the batches that it is given.

    Like a face detector it calls the point that it sees on the left the left eye, whatever the
    colour: the first landmark is the middle of the left half, the others of the right.
    """

    def __init__(self):
        self.batches = []

    def detect_batch(self, images, *, bgr=False):
        assert bgr
        images = list(images)
        self.batches.append([image.shape[:2] for image in images])
        return [self.find(image) for image in images]

    def find(self, image):
        colours = (image[..., 2] > 128, image[..., 1] > 128)
        if not colours[0].any():
            return Detections()
        halves = sorted(np.argwhere(colour)[:, ::-1].mean(0).tolist() for colour in colours)
        rows, columns = np.nonzero(colours[0] | colours[1])
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        points = np.array([halves[0], *[halves[1]] * 4])[None] + 0.5
        return Detections(np.array([box], np.float32), np.ones(1, np.float32), np.float32(points))


def photo(path, name=None, boxes=((40, 60, 120, 180),)):
    none = np.zeros((len(boxes), 5, 2), np.float32), np.zeros((len(boxes), 5), bool)
    return Photo(path, name or path.name, np.array(boxes, np.float32).reshape(-1, 4), *none)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_answers_in_pixels_of_the_photo(tmp_path, protocol):
    photos = [
        photo(paint(tmp_path / "wide.png")),
        photo(paint(tmp_path / "tall.png", size=(200, 500))),
    ]
    found = detect_photos(ColourDetector(), photos, protocol=protocol, progress=False)
    assert list(found) == ["wide.png", "tall.png"]
    for faces in found.values():
        np.testing.assert_allclose(faces.boxes, [[40, 60, 120, 180]], atol=1.5)
        # mirrored views name the points anew: red stays left, so the first point lies in it
        np.testing.assert_allclose(faces.landmarks[0, 0], [60, 120], atol=1.5)
        np.testing.assert_allclose(faces.landmarks[0, 1], [100, 120], atol=1.5)


def test_sizes_of_the_protocols():
    def sizes(protocol, *photo_size):
        return [(view.width, view.height) for view in views(protocol, *photo_size)]

    assert sizes("original", 1024, 683) == [(1024, 683)]
    assert sizes("vga", 1024, 683) == [(640, 427)]
    assert sizes("vga", 300, 320) == [(600, 640)]
    assert sizes("mxnet", 1024, 1024) == [(1600, 1600)]
    assert sizes("mxnet", 1024, 512) == [(2150, 1075)]
    many = sizes("multiscale", 1024, 1024)
    assert many[::2] == [(500, 500), (800, 800), (1100, 1100), (1400, 1400), (1700, 1700)]
    assert many[::2] == many[1::2]
    assert [view.mirrored for view in views("multiscale", 9, 9)] == [False, True] * 5
    assert sizes("multiscale", 2400, 800)[2] == (1200, 400)  # the base is at most 1200 long
    with pytest.raises(ConfigError, match="protocol must be one of original"):
        views("vgg", 10, 10)


def test_mirrored_view_restores_exactly():
    face = Detections(
        np.array([[10, 5, 30, 25]], np.float32),
        np.ones(1, np.float32),
        np.array([[[12, 8], [28, 8], [20, 15], [14, 22], [26, 22]]], np.float32),
    )
    restored = View(100, 50, mirrored=True).restore(face, 100, 50)
    assert restored.boxes.tolist() == [[70, 5, 90, 25]]
    assert restored.landmarks[0].tolist() == [[72, 8], [88, 8], [80, 15], [74, 22], [86, 22]]
    assert len(View(100, 50, mirrored=True).restore(Detections(), 100, 50)) == 0


def test_voting_by_hand():
    def found(boxes, scores):
        points = np.repeat(np.float32(boxes)[:, None, :2], 5, axis=1)
        return Detections(np.float32(boxes), np.float32(scores), points)

    merged = vote(
        [found([[0, 0, 10, 10]], [0.6]), found([[2, 0, 12, 10], [50, 0, 60, 9]], [0.9, 0.1])]
    )
    np.testing.assert_allclose(merged.boxes, [[1.2, 0, 11.2, 10], [50, 0, 60, 9]], atol=1e-5)
    np.testing.assert_allclose(merged.scores, [0.9, 0.1])
    np.testing.assert_allclose(merged.landmarks[0, 0], [1.2, 0], atol=1e-5)
    assert len(vote([found([[0, 0, 10, 10], [50, 0, 60, 9]], [0.6, 0.5])], keep=1)) == 1
    assert len(vote([Detections(), Detections()])) == 0


def test_photos_are_read_as_stored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer would turn it by a quarter
    path = paint(tmp_path / "turned.jpg", exif=exif.tobytes())
    found = detect_photos(ColourDetector(), [photo(path)], progress=False)
    np.testing.assert_allclose(found["turned.jpg"].boxes, [[40, 60, 120, 180]], atol=1)


def test_batches_hold_one_size_and_few_pixels(tmp_path):
    sizes = [(320, 240), (300, 230), (640, 480), (310, 250), (320, 225), (900, 700)]
    photos = [photo(paint(tmp_path / f"{n}.png", size=size)) for n, size in enumerate(sizes)]
    detector = ColourDetector()
    found = detect_photos(detector, photos, batch_pixels=2 * 320 * 256, progress=False)
    assert list(found) == [p.name for p in photos]
    assert detector.batches == [
        [(700, 900)],
        [(480, 640)],
        [(240, 320), (230, 300)],
        [(250, 310), (225, 320)],
    ]


def test_an_unreadable_photo_is_one_error(tmp_path):
    (tmp_path / "b.png").write_bytes(b"not a picture")
    photos = [photo(paint(tmp_path / "a.png")), photo(tmp_path / "b.png")]
    with pytest.raises(DataError, match=r"b\.png"):
        detect_photos(ColourDetector(), photos, progress=False)


def test_an_error_of_the_detector_passes_through(tmp_path):
    class Broken:
        def detect_batch(self, images, *, bgr=False):
            raise KeyboardInterrupt

    photos = [photo(paint(tmp_path / f"{n}.png", size=(64 * n + 64, 64))) for n in range(9)]
    with pytest.raises(KeyboardInterrupt):
        detect_photos(Broken(), photos, progress=False)


@pytest.fixture
def plain_folder(tmp_path):
    """Three photos with an official annotation, of 96, 80 × 120 and no pixels."""
    root = tmp_path / "plain"
    rows = []
    for name, box in (
        ("a.png", (10, 10, 106, 106)),
        ("b.png", (40, 60, 120, 180)),
        ("c.png", None),
    ):
        paint(root / "images" / name, box=box or (0, 0, 0, 0))
        x1, y1, x2, y2 = box or (0, 0, 0, 0)
        rows += [name, "1" if box else "0", f"{x1} {y1} {x2 - x1} {y2 - y1} 0 0 0 0 0 0"]
    (root / "bbx_gt.txt").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def wider_folder(tmp_path):
    """Two of the three images of a small "WIDER FACE", so a subset."""
    root = tmp_path / "wider"
    truths = {
        "0--Parade": {"0_one": np.array([[40, 60, 80, 120]]), "0_two": np.array([[1, 2, 50, 60]])},
        "1--Handshaking": {"1_three": np.array([[40, 60, 80, 120]])},
    }
    numbers = {stem: [0] for images in truths.values() for stem in images}
    (root / "ground_truth").mkdir(parents=True)
    write_ground_truth(
        root / "ground_truth", truths, dict.fromkeys(("easy", "medium", "hard"), numbers)
    )
    rows = []
    for name in ("0--Parade/0_one.jpg", "1--Handshaking/1_three.jpg"):
        paint(root / "WIDER_val" / "images" / name)
        rows += [name, "1", "40 60 80 120 0 0 0 0 0 0"]
    split = root / "wider_face_split"
    split.mkdir()
    (split / "wider_face_val_bbx_gt.txt").write_text("\n".join(rows) + "\n")
    return root


def test_plain_folder_is_measured_by_size(plain_folder):
    data = find_evaluation_set(plain_folder)
    assert data.description == "val, 3 images"
    found = detect_photos(ColourDetector(), data.photos, progress=False)
    result = data.evaluate(found).as_dict()
    assert result["all"] == {"ap": 1.0, "ap_exact": 1.0, "faces": 2}
    assert (result["medium"]["faces"], result["large"]["faces"]) == (1, 1)
    assert data.first(1).description == "val, SUBSET: 1 of 3 images"
    assert data.sample(2, seed=3) == data.sample(2, seed=3)
    assert data.sample(2).count == 2
    assert data.sample(9) is data


def test_one_call_detects_and_measures(plain_folder):
    result = evaluate(ColourDetector(), plain_folder, protocol="original", progress=False)
    assert list(result.detections) == ["a.png", "b.png", "c.png"]
    data = find_evaluation_set(plain_folder)
    assert result.as_dict() == data.evaluate(result.detections).as_dict()
    assert repr(result) == (
        "Evaluation(AP all 1.0000, small nan, medium 1.0000, large 1.0000; 3 images)"
    )
    assert result.to_dataframe()["faces"].tolist() == [2, 0, 1, 1]
    first = evaluate(ColourDetector(), data, limit=1, progress=False)
    assert (first.images, list(first.detections)) == (1, ["a.png"])
    assert data.evaluate(result.detections, min_size=97).curves["all"].faces == 1
    with pytest.raises(CheckpointError, match=r"nowhere\.pth"):
        evaluate("nowhere.pth", data)


def test_widerface_subset_says_so(wider_folder):
    data = find_evaluation_set(wider_folder)
    assert data.description == "WIDER FACE val, SUBSET: 2 of 3 images"
    found = detect_photos(ColourDetector(), data.photos, progress=False)
    result = data.evaluate(found).as_dict()
    assert result["images"] == 2
    assert result["hard"] == {"ap": 1.0, "ap_exact": 1.0, "faces": 2}
    with pytest.raises(DataError, match=r"no val photos|no photos|none of"):
        find_evaluation_set(wider_folder / "ground_truth")
    alone = find_evaluation_set(wider_folder / "ground_truth", need_photos=False)
    assert alone.description == "WIDER FACE val, 3 images"


def test_test_split_needs_no_annotation(tmp_path):
    paint(tmp_path / "WIDER_test" / "images" / "0--Parade" / "0_x.jpg")
    data = find_evaluation_set(tmp_path, "test")
    assert [p.name for p in data.photos] == ["0--Parade/0_x.jpg"]
    found = detect_photos(ColourDetector(), data.photos, progress=False)
    write_submission(tmp_path / "out", found)
    assert read_submission(tmp_path / "out")["0--Parade/0_x"].shape == (1, 5)
    with pytest.raises(DataError, match="test split has no annotation"):
        data.evaluate(found)
    with pytest.raises(DataError):
        find_evaluation_set(tmp_path, "train")


def run_script(capsys, monkeypatch, *flags):
    """The exit code and what was printed."""
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, flags)])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_script_evaluates_files(wider_folder, tmp_path, capsys, monkeypatch):
    good = {
        name: [[40, 60, 80, 120, 0.9]] for name in ("0--Parade/0_one", "1--Handshaking/1_three")
    }
    write_submission(tmp_path / "good", good)
    write_submission(tmp_path / "half", {"0--Parade/0_one": good["0--Parade/0_one"]})
    flags = ["--predictions", tmp_path / "good", tmp_path / "half", "--data", wider_folder]
    code, out, err = run_script(capsys, monkeypatch, *flags, "--out", tmp_path / "result")
    assert code == 0, err
    assert "SUBSET: 2 of 3 images" in out
    assert "1 of 2 images have no prediction" in err
    written = json.loads((tmp_path / "result" / "evaluation.json").read_text())
    assert written["subset"] is True
    assert (written["images"], written["images_of_the_whole"]) == (2, 3)
    assert written["protocol"] == "unknown (files)"
    assert written["detectors"]["good"]["hard"]["ap"] == 1
    assert written["detectors"]["half"]["hard"]["ap_exact"] == 0.5
    assert "no prediction" in written["warnings"][0]
    assert (written["calibration"], written["consistency"]) == ({}, [])
    table = pd.read_csv(tmp_path / "result" / "evaluation.csv")
    assert len(table) == 6
    assert table["subset"].all()
    picture = cv2.imread(str(tmp_path / "result" / "precision_recall.png"))
    assert picture.shape[1] > 1000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere"], "nowhere does not exist"),
        (["--predictions", "nowhere"], "nowhere does not exist"),
        (["--weights", "a.pth", "--predictions", "b"], "either --weights or --predictions"),
        (["--protocol", "big"], "invalid choice"),
        (["--predictions", "a/x", "a/x"], "same name and folder"),
        (["--weights", "nowhere.pth"], "nowhere.pth"),
        (["--record", "--predictions", "a"], "--record writes into the files of --weights"),
        (
            ["--predictions", "a", "--protocol", "vga"],
            "--protocol cannot be combined with --predictions",
        ),
        (
            ["--predictions", "a", "--save-predictions", "b"],
            "--save-predictions cannot be combined",
        ),
        (["--record", "--weights", "v2.onnx"], "v2.onnx: AP is recorded in .pth files only"),
        (["--colour", "red"], "unrecognized arguments: --colour red; evaluate.py --help lists"),
    ],
)
def test_script_on_wrong_input(wider_folder, capsys, monkeypatch, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    data = [] if "--data" in flags else ["--data", wider_folder]
    code, _, err = run_script(capsys, monkeypatch, *data, *flags)
    assert code == 2
    assert message in err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_the_shipped_weights_and_their_graph(plain_folder, tmp_path, capsys, monkeypatch):
    graph = Path(__file__).parents[1] / "results/v2/featherface_v2_deployment.onnx"
    saved, out_folder = tmp_path / "saved", tmp_path / "out"
    flags = ["--data", plain_folder, "--device", "cpu", "--no-plots", "--out", out_folder]
    flags += ["--protocol", "vga", "--limit", 2]
    found = []
    for more in (["--save_predictions", saved], ["--weights", graph]):
        code, out, err = run_script(capsys, monkeypatch, *more, *flags)
        assert code == 0, err
        assert "SUBSET: 2 of 3 images, protocol vga" in out
        record = json.loads((out_folder / "evaluation.json").read_text())
        (measured,) = record["detectors"].values()
        found.append(measured["all"]["ap_exact"])
    assert found[1] == pytest.approx(found[0], abs=1e-3)
    assert sorted(path.name for path in saved.iterdir()) == ["a.txt", "b.txt"]
    assert (record["protocol"], record["score_threshold"]) == ("vga", 0.02)
    assert record["versions"]["torch"]
    source = record["sources"]["featherface_v2_deployment"]
    assert source["file"] == "featherface_v2_deployment.onnx" and len(source["sha256"]) == 64
    assert str(tmp_path) not in json.dumps(record)


def test_what_was_measured_is_recorded_in_the_weights(tmp_path, plain_folder, capsys, monkeypatch):
    torch.manual_seed(0)
    weights, foreign = tmp_path / "w.pth", tmp_path / "foreign.pth"
    state = FeatherFaceV2().state_dict()
    write_file(weights, {"format": FORMAT, "architecture": "v2", "model": state, "epoch": 7})
    write_file(foreign, FeatherFaceV1().state_dict())
    flags = ["--data", plain_folder, "--device", "cpu", "--limit", 1, "--no-plots", "--record"]
    flags += ["--out", tmp_path / "out"]
    for protocol in ("vga", "original", "vga"):
        code, _, err = run_script(
            capsys, monkeypatch, "--weights", weights, *flags, "--protocol", protocol
        )
        assert code == 0, err
    content = read_file(weights)  # plain values only: it still loads with weights_only
    assert content["epoch"] == 7 and load_model(weights).state_dict().keys() == state.keys()
    protocols = [(part["protocol"], part["subset"]) for part in content["evaluations"]]
    assert protocols == [("original", True), ("vga", True)]
    assert content["evaluations"][0]["all"].keys() == {"ap", "ap_exact", "faces"}
    flags = ["--weights", weights, foreign, "--data", plain_folder, "--record"]
    code, out, err = run_script(capsys, monkeypatch, *flags, "--out", tmp_path / "out")
    assert code == 2 and "foreign.pth: not a checkpoint" in err
    assert "recorded" not in out and "image" not in err, "said before anything is detected"


def test_help_is_quick_and_shows_defaults():
    run = subprocess.run(
        [sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    assert "--save-predictions" in run.stdout
    assert "(default: 0.02)" in run.stdout


def test_invalid_faces_are_neither_wanted_nor_wrong(plain_folder):
    annotation = plain_folder / "bbx_gt.txt"
    flagged = "c.png\n1\n150 20 60 60 0 0 0 1 0 0\n"
    annotation.write_text(annotation.read_text().split("c.png")[0] + flagged)
    data = find_evaluation_set(plain_folder)
    found = detect_photos(ColourDetector(), data.photos, progress=False)
    on_it = {**found, "c.png": np.array([[150, 20, 60, 60, 1.0]])}
    result = data.evaluate(on_it)
    assert result.as_dict()["all"] == {"ap": 1.0, "ap_exact": 1.0, "faces": 2}
    assert len(result.curves["all"].scores) == 2, "the detection on it must not count"
    elsewhere = {**found, "c.png": np.array([[50, 100, 60, 60, 1.0]])}
    assert data.evaluate(elsewhere).as_dict()["all"]["ap_exact"] < 1


class ScriptedDetector:
    """Stands in for Detector; what it finds depends on the name of its weights alone.

    "sure" finds the painted face at 0.9 and a false one at 0.3, "blind" nothing.
    """

    def __init__(self, weights, device, *settings, second_look):
        self.name, ScriptedDetector.second_look = Path(weights).stem, second_look

    def detect_batch(self, images, *, bgr=False):
        return [self.find(image) for image in images]

    def find(self, image):
        if self.name == "blind":
            return Detections()
        boxes = np.array([[40, 60, 120, 180], [200, 10, 230, 40]], np.float32)
        points = np.repeat(boxes[:, None, :2], 5, axis=1)
        return Detections(boxes, np.array([0.9, 0.3], np.float32), points)


@pytest.fixture
def compare_script(capsys, monkeypatch, tmp_path):
    """Runs the script with scripted detectors of the given names → printed text, JSON, folder."""

    def run(data, *names, flags=()):
        monkeypatch.setattr("featherface.detector.Detector", ScriptedDetector)
        paths = [tmp_path / f"{name}.pth" for name in names]
        for path in paths:
            path.write_bytes(b"weights")
        out = tmp_path / "compared"
        code, text, err = run_script(
            capsys, monkeypatch, "--weights", *paths, "--data", data, "--out", out, *flags
        )
        assert code == 0, err
        return text, json.loads((out / "evaluation.json").read_text()), out

    return run


def test_script_takes_a_second_look_only_when_asked_and_says_so(wider_folder, compare_script):
    for flags, protocol in ([], "original"), (["--second-look"], "original and a second look"):
        _, record, _ = compare_script(wider_folder, "sure", flags=flags)
        assert record["protocol"] == protocol and ScriptedDetector.second_look is bool(flags)


def test_script_calibrates_and_compares(wider_folder, compare_script):
    text, record, out = compare_script(wider_folder, "sure", "blind")
    sure, blind = record["calibration"]["sure"], record["calibration"]["blind"]
    assert (sure["setting"], sure["detections"]) == ("hard", 4)
    assert sure["expected_calibration_error"] == pytest.approx((2 * 0.1 + 2 * 0.3) / 4)
    assert sure["thresholds"]["0.95"] == sure["thresholds"]["0.99"]
    assert sure["thresholds"]["0.95"] == pytest.approx(
        {"threshold": 0.9, "precision": 1.0, "recall": 1.0}
    )
    assert blind["detections"] == 0
    assert "calibration of detections that score over 0.02 (setting: hard)" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["sure", "4", "0.200", "0.900", "1.000", "0.900", "1.000"] in rows
    assert ["blind", "0", *["none"] * 5] in rows
    (pair,) = record["consistency"]
    assert (pair["a"], pair["b"], pair["score_above"]) == ("sure", "blind", 0.5)
    assert (pair["matched"], pair["missed"], pair["extra"]) == (0, 2, 0)  # 0.3 is below 0.5
    assert pair["score_correlation"] is None, "JSON has no NaN"
    assert "consistency with sure, faces that score over 0.5" in text
    assert ["blind", "0", "2", "0", "0.000", *["none"] * 3] in rows
    assert len(pd.read_csv(out / "consistency_sure_blind.csv")) == 2
    figures = {"precision_recall.png", "reliability.png", "consistency_sure_blind.png"}
    assert {path.name for path in out.glob("*.png")} == figures
    assert all(cv2.imread(str(out / name)).shape[1] > 500 for name in figures)


def test_script_calibrates_one_detector_on_all_faces_of_a_folder(plain_folder, compare_script):
    text, record, out = compare_script(plain_folder, "sure")
    assert record["calibration"]["sure"]["setting"] == "all"
    assert "(setting: all)" in text and "consistency" not in text
    assert record["consistency"] == []
    assert {path.name for path in out.glob("*.png")} == {"precision_recall.png", "reliability.png"}


def test_script_without_plots_and_with_errors(wider_folder, compare_script, tmp_path):
    flags = ["--no_plots", "--errors", tmp_path / "errors"]
    text, _, out = compare_script(wider_folder, "sure", "blind", flags=flags)
    assert "miss, 64–128 px: 2 of 2" in (tmp_path / "errors/errors.html").read_text()
    assert sorted(path.name for path in out.iterdir()) == [
        "consistency_sure_blind.csv",
        "evaluation.csv",
        "evaluation.json",
    ]
    assert ".png" not in text


def test_names_of_what_is_compared():
    assert labels(["x/a.pth", "y/b.pth"]) == {"a": "x/a.pth", "b": "y/b.pth"}
    assert labels(["x/a.pth", "y/a.pth"]) == {"x_a": "x/a.pth", "y_a": "y/a.pth"}
    assert [*labels(["x/a.pth", "x/a.onnx", "y/b.pth"])] == ["x_a.pth", "x_a.onnx", "y_b.pth"]
    with pytest.raises(ConfigError, match="rename one"):
        labels(["x/a.pth", "y/b.pth", "x/a.pth"])


def test_the_command_is_quick_to_import():
    code = (
        "import sys, featherface.evaluation.command\n"
        "print([m for m in ('torch', 'pandas', 'matplotlib', 'scipy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr
