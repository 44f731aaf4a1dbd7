"""The second look at large images: whole faces without their parts, and the small faces inside."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from exported import assert_same_faces

import featherface as ff
from featherface.evaluation.consistency import pairwise_iou
from featherface.face_detector import FaceDetector
from featherface.images import read_image

ROOT = Path(__file__).resolve().parents[1]
WHOLE, PART = (100, 50, 1000, 1150), (200, 300, 620, 720)  # of a face in 1,280 × 1,280 pixels
SMALL = (300, 200, 380, 300)  # inside WHOLE
MIDDLE = (1010, 10, 1210, 260)


class Scripted(FaceDetector):
    """Finds given faces, [(box, score), …] in pixels of the image, by the long side of a look."""

    device = architecture = "none"

    def __init__(self, faces, full=1280, **options):
        super().__init__(0.5, 0.4, options.get("max_side"), options.get("second_look", True))
        self.faces, self.full, self.sides = faces, full, []

    def _facts(self):
        return "scripted"

    def _run(self, pictures, size):
        found = []
        for picture in pictures:
            side = max(picture.shape[:2])
            self.sides.append(side)
            rows = sorted(self.faces.get(side, ()), key=lambda row: -row[1])
            boxes = np.array([box for box, _ in rows], np.float32).reshape(-1, 4)
            points = np.repeat(boxes[:, None, :2], 5, axis=1)
            scale = np.float32(side / self.full)
            scores = np.array([score for _, score in rows], np.float32)
            found.append((boxes * scale, scores, points * scale))
        return found


def square(side):
    return np.zeros((side, side, 3), np.uint8)


def found(faces):
    return [tuple(box) for box in faces.boxes.round().tolist()]


def test_a_whole_face_replaces_its_parts_and_keeps_small_faces_inside():
    coarse = tuple(np.add(SMALL, 3))
    detector = Scripted({1280: [(PART, 0.99), (SMALL, 0.6)], 640: [(WHOLE, 0.7), (coarse, 0.95)]})
    assert found(detector.detect(square(1280))) == [WHOLE, SMALL]
    assert detector.sides == [1280, 640]


@pytest.mark.parametrize("best", [1280, 640])
def test_a_face_that_both_looks_find_counts_once(best):
    other = 1920 - best
    detector = Scripted({best: [(MIDDLE, 0.9)], other: [(tuple(np.add(MIDDLE, 8)), 0.8)]})
    faces = detector.detect(square(1280))
    assert found(faces) == [MIDDLE] and faces.scores.tolist() == [np.float32(0.9)]
    assert faces.landmarks[0, 0].tolist() == list(MIDDLE[:2])


def test_one_look_without_it_and_at_small_images():
    everything = [(WHOLE, 0.9), (PART, 0.8), (SMALL, 0.7)]
    detector = Scripted({1280: everything, 640: [(MIDDLE, 0.9)]}, second_look=False)
    assert found(detector.detect(square(1280))) == [WHOLE, PART, SMALL]
    for image, options in ((square(640), {}), (square(1280), {"max_side": 640})):
        detector = Scripted({640: everything}, full=max(image.shape), **options)
        assert len(detector.detect(image)) == 3
        assert detector.sides == [640]


def test_the_limits_are_in_pixels_of_the_first_look():
    double = {1280: [(WHOLE, 0.9), (PART, 0.8), (SMALL, 0.7)], 640: [(WHOLE, 0.6), (SMALL, 0.9)]}
    detector = Scripted(double, full=2560, max_side=1280)
    # PART has 210 pixels at 1,280 and stays; SMALL, 45 pixels, comes from the first look
    assert found(detector.detect(square(2560))) == [PART, SMALL, WHOLE]
    assert found(detector.detect_batch([square(100), square(2560)])[1]) == [PART, SMALL, WHOLE]


def test_a_large_face_by_default():
    """A face 790 pixels high, and the same face 110 pixels high in a corner."""
    astronaut = read_image(ROOT / "docs/astronaut.jpg")[20:220, 130:320]
    portrait = cv2.resize(astronaut, None, fx=7, fy=7, interpolation=cv2.INTER_CUBIC)
    portrait[:200, -190:] = astronaut
    wanted = np.array([(7 * 49, 7 * 42, 7 * 140, 7 * 155), (1189, 42, 1280, 155)])
    faces, first = (
        ff.Detector(device="cpu", second_look=both).detect(portrait) for both in (True, False)
    )
    assert len(faces) == 2 and (pairwise_iou(wanted, faces.boxes).max(axis=1) > 0.7).all()
    assert pairwise_iou(wanted, first.boxes)[0].max() < 0.5
    assert_same_faces(ff.OnnxDetector(device="cpu").detect(portrait), faces)
    assert_same_faces(ff.OnnxDetector(device="cpu", second_look=False).detect(portrait), first)
