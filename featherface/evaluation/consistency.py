"""Do two detectors find the same faces? One against the other, with no annotation needed.

In each image the boxes of the two are paired one to one (Hungarian method, Kuhn 1955) so that the
sum of the IoUs of at least 0.5 is largest. Used for V1 against V2 and for exported against trained
networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from featherface.errors import DataError
from featherface.evaluation.submission import name_some
from featherface.structures import Detections

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "image",
    "status",
    "index_a",
    "index_b",
    "score_a",
    "score_b",
    "size",
    "iou",
    "landmark_distance",
)
_STATUS = ("matched", "missed", "extra")


def compare(
    detections_a: Mapping[str, Detections] | Sequence[Detections],
    detections_b: Mapping[str, Detections] | Sequence[Detections],
    *,
    iou_threshold: float = 0.5,
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Pair the faces of detector a (the reference) and detector b, image by image.

    Both arguments name the same images, or are lists in the same order (named 0, 1, …).

    Returns a table and a summary. The table has one row a pair (status "matched") and one a face
    that only a found ("missed") or only b ("extra"), whose other values are NaN and index −1:
    size is the square root of the box area (pixels, a's box where there is one), iou that of the
    boxes, landmark_distance the mean distance of the five points in units of size. The summary has
    images, faces_a, faces_b, matched, missed, extra; agreement = matched / (matched + missed +
    extra); score_correlation (Pearson) and score_difference (mean of b − a); iou_mean, iou_median,
    landmark_distance_mean, landmark_distance_median: NaN where no pair defines them.
    DataError where the images differ.
    """
    import pandas as pd

    first, second = _named(detections_a), _named(detections_b)
    different = sorted(first.keys() ^ second.keys())
    if different:
        raise DataError(f"images that only one detector has seen: {name_some(different)}")
    rows = [row for name in first for row in _rows(name, first[name], second[name], iou_threshold)]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table, _summary(table, len(first))


class Pair(NamedTuple):
    """Two detectors, by name, and what `compare` says of them."""

    a: str
    b: str
    table: pd.DataFrame
    summary: dict[str, float]


def compare_with_first(
    detected: Mapping[str, Mapping[str, Detections]], *, score_above: float
) -> list[Pair]:
    """The first of several detectors, {name: {image: faces}}, against each other one.

    Only faces that score over `score_above`: at the low threshold of an evaluation most are noise,
    on which no two detectors agree. Empty for fewer than two detectors; errors are `compare`'s.
    """
    shown = {
        name: {image: faces[faces.scores > score_above] for image, faces in found.items()}
        for name, found in detected.items()
    }
    first, *others = shown or [""]
    return [Pair(first, other, *compare(shown[first], shown[other])) for other in others]


def _named(detections: Mapping[str, Detections] | Sequence[Detections]) -> dict[str, Detections]:
    if isinstance(detections, Mapping):
        return dict(detections)
    return {str(index): faces for index, faces in enumerate(detections)}


def _rows(name: str, a: Detections, b: Detections, iou_threshold: float) -> list[tuple]:
    """The table's rows of one image: pairs, missed, extra."""
    overlaps = pairwise_iou(a.boxes, b.boxes)
    index_a, index_b = _assign(overlaps, iou_threshold)
    sizes_a, sizes_b = _sizes(a.boxes), _sizes(b.boxes)
    scores_a, scores_b = a.scores.astype(float), b.scores.astype(float)
    steps = np.linalg.norm(a.landmarks[index_a] - b.landmarks[index_b], axis=2).mean(axis=1)
    distance = steps / np.maximum(sizes_a[index_a], 1e-9)
    rows: list[tuple] = [
        (name, "matched", i, j, scores_a[i], scores_b[j], sizes_a[i], overlaps[i, j], distance[n])
        for n, (i, j) in enumerate(zip(index_a, index_b, strict=True))
    ]
    nan = np.nan
    for i in np.setdiff1d(np.arange(len(a)), index_a):
        rows.append((name, "missed", i, -1, scores_a[i], nan, sizes_a[i], nan, nan))
    for j in np.setdiff1d(np.arange(len(b)), index_b):
        rows.append((name, "extra", -1, j, nan, scores_b[j], sizes_b[j], nan, nan))
    return rows


def _assign(overlaps: np.ndarray, iou_threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the paired rows and columns of an IoU matrix, each used once at most."""
    from scipy.optimize import linear_sum_assignment  # late: slow to import

    allowed = np.where(overlaps >= iou_threshold, overlaps, 0.0)
    rows, columns = linear_sum_assignment(allowed, maximize=True)
    paired = overlaps[rows, columns] >= iou_threshold
    return rows[paired], columns[paired]


def pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(K, L) IoU of x1, y1, x2, y2 boxes, continuous coordinates; 0 where both are empty."""
    a, b = a[:, None].astype(np.float64), b[None].astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    inside = sides.clip(min=0).prod(axis=-1)
    areas = [(box[..., 2:] - box[..., :2]).clip(min=0).prod(axis=-1) for box in (a, b)]
    return inside / np.maximum(areas[0] + areas[1] - inside, 1e-9)


def _sizes(boxes: np.ndarray) -> np.ndarray:
    """(K,) square roots of the box areas, pixels."""
    return np.sqrt((boxes[:, 2:] - boxes[:, :2]).clip(min=0).astype(np.float64).prod(axis=1))


def _summary(table: pd.DataFrame, images: int) -> dict[str, float]:
    counts = {status: int((table["status"] == status).sum()) for status in _STATUS}
    pairs = table[table["status"] == "matched"]
    score_a, score_b = pairs["score_a"].to_numpy(float), pairs["score_b"].to_numpy(float)
    return {
        "images": images,
        "faces_a": counts["matched"] + counts["missed"],
        "faces_b": counts["matched"] + counts["extra"],
        **counts,
        "agreement": counts["matched"] / len(table) if len(table) else float("nan"),
        "score_correlation": _correlation(score_a, score_b),
        "score_difference": float((score_b - score_a).mean()) if len(pairs) else float("nan"),
        "iou_mean": float(pairs["iou"].astype(float).mean()),
        "iou_median": float(pairs["iou"].astype(float).median()),
        "landmark_distance_mean": float(pairs["landmark_distance"].astype(float).mean()),
        "landmark_distance_median": float(pairs["landmark_distance"].astype(float).median()),
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r; NaN for fewer than two pairs or constant scores."""
    if len(a) < 2 or not a.std() or not b.std():
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
