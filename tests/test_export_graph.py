"""The ONNX models: parity at every size, their description, settings that cannot work, INT8."""

import json
import logging

import numpy as np
import onnx
import pytest
import torch
from exported import assert_same_faces, graph, network, pixels, scene

import featherface as ff
from featherface.anchors import decode_boxes, decode_landmarks, make_anchors
from featherface.config import MEAN_BGR
from featherface.errors import ConfigError
from featherface.export.graph import build, open_model
from featherface.export.int8 import _store_in_half, quantise
from featherface.structures import Detections

OUTPUTS = ("boxes", "scores", "landmarks")


@torch.no_grad()
def all_anchors(model, image):
    predictions = model(torch.from_numpy(image))
    anchors = make_anchors(*image.shape[2:])
    boxes = decode_boxes(predictions.box_deltas, anchors)
    points = decode_landmarks(predictions.landmark_deltas, anchors)
    return boxes.numpy(), predictions.class_logits.softmax(-1)[..., 1].numpy(), points.numpy()


def test_the_raw_form_takes_any_batch_and_size():
    session = open_model(graph("raw", None))
    for height, width, batch in ((1, 1, 1), (33, 95, 3), (64, 96, 2), (130, 70, 1)):
        image = pixels(height, width, batch)
        expected = all_anchors(network("v2"), image)
        found = session.run(OUTPUTS, {"image": image})
        for got, wanted, limit in zip(found, expected, (1e-2, 1e-4, 1e-2), strict=True):
            assert got.shape == wanted.shape
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=limit)
    assert expected[1].std() > 0.05


@pytest.mark.parametrize("size", [(64, 96), (45, 120), (1, 1)])
def test_end_to_end_gives_detectors_faces(size):
    picture, options = scene(*size), {"score_threshold": 0.3, "iou_threshold": 0.5}
    expected = ff.Detector(network("v2"), **options).detect(picture, bgr=True)
    feed = {name: np.array(value, np.float32) for name, value in options.items()}
    found = open_model(graph("end_to_end", None)).run(OUTPUTS, {"image": picture, **feed})
    assert len(expected) > (5 if min(size) > 1 else 0)
    assert_same_faces(Detections(*found), expected)
    default = open_model(graph("end_to_end", None)).run(OUTPUTS, {"image": picture})
    assert len(default[1]) == len(ff.Detector(network("v2")).detect(picture, bgr=True))


def test_one_size_has_no_shape_arithmetic():
    fixed = graph("end_to_end", (64, 96))
    dimensions = [d.dim_value for d in fixed.graph.input[0].type.tensor_type.shape.dim]
    assert dimensions == [64, 96, 3]
    inside = [node.op_type for node in fixed.graph.node if node.name.startswith("network_")]
    assert len(inside) > 50
    assert not {"Shape", "Range", "ConstantOfShape", "Expand", "Size"} & set(inside)
    assert "BatchNormalization" not in inside
    picture = scene(64, 96)
    for got, wanted in zip(
        open_model(fixed).run(OUTPUTS, {"image": picture}),
        open_model(graph("end_to_end", None)).run(OUTPUTS, {"image": picture}),
        strict=True,
    ):
        np.testing.assert_allclose(got, wanted, atol=1e-3)


def test_a_model_says_what_it_is_and_names_no_machine():
    model = graph("end_to_end", None)
    facts = {item.key: item.value for item in model.metadata_props}
    assert facts["architecture"] == "v2" and facts["form"] == "end_to_end"
    assert facts["size"] == "any" and json.loads(facts["mean_bgr"]) == list(MEAN_BGR)
    assert [entry.name for entry in model.graph.input] == [
        "image",
        "score_threshold",
        "iou_threshold",
    ]
    assert [entry.name for entry in graph("raw", None).graph.output] == list(OUTPUTS)
    v1 = graph("raw", (40, 64), "v1", 19)
    for made in (model, graph("raw", None), graph("end_to_end", (64, 96)), v1):
        text = made.SerializeToString()
        assert b"site-packages" not in text and b".py" not in text


