"""MixUp and CutMix: pixels, faces, weights, visibility rules, and what anchors.match then finds."""

import numpy as np
import pytest
import torch
from conftest import make_targets
from hypothesis import given, settings
from hypothesis import strategies as st

from featherface.anchors import make_anchors, match
from featherface.config import TrainConfig
from featherface.data import mixing
from featherface.data.mixing import blend, cutmix, mix, mixup, paste
from featherface.errors import ConfigError
from featherface.structures import Target

SIZE = 64
FACE = (10.0, 10.0, 30.0, 30.0)
FAR = (40.0, 36.0, 56.0, 60.0)
UNMIXED = TrainConfig(mixup_prob=0.0, cutmix_prob=0.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(batch=2):
    """Image b is 10·(b + 1) everywhere, plus a ramp to the right."""
    level = 10.0 * torch.arange(1, batch + 1)[:, None, None, None]
    return level + torch.arange(SIZE) / SIZE + torch.zeros(batch, 3, SIZE, SIZE)


def rectangle(*corners):
    return torch.tensor([corners] * 2, dtype=torch.float32)


def pasted(rect, face=FACE):
    """Image 0 has no face and image 1 has `face`: what image 0 gets from it, and image 1 keeps."""
    _, mixed = paste(pictures(), make_targets([], [face]), rectangle(*rect))
    return row(mixed, 0, 1), row(mixed, 1, 0)


def row(targets, image, face):
    return Target(*(part[image, face] for part in targets[:-1]))


def told(targets, *labelled):
    """The same faces, of images that are labelled or not."""
    return targets._replace(labelled=torch.tensor(labelled))


def assert_equal(first, second):
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_mixup_blends_and_unites():
    images, targets = pictures(), make_targets([FACE], [FAR, FACE])
    share = torch.tensor((0.75, 0.5))
    mixed, faces = blend(images, targets, share)
    torch.testing.assert_close(mixed[0], 0.75 * images[0] + 0.25 * images[1])
    torch.testing.assert_close(mixed[1], 0.5 * images[1] + 0.5 * images[0])
    assert faces.boxes.shape == (2, 4, 4) and faces.landmark_mask.shape == (2, 4, 5)
    assert faces.weight.tolist() == [[0.75, 0, 0.25, 0.25], [0.5, 0.5, 0.5, 0]]
    assert faces.boxes[0, [0, 2, 3]].tolist() == [list(FACE), list(FAR), list(FACE)]
    torch.testing.assert_close(faces.landmarks[0, 2:], targets.landmarks[1])


def test_mixup_with_a_share_of_one_is_no_mixup():
    images, targets = pictures(3), make_targets([FACE], [FAR, FACE], [])
    mixed, faces = blend(images, targets, torch.ones(3))
    assert_equal([mixed], [images])
    assert_equal([part[:, :2] for part in faces[:-1]], targets[:-1])
    anchors = make_anchors(SIZE, SIZE)
    alone, together = match(targets, anchors), match(faces, anchors)
    assert alone.positive.any()
    assert_equal(together[1:], alone[1:])
    assert torch.equal(together.face[alone.positive], alone.face[alone.positive])


def test_mixup_keeps_ignored_faces_ignored_and_masks():
    targets = make_targets([FACE], [FAR])
    targets.ignore[1, 0] = True
    targets.landmark_mask[1, 0, 3] = False
    _, faces = blend(pictures(), targets, torch.full((2,), 0.3))
    assert faces.ignore.tolist() == [[False, True], [True, False]]
    assert faces.landmark_mask[0, 1].tolist() == [True, True, True, False, True]


def test_mixup_shares_are_beta_and_one_an_image():
    images, targets = torch.ones(400, 1, 1, 1), make_targets(*[[FACE]] * 400)
    share = mixup(images, targets, alpha=0.2, generator=generator())[1].weight[:, 0]
    assert len(share.unique()) > 300 and 0 <= share.min() and share.max() <= 1
    assert abs(share.mean() - 0.5) < 0.08
    variance = 1 / (4 * (2 * 0.2 + 1))
    assert abs(share.var() - variance) < 0.03


@pytest.mark.parametrize("function", [mixup, cutmix])
def test_seeds_repeat_and_differ(function):
    images, targets = pictures(4), make_targets([FACE], [FAR], [], [FACE, FAR])
    results = [function(images, targets, alpha=1.0, generator=generator(s)) for s in (1, 1, 2)]
    assert_equal([results[0][0], *results[0][1]], [results[1][0], *results[1][1]])
    assert not torch.equal(results[0][0], results[2][0])
    torch.manual_seed(5)
    first = function(images, targets, alpha=1.0)
    torch.manual_seed(5)
    assert torch.equal(first[0], function(images, targets, alpha=1.0)[0])
    assert not torch.equal(first[0], function(images, targets, alpha=1.0)[0])


@pytest.mark.parametrize("function", [mixup, cutmix])
@pytest.mark.parametrize("alpha", [0, -1.0, float("nan")])
def test_alpha_must_be_positive(function, alpha):
    with pytest.raises(ConfigError, match="alpha"):
        function(pictures(), make_targets([FACE], []), alpha=alpha)


def test_cutmix_pastes_the_partners_pixels_at_the_same_place():
    images = pictures()
    mixed, _ = paste(images, make_targets([], []), rectangle(8, 16, 40, 24))
    torch.testing.assert_close(mixed[0, :, 16:24, 8:40], images[1, :, 16:24, 8:40])
    torch.testing.assert_close(mixed[1, :, 16:24, 8:40], images[0, :, 16:24, 8:40])
    outside = torch.ones(SIZE, SIZE, dtype=torch.bool)
    outside[16:24, 8:40] = False
    assert torch.equal(mixed[:, :, outside], images[:, :, outside])


@pytest.mark.parametrize(
    ("width", "share"), [(20, 1.0), (10, 0.5), (9, 0.45), (2, 0.1), (1, 0.05), (0, 0.0)]
)
def test_a_pasted_face_counts_by_what_is_in_the_rectangle(width, share):
    face, _ = pasted((0, 0, 10 + width, SIZE))  # the face is 20 wide and begins at 10
    assert face.weight == (1 if share >= 0.1 else 0)
    assert face.ignore == (0.1 <= share < 0.5)
    box = [10, 10, 10 + width, 30] if share >= 0.1 else [0, 0, 0, 0]
    assert face.boxes.tolist() == box


@pytest.mark.parametrize(
    ("covered", "share"), [(0, 1.0), (10, 0.5), (11, 0.45), (18, 0.1), (19, 0.05), (20, 0.0)]
)
def test_a_covered_face_counts_by_what_is_left_of_it(covered, share):
    _, face = pasted((0, 0, 10 + covered, SIZE))
    assert face.weight == (1 if share >= 0.1 else 0)
    assert face.ignore == (0.1 <= share < 0.5)
    box = [10 + covered, 10, 30, 30] if share >= 0.1 else [0, 0, 0, 0]
    assert face.boxes.tolist() == box


@pytest.mark.parametrize(
    ("rect", "box"),
    [
        ((0, 0, SIZE, 16), (10, 16, 30, 30)),  # its top
        ((10, 25, 30, 40), (10, 10, 30, 25)),  # its bottom, edge to edge
        ((24, 5, 40, 35), (10, 10, 24, 30)),  # its right
        ((0, 15, SIZE, 18), FACE),  # a band across it
        ((15, 15, 25, 25), FACE),  # a hole in it
        ((0, 0, 18, 18), FACE),  # a corner: what is left is an L
        ((0, 12, 18, 28), FACE),  # a notch in its side
        ((32, 32, 60, 60), FACE),  # beside it
        ((30, 0, 60, 60), FACE),  # touching it
    ],
)
def test_the_box_is_the_tight_box_of_what_is_visible(rect, box):
    _, face = pasted(rect)
    assert face.boxes.tolist() == list(box) and face.weight == 1 and not face.ignore


def test_landmarks_that_are_covered_are_masked():
    # eyes at y = 18, nose at 22, mouth at 26
    below, above = pasted((0, 0, SIZE, 20))
    assert below.landmark_mask.tolist() == [True, True, False, False, False]
    assert above.landmark_mask.tolist() == [False, False, True, True, True]
    assert not below.landmarks.isnan().any()
    targets = make_targets([FACE], [])
    targets.landmark_mask[0, 0, 4] = False
    _, mixed = paste(pictures(), targets, rectangle(0, 0, SIZE, 20))
    assert row(mixed, 0, 0).landmark_mask.tolist() == [False, False, True, True, False]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 16), min_size=8, max_size=8))
