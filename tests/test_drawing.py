"""Drawing leaves the picture alone, draws where the faces are, and survives any size."""

import numpy as np
import pytest
import torch
from conftest import make_targets
from PIL import Image

import featherface as ff
from featherface.drawing import draw_targets
from featherface.structures import Detections


def faces_at(*boxes, scores=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    scores = np.linspace(0.9, 0.6, len(boxes)) if scores is None else np.array(scores)
    landmarks = np.repeat(center[:, None], 5, axis=1)
    return Detections(boxes, scores.astype(np.float32), landmarks.astype(np.float32))


def changed(before, after):
    """Bounding box x1, y1, x2, y2 of the pixels that differ."""
    rows, columns = np.nonzero((before != after).any(axis=2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_the_image_is_copied():
    image = np.full((60, 80, 3), 90, np.uint8)
    drawn = ff.draw(image, faces_at((20, 20, 50, 50)))
    assert (image == 90).all() and drawn.shape == image.shape and drawn.dtype == np.uint8
    unchanged = ff.draw(image, Detections())
    assert (unchanged == 90).all() and unchanged is not image
    assert not np.shares_memory(unchanged, image)


def test_box_lies_on_the_edge_of_the_face():
    image = np.full((100, 100, 3), 90, np.uint8)
    drawn = ff.draw(image, faces_at((30, 40, 60, 80)), scores=False, landmarks=False)
    x1, y1, x2, y2 = changed(image, drawn)
    assert np.abs(np.array((x1, y1, x2, y2)) - (30, 40, 60, 80)).max() <= 2
    assert (drawn[50:70, 40:50] == 90).all()  # the face itself stays in sight
    np.testing.assert_array_equal(drawn[60, 30], (240, 228, 66))


def test_scores_and_landmarks_can_be_left_out():
    image = np.full((100, 100, 3), 90, np.uint8)
    faces = faces_at((30, 40, 60, 80))
    plain = ff.draw(image, faces, scores=False, landmarks=False)
    points = ff.draw(image, faces, scores=False)
    scores = ff.draw(image, faces, landmarks=False)
    x1, y1, x2, y2 = changed(plain, points)
    assert 40 <= x1 < x2 <= 50 and 55 <= y1 < y2 <= 65
    x1, y1, x2, y2 = changed(plain, scores)
    assert y2 <= 45  # above the box


def test_lines_grow_with_the_picture():
    def edge(scale):
        image = np.zeros((480 * scale, 640 * scale, 3), np.uint8)
        box = np.array((100, 100, 400, 400)) * scale
        drawn = ff.draw(image, faces_at(box), scores=False, landmarks=False)
        return np.count_nonzero(drawn[250 * scale, : 300 * scale].sum(axis=1))

    assert edge(1) < edge(4) < edge(8)


def test_bgr_arrays_and_pil_images():
    rgb = np.zeros((40, 40, 3), np.uint8) + np.array((200, 100, 50), np.uint8)
    faces = faces_at((10, 10, 30, 30))
    drawn = ff.draw(rgb, faces)
    np.testing.assert_array_equal(ff.draw(rgb[..., ::-1], faces, bgr=True), drawn)
    np.testing.assert_array_equal(ff.draw(Image.fromarray(rgb), faces), drawn)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (40, 40), (3000, 2000)])
def test_any_size_and_any_face(size):
    height, width = size
    wild = faces_at((0, 0, width, height), (width - 0.2, 0, width, height), (0, 0, 1, 1))
    wild.landmarks[0] = 1e9
    wild.landmarks[1] = np.nan
    assert ff.draw(np.zeros((height, width), np.uint8), wild).shape == (height, width, 3)


def test_a_better_score_is_not_covered():
    image = np.full((200, 300, 3), 90, np.uint8)
    best = faces_at((100, 100, 140, 140), scores=(0.99,))
    both = faces_at((100, 100, 140, 140), (102, 100, 142, 140), scores=(0.99, 0.51))
    label = slice(60, 97), slice(95, 125)
    np.testing.assert_array_equal(ff.draw(image, both)[label], ff.draw(image, best)[label])


def test_better_faces_are_drawn_over_worse_ones():
    image = np.full((100, 100, 3), 90, np.uint8)
    faces = faces_at((20, 20, 60, 60), (40, 40, 80, 80), scores=(0.9, 0.6))
    drawn = ff.draw(image, faces, scores=False, landmarks=False)
    assert (drawn[20:60, 59] == (240, 228, 66)).all()  # the better box's right edge is whole
    assert not (drawn[40, 40:80] == (240, 228, 66)).all()  # the worse box's top edge is crossed


def test_targets_are_drawn_by_what_they_count():
    targets = make_targets(*[[(10.0, 10.0, 30.0, 30.0), (40.0, 36.0, 56.0, 60.0)]] * 8)
    targets.ignore[0, 1] = True
    targets.weight[1] = 0
    sheet = draw_targets(torch.zeros(8, 3, 64, 64), targets)
    assert sheet.dtype == np.uint8 and sheet.shape == (2 * 68 + 4, 4 * 68 + 4, 3)
    first, second = (sheet[4:68, x : x + 64].reshape(-1, 3) for x in (4, 72))
    for color in ((240, 228, 66), (204, 121, 167)):
        assert (first == color).all(axis=1).any()
    assert not second.any()
