"""Detections in memory, as the evaluation takes them: image names, checked rows, box geometry."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np

from featherface.errors import DataError
from featherface.images import PHOTO_SUFFIXES
from featherface.structures import Detections

# {image name: (K, 5) x, y, w, h, score, or Detections}
InMemory: TypeAlias = Mapping[str, np.ndarray | Detections]


class EvaluationWarning(UserWarning):
    """Detections and annotation do not cover the same images, or a prediction file is empty."""


def warn(message: str) -> None:
    warnings.warn(message, EvaluationWarning, stacklevel=3)


def image_key(name: str) -> str:
    """A name without its image suffix: "a/b.jpg" and "a/b" are the same image."""
    root, suffix = os.path.splitext(name)
    return root if suffix.lower() in PHOTO_SUFFIXES else name


def image_stem(name: str) -> str:
    """A name without folders and image suffix, which is unique in WIDER FACE."""
    return image_key(name.rsplit("/", 1)[-1])


def name_some(names: Iterable[str], most: int = 3) -> str:
    """ "a, b, c and 4 more"."""
    listed = list(names)
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + rest


def as_rows(value: np.ndarray | Detections, where: str) -> np.ndarray:
    """(K, 5) float64 x, y, w, h, score, finite. DataError otherwise, naming `where`."""
    if isinstance(value, Detections):
        boxes = value.boxes.astype(np.float64)
        return np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2], value.scores])
    try:
        rows = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: detections must be numbers: {error}") from error
    if rows.size == 0:
        return np.zeros((0, 5))
    if rows.ndim != 2 or rows.shape[1] != 5:
        raise DataError(f"{where}: detections need 5 columns, x y w h score; shape is {rows.shape}")
    if not np.isfinite(rows).all():
        row = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise DataError(f"{where}: detection {row + 1} has a NaN or infinite value: {rows[row]}")
    return rows


def gather(
    predictions: InMemory, names: list[str], known: Iterable[str], key: Callable[[str], str]
) -> list[np.ndarray]:
    """Return the detections of the images `names`, in that order: (K, 5) x, y, w, h, score each.

    known: all annotated images, also outside a subset; key makes names comparable. An image without
    prediction counts as one without detections, and a prediction for an unknown image is left out;
    an EvaluationWarning names them. DataError for two predictions of one image, for malformed ones,
    and if no prediction belongs to an annotated image.
    """
    found: dict[str, np.ndarray] = {}
    for name, value in predictions.items():
        if key(name) in found:
            raise DataError(f"two predictions for the image {key(name)}, one of them {name}")
        found[key(name)] = as_rows(value, f"image {name}")
    unknown = sorted(found.keys() - {key(name) for name in known})
    if found and len(unknown) == len(found):
        raise DataError(
            "no prediction is for an annotated image (another split or data set?): "
            f"{name_some(unknown)}"
        )
    if unknown:
        warn(f"{len(unknown)} predictions for unknown images left out: {name_some(unknown)}")
    missing = [name for name in names if key(name) not in found]
    if missing:
        warn(
            f"{len(missing)} of {len(names)} images have no prediction and count as images "
            f"without detections: {_name_missing(missing, names)}"
        )
    nothing = np.zeros((0, 5))
    return [found.get(key(name), nothing) for name in names]


def _name_missing(missing: list[str], names: list[str]) -> str:
    """The first few names; a folder (event) that is missing as a whole is named once."""
    present = Counter(os.path.dirname(name) for name in names)
    present.subtract(os.path.dirname(name) for name in missing)
    gone = [folder for folder, count in present.items() if folder and not count]
    single = [name for name in missing if os.path.dirname(name) not in gone]
    return name_some([f"all of {folder}" for folder in gone] + single)


def box_sizes(boxes: np.ndarray) -> np.ndarray:
    """(K,) square roots of the areas of x1, y1, x2, y2 boxes, pixels."""
    return np.sqrt((boxes[:, 2:] - boxes[:, :2]).clip(min=0).astype(np.float64).prod(axis=1))


def pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(K, L) IoU of x1, y1, x2, y2 boxes in continuous coordinates; 0 if both are empty."""
    a, b = a[:, None].astype(np.float64), b[None].astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    inside = sides.clip(min=0).prod(axis=-1)
    areas = [(box[..., 2:] - box[..., :2]).clip(min=0).prod(axis=-1) for box in (a, b)]
    return inside / np.maximum(areas[0] + areas[1] - inside, 1e-9)
