"""The same evaluation on any annotated photos: all faces, and by their size.

The matching is WIDER FACE's (see `matching`), so the numbers of a photo folder and of the benchmark
mean the same. The size ranges and their measure, the square root of the box area, are COCO's (Lin
et al., ECCV 2014). As in WIDER FACE, faces outside a range are not kept: detections that find them
are dropped, but a detection that finds no face is false in every range, whatever its own size.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from featherface.errors import DataError
from featherface.evaluation.average_precision import Evaluation, evaluate
from featherface.evaluation.matching import match
from featherface.evaluation.submission import Found, gather, image_key, image_stem

SMALL, LARGE = 32.0, 96.0  # pixels: small < 32 ≤ medium ≤ 96 < large


def evaluate_boxes(
    predictions: Found,
    truths: Mapping[str, np.ndarray],
    *,
    ignored: Mapping[str, np.ndarray] | None = None,
    min_size: float = 0.0,
) -> dict[str, Any]:
    """Average precision against annotated boxes.

    predictions: {image: (K, 5) x, y, w, h, score, or Detections}, or a submission folder or zip;
    truths: {image: (F, 4) x1, y1, x2, y2} in pixels, (0, 4) for a photo without faces, on which
    every detection is false. Names are matched by stem where the stems of `truths` differ, else
    with their folders. ignored: {image: (F,) bool}, faces that are neither wanted nor wrong to
    find; min_size: treats faces smaller than this alike (square root of the box area, pixels).

    Returns {"all": {"ap", "ap_exact", "faces"}, "small": …, "medium": …, "large": …, "images": n}:
    AP in 0..1, NaN for a size without faces. Errors and warnings are `evaluate_widerface`'s.
    """
    return precision_recall_boxes(predictions, truths, ignored=ignored, min_size=min_size).as_dict()


def precision_recall_boxes(
    predictions: Found,
    truths: Mapping[str, np.ndarray],
    *,
    ignored: Mapping[str, np.ndarray] | None = None,
    min_size: float = 0.0,
) -> Evaluation:
    """The same evaluation with its curves; arguments and errors are `evaluate_boxes`'s."""
    if not truths:
        raise DataError("there is no annotated image to evaluate on")
    names = list(truths)
    key = image_stem if len({image_stem(name) for name in names}) == len(names) else image_key
    boxes = [_corners(truths[name], name) for name in names]
    rows = gather(predictions, names, known=names, key=key)
    sizes = [np.sqrt((box[:, 2:] - box[:, :2]).clip(min=0).prod(axis=1)) for box in boxes]
    wanted = [
        _wanted(name, size, (ignored or {}).get(name)) & (size >= min_size)
        for name, size in zip(names, sizes, strict=True)
    ]
    size, kept = np.concatenate(sizes), np.concatenate(wanted)
    settings = {
        "all": kept,
        "small": kept & (size < SMALL),
        "medium": kept & (size >= SMALL) & (size <= LARGE),
        "large": kept & (size > LARGE),
    }
    faces = [np.column_stack([box[:, :2], box[:, 2:] - box[:, :2]]) for box in boxes]
    return evaluate(match(rows, faces), settings, images=len(names))


def _corners(boxes: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(boxes, np.float64)
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4 or not np.isfinite(array).all():
        raise DataError(f"image {name}: annotated boxes must be finite (F, 4) x1 y1 x2 y2")
    return array


def _wanted(name: str, size: np.ndarray, ignore: np.ndarray | None) -> np.ndarray:
    if ignore is None:
        return np.ones(len(size), bool)
    if len(ignore) != len(size):
        raise DataError(f"image {name}: {len(size)} boxes but {len(ignore)} ignore marks")
    return ~np.asarray(ignore, bool)
