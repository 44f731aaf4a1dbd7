"""Labels from an ensemble: fusion, turned photos, the annotation that training reads, resuming."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import shared
from PIL import Image
from tiny_sets import FACE_COLOUR, write_photo

from featherface import labelling
from featherface.config import TrainConfig
from featherface.data.annotations import read_annotations
from featherface.data.loader import FaceDataset
from featherface.data.widerface import read_split
from featherface.detector import Detector
from featherface.errors import ConfigError, DataError
from featherface.evaluation.submission import read_submission
from featherface.images import exif_orientation, open_photo, read_image
from featherface.labelling import as_stored, find_faces, label_photos, upright
from featherface.onnx_detector import SHIPPED_GRAPH
from featherface.structures import FLIPPED_LANDMARKS, Detections

ROOT = Path(__file__).parent.parent

POINTS = np.array([(0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8)], np.float32)


class GreenDetector:
    """Finds the green rectangle of a picture. score: of its face; seen: shapes of the pictures."""

    size, score_threshold = None, 0.1

    def __init__(self, score=0.9, size=None):
        self.score, self.size, self.seen = score, size, []

    def detect(self, image, *, bgr=False):
        assert bgr and image.dtype == np.uint8
        self.seen.append(image.shape[:2])
        red, green = FACE_COLOUR[:2]
        rows, columns = np.nonzero((image[..., 1] > green / 2) & (image[..., 2] < 3 * red))
        if not len(rows):
            return Detections()
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
        points = box[:2] + POINTS * (box[2:] - box[:2])
        return Detections(box[None], np.array([self.score], np.float32), points[None])


def test_views_are_merged_and_detectors_must_agree(tmp_path):
    write_photo(tmp_path / "a.png", boxes=((20, 10, 40, 34),))
    image = np.asarray(Image.open(tmp_path / "a.png"))[..., ::-1]
    sure, fixed, blind = GreenDetector(0.8), GreenDetector(0.4, size=(64, 48)), GreenDetector()
    blind.detect = lambda image, bgr: Detections()
    faces = find_faces([sure, fixed, blind], image, sides=(96, 192))
    np.testing.assert_allclose(faces.boxes, [(20, 10, 40, 34)], atol=1)
    np.testing.assert_allclose(faces.landmarks[0], (20, 10) + POINTS * (20, 24), atol=1)
    assert faces.scores.tolist() == pytest.approx([0.4])  # (0.8 + 0.4 + 0) / 3
    assert sure.seen == [(64, 96)] * 2 + [(128, 192)] * 2
    assert fixed.seen == [(43, 64)] * 2  # a larger view would show it the same again


def test_a_doubtful_neighbour_does_not_gain_a_faces_score():
    boxes = np.array([(0, 0, 100, 100), (44, 0, 144, 100), (20, 0, 120, 100)], np.float32)
    points = np.zeros((1, 5, 2), np.float32)
    first, second, third = (
        Detections(boxes[k : k + 1], np.array([score], np.float32), points)
        for k, score in enumerate((0.9, 0.2, 0.1))
    )
    none = Detections()
    found = iter([first, none, second, none, third, none])  # nothing in mirrored views
    detector = GreenDetector()
    detector.detect = lambda image, bgr: next(found)
    faces = find_faces([detector], np.zeros((100, 200, 3), np.uint8), sides=(200,) * 3)
    assert faces.scores.tolist() == pytest.approx([0.9, 0.2])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_faces_of_a_turned_photo_are_mapped_to_its_pixels(tmp_path, orientation):
    numbers = np.arange(64 * 96).reshape(64, 96, 1)
    stored = Image.fromarray(np.tile((numbers % 251).astype(np.uint8), 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    shown = upright(np.asarray(stored), orientation)
    np.testing.assert_array_equal(shown, read_image(tmp_path / "turned.png"))
    assert exif_orientation(open_photo(tmp_path / "turned.png")) == orientation

    points = np.array([(22, 12), (35, 13), (28, 20), (23, 28), (36, 29), (20, 10), (39, 33)])
    found = upright(numbers, orientation)[points[:, 1], points[:, 0], 0]  # pixels shown there
    places = np.stack((found % 96, found // 96), axis=1)
    *_, first, last = places
    order = list(FLIPPED_LANDMARKS if orientation in (2, 4, 5, 7) else range(5))  # mirrored: swap
    box = np.array([[20, 10, 40, 34]], np.float32)
    faces = Detections(box, np.ones(1, np.float32), points[None, :5] + np.float32(0.5))
    faces = as_stored(faces, orientation, width=96, height=64)
    corners = [*np.minimum(first, last), *(np.maximum(first, last) + 1)]
    np.testing.assert_array_equal(faces.boxes, [corners])
    np.testing.assert_array_equal(faces.landmarks[0], places[order] + 0.5)


@pytest.fixture
def green(monkeypatch):
    """A detector of green faces in place of the files that are named."""
    detector = GreenDetector()
    monkeypatch.setattr(labelling, "open_for_labelling", lambda *_, **__: detector)
    return detector


def test_training_reads_the_labels_of_a_folder(tmp_path, green):
    folder, weights = tmp_path / "mine", tmp_path / "w.pth"
    weights.write_bytes(b"one")
    for name, box in (("a.jpg", (20, 10, 40, 34)), ("b/c.png", (30, 20, 60, 50)), ("d.png", None)):
        write_photo(folder / name, boxes=(box,) if box else ())
    (folder / "odd.jpg").write_bytes(b"no picture")
    options = {"sides": (96,), "progress": False}
    labels = label_photos(folder, [weights], **options)
    assert (len(labels.photos), labels.faces, labels.ignored) == (3, 2, 0)
    assert len(labels.skipped) == 1 and "odd.jpg" in labels.skipped[0]

    photos = read_split(folder, annotation=folder / "label.txt")
    assert [photo.name for photo in photos] == ["a.jpg", "b/c.png", "d.png"]
    np.testing.assert_allclose(photos[1].boxes, [(30, 20, 60, 50)], atol=1)
    _, target = FaceDataset(photos, TrainConfig(image_size=64, crop_scale_min=1))[0, 1]
    assert target.landmark_mask.all() and not target.ignore.any()

    seen = len(green.seen)  # other scores need no detection; other detectors do
    labels = label_photos(folder, [weights], **options, score=0.95, doubt=0.5)
    assert (labels.faces, labels.ignored, len(green.seen)) == (0, 2, seen)
    photos = read_split(tmp_path, annotation=folder / "label.txt")
    _, target = FaceDataset(photos, TrainConfig(image_size=64, crop_scale_min=1))[0, 1]
    assert target.ignore.all() and len(target.ignore) == 1
    weights.write_bytes(b"two")
    with pytest.raises(ConfigError, match=r"label\.txt\.jsonl was begun with other detectors"):
        label_photos(folder, [weights], **options)


def test_an_interrupted_run_continues(tmp_path, green, monkeypatch):
    weights, predictions = tmp_path / "w.pth", tmp_path / "predictions"
    weights.write_bytes(b"one")
    for name in "abc":
        write_photo(tmp_path / f"mine/{name}.png", boxes=((20, 10, 40, 34),))
    detect = GreenDetector.detect

    def interrupted(self, image, *, bgr):
        if len(self.seen) == 4:  # two views of each photo
            raise KeyboardInterrupt
        return detect(self, image, bgr=bgr)

    options = {"sides": (96,), "progress": False, "predictions": predictions}
    monkeypatch.setattr(GreenDetector, "detect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        label_photos(tmp_path / "mine", [weights], **options)
    assert len(read_annotations(tmp_path / "mine/label.txt", tmp_path)) == 2
    monkeypatch.setattr(GreenDetector, "detect", detect)
    journal = tmp_path / "mine/label.txt.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])  # killed while it wrote the second photo
    labels = label_photos(tmp_path / "mine", [weights], **options)
    assert labels.faces == 3 and len(green.seen) == 4 + 4
    assert len(read_submission(predictions)) == 3
    assert label_photos(tmp_path / "mine", [weights], **options).faces == 3
    assert len(green.seen) == 4 + 4
    journal.write_text(journal.read_text().replace("[", "(", 1))
    with pytest.raises(DataError, match="damaged: remove it to begin again"):
        label_photos(tmp_path / "mine", [weights], **options)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"detectors": []}, "at least one detector"),
        ({"sides": (16,)}, "32 pixels or more"),
        ({"doubt": 0.5, "score": 0.4}, "0 < doubt ≤ score ≤ 1"),
        ({"folder": "none"}, "holds no photo"),
    ],
)
def test_wrong_settings_are_named(tmp_path, green, changed, said):
    write_photo(tmp_path / "a.png")
    options = {"folder": tmp_path, "detectors": ["x.pth"]} | changed
    with pytest.raises((ConfigError, DataError), match=said):
        label_photos(**options)


def test_the_command_labels_with_the_shipped_files(tmp_path, monkeypatch, capsys):
    (tmp_path / "astronaut.jpg").write_bytes((ROOT / "docs/astronaut.jpg").read_bytes())
    files = [str(ROOT / "weights/v2/FeatherFaceV2_final.pth"), str(SHIPPED_GRAPH)]
    words = ["label", str(tmp_path), "--sides", "320", "--detectors", *files]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(ROOT / "scripts/label_photos.py"), run_name="__main__")
    assert "1 photograph, 1 face," in capsys.readouterr().out
    (photo,) = read_annotations(tmp_path / "label.txt", tmp_path)
    best = Detector().detect(photo.path)
    assert best.boxes[0] == pytest.approx(photo.boxes[0], abs=8)
    assert np.abs(best.landmarks[0] - photo.landmarks[0]).max() < 6


@pytest.mark.parametrize("name", ["scrfd_2.5g_kps_dyn", "yunet_n_dyn", "retinaface_mb025_dyn"])
def test_landmarks_of_other_detectors_are_where_ours_are(name):
    peer = labelling.open_for_labelling(shared("peers", f"{name}.onnx"), score_threshold=0.5)
    faces, ours = (found.detect(ROOT / "docs/astronaut.jpg") for found in (peer, Detector()))
    apart = np.linalg.norm(faces.landmarks[0] - ours.landmarks[0], axis=1)
    assert apart.max() < 0.12 * ours.sizes[0]
