"""The deployed weights file: the network with all that is needed to use it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from featherface.checkpoint import FORMAT, write_file
from featherface.config import (
    ANCHOR_SIZES,
    DISPLAY_SCORE,
    KEEP_TOP_K,
    MEAN_BGR,
    NMS_IOU,
    PAD_MULTIPLE,
    PRE_NMS_TOP_K,
    STRIDES,
    VARIANCES,
)
from featherface.files import sha256
from featherface.provenance import commit, versions
from featherface.structures import LANDMARK_NAMES

PREPROCESSING = {
    "channels": "BGR",
    "mean_bgr": list(MEAN_BGR),
    "scale": 1.0,
    "layout": "NCHW float32",
    "pad_multiple": PAD_MULTIPLE,
    "padding": "right and below, with the mean colour",
}
POSTPROCESSING = {
    "strides": list(STRIDES),
    "anchor_sizes": [list(sizes) for sizes in ANCHOR_SIZES],
    "variances": list(VARIANCES),
    "score_threshold": DISPLAY_SCORE,
    "iou_threshold": NMS_IOU,
    "pre_nms_top_k": PRE_NMS_TOP_K,
    "keep_top_k": KEEP_TOP_K,
    "landmarks": list(LANDMARK_NAMES),
}


def package(
    model: nn.Module,
    checkpoint: Mapping[str, Any],
    *,
    source: str | os.PathLike,
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of the deployment file: tensors and plain data only, readable by `load_model`.

    checkpoint: what `source` holds (its settings, its data, the runs before it, the files that it
    is the mean of and its recorded evaluations are kept); metrics: what the export measured.
    """
    return {
        "format": FORMAT,
        "kind": "deployment",
        "architecture": str(model.name),
        "model": {name: value.cpu() for name, value in model.state_dict().items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "config": dict(checkpoint.get("config") or {}),
        "data": dict(checkpoint.get("data") or {}),
        "history": list(checkpoint.get("history") or []),
        "mean_of": list(checkpoint.get("mean_of") or []),
        "preprocessing": PREPROCESSING,
        "postprocessing": POSTPROCESSING,
        "evaluations": recorded(checkpoint),
        "metrics": dict(metrics),
        "source": {"file": Path(source).name, "sha256": sha256(source)},
        "versions": versions(),
        "commit": commit(),
    }


def recorded(checkpoint: Mapping[str, Any]) -> list[Any]:
    """The AP that evaluate.py --record has written into a weights file."""
    return list(checkpoint.get("evaluations") or [])


def write_package(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Write the deployment file atomically."""
    write_file(path, content)
