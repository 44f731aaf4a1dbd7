"""Augmentation keeps boxes and landmarks on their pixels, and copes with photos of every kind."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PilImage
from tiny_sets import FACE_COLOUR, make_photo, write_photo
from torchvision.ops import box_convert, box_iou
from torchvision.transforms.v2 import functional as F

from featherface.anchors import make_anchors, match
from featherface.data import augment
from featherface.data.annotations import Photo
from featherface.data.augment import (
    FILL_RGB,
    IGNORE_VISIBLE,
    Colour,
    Plan,
    change_colour,
    draw,
    draw_colour,
    make_image,
    place_faces,
)
from featherface.errors import DataError
from featherface.images import Window, decode, is_complete, open_photo
from featherface.structures import Target

SIZE, PLAIN = 96, Colour()


def augmented(photo, *, seed=0, scale=(0.3, 2.0), size=SIZE, colour=PLAIN, flip=None):
    """A drawn crop with the given colours and flip (None: drawn): image, Target."""
    torch.manual_seed(seed)
    plan = draw(photo, open_photo(photo.path), size=size, scale=scale)
    plan = plan._replace(colour=colour, flip=plan.flip if flip is None else flip)
    return make_image(plan), place_faces(photo, plan, min_face=4.0)


def planned(photo, window, *, size=None, **changes):
    """A given crop, by default not resized: its Plan."""
    return Plan(open_photo(photo.path), window, size or window.side, **changes)


def is_green(image):
    """(h, w) bool: pixels nearer to the faces' colour than to background or fill."""
    return (image[1].int() - image[0].int() > 80) & (image[1].int() - image[2].int() > 60)


def photo_with(tmp_path, boxes, points=None):
    """A photo of 100 × 80 with these boxes, whose pixels do not show them."""
    path = tmp_path / "a.png"
    write_photo(path, width=100, height=80)
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    points = np.zeros((len(boxes), 5, 2)) if points is None else points
    mask = np.ones((len(boxes), 5), bool)
    return Photo(path, path.name, boxes, np.array(points, np.float32), mask)


def placed(photo, window, *, min_face=1.0, **changes):
    return place_faces(photo, planned(photo, window, **changes), min_face=min_face)


# Flip ------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 90), st.integers(-40, 40), st.integers(0, 3))
def test_a_flip_mirrors_pixels_boxes_and_points(tmp_path_factory, seed, side, left, faces):
    random = np.random.default_rng(seed)
    corners = np.sort(random.uniform(-5, 85, (faces, 2, 2)), axis=1).reshape(-1, 4)
    points = random.uniform(0, 80, (faces, 5, 2))
    photo = photo_with(tmp_path_factory.getbasetemp(), corners, points)
    plan = planned(photo, Window(left, left, max(side, 1 - left), 1), size=48)
    mirrored = plan._replace(flip=True)
    assert torch.equal(make_image(mirrored), make_image(plan).flip(-1))
    one, other = (place_faces(photo, each, min_face=1.0) for each in (plan, mirrored))
    boxes = other.boxes[:, [2, 1, 0, 3]]
    boxes[:, ::2] = 48 - boxes[:, ::2]
    torch.testing.assert_close(boxes, one.boxes)
    swapped = [1, 0, 2, 4, 3]  # left and right change sides
    expected = torch.stack((48 - one.landmarks[..., 0], one.landmarks[..., 1]), -1)[:, swapped]
    torch.testing.assert_close(other.landmarks, expected)
    assert torch.equal(other.landmark_mask, one.landmark_mask[:, swapped])
    assert torch.equal(other.ignore, one.ignore)


def test_a_flip_maps_points_as_boxes(tmp_path):
    eyes = [(1.5, 2.5), (6.5, 2.5), (4.0, 4.0), (2.0, 6.0), (6.0, 6.0)]
    target = placed(photo_with(tmp_path, [(1, 2, 7, 7)], [eyes]), Window(0, 0, 10, 1), flip=True)
    assert target.boxes.tolist() == [[3.0, 2.0, 9.0, 7.0]]
    expected = [(3.5, 2.5), (8.5, 2.5), (6.0, 4.0), (4.0, 6.0), (8.0, 6.0)]
    assert target.landmarks.tolist() == [[list(point) for point in expected]]


