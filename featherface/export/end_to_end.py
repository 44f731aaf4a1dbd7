"""The graph around the network, as ONNX text: it reads a uint8 picture and returns its faces.

The order is that of `postprocess`: threshold, top-k, decode, suppress. Then coordinates are clipped
to the picture, and faces wholly in the padding are dropped.
"""

from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, compose, helper, numpy_helper, parser

from featherface.config import (
    DISPLAY_SCORE,
    KEEP_TOP_K,
    MEAN_BGR,
    NMS_IOU,
    PAD_MULTIPLE,
    PRE_NMS_TOP_K,
)
from featherface.images import padded_size

THRESHOLDS = {"score_threshold": DISPLAY_SCORE, "iou_threshold": NMS_IOU}

# image (H, W, 3) → what the network reads, and W, H, W, H
_BEFORE = """
before (uint8[height, width, 3] image)
    => (float[1, 3, rows, columns] network_image, float[4] limits) {
    floats = Cast <to = 1> (image)
    planes = Transpose <perm = [2, 0, 1]> (floats)
    centred = Sub (planes, mean)
    shape = Shape <start = 0, end = 2> (image)
    short = Neg (shape)
    missing = Mod (short, multiples)
    pads = Concat <axis = 0> (no_pads, missing)
    padded = Pad (centred, pads)
    network_image = Unsqueeze (padded, first)
    size = Cast <to = 1> (shape)
    tall, wide = Split <axis = 0, num_outputs = 2> (size)
    limits = Concat <axis = 0> (wide, tall, wide, tall)
}
"""
_BEFORE_FIXED = """
before (uint8[height, width, 3] image) => (float[1, 3, rows, columns] network_image) {
    floats = Cast <to = 1> (image)
    planes = Transpose <perm = [2, 0, 1]> (floats)
    centred = Sub (planes, mean)
    padded = Pad (centred, pads)
    network_image = Unsqueeze (padded, first)
}
"""
# values (1, 30, N), cells (2, N) → faces. A: anchors, two per cell. M: above the threshold, at most
# PRE_NMS_TOP_K. K: kept. The parts of `values` are those of `network.PARTS`.
_AFTER = """
after (float[1, 30, cells] network_values, float[2, cells] network_cells, float[4] limits,
       float score_threshold, float iou_threshold)
    => (float[faces, 4] boxes, float[faces] scores, float[faces, 5, 2] landmarks) {
    rows = Squeeze (network_values, first)
    logits, rest = Split <axis = 0> (rows, logits_and_rest)
    by_cell = Transpose <perm = [1, 0]> (logits)
    by_anchor = Reshape (by_cell, flat)
    probabilities = Sigmoid (by_anchor)
    above = Greater (probabilities, score_threshold)
    places = NonZero (above)
    candidates = Squeeze (places, first)
    their_scores = Gather (probabilities, candidates)
    count = Shape (their_scores)
    most = Min (count, top_k)
    best, order = TopK (their_scores, most)
    chosen = Gather (candidates, order)
    cell = Div (chosen, two)
    anchor = Mod (chosen, two)
    large = Cast <to = 9> (anchor)
    picked = Gather <axis = 1> (rest, cell)
    c0, c1, h0, h1, p0, p1 = Split <axis = 0> (picked, parts)
    centre_xy = Gather <axis = 1> (network_cells, cell)
    offset = Where (large, c1, c0)
    centre = Add (offset, centre_xy)
    log_half = Where (large, h1, h0)
    half = Exp (log_half)
    upper_left = Sub (centre, half)
    lower_right = Add (centre, half)
    corners = Concat <axis = 0> (upper_left, lower_right)
    all_boxes = Transpose <perm = [1, 0]> (corners)
    batched_boxes = Unsqueeze (all_boxes, first)
    batched_scores = Unsqueeze (best, first_two)
    triples = NonMaxSuppression (batched_boxes, batched_scores, keep, iou_threshold)
    kept = Gather <axis = 1> (triples, box_column)
    kept_boxes = Gather (all_boxes, kept)
    not_negative = Max (kept_boxes, zero)
    clipped = Min (not_negative, limits)
    x1_y1, x2_y2 = Split <axis = 1, num_outputs = 2> (clipped)
    extent = Sub (x2_y2, x1_y1)
    shortest = ReduceMin <keepdims = 0> (extent, columns)
    visible = Greater (shortest, zero)
    boxes = Compress <axis = 0> (clipped, visible)
    kept_scores = Gather (best, kept)
    scores = Compress <axis = 0> (kept_scores, visible)
    seen = Compress <axis = 0> (kept, visible)
    points = Where (large, p1, p0)
    their_points = Gather <axis = 1> (points, seen)
    their_centres = Gather <axis = 1> (centre_xy, seen)
    pairs = Reshape (their_points, five_pairs)
    placed = Add (pairs, their_centres)
    landmarks = Transpose <perm = [2, 0, 1]> (placed)
}
"""
_CONSTANTS = {
    "first": [0],
    "first_two": [0, 1],
    "columns": [1],
    "flat": [-1],
    "two": 2,
    "logits_and_rest": [2, 28],
    "parts": [2, 2, 2, 2, 10, 10],
    "five_pairs": [5, 2, -1],
    "top_k": [PRE_NMS_TOP_K],
    "keep": [KEEP_TOP_K],
    "box_column": 2,
    "zero": 0.0,
}


def wrap(network: ModelProto, *, size: tuple[int, int] | None) -> ModelProto:
    """The end-to-end model around a network of one picture: image → values, cells.

    size: height and width of the picture, or None for any.
    """
    network = compose.add_prefix(network, "network_")
    before, constants = _before(size)
    parts = (parser.parse_graph(before), network.graph, parser.parse_graph(_AFTER))
    inputs = [parts[0].input[0], *(i for i in parts[2].input if i.name in THRESHOLDS)]
    constants = {**constants, **_CONSTANTS, **THRESHOLDS}
    graph = helper.make_graph(
        [node for part in parts for node in part.node],
        "featherface",
        inputs,
        parts[2].output,
        [_constant(name, value) for name, value in constants.items()]
        + list(network.graph.initializer),
    )
    _fix(graph.input[0], size)
    return helper.make_model(
        graph, opset_imports=network.opset_import, ir_version=network.ir_version
    )


def _before(size: tuple[int, int] | None) -> tuple[str, dict[str, Any]]:
    """Text and constants of the part before the network."""
    constants: dict[str, Any] = {"mean": np.array(MEAN_BGR, np.float32)[:, None, None]}
    if size is None:
        return _BEFORE, {**constants, "no_pads": [0] * 4, "multiples": [PAD_MULTIPLE] * 2}
    height, width = size
    rows, columns = padded_size(height, width)
    constants["pads"] = [0, 0, 0, 0, rows - height, columns - width]
    constants["limits"] = np.array([width, height, width, height], np.float32)
    return _BEFORE_FIXED, constants


def _constant(name: str, value: Any) -> TensorProto:
    """Whole numbers as int64, everything else as float32."""
    array = np.asarray(value)
    return numpy_helper.from_array(
        array.astype(np.int64 if array.dtype.kind == "i" else np.float32), name
    )


def _fix(image: ValueInfoProto, size: tuple[int, int] | None) -> None:
    for dimension, pixels in zip(image.type.tensor_type.shape.dim, size or (), strict=False):
        dimension.dim_value = pixels