def test_visibility_equals_counting_pixels(numbers):
    (fx1, fx2), (fy1, fy2) = sorted(numbers[:2]), sorted(numbers[2:4])
    (rx1, rx2), (ry1, ry2) = sorted(numbers[4:6]), sorted(numbers[6:])
    if fx1 == fx2 or fy1 == fy2:
        return
    face, rect = np.zeros((2, 16, 16), bool)
    face[fy1:fy2, fx1:fx2] = True
    rect[ry1:ry2, rx1:rx2] = True
    inside, outside = pasted((rx1, ry1, rx2, ry2), (fx1, fy1, fx2, fy2))
    for got, pixels in ((inside, face & rect), (outside, face & ~rect)):
        share = pixels.sum() / face.sum()
        assert got.weight == (share > 0.1 - 1e-6)
        if got.weight:
            assert got.ignore == (share < 0.5 - 1e-6)
            rows, columns = np.nonzero(pixels)
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert got.boxes.tolist() == tight


def test_a_pasted_face_has_positive_anchors_where_it_lands():
    targets, anchors = make_targets([], [FAR]), make_anchors(SIZE, SIZE)
    assert not match(targets, anchors).positive[0].any()
    _, mixed = paste(pictures(), targets, rectangle(36, 32, 60, 64))
    matches = match(mixed, anchors)
    centers = anchors[matches.positive[0], :2]
    assert len(centers) > 0
    assert (matches.face[0][matches.positive[0]] == 1).all()
    assert ((centers - torch.tensor((48.0, 48.0))).abs() < 12).all()
    assert not matches.positive[1].any()  # there it was covered
    _, missed = paste(pictures(), targets, rectangle(0, 0, 30, 30))
    assert not match(missed, anchors).positive[0].any()
    _, half = paste(pictures(), targets, rectangle(36, 32, 60, 46))  # 10 of 24 rows
    assert not match(half, anchors).positive[0].any() and match(half, anchors).ignored[0].any()