# Crop, resize: coordinates and pixels ----------------------------------------------------


@pytest.mark.parametrize("name", ["photo.png", "photo.jpg"])
@pytest.mark.parametrize("flip", [False, True])
def test_boxes_and_landmarks_are_on_their_pixels(tmp_path, name, flip):
    given_boxes = ((20, 10, 60, 50), (100, 60, 130, 100))
    photo = make_photo(tmp_path / name, width=180, height=120, boxes=given_boxes)
    checked = 0
    for seed in range(30):
        image, target = augmented(photo, seed=seed, flip=flip)
        green = is_green(image)
        covered = torch.zeros_like(green)
        for box, points, mask in zip(
            target.boxes, target.landmarks, target.landmark_mask, strict=True
        ):
            x1, y1, x2, y2 = box.tolist()
            inner = green[int(y1) + 2 : int(y2) - 2, int(x1) + 2 : int(x2) - 2]
            assert inner.all(), f"seed {seed}: background inside the box"
            covered[max(0, int(y1) - 2) : int(y2) + 3, max(0, int(x1) - 2) : int(x2) + 3] = True
            columns, rows = points[mask].int().unbind(-1)
            assert green[rows, columns].all()
            assert not mask.all() or (points[0, 0] < points[1, 0] and points[3, 0] < points[4, 0])
            checked += 1
        if len(target.boxes) == len(given_boxes):
            assert not green[~covered].any(), f"seed {seed}: face outside the boxes"
    assert checked > 30


