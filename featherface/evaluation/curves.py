"""Matching of detections to faces, precision-recall curves, average precision and calibration.

The rules are those of the benchmark's eval_tools (Yang et al., "WIDER FACE: A Face Detection
Benchmark", CVPR 2016): overlaps are measured with a pixel added to every width and height, each
detection belongs to the face that it overlaps best, and of the detections of one face only the
highest-scored is true. A setting (easy, small, …) only selects faces, so one pass over the images
serves them all. Calibration: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from featherface.errors import ConfigError, DataError
from featherface.structures import Curve, Detections

if TYPE_CHECKING:
    import pandas as pd

MATCH_IOU = 0.5
THRESHOLDS = 1 - np.arange(1, 1001) / 1000  # official, of rescaled scores: 0.999, 0.998, …, 0
_MOST_OVERLAPS = 1 << 20  # entries of one IoU matrix: bounds the memory of crowds


class DetectionMatches(NamedTuple):
    """All N detections of a set of images, highest score first, and the face that each one finds.

    scores (N,) float64, descending; face (N,) int: index among all faces of the set, −1 if no face
    overlaps by an IoU of 0.5; first (N,) bool: no higher-scored detection finds this face; order
    (N,) int: the number of the detection in the given order, image after image.
    """

    scores: np.ndarray
    face: np.ndarray
    first: np.ndarray
    order: np.ndarray


def match_detections(
    detections: Sequence[np.ndarray], faces: Sequence[np.ndarray]
) -> DetectionMatches:
    """Match image by image.

    detections: for each image (K, 5) x, y, w, h, score, in any order; faces: for each image (F, 4)
    x, y, w, h, pixels. The faces of the set are numbered in the given order.
    """
    offsets = np.cumsum([0, *map(len, faces)])
    pairs = zip(detections, faces, offsets[:-1], strict=True)
    found = [_best_face(rows[:, :4], boxes, offset) for rows, boxes, offset in pairs]
    scores = np.concatenate([np.zeros(0), *(rows[:, 4] for rows in detections)])
    order = np.argsort(-scores, kind="stable")
    face = np.concatenate([np.zeros(0, np.int64), *found])[order]
    first = np.zeros(len(face), bool)
    first[np.unique(face, return_index=True)[1]] = True
    return DetectionMatches(scores[order], face, first & (face >= 0), order)


def _best_face(boxes: np.ndarray, faces: np.ndarray, offset: int) -> np.ndarray:
    """(K,) int: offset + the index of the first face of highest IoU, or −1 below `MATCH_IOU`."""
    best = np.full(len(boxes), -1)
    step = max(1, _MOST_OVERLAPS // max(1, len(faces)))
    for start in range(0, len(boxes) if len(faces) else 0, step):
        overlaps = _iou(boxes[start : start + step], faces)
        nearest = np.where(overlaps.max(axis=1) >= MATCH_IOU, overlaps.argmax(axis=1) + offset, -1)
        best[start : start + step] = nearest
    return best


def _iou(boxes: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(K, F) IoU of x, y, w, h boxes in the benchmark's convention: x2 = x + w, then sizes + 1.

    The order of the operations is that of the usual evaluator, so that ties and values next to 0.5
    fall the same way to the last bit.
    """
    low, face_low = boxes[:, None, :2], faces[None, :, :2]
    high, face_high = low + boxes[:, None, 2:], face_low + faces[None, :, 2:]
    sides = np.minimum(high, face_high) - np.maximum(low, face_low) + 1  # (K, F, 2)
    inside = np.maximum(sides, 0).prod(axis=2)
    area, face_area = (high - low + 1).prod(axis=2), (face_high - face_low + 1).prod(axis=2)
    union = area + face_area - inside
    # boxes of negative size (the annotation has a few) overlap nothing, whatever their "union"
    return np.divide(inside, union, out=np.zeros_like(inside), where=inside > 0)


@dataclass(frozen=True)
class Evaluation:
    """A curve for each setting, over a number of images.

    detections: {photo: faces} behind the curves if `featherface.evaluation.evaluate` ran a
    detector, else empty.
    """

    curves: dict[str, Curve]
    images: int
    detections: Mapping[str, Detections] = field(default_factory=dict)

    def __repr__(self) -> str:
        parts = [f"{name} {curve.ap:.4f}" for name, curve in self.curves.items()]
        return f"Evaluation(AP {', '.join(parts)}; {self.images:,} images)"

    def as_dict(self) -> dict[str, Any]:
        """{setting: {"ap", "ap_exact", "faces"}, …, "images": n}, plain numbers, AP in 0..1."""
        settings: dict[str, Any] = {
            name: {"ap": curve.ap, "ap_exact": curve.ap_exact, "faces": curve.faces}
            for name, curve in self.curves.items()
        }
        return {**settings, "images": self.images}

    def to_dataframe(self) -> pd.DataFrame:
        """One row per setting: setting, ap, ap_exact (0..1), faces, images."""
        import pandas as pd

        values = self.as_dict()
        rows = [{"setting": name, **values[name], "images": self.images} for name in self.curves]
        return pd.DataFrame(rows)


def make_curves(
    matches: DetectionMatches, settings: Mapping[str, np.ndarray], images: int
) -> Evaluation:
    """Judge the matches under each setting: a (G,) bool mask of the faces to find."""
    # the usual evaluator starts its running minimum at 1 and its maximum at 0
    score_range = min([1.0, *matches.scores[-1:]]), max([0.0, *matches.scores[:1]])
    curves = {}
    for name, kept in settings.items():
        # a detection whose best face is not kept is dropped, even if it overlaps a kept one too
        counts = np.append(kept, True)[matches.face]  # face −1, none, reads the appended True
        scores, true = matches.scores[counts], matches.first[counts]
        curves[name] = make_curve(scores, true, int(kept.sum()), score_range=score_range)
    return Evaluation(curves, images)