ALL_FOUR = (True, True, False, False)  # each image's partner is the next, the last one's the first


def test_a_mixed_image_is_labelled_only_if_both_its_sources_are():
    images, targets = pictures(4), told(make_targets([FACE], [FAR], [], []), *ALL_FOUR)
    _, blended = blend(images, targets, torch.full((4,), 0.5))
    _, pasted_in = paste(images, targets, rectangle(8, 8, 40, 40).repeat(2, 1))
    assert blended.labelled.tolist() == pasted_in.labelled.tolist() == [True, False, False, False]
    for function in (mixup, cutmix):
        labelled = function(images, targets, alpha=1.0, generator=generator())[1].labelled
        assert labelled.dtype == torch.bool and labelled.tolist() == [True, False, False, False]
    assert targets.labelled.tolist() == list(ALL_FOUR)


def test_an_image_that_comes_from_one_source_is_labelled_as_that_is():
    images, targets = pictures(4), told(make_targets([FACE], [FAR], [], []), *ALL_FOUR)
    partners = [True, False, False, True]
    for share, expected in (
        (1.0, list(ALL_FOUR)),
        (0.0, partners),
        (0.97, [True] + 3 * [False]),
        (0.99, list(ALL_FOUR)),
        (0.01, partners),
    ):  # too faint to be seen
        _, faces = blend(images, targets, torch.full((4,), share))
        assert faces.labelled.tolist() == expected, share
    for corners, expected in (
        ((20, 20, 20, 50), list(ALL_FOUR)),  # a rectangle without width
        ((0, 0, SIZE, SIZE), partners),
        ((0, 0, SIZE, SIZE - 1), [True] + 3 * [False]),
    ):
        _, faces = paste(images, targets, rectangle(*corners).repeat(2, 1))
        assert faces.labelled.tolist() == expected, corners
    assert mix(UNMIXED, images, targets)[1] is targets


def test_a_face_that_cutmix_leaves_too_small_is_ignored():
    targets = make_targets([(10, 10, 20, 22)], [])
    half = rectangle(15, 0, 40, 40)  # covers x from 15 on: 5 of 10 columns are left
    for least, expected in ((4.0, False), (8.0, True)):
        _, faces = paste(pictures(), targets, half, min_face=least)
        assert faces.boxes[0, 0].tolist() == [10, 10, 15, 22] and faces.weight[0, 0] == 1
        assert bool(faces.ignore[0, 0]) == expected
        assert not faces.ignore[faces.weight == 0].any(), "padding is not ignored, it is nothing"


def test_cutmix_takes_the_least_face_from_the_config():
    config = TrainConfig(mixup_prob=0.0, cutmix_prob=1.0, min_face=1000.0)
    _, faces = mix(config, pictures(), make_targets([FACE], [FAR]))
    assert bool(faces.ignore[faces.weight > 0].all())


def test_cutmix_rectangles_have_every_size_and_stay_inside():
    targets = make_targets(*[[]] * 300)
    images = torch.arange(300.0)[:, None, None, None].expand(300, 1, 20, 40)
    mixed, faces = cutmix(images, targets, generator=generator())
    changed = (mixed != images)[:, 0]
    share = changed.float().mean((1, 2))
    assert share.min() < 0.1 and share.max() > 0.75 and 0.3 < share.mean() < 0.5
    where = changed.float().mean(0)
    assert where.min() > 0.1  # no part of the image is spared
    assert (faces.weight == 0).all() and (faces.boxes == 0).all()