def test_shrunk_decoding_gives_the_same_geometry_as_full(tmp_path):
    boxes = ((200, 160, 520, 560), (900, 640, 1100, 900))
    photo = make_photo(tmp_path / "large.jpg", width=1283, height=1021, boxes=boxes)
    results = {}
    for shrink in (1, 2, 4, 8):
        window = Window(-64 // shrink, 32 // shrink, 1280 // shrink, shrink)
        plan, scale = planned(photo, window), 160 / window.side
        target = place_faces(photo, plan, min_face=1.0)
        image = F.resize(make_image(plan), [160, 160], antialias=True)
        results[shrink] = image, target.boxes * scale, target.landmarks * scale
    image, *full = results.pop(1)
    for shrink, (other, *faces) in results.items():
        torch.testing.assert_close(faces, full, atol=1e-3, rtol=0)
        assert (image.float() - other.float()).abs().mean() < 2, f"1/{shrink} shows something else"
        assert (is_green(image) != is_green(other)).float().mean() < 0.01


@pytest.mark.parametrize(
    ("side", "size", "shrink"), [(640, 640, 1), (1279, 640, 1), (1280, 640, 2), (9000, 640, 8)]
)
def test_photos_are_never_shrunk_below_the_training_size(tmp_path, side, size, shrink):
    write_photo(tmp_path / "a.jpg")
    write_photo(tmp_path / "a.png")
    assert open_photo(tmp_path / "a.jpg").shrink_for(side, size) == shrink
    assert open_photo(tmp_path / "a.png").shrink_for(side, size) == 1


def test_large_photos_are_decoded_shrunk(tmp_path):
    photo = make_photo(tmp_path / "large.jpg", width=900, height=800, boxes=((10, 10, 700, 700),))
    plan = draw(photo, open_photo(photo.path), size=SIZE, scale=(1.0, 2.0))
    assert plan.window.shrink == 8  # 800 to 1,600 pixels for 96
    assert make_image(plan).shape == (3, SIZE, SIZE)


def test_crops_beyond_the_photo_hold_all_of_it_on_the_mean_colour(tmp_path):
    photo = make_photo(tmp_path / "a.png", width=50, height=40, boxes=((5, 5, 20, 25),))
    fill = torch.tensor(FILL_RGB).to(torch.uint8)
    corners = set()
    for seed in range(12):
        image, target = augmented(
            photo, seed=seed, scale=(2.0, 2.0), colour=Colour(1.1, 0.7, 1.3, 0.04), flip=False
        )
        x1, y1, x2, y2 = target.boxes[0].tolist()
        assert (x2 - x1, y2 - y1) == pytest.approx((15 * 96 / 80, 20 * 96 / 80), rel=1 / 40)
        outside = (image == fill[:, None, None]).all(0).float().mean()
        assert outside == pytest.approx(1 - 50 * 40 / 80**2, abs=0.05)
        corners.add((round(x1), round(y1)))
    assert len(corners) > 6  # the photo's position is random
    assert FILL_RGB == (123, 117, 104)


def test_a_face_is_kept_by_its_centre_ignored_by_a_part_and_dropped_outside(tmp_path):
    boxes = [
        (10, 10, 30, 30),  # inside
        (30, 10, 46, 30),  # centre at 38: inside, clipped
        (30, 20, 60, 40),  # centre at 45: outside, a third visible
        (39, 10, 80, 30),  # 1 of 41 columns visible
        (50, 50, 70, 70),  # outside
    ]
    target = placed(photo_with(tmp_path, boxes), Window(0, 0, 40, 1))
    assert target.boxes.tolist() == [[10, 10, 30, 30], [30, 10, 40, 30], [30, 20, 40, 40]]
    assert target.ignore.tolist() == [False, False, True]
    assert 1 / 41 < IGNORE_VISIBLE < 1 / 3


def test_invalid_faces_become_ignored_ones(tmp_path):
    photo = make_photo(tmp_path / "a.png", width=96, height=96, boxes=((10, 10, 42, 42),))
    invalid = np.array([(50, 50, 82, 82), (200, 10, 220, 30)], np.float32)  # in and out of sight
    target = placed(replace(photo, ignored_boxes=invalid), Window(0, 0, 96, 1))
    assert target.boxes.tolist() == [[10, 10, 42, 42], [50, 50, 82, 82]]
    assert target.ignore.tolist() == [False, True]
    assert target.landmark_mask.tolist() == [[True] * 5, [False] * 5]
    anchors = make_anchors(96, 96)
    found = match(Target(*(part[None] for part in target)), anchors)
    on_it = box_iou(target.boxes[1:], box_convert(anchors, "cxcywh", "xyxy"))[0] >= 0.35
    assert on_it.any() and (found.ignored[0] == on_it).all()
    assert found.positive.any() and not (found.positive[0] & on_it).any()


def test_crops_look_for_valid_faces_only(tmp_path):
    photo = make_photo(tmp_path / "a.png", width=300, height=60, boxes=((250, 20, 280, 50),))
    photo = replace(photo, ignored_boxes=np.array([(20, 20, 50, 50)], np.float32))
    for seed in range(8):
        assert not augmented(photo, seed=seed, scale=(1.0, 1.0))[1].ignore.all()


def test_crops_look_for_a_face(tmp_path):
    photo = make_photo(tmp_path / "a.png", width=200, height=120, boxes=((30, 30, 50, 50),))
    found = sum(len(augmented(photo, seed=seed, scale=(0.3, 0.5))[1].boxes) for seed in range(30))
    assert found == 30  # a single draw finds this face about once in six


def test_crops_of_an_unlabelled_photo_look_at_its_focus(tmp_path):
    path = tmp_path / "a.png"
    write_photo(path, width=200, height=120)
    held = [0, 0]
    for kind, focus in enumerate(([(30, 30, 50, 50)], [])):
        boxes = np.array(focus, np.float32).reshape(-1, 4)
        photo = Photo.unlabelled(path, "a", boxes)
        for seed in range(30):
            torch.manual_seed(seed)
            plan = draw(photo, open_photo(path), size=SIZE, scale=(0.3, 0.5))
            left, top, side, _ = plan.window
            held[kind] += left <= 40 < left + side and top <= 40 < top + side
            target = place_faces(photo, plan, min_face=1.0)
            assert len(target.boxes) == 0 and not target.labelled
    assert held[0] == 30 and held[1] < 15


def test_landmarks_outside_the_crop_or_the_photo_are_masked(tmp_path):
    points = [[(5, 5), (45, 5), (-3, 5), (20, 85), (40, 39.9)]]
    target = placed(photo_with(tmp_path, [(0, 0, 40, 40)], points), Window(-10, -10, 50, 1))
    assert target.landmark_mask.tolist() == [[True, False, False, False, False]]
    assert target.landmarks[0, 0].tolist() == [15, 15]
    assert target.boxes.tolist() == [[10, 10, 50, 50]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(-50, 150, width=32)] * 4), max_size=6),
    st.integers(-60, 99),
    st.integers(-60, 79),
    st.integers(1, 160),
    st.integers(1, 160),
)
def test_no_crop_gives_a_face_without_area(tmp_path_factory, boxes, left, top, side, size):
    side = max(side, 1 - left, 1 - top)  # at least one pixel of the photo
    boxes = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in boxes]
    photo = photo_with(tmp_path_factory.getbasetemp(), boxes)
    plan = planned(photo, Window(left, top, side, 1), size=size)
    target = place_faces(photo, plan, min_face=4.0)
    sizes = target.boxes[:, 2:] - target.boxes[:, :2]
    assert make_image(plan).shape == (3, size, size)
    assert (sizes > 0).all() and (target.boxes >= 0).all() and (target.boxes <= size).all()
    assert (target.ignore | (sizes.amin(1) >= 4)).all()