def make_curve(
    scores: np.ndarray, true: np.ndarray, faces: int, *, score_range: tuple[float, float]
) -> Curve:
    """Make the curve of one setting.

    scores (M,) descending, true (M,) bool; faces: how many there are to find; score_range: lowest
    and highest score of all detections, dropped ones too, which the official AP maps to 0..1.
    """
    ends = np.flatnonzero(np.diff(scores, append=np.nan)) + 1  # detections at each score or above
    low, high = score_range
    # a single score (an oracle's 1.0) has no range: it is above every threshold
    rescaled = (scores - low) / (high - low) if high > low else np.ones(len(scores))
    above = len(scores) - np.searchsorted(rescaled[::-1], THRESHOLDS, side="left")
    recall, precision = _points(true, ends, faces)
    return Curve(
        scores=scores,
        true=true,
        thresholds=scores[ends - 1],
        recall=recall,
        precision=precision,
        ap=_area_under(*_points(true, above, faces)) if faces else math.nan,
        ap_exact=_area_under(recall, precision) if faces else math.nan,
        faces=faces,
    )


def _points(true: np.ndarray, ends: np.ndarray, faces: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision of the first ends[i] detections; precision of none is 0."""
    hits = np.append(0, np.cumsum(true))[ends]
    recall = hits / faces if faces else np.full(len(ends), np.nan)
    return recall, hits / np.maximum(ends, 1)


def _area_under(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under the envelope of precision."""
    recall = np.concatenate([[0.0], recall, [1.0]])
    precision = np.concatenate([[0.0], precision, [0.0]])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(np.sum((recall[steps + 1] - recall[steps]) * envelope[steps + 1]))


class Reliability(NamedTuple):
    """Scores against precision, in bins of equal width over 0..1."""

    table: pd.DataFrame  # one row per bin: low, high, count, score (mean), precision; NaN if empty
    error: float  # expected calibration error: mean |score − precision|, weighted by count


class OperatingPoint(NamedTuple):
    """Precision and recall at one score threshold, all in 0..1."""

    threshold: float
    precision: float
    recall: float


def reliability(curve: Curve, *, bins: int = 10) -> Reliability:
    """Compare the scores of a curve's detections with their precision.

    A score equal to an inner edge belongs to the bin above it, 1 to the last. DataError without
    detections or for scores outside 0..1.
    """
    import pandas as pd

    if bins < 1:
        raise ConfigError(f"bins must be at least 1; got {bins}")
    scores, true = curve.scores, curve.true
    if not len(scores):
        raise DataError("no detections to calibrate: lower the score threshold of the detector")
    if scores[-1] < 0 or scores[0] > 1:
        raise DataError(f"scores are {scores[-1]:.4g}..{scores[0]:.4g}; calibration needs 0..1")
    edges = np.linspace(0, 1, bins + 1)
    index = np.searchsorted(edges[1:-1], scores, side="right")
    count = np.bincount(index, minlength=bins)
    table = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "count": count})
    means = pd.DataFrame({"score": scores, "precision": true.astype(float)}).groupby(index).mean()
    table = table.join(means)
    gaps = (table["score"] - table["precision"]).abs()
    return Reliability(table, float((table["count"] * gaps).sum() / len(scores)))


def threshold_for_precision(curve: Curve, precision: float) -> OperatingPoint:
    """Find the lowest score threshold whose detections (score ≥ threshold) are this precise.

    The lowest of the thresholds that reach `precision` finds the most faces. Precision is not
    monotone in the threshold, so slightly higher thresholds may miss it by a little. DataError if
    no threshold reaches it, naming the best one.
    """
    if not 0 < precision <= 1:
        raise ConfigError(f"precision must be above 0 and at most 1; got {precision}")
    if not len(curve.scores):
        raise DataError("no detections to choose a threshold from")
    enough = np.flatnonzero(curve.precision >= precision)
    if not len(enough):
        best = int(curve.precision.argmax())
        raise DataError(
            f"no score threshold reaches precision {precision}; the best is "
            f"{curve.precision[best]:.4f} at score {curve.thresholds[best]:.4f}"
        )
    columns = (curve.thresholds, curve.precision, curve.recall)
    return OperatingPoint(*(float(column[enough[-1]]) for column in columns))  # the lowest


def setting_of_most_faces(result: Evaluation) -> str:
    """The setting to calibrate on: "hard" for WIDER FACE, "all" for a folder.

    A stricter setting drops the detections of the faces that it excludes, so it judges fewer.
    """
    return "hard" if "hard" in result.curves else "all"


def calibration_summary(
    result: Evaluation, *, precisions: Sequence[float] = (0.95, 0.99)
) -> dict[str, Any]:
    """Summarise a detector's calibration as plain numbers, without errors for lack of detections.

    {"setting": the one with most faces, "detections": M, "expected_calibration_error": …,
    "thresholds": {"0.95": {"threshold", "precision", "recall"}, …}}. The error is None without
    detections; a threshold is None if no score is precise enough.
    """
    setting = setting_of_most_faces(result)
    curve = result.curves[setting]
    thresholds: dict[str, dict[str, float] | None] = {}
    for precision in precisions:
        reached = bool((curve.precision >= precision).any())
        point = threshold_for_precision(curve, precision)._asdict() if reached else None
        thresholds[f"{precision:g}"] = point
    return {
        "setting": setting,
        "detections": len(curve.scores),
        "expected_calibration_error": reliability(curve).error if len(curve.scores) else None,
        "thresholds": thresholds,
    }