@pytest.mark.parametrize("how", ["blend", "paste"])
def test_pixels_and_faces_come_from_the_same_partner(how):
    corners = [(0.0, 0.0, 16.0, 16.0), (16.0, 16.0, 32.0, 32.0), (32.0, 32.0, 48.0, 48.0)]
    images = torch.zeros(3, 3, SIZE, SIZE)
    for image, corner in zip(images, corners, strict=True):
        x1, y1, x2, y2 = map(int, corner)
        image[:, y1:y2, x1:x2] = 1  # a bright square is the face
    targets = make_targets(*[[corner] for corner in corners])
    if how == "blend":
        mixed, faces = blend(images, targets, torch.full((3,), 0.6))
    else:  # the whole partner
        mixed, faces = paste(images, targets, torch.tensor([[0.0, 0.0, SIZE, SIZE]] * 3))
    for image, boxes, weights in zip(mixed, faces.boxes, faces.weight, strict=True):
        seen = torch.zeros_like(image)
        for (x1, y1, x2, y2), weight in zip(boxes.int().tolist(), weights, strict=True):
            seen[:, y1:y2, x1:x2] += weight
        torch.testing.assert_close(seen, image)


@pytest.mark.parametrize("function", [mixup, cutmix])
def test_mixed_images_stay_channels_last(function, monkeypatch):
    roll = torch.Tensor.roll  # CUDA's forgets the layout
    monkeypatch.setattr(torch.Tensor, "roll", lambda x, *how: roll(x, *how).contiguous())
    images = torch.rand(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    mixed, _ = function(images, make_targets(*[[FACE]] * 4), alpha=1.0)
    assert mixed.is_contiguous(memory_format=torch.channels_last)


def test_padding_stays_padding_and_inputs_stay_as_they_were():
    images, targets = pictures(), make_targets([FACE, FAR], [])
    before = [images.clone(), *(part.clone() for part in targets)]
    for _, faces in (
        paste(images, targets, rectangle(0, 0, SIZE, SIZE)),
        blend(images, targets, torch.full((2,), 0.4)),
    ):
        assert (faces.weight[0, :2] > 0).sum() + (faces.weight[0, 2:] > 0).sum() <= 2
        assert not faces.boxes.isnan().any() and not faces.weight.isnan().any()
    assert_equal([images, *targets], before)
    _, swapped = paste(images, targets, rectangle(0, 0, SIZE, SIZE))
    assert swapped.weight.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1]]


def test_mix_chooses_by_its_probabilities(monkeypatch):
    calls = []
    monkeypatch.setattr(mixing, "mixup", lambda i, t, **_: calls.append("mixup") or (i, t))
    monkeypatch.setattr(mixing, "cutmix", lambda i, t, **_: calls.append("cutmix") or (i, t))
    images, targets = pictures(), make_targets([FACE], [])

    def counted(**options):
        calls.clear()
        config, source = TrainConfig(**options), generator()
        for _ in range(400):
            mix(config, images, targets, generator=source)
        return calls.count("mixup"), calls.count("cutmix")

    assert counted(mixup_alpha=0.2, mixup_prob=0, cutmix_prob=0) == (0, 0)
    assert counted(mixup_alpha=0.2, mixup_prob=1, cutmix_prob=1) == (400, 0)
    assert counted(mixup_alpha=0.0, mixup_prob=1, cutmix_prob=1) == (0, 400)
    by_mixup, by_cutmix = counted(mixup_alpha=0.2, mixup_prob=0.5, cutmix_prob=0.5)
    assert abs(by_mixup - 200) < 40 and abs(by_cutmix - 100) < 35


def test_an_unmixed_batch_is_the_batch():
    images, targets = pictures(), make_targets([FACE], [])
    out = mix(UNMIXED, images, targets)
    assert out[0] is images and out[1] is targets


@pytest.mark.parametrize("setting", ["mixup_prob", "cutmix_prob"])
def test_every_image_of_a_mixed_batch_brings_its_partners_faces(setting):
    images, targets = pictures(), make_targets([FACE], []).with_count(1)
    mixed, faces = mix(UNMIXED.replace(**{setting: 1.0}), images, targets)
    assert mixed is not images and faces.boxes.shape == (2, 2, 4) and faces.face_count == 2


def test_a_batch_of_one_and_of_no_faces():
    images, targets = pictures(1), make_targets([FACE])
    mixed, faces = mixup(images, targets, alpha=0.2, generator=generator())
    torch.testing.assert_close(mixed, images)
    torch.testing.assert_close(faces.weight.sum(), torch.tensor(1.0))
    none = Target(*(part[:, :0] for part in targets[:-1]))
    for function in (mixup, cutmix):
        assert function(images, none, alpha=1.0)[1].boxes.shape == (1, 0, 4)