def test_small_faces_are_ignored_not_dropped(tmp_path):
    photo = photo_with(tmp_path, [(10, 10, 13.9, 30), (10, 10, 14, 30)])
    target = placed(photo, Window(0, 0, 80, 1), min_face=4.0)
    assert target.ignore.tolist() == [True, False]
    assert target.weight.tolist() == [1.0, 1.0]


# Colours ---------------------------------------------------------------------------------


def colours(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (30, 40, 3)).astype(np.uint8)


def coloured(pixels, **change):
    return change_colour(pixels, Colour(**change))


@pytest.mark.parametrize(
    ("change", "reference"),
    [
        ({"brightness": 1.1}, lambda x: F.adjust_brightness(x, 1.1)),
        ({"contrast": 0.6}, lambda x: F.adjust_contrast(x, 0.6)),
        ({"contrast": 1.4}, lambda x: F.adjust_contrast(x, 1.4)),
        ({"saturation": 0.5}, lambda x: F.adjust_saturation(x, 0.5)),
        ({"saturation": 1.5}, lambda x: F.adjust_saturation(x, 1.5)),
        ({}, lambda x: x),
    ],
)
def test_the_colour_matrix_is_torchvisions_change(change, reference):
    pixels = colours()
    ours = coloured(pixels, **change).astype(int)
    theirs = reference(torch.from_numpy(pixels).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    assert np.abs(ours - theirs).max() <= 2  # torchvision truncates where OpenCV rounds


def test_hue_keeps_grey_and_turns_as_torchvision_does():
    middle = (colours() // 3 + 80).astype(np.uint8)  # nothing is clipped
    turned = coloured(middle, hue=0.05)
    luma = np.array((0.299, 0.587, 0.114))
    assert np.abs(turned @ luma - middle @ luma).max() <= 1.5
    grey = np.repeat(middle[..., :1], 3, axis=2)
    assert np.abs(coloured(grey, hue=0.05).astype(int) - grey).max() <= 1
    for colour in ((180, 60, 60), (60, 180, 60), (60, 60, 180), (200, 150, 120)):
        flat = np.full((2, 2, 3), colour, np.uint8)
        ours = coloured(flat, hue=0.05)[0, 0].astype(float)
        tensor = torch.from_numpy(flat).permute(2, 0, 1)
        theirs = F.adjust_hue(tensor, 0.05)[:, 0, 0].numpy().astype(float)
        away = F.adjust_hue(tensor, -0.05)[:, 0, 0].numpy().astype(float)
        assert np.abs(ours - theirs).sum() < 0.8 * np.abs(ours - away).sum()


def test_colours_and_flips_change_with_their_probability_only(tmp_path, monkeypatch):
    photo = make_photo(tmp_path / "a.png")
    plans = [draw(photo, open_photo(photo.path), size=32, scale=(1, 1)) for _ in range(400)]
    drawn = np.array([[*np.not_equal(plan.colour, Colour()), plan.flip] for plan in plans])
    assert (abs(drawn.mean(axis=0) - 0.5) < 0.1).all()
    monkeypatch.setattr(augment, "COLOUR_PROB", 0.0)
    assert all(draw_colour() == Colour() for _ in range(20))
    monkeypatch.setattr(augment, "COLOUR_PROB", 1.0)
    pixels = colours()
    before = pixels.copy()
    changed = change_colour(pixels, draw_colour())
    assert not np.array_equal(changed, before)
    assert np.array_equal(pixels, before), "the input was changed in place"
    assert changed.dtype == np.uint8 and changed.shape == before.shape


# Odd photos ------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 300), (300, 1), (2, 3)])
@pytest.mark.parametrize("boxes", [(), ((0, 0, 1, 1),)])
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_tiny_and_thin_photos(tmp_path, width, height, boxes, name):
    photo = make_photo(tmp_path / name, width=width, height=height, boxes=boxes)
    for seed in range(3):
        image, target = augmented(photo, seed=seed, size=32)
        assert image.shape == (3, 32, 32) and image.dtype == torch.uint8
        assert torch.isfinite(target.boxes).all()
        assert target.landmarks.shape == (len(target.boxes), 5, 2)


def test_colour_order_and_exif_orientation(tmp_path):
    """The result is RGB; a rotated-by-EXIF photo keeps its stored pixels, as annotations do."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :20] = (255, 0, 0)
    exif = PilImage.Exif()
    exif[0x0112] = 6
    PilImage.fromarray(pixels).save(tmp_path / "a.jpg", quality=95, exif=exif)
    file = open_photo(tmp_path / "a.jpg")
    assert (file.width, file.height) == (60, 40)
    photo = make_photo(tmp_path / "b.png", boxes=((10, 10, 50, 50),))
    image = make_image(planned(photo, Window(0, 0, 64, 1)))
    assert tuple(image[:, 30, 30].tolist()) == FACE_COLOUR
    decoded = decode(file)
    assert decoded[5, 5, 2] > 200 and decoded[5, 5, 0] < 60  # BGR, top left


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P"])
def test_other_colour_kinds_become_three_channels(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode in ("L", "CMYK") else "a.png")
    PilImage.fromarray(colours()).convert(mode).save(path)
    assert decode(open_photo(path)).shape == (30, 40, 3)


def test_missing_corrupt_and_truncated_photos_are_named(tmp_path):
    write_photo(tmp_path / "good.jpg", width=200, height=150)
    data = (tmp_path / "good.jpg").read_bytes()
    assert is_complete(data) and is_complete(data + b"trailing bytes")
    assert is_complete(data + b"video \xff\xda of a motion photo"), "a marker behind the end"
    thumb = b"\xff\xe1" + (2 + len(data)).to_bytes(2, "big") + data  # as in EXIF, with an end
    assert is_complete(data[:2] + thumb + data[2:] + b"tail")
    assert not is_complete(data[:2] + thumb + data[2:-2] + b"tail")
    broken = {
        "missing.jpg": None,
        "empty.jpg": b"",
        "text.jpg": b"not a picture" * 40,
        "half.jpg": data[: len(data) // 2],
        "no_end.jpg": data[:-2],
        "header.jpg": data[:300],
    }
    for name, content in broken.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as caught:
            decode(open_photo(tmp_path / name))
        assert name in str(caught.value) and "\n" not in str(caught.value)
