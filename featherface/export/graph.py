"""Trained network → ONNX model in one of two forms, checked against PyTorch before it is written.

raw: image (B, 3, H, W) float32, BGR minus mean → boxes (B, A, 4), scores (B, A), landmarks
(B, A, 5, 2), decoded, in pixels of the input, for all anchors.
end_to_end: image (H, W, 3) uint8 BGR, optional score_threshold and iou_threshold → boxes (K, 4),
scores (K,) descending, landmarks (K, 5, 2), in pixels of the image.
"""

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, numpy_helper
from torch import nn
from torch.export import Dim

from featherface import __version__
from featherface.config import (
    DISPLAY_SCORE,
    KEEP_TOP_K,
    MEAN_BGR,
    NMS_IOU,
    PAD_MULTIPLE,
    PRE_NMS_TOP_K,
)
from featherface.errors import CheckpointError, ConfigError
from featherface.export.end_to_end import wrap
from featherface.export.network import Raw, deployed
from featherface.images import padded_size
from featherface.onnx_detector import open_session
from featherface.onnx_export import export_onnx
from featherface.structures import LANDMARK_NAMES

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FORMS = ("raw", "end_to_end")
OPSETS = range(18, 24)  # what the exporter writes and ONNX Runtime runs
OPSET = 20
_DEFORMABLE_SINCE = 19  # the opset that brought DeformConv; before it the model is invalid
_OUTPUTS = {"raw": ["boxes", "scores", "landmarks"], "end_to_end": ["values", "cells"]}
_POOLING = {"ReduceMean": "GlobalAveragePool", "ReduceMax": "GlobalMaxPool"}

Size = tuple[int, int]  # height, width


def build(
    model: nn.Module,
    *,
    form: str = "end_to_end",
    size: Size | None = None,
    opset: int = OPSET,
) -> ModelProto:
    """Return the ONNX model of a trained V1 or V2.

    size: height and width, for one size only and without shape arithmetic; None: any size (raw:
    and any batch). Raises ConfigError for a form, size or opset that cannot work.
    """
    check_settings(model, form=form, size=size, opset=opset)
    exact = form == "end_to_end" or (size is not None and size == padded_size(*size))
    network = deployed(model, exact=exact)
    if form == "raw":
        exported = _export(Raw(network).eval(), form, size, opset)
    else:
        padded = size and padded_size(*size)
        exported = wrap(_export(network, form, padded, opset), size=size)
    describe(exported, architecture=str(getattr(model, "name", "")), form=form, size=size)
    onnx.checker.check_model(exported, full_check=True)
    return exported


def check_settings(model: nn.Module, *, form: str, size: Size | None, opset: int) -> None:
    """Raise ConfigError for a form, size or opset that cannot work."""
    if form not in FORMS:
        raise ConfigError(f"form must be one of {', '.join(FORMS)}; got {form!r}")
    if opset not in OPSETS:
        raise ConfigError(f"opset must be {OPSETS[0]} to {OPSETS[-1]}; got {opset}")
    if getattr(model, "name", "") == "v1" and opset < _DEFORMABLE_SINCE:
        raise ConfigError(
            f"V1's deformable convolutions need opset {_DEFORMABLE_SINCE} or newer; got {opset}"
        )
    if size is not None and min(size) < 1:
        raise ConfigError(f"size must be at least 1x1; got {size[0]}x{size[1]}")


def _export(module: nn.Module, form: str, size: Size | None, opset: int) -> ModelProto:
    """Export a module that reads (B, 3, H, W); end_to_end has B = 1."""
    shapes: tuple[dict[int, Any]] | None = None  # the sides of the image that may vary
    if size is not None:
        image = torch.zeros(1, 3, *size)
    elif form == "raw":
        image = torch.zeros(2, 3, 97, 161)
        shapes = ({0: Dim("batch"), 2: Dim("height"), 3: Dim("width")},)
    else:
        image = torch.zeros(1, 3, 3 * PAD_MULTIPLE, 5 * PAD_MULTIPLE)
        shapes = ({2: PAD_MULTIPLE * Dim("rows"), 3: PAD_MULTIPLE * Dim("columns")},)
    names: dict[str, Any] = {"inputs": ["image"], "outputs": _OUTPUTS[form]}
    return tidy(export_onnx(module, image, dynamic_shapes=shapes, opset=opset, **names))


def tidy(model: ModelProto) -> ModelProto:
    """Remove the exporter's notes (they hold paths) and unused values; name global pooling."""
    graph = model.graph
    model.producer_name, model.producer_version = "featherface", __version__
    axes = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        _pool(node, axes)
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    kept = [item for item in graph.initializer if item.name in used]
    for field, values in ((graph.initializer, kept), (graph.value_info, ())):
        items = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(items)
    for item in (*graph.initializer, *graph.input, *graph.output):
        item.doc_string = ""
        del item.metadata_props[:]
    del model.metadata_props[:], graph.metadata_props[:], model.functions[:]
    return model


def _pool(node: NodeProto, constants: dict[str, np.ndarray]) -> None:
    """Turn a reduction over height and width into the pooling that has a blocked kernel."""
    if node.op_type in _POOLING and len(node.input) == 2:
        axes = constants.get(node.input[1])
        if axes is not None and axes.tolist() in ([2, 3], [-2, -1]):
            node.op_type = _POOLING[node.op_type]
            del node.input[1:], node.attribute[:]


def describe(model: ModelProto, *, architecture: str, form: str, size: Size | None) -> None:
    """Write the facts into the file, and name the sizes that may vary."""
    onnx.helper.set_model_props(model, facts(architecture=architecture, form=form, size=size))
    names = ("batch", "anchors") if form == "raw" else ("faces",)
    for output in model.graph.output:
        for dimension, name in zip(output.type.tensor_type.shape.dim, names, strict=False):
            if not dimension.HasField("dim_value"):
                dimension.dim_param = name


def facts(*, architecture: str, form: str, size: Size | None) -> dict[str, str]:
    """Return what a program needs to know to use a file."""
    return {
        "format": "featherface/1",
        "featherface": __version__,
        "architecture": architecture,
        "form": form,
        "size": f"{size[0]}x{size[1]}" if size else "any",
        "input": "float32 BGR minus mean" if form == "raw" else "uint8 BGR",
        "mean_bgr": json.dumps(MEAN_BGR),
        "pad_multiple": str(PAD_MULTIPLE),
        "score_threshold": str(DISPLAY_SCORE),
        "iou_threshold": str(NMS_IOU),
        "pre_nms_top_k": str(PRE_NMS_TOP_K),
        "keep_top_k": str(KEEP_TOP_K),
        "landmarks": json.dumps(LANDMARK_NAMES),
    }


def open_model(model: ModelProto, *, threads: int = 1) -> "InferenceSession":
    """Open a CPU session of a model in memory. ConfigError if ONNX Runtime cannot run it."""
    try:
        return open_session(model.SerializeToString(), threads=threads)
    except CheckpointError as error:
        opset = next(item.version for item in model.opset_import if not item.domain)
        raise ConfigError(
            f"ONNX Runtime cannot run the model (opset {opset}): choose an older opset or install "
            "a newer ONNX Runtime"
        ) from error