def test_the_oldest_opset_finds_the_same_faces():
    oldest = graph("end_to_end", (64, 96), "v2", 18)
    assert oldest.opset_import[0].version == 18
    feed = {"image": scene(64, 96), "score_threshold": np.array(0.3, np.float32)}
    found = open_model(oldest).run(OUTPUTS, feed)
    expected = open_model(graph("end_to_end", (64, 96))).run(OUTPUTS, feed)
    assert len(found[1]) > 3
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_v1_needs_opset_19_and_runs_from_there():
    with pytest.raises(ConfigError, match="opset 19 or newer; got 18"):
        build(network("v1"), opset=18)
    model = graph("raw", (40, 64), "v1", 19)
    image = pixels(40, 64)
    found = open_model(model).run(OUTPUTS, {"image": image})
    for got, wanted, limit in zip(
        found, all_anchors(network("v1"), image), (2e-2, 2e-4, 2e-2), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=limit)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"form": "other"}, "form must be one of raw, end_to_end"),
        ({"opset": 17}, "opset must be 18 to 23; got 17"),
        ({"opset": 99}, "opset must be 18 to 23; got 99"),
        ({"size": (0, 64)}, "size must be at least 1x1; got 0x64"),
    ],
)
def test_settings_that_cannot_work(options, said):
    with pytest.raises(ConfigError, match=said):
        build(network("v2"), **options)


def test_int8_is_small_and_close_and_leaves_out_what_is_too_far_off():
    whole = graph("end_to_end", None)
    pictures = [scene(96, 128, seed) for seed in range(3)]
    result = quantise(whole, pictures)
    assert len(result.layers) >= 12 and result.score_error <= 0.02
    assert quantise(whole, pictures, score_error=1.0).model.ByteSize() <= 450_000
    all_of_them = quantise(whole, pictures, score_error=1.0, largest=0)
    assert all_of_them.left == () and all_of_them.score_error > result.score_error
    onnx.checker.check_model(result.model, full_check=True)
    assert {item.key: item.value for item in result.model.metadata_props}["architecture"] == "v2"
    operators = [node.op_type for node in result.model.graph.node]
    assert operators.count("QuantizeLinear") >= len(result.layers)
    feed = {"image": scene(96, 128, 9), "score_threshold": np.array(0.3, np.float32)}
    boxes, scores, _ = open_model(result.model).run(OUTPUTS, feed)
    expected = open_model(whole).run(OUTPUTS, feed)
    assert abs(len(scores) - len(expected[1])) <= 0.2 * len(expected[1])
    assert abs(scores[0] - expected[1][0]) < 0.1 and np.isfinite(boxes).all()
    strict = quantise(whole, pictures, smallest=16384, score_error=0.0)
    assert strict.layers == () and len(strict.left) >= 3
    assert 0 < strict.score_error < 0.02  # what stays in float is stored in 16 bits


def test_a_weight_that_16_bits_cannot_hold_stays_in_32():
    model = onnx.ModelProto.FromString(graph("end_to_end", None).SerializeToString())
    large = next(i for i in model.graph.initializer if "heads.0.weight" in i.name)
    values = onnx.numpy_helper.to_array(large).copy()
    values.flat[0] = 70000
    large.CopyFrom(onnx.numpy_helper.from_array(values, large.name))
    stored = {item.name: item for item in _store_in_half(model).graph.initializer}
    kinds = [item.data_type for item in stored.values()]
    assert kinds.count(onnx.TensorProto.FLOAT16) > 20 and stored[large.name].data_type == 1
    assert all(np.isfinite(onnx.numpy_helper.to_array(item)).all() for item in stored.values())


def test_an_opset_that_onnx_runtime_is_too_old_for_is_one_line():
    newer = onnx.ModelProto.FromString(graph("end_to_end", None).SerializeToString())
    newer.opset_import[0].version = 99
    with pytest.raises(ConfigError, match=r"cannot run the model .opset 99.: choose") as caught:
        open_model(newer)
    assert "\n" not in str(caught.value)


def test_exporting_says_nothing(capfd, caplog):
    caplog.set_level(logging.WARNING)
    logger = logging.getLogger("onnx_ir.passes.common.initializer_deduplication")
    build(network("v2"), size=(32, 32))
    said = capfd.readouterr()
    assert said.out + said.err == "" and not caplog.records
    assert logger.level == logging.NOTSET


def test_int8_needs_pictures_and_the_end_to_end_form():
    with pytest.raises(ConfigError, match="pictures to calibrate on"):
        quantise(graph("end_to_end", None), [])
    with pytest.raises(ConfigError, match="end-to-end form"):
        quantise(graph("raw", None), [scene(32, 32)])
