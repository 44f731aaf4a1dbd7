"""Anchors and codec against torchvision's, the matching against its definition."""

import pytest
import torch
from conftest import make_targets, shared
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_convert, box_iou

from featherface.anchors import (
    decode_boxes,
    decode_landmarks,
    encode_boxes,
    encode_landmarks,
    make_anchors,
    match,
)

SIZES = st.tuples(st.integers(1, 300), st.integers(1, 300))


def some_boxes(count: int = 40) -> torch.Tensor:
    corner = torch.rand(count, 2) * 500
    return torch.cat((corner, corner + torch.rand(count, 2) * 120 + 1), dim=1)


def test_anchors_equal_torchvision_at_640():
    generator = DefaultBoxGenerator(
        [[]] * 3, scales=[16 / 640, 64 / 640, 256 / 640, 1024 / 640], steps=[8, 16, 32], clip=False
    )
    # torchvision's second size is the geometric mean of two scales: √(16·64) = 32, and so on
    maps = [torch.zeros(1, 1, 640 // s, 640 // s) for s in (8, 16, 32)]
    images = ImageList(torch.zeros(1, 3, 640, 640), [(640, 640)])
    expected = box_convert(generator(images, maps)[0], "xyxy", "cxcywh")
    torch.testing.assert_close(make_anchors(640, 640), expected, atol=1e-3, rtol=0)
    assert len(expected) == 16_800


def test_anchors_equal_the_originals():
    import numpy as np

    golden = np.load(shared("golden", "v1_reference.npz"))
    for case in "ab":
        height, width = golden[f"{case}_image_bgr"].shape[:2]
        scale = torch.tensor([width, height, width, height])
        expected = golden[f"{case}_priors_cxcywh_normalised"]
        np.testing.assert_allclose(make_anchors(height, width) / scale, expected, atol=1e-6)


@given(SIZES)
@settings(max_examples=30, deadline=None)
def test_anchor_order_and_count(size):
    height, width = size
    anchors = make_anchors(height, width)
    assert len(anchors) == sum(2 * -(-height // s) * -(-width // s) for s in (8, 16, 32))
    assert anchors[0].tolist() == [4, 4, 16, 16]
    assert anchors[1].tolist() == [4, 4, 32, 32]
    columns = -(-width // 8)
    if columns > 1:
        assert anchors[2].tolist() == [12, 4, 16, 16]  # x runs before y
    assert make_anchors(height, width) is anchors  # cached


def test_anchors_refuse_an_empty_image():
    with pytest.raises(ValueError, match="at least 1×1"):
        make_anchors(0, 10)


def test_codec_equals_torchvision():
    anchors = make_anchors(640, 640)[::420]
    boxes = some_boxes(len(anchors))
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    corners = box_convert(anchors, "cxcywh", "xyxy")
    deltas = coder.encode_single(boxes, corners)
    torch.testing.assert_close(encode_boxes(boxes, anchors), deltas, atol=1e-4, rtol=1e-4)
    decoded = coder.decode_single(deltas, corners)
    torch.testing.assert_close(decode_boxes(deltas, anchors), decoded, atol=1e-2, rtol=1e-4)


box_numbers = st.floats(0, 600, width=32), st.floats(0, 600, width=32)
box_sizes = st.floats(1, 600, width=32), st.floats(1, 600, width=32)


@given(st.tuples(*box_numbers), st.tuples(*box_sizes), st.integers(0, 16_799))
@settings(max_examples=100, deadline=None)
def test_decode_inverts_encode(corner, size, index):
    anchors = make_anchors(640, 640)[index : index + 1]
    start = torch.tensor([corner])
    box = torch.cat((start, start + torch.tensor([size])), dim=1)
    restored = decode_boxes(encode_boxes(box, anchors), anchors)
    torch.testing.assert_close(restored, box, atol=0.05, rtol=1e-4)
    points = start[:, None] + torch.rand(1, 5, 2) * torch.tensor([size])[:, None]
    restored = decode_landmarks(encode_landmarks(points, anchors), anchors)
    torch.testing.assert_close(restored, points, atol=0.05, rtol=1e-4)


def reference_match(boxes: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """The definition, face by face: the matched face of each anchor, or −1."""
    iou = box_iou(boxes, box_convert(anchors, "cxcywh", "xyxy"))
    best, face = iou.max(dim=0)
    face = torch.where(best >= 0.35, face, -1)
    for index in range(len(boxes)):
        anchor = int(iou[index].argmax())
        if iou[index, anchor] >= 0.2:
            face[anchor] = index
    return face


def test_match_equals_its_definition_with_padding_and_many_faces():
    anchors = make_anchors(320, 320)
    images = [some_boxes(n) * 0.5 for n in (70, 1, 5)]
    images = [box + torch.tensor([0, 0, 8, 8]) for box in images]  # none too small to match
    targets = make_targets(*[[tuple(box) for box in boxes.tolist()] for boxes in images], [])
    matches = match(targets, anchors)
    for row, boxes in enumerate(images):
        expected = reference_match(boxes, anchors)
        assert torch.equal(matches.positive[row], expected >= 0)
        where = expected >= 0
        assert torch.equal(matches.face[row][where], expected[where])
    assert not matches.positive[3].any()
    assert not matches.ignored.any()


@pytest.mark.parametrize("offset", [0.0, 3.0, 4.5])
def test_a_small_face_is_positive_or_ignored_but_never_background(offset):
    anchors = make_anchors(64, 64)
    for side in range(1, 12):
        start = 24 + offset
        matches = match(make_targets([(start, start, start + side, start + side)]), anchors)
        if side >= 8:
            assert matches.positive.any() and not matches.ignored.any()
        else:
            assert matches.ignored.any() and not matches.positive.any()
            near = (anchors[matches.ignored[0]][:, :2] - (start + side / 2)).abs()
            assert (near <= 12).all()


def test_two_faces_that_share_an_anchor_leave_it_to_the_heavier():
    anchors = make_anchors(64, 64)
    targets = make_targets([(9, 9, 17, 17), (10, 10, 18, 18)])  # both fit only one small anchor
    for weight, winner in (((0.9, 0.1), 0), ((0.1, 0.9), 1), ((0.5, 0.5), 1)):
        matches = match(targets._replace(weight=torch.tensor([weight])), anchors)
        shared = matches.face[matches.positive]
        assert winner in shared.tolist()
        best = box_iou(targets.boxes[0], box_convert(anchors, "cxcywh", "xyxy")).argmax(dim=1)
        if best[0] == best[1]:
            assert matches.face[0, best[0]] == winner


def test_ignored_faces_take_their_anchors_out_of_the_loss():
    anchors = make_anchors(64, 64)
    targets = make_targets([(18, 18, 21, 21), (2, 2, 40, 40)])
    ignored = targets._replace(ignore=torch.tensor([[True, False]]))
    large = make_targets([(2, 2, 40, 40)])
    plain, matches = match(large, anchors), match(ignored, anchors)
    assert not plain.ignored.any()
    assert matches.ignored.any()
    assert not (matches.ignored & matches.positive).any()
    assert torch.equal(plain.positive, matches.positive)
    centers = anchors[matches.ignored[0]][:, :2]
    assert ((centers - 19.5).abs() <= 8).all()


def test_weight_zero_is_padding():
    anchors = make_anchors(64, 64)
    targets = make_targets([(10, 10, 40, 40)])
    silent = targets._replace(weight=torch.zeros(1, 1), ignore=torch.ones(1, 1, dtype=torch.bool))
    matches = match(silent, anchors)
    assert not matches.positive.any() and not matches.ignored.any()
