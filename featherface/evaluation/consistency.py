"""Consistency of two detectors: do they find the same faces? Needs no annotation.

In each image the boxes of both are paired one to one (Hungarian method, Kuhn 1955) so that the sum
of the IoUs of at least 0.5 is largest. Used for V1 and V2 and for exported and trained networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from featherface.errors import DataError
from featherface.evaluation.submission import name_some
from featherface.structures import Detections

if TYPE_CHECKING:
    import pandas as pd

STATUS = ("matched", "missed", "extra")
COLUMNS = "image status index_a index_b score_a score_b size iou landmark_distance".split()


def compare(
    detections_a: Mapping[str, Detections] | Sequence[Detections],
    detections_b: Mapping[str, Detections] | Sequence[Detections],
    *,
    score_above: float = -np.inf,
    iou_threshold: float = 0.5,
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Pair the faces of detector a (the reference) and detector b, image by image.

    Both arguments name the same images, or are lists in the same order (named 0, 1, …). Only faces
    that score over `score_above` count: at the low threshold of an evaluation most are noise.

    Returns a table and a summary. The table has one row per pair (status "matched") and one per
    face that only a found ("missed") or only b ("extra"), whose other values are NaN and index −1.
    size: square root of the box area (pixels; of a's box if there is one); iou: of the two boxes;
    landmark_distance: mean distance of the five points in units of size. The summary has images,
    faces_a, faces_b, matched, missed, extra; agreement = matched / (matched + missed + extra);
    score_correlation (Pearson), score_difference (mean of b − a), and mean and median of iou and
    landmark_distance: NaN if no pair defines them. DataError if the images differ.
    """
    import pandas as pd

    first, second = (_named(found, score_above) for found in (detections_a, detections_b))
    different = sorted(first.keys() ^ second.keys())
    if different:
        raise DataError(f"images that only one detector has seen: {name_some(different)}")
    rows = [row for name in first for row in _rows(name, first[name], second[name], iou_threshold)]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table, _summary(table, len(first))


def _named(
    detections: Mapping[str, Detections] | Sequence[Detections], score_above: float
) -> dict[str, Detections]:
    if not isinstance(detections, Mapping):
        detections = {str(index): faces for index, faces in enumerate(detections)}
    return {name: faces[faces.scores > score_above] for name, faces in detections.items()}


def _rows(name: str, a: Detections, b: Detections, iou_threshold: float) -> list[tuple]:
    """The table's rows of one image: pairs, missed, extra."""
    from scipy.optimize import linear_sum_assignment  # slow to import

    overlaps = pairwise_iou(a.boxes, b.boxes)
    allowed = np.where(overlaps >= iou_threshold, overlaps, 0.0)
    index_a, index_b = linear_sum_assignment(allowed, maximize=True)
    paired = overlaps[index_a, index_b] >= iou_threshold
    index_a, index_b = index_a[paired], index_b[paired]
    sizes_a, sizes_b = box_sizes(a.boxes), box_sizes(b.boxes)
    scores_a, scores_b = a.scores.astype(float), b.scores.astype(float)
    steps = np.linalg.norm(a.landmarks[index_a] - b.landmarks[index_b], axis=2).mean(axis=1)
    distance = steps / np.maximum(sizes_a[index_a], 1e-9)
    nothing = (np.nan, np.nan)
    rows: list[tuple] = [
        (name, "matched", i, j, scores_a[i], scores_b[j], sizes_a[i], overlaps[i, j], far)
        for i, j, far in zip(index_a, index_b, distance, strict=True)
    ]
    for i in np.setdiff1d(np.arange(len(a)), index_a):
        rows.append((name, "missed", i, -1, scores_a[i], np.nan, sizes_a[i], *nothing))
    for j in np.setdiff1d(np.arange(len(b)), index_b):
        rows.append((name, "extra", -1, j, np.nan, scores_b[j], sizes_b[j], *nothing))
    return rows


def _summary(table: pd.DataFrame, images: int) -> dict[str, float]:
    counts = {name: int((table["status"] == name).sum()) for name in STATUS}
    pairs = table[table["status"] == "matched"].drop(columns=["image", "status"]).astype(float)
    a, b, iou, distance = (pairs[n] for n in ("score_a", "score_b", "iou", "landmark_distance"))
    related = len(pairs) > 1 and a.std() and b.std()
    return {
        "images": images,
        "faces_a": counts["matched"] + counts["missed"],
        "faces_b": counts["matched"] + counts["extra"],
        **counts,
        "agreement": counts["matched"] / len(table) if len(table) else float("nan"),
        "score_correlation": float(np.corrcoef(a, b)[0, 1]) if related else float("nan"),
        "score_difference": float((b - a).mean()),
        "iou_mean": float(iou.mean()),
        "iou_median": float(iou.median()),
        "landmark_distance_mean": float(distance.mean()),
        "landmark_distance_median": float(distance.median()),
    }


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
