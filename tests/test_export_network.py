"""The deployment forms compute what the trained networks compute, at every size."""

import pytest
import torch
from exported import network, pixels
from torch import nn

from featherface.anchors import decode_boxes, decode_landmarks, make_anchors
from featherface.export.blocks import Context, Gate, PairSums, Stem, folded, merged, scale
from featherface.export.network import Raw, deployed


def decoded(model, image):
    """Boxes, scores and landmarks of all anchors, from the trained network."""
    predictions = model(image)
    anchors = make_anchors(*image.shape[2:])
    scores = predictions.class_logits.softmax(-1)[..., 1]
    boxes = decode_boxes(predictions.box_deltas, anchors)
    return boxes, scores, decode_landmarks(predictions.landmark_deltas, anchors)


def assert_equal(found, expected):
    for got, wanted, tolerance in zip(found, expected, (1e-2, 1e-4, 1e-2), strict=True):
        assert got.shape == wanted.shape
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (40, 104), (64, 96)])
@torch.no_grad()
def test_v2_is_the_same_function(size):
    image = torch.from_numpy(pixels(*size, batch=2))
    expected = decoded(network("v2"), image)
    assert expected[1].std() > 0.01  # the scores say something
    assert_equal(Raw(deployed(network("v2")))(image), expected)


@torch.no_grad()
def test_v2_for_multiples_of_32():
    image = torch.from_numpy(pixels(64, 96))
    assert_equal(Raw(deployed(network("v2"), exact=True))(image), decoded(network("v2"), image))


@pytest.mark.parametrize("size", [(1, 1), (45, 70)])
@torch.no_grad()
def test_v1_is_the_same_function(size):
    image = torch.from_numpy(pixels(*size))
    assert_equal(Raw(deployed(network("v1")))(image), decoded(network("v1"), image))


def test_the_trained_network_is_left_alone():
    before = {name: value.clone() for name, value in network("v1").state_dict().items()}
    form = deployed(network("v1"))
    with torch.no_grad():
        for parameter in form.parameters():
            parameter.zero_()
    after = network("v1").state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())
    assert all(parameter.requires_grad for parameter in network("v1").parameters())


def test_another_network_is_refused():
    with pytest.raises(TypeError, match="Linear"):
        deployed(nn.Linear(1, 1))


@torch.no_grad()
def test_folding_keeps_groups_strides_and_biases():
    bn = nn.BatchNorm2d(8).eval()
    for part in (bn.running_mean, bn.bias):
        part.normal_()
    for part in (bn.running_var, bn.weight):
        part.uniform_(0.5, 2.0)
    x = torch.randn(2, 8, 9, 7)
    for options in ({"groups": 4}, {"groups": 8, "stride": 2}, {"bias": False}):
        convolution = nn.Conv2d(8, 8, 3, padding=1, **options)
        torch.testing.assert_close(folded(convolution, bn)(x), bn(convolution(x)))
    assert folded(nn.Conv2d(8, 8, 3, groups=8)).groups == 8  # depthwise stays depthwise
    assert folded(nn.Conv2d(8, 8, 3, groups=4)).groups == 1


@torch.no_grad()
def test_merged_and_scale():
    first, second = folded(nn.Conv2d(4, 3, 3, padding=1)), folded(nn.Conv2d(4, 5, 3, padding=1))
    x = torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(merged(first, second)(x), torch.cat((first(x), second(x)), dim=1))
    torch.testing.assert_close(scale(4, 0.25)(x), x / 4)


@torch.no_grad()
def test_the_parts_of_v2_each():
    model = network("v2")
    stage = next(iter(model.backbone.children()))
    image = torch.from_numpy(pixels(40, 56))
    first, block = list(stage.children())[:2]
    torch.testing.assert_close(Stem(first, block)(image), block(first(image)), rtol=1e-4, atol=1e-3)
    x = torch.randn(2, 32, 13, 9)
    attention = model.neck_attention
    gate = attention.channel[0]
    expected = torch.relu(attention.spatial(gate(x)) + x)
    torch.testing.assert_close(Gate(gate, attention.spatial)(x), expected, rtol=1e-4, atol=1e-4)
    context, shuffle = model.context[1], model.shuffle[1]
    torch.testing.assert_close(
        Context(context, shuffle)(x), shuffle(context(x)), rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_pairs_summed_equal_a_grouped_convolution():
    grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
    x = torch.randn(1, 8, 7, 5)
    twice = PairSums(folded(grouped), offsets=(0, 8), width=16)(torch.cat((x, x), dim=1))
    torch.testing.assert_close(twice, grouped(x).repeat(1, 2, 1, 1))
    shifted = PairSums(folded(grouped), offsets=(8,), width=16)(torch.cat((x, x), dim=1))
    assert not shifted[:, :8].any()
    torch.testing.assert_close(shifted[:, 8:], grouped(x))
