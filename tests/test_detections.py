"""Detections: selection, order, equality, aligned and cropped faces, and other tools' formats."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

import featherface as ff
from featherface.errors import DataError
from featherface.structures import COCO_CATEGORY, FACE_TEMPLATE, LANDMARK_NAMES, Detections


def random_faces(count=6, seed=0):
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(0, 60, (count, 2)), rng.uniform(8, 40, (count, 2))
    boxes = np.concatenate([corner, corner + side], axis=1)
    points = corner[:, None] + FACE_TEMPLATE / 112 * side[:, None] + rng.normal(0, 1, (count, 5, 2))
    scores = np.sort(rng.uniform(0.2, 1, count))[::-1]
    return Detections(*(part.astype(np.float32) for part in (boxes, scores, points)))


def test_indexing():
    faces = random_faces()
    assert faces[0] == faces[:1] == next(iter(faces)) and len(faces[0]) == 1
    assert faces[-1] == faces[5] == faces[np.int64(5)] == faces[[5]]
    mask = faces.scores > faces.scores[2]
    assert faces[mask] == faces[mask.tolist()] == faces[[0, 1]] == faces[:2]
    assert faces[[]] == faces[:0] == Detections()
    for outside in (6, -7):
        with pytest.raises(IndexError, match=f"no face {outside}"):
            faces[outside]


def test_equality_is_of_values():
    faces, same = random_faces(), pickle.loads(pickle.dumps(random_faces()))
    assert faces == same and same in [Detections(), faces]
    assert faces != faces[::-1] and faces != faces[:3] and faces != "faces"
    same.landmarks[2, 3] = np.nan
    assert faces != same and same == pickle.loads(pickle.dumps(same))


def test_filter():
    faces = random_faces()
    width, height = faces.boxes[0, 2:] - faces.boxes[0, :2]
    assert faces.sizes[0] ** 2 == pytest.approx(width * height)
    middle = float(np.median(faces.sizes))
    small, large = faces.filter(max_size=middle), faces.filter(min_size=middle)
    assert len(small) == len(large) == 3
    assert faces.filter() == faces and faces.filter(min_score=float(faces.scores[3])) == faces[:4]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("score", lambda faces: -faces.scores),
        ("size", lambda faces: -faces.sizes),
        ("x", lambda faces: faces.boxes[:, ::2].sum(1)),
        ("y", lambda faces: faces.boxes[:, 1::2].sum(1)),
    ],
)
def test_sort_by(key, values):
    faces = random_faces()[[3, 1, 5, 0, 4, 2]]
    ordered = faces.sort_by(key)
    assert (np.diff(values(ordered)) > 0).all() and ordered != faces
    assert ordered[::-1] == faces.sort_by(key, reverse=True)
    assert ordered.sort_by("score") == random_faces()
    with pytest.raises(ValueError, match="score, size, x, y"):
        faces.sort_by("beauty")


def test_repr_says_what_was_found():
    faces = Detections(
        np.float32([(0, 0, 30, 30), (0, 0, 10, 40)]), np.float32([0.91, 0.5]), np.zeros((2, 5, 2))
    )
    assert repr(faces) == "Detections(2 faces, score 0.50 to 0.91, size 20 to 30 pixels)"
    assert repr(faces[0]) == "Detections(1 face, score 0.91, size 30 pixels)"
    assert repr(faces[:0]) == "Detections(0 faces)"


@pytest.mark.parametrize("size", [112, 100, 256])
def test_transforms_equal_scikit_image(size):
    transform = pytest.importorskip("skimage.transform").SimilarityTransform
    rng = np.random.default_rng(size)
    turned = FACE_TEMPLATE @ [(0.3, -2.0), (2.0, 0.3)] + 700
    points = [turned, FACE_TEMPLATE[:, ::-1], *(turned + rng.normal(0, 9, (8, 5, 2)))]
    faces = Detections(np.zeros((10, 4)), np.ones(10), np.array(points))
    for found, matrix in zip(points, faces.transforms(size), strict=True):
        expected = transform.from_estimate(found, FACE_TEMPLATE * size / 112)
        moved = found @ matrix[:, :2].T + matrix[:, 2]
        np.testing.assert_allclose(moved, expected(found), atol=0.01)


def test_align_turns_a_face_upright(tmp_path):
    rng = np.random.default_rng(0)
    upright = np.kron(rng.integers(0, 256, (14, 14, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    image = np.zeros((300, 300, 3), np.uint8)
    image[100:212, 150:262] = np.rot90(upright, 2)
    points = 111 - FACE_TEMPLATE + (150, 100)  # pixel p of a turned picture is pixel 111 - p
    faces = Detections(np.zeros((2, 4)), np.ones(2), np.stack([points, FACE_TEMPLATE]))
    first, second = faces.align(image)
    np.testing.assert_array_equal(first, upright)
    np.testing.assert_array_equal(second, image[:112, :112])
    np.testing.assert_array_equal(faces.align(image[..., ::-1], bgr=True)[0], upright)
    Image.fromarray(image).save(tmp_path / "a.png")
    assert faces.align(tmp_path / "a.png", 64).shape == (2, 64, 64, 3)
    assert Detections().align(image).shape == (0, 112, 112, 3)


@pytest.mark.parametrize("broken", [np.nan, np.inf, 7.0])
def test_landmarks_that_cannot_be_aligned_are_named(broken):
    faces = random_faces()
    faces.landmarks[4] = broken
    with pytest.raises(DataError, match="face 4 cannot be aligned"):
        faces.align(np.zeros((90, 90, 3), np.uint8))
    with pytest.raises(ValueError, match="size=0"):
        faces.align(np.zeros((90, 90, 3), np.uint8), 0)


def test_crop_stays_inside_the_image():
    image = np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)
    boxes = np.float32([(10, 10, 20, 30), (0, 30, 10, 40), (60, 0, 70, 9)])
    faces = Detections(boxes, np.ones(3), np.zeros((3, 5, 2)))
    inner, corner, outside = faces.crop(image, margin=0.2)
    np.testing.assert_array_equal(inner, image[6:34, 8:22])
    np.testing.assert_array_equal(corner, image[28:40, 0:12])
    assert outside.size == 0
    np.testing.assert_array_equal(faces.crop(image[..., ::-1], 0, bgr=True)[0], image[10:30, 10:20])
    inner[:] = 0
    assert image[10, 10].any()


def test_json_holds_all_digits_and_null_for_what_is_not_a_number():
    faces = random_faces(2)
    faces.landmarks[1, 0] = np.nan
    first, second = json.loads(faces.to_json())
    np.testing.assert_array_equal(np.float32(first["box"]), faces.boxes[0])
    assert list(first["landmarks"]) == list(LANDMARK_NAMES)
    assert second["landmarks"]["left_eye"] == [None, None]
    (rounded, _) = faces.to_dicts(decimals=1)
    assert rounded["score"] == round(float(faces.scores[0]), 3)
    assert rounded["box"] == [round(float(value), 1) for value in faces.boxes[0]]
    assert Detections().to_json() == "[]"


def test_coco_is_read_back(tmp_path, capsys):
    coco = pytest.importorskip("pycocotools.coco").COCO
    faces = random_faces()
    faces.landmarks[1, 0] = np.nan
    annotations = faces.to_coco(image_id=7, first_id=3)
    image = {"id": 7, "file_name": "a.jpg", "width": 120, "height": 120}
    file = tmp_path / "coco.json"
    file.write_text(
        json.dumps({"images": [image], "annotations": annotations, "categories": [COCO_CATEGORY]})
    )
    read = coco(str(file))
    for source in (read, read.loadRes(annotations)):
        found = source.loadAnns(source.getAnnIds(imgIds=[7], catIds=[1]))
        x, y, width, height = np.transpose([one["bbox"] for one in found])
        np.testing.assert_array_equal(np.float32([x, y, x + width, y + height]).T, faces.boxes)
        np.testing.assert_array_equal(np.float32([one["score"] for one in found]), faces.scores)
    points = np.reshape([one["keypoints"] for one in annotations], (6, 5, 3))
    assert points[1, 0].tolist() == [0, 0, 0] and annotations[1]["num_keypoints"] == 4
    np.testing.assert_array_equal(points[0, :, :2], faces.landmarks[0])


def test_supervision():
    sv = pytest.importorskip("supervision")
    faces = random_faces()
    found = faces.to_supervision()
    assert isinstance(found, sv.Detections) and found.class_id.tolist() == [0] * 6
    np.testing.assert_array_equal(found.xyxy, faces.boxes)
    best = found[found.confidence > faces.scores[1]]
    np.testing.assert_array_equal(best.data["landmarks"], faces.landmarks[:1])
    assert len(Detections().to_supervision()) == 0


def test_blur_removes_details():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (120, 120, 3), np.uint8)
    faces = Detections(np.float32([(30, 30, 90, 90)]), np.ones(1), np.zeros((1, 5, 2)))
    hidden = ff.blur(image, faces, margin=0)
    inside = np.s_[30:90, 30:90]
    assert image[inside].std() > 60 and hidden[inside].std() < 20
    shuffled = image.copy()  # other details with the same mean colours
    cells = image[inside].reshape(6, 10, 6, 10, 3)
    shuffled[inside] = cells[:, ::-1, :, ::-1].reshape(60, 60, 3)
    np.testing.assert_array_equal(ff.blur(shuffled, faces, margin=0)[inside], hidden[inside])
    hidden[inside] = image[inside]
    np.testing.assert_array_equal(hidden, image)
    np.testing.assert_array_equal(ff.blur(image[..., ::-1], Detections(), bgr=True), image)
