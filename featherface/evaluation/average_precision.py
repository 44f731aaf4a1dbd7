"""Average precision from judged detections: the benchmark's 1,000 thresholds, and exact.

The official value (WIDER FACE eval_tools) rescales the scores of all detections to 0..1 and
samples the precision–recall curve at 1,000 evenly spaced thresholds; where a detector's scores
crowd near 0 or 1 the samples miss most of the curve. The exact value makes every score a threshold.
Both take the area under the envelope of PASCAL VOC 2010: precision made monotone, summed where
recall changes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from featherface.evaluation.matching import Matches

THRESHOLDS = 1 - np.arange(1, 1001) / 1000  # of the rescaled scores: 0.999, 0.998, …, 0


@dataclass(frozen=True)
class Curve:
    """What one setting (easy, small, …) makes of the detections.

    scores (M,) descending and true (M,) bool: the detections that count, see `Matches.judge`;
    thresholds, recall, precision (T,): the exact curve, one point a distinct score, highest first;
    ap: the official average precision, ap_exact: the exact one, in 0..1, NaN where there is no
    face; faces: the number of faces looked for.
    """

    scores: np.ndarray
    true: np.ndarray
    thresholds: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    ap: float
    ap_exact: float
    faces: int


@dataclass(frozen=True)
class Evaluation:
    """A curve a setting, over a number of images."""

    curves: dict[str, Curve]
    images: int

    def as_dict(self) -> dict[str, Any]:
        """{setting: {"ap", "ap_exact", "faces"}, …, "images": n}, plain numbers, AP in 0..1."""
        settings: dict[str, Any] = {
            name: {"ap": curve.ap, "ap_exact": curve.ap_exact, "faces": curve.faces}
            for name, curve in self.curves.items()
        }
        return {**settings, "images": self.images}


def evaluate(matches: Matches, settings: Mapping[str, np.ndarray], images: int) -> Evaluation:
    """Judge the same matches under every setting: a (G,) bool mask of the faces it keeps."""
    low, high = 1.0, 0.0  # where the usual evaluator starts its running minimum and maximum
    if len(matches.scores):
        low, high = min(low, matches.scores[-1]), max(high, matches.scores[0])
    curves = {}
    for name, kept in settings.items():
        scores, true = matches.judge(kept)
        curves[name] = make_curve(scores, true, int(kept.sum()), score_range=(low, high))
    return Evaluation(curves, images)


def make_curve(
    scores: np.ndarray, true: np.ndarray, faces: int, *, score_range: tuple[float, float]
) -> Curve:
    """The curve of one setting.

    scores (M,) descending, true (M,) bool, faces: how many there were to find; score_range: the
    lowest and highest score of all detections, dropped ones too, that the official AP maps to 0..1.
    """
    last_of_ties = np.append(scores[1:] != scores[:-1], True)[: len(scores)]
    ends = np.flatnonzero(last_of_ties) + 1  # detections at or above each distinct score
    recall, precision = _points(true, ends, faces)
    official = _points(true, _at_thresholds(scores, score_range), faces)
    return Curve(
        scores=scores,
        true=true,
        thresholds=scores[ends - 1],
        recall=recall,
        precision=precision,
        ap=_area(*official) if faces else math.nan,
        ap_exact=_area(recall, precision) if faces else math.nan,
        faces=faces,
    )


def _at_thresholds(scores: np.ndarray, score_range: tuple[float, float]) -> np.ndarray:
    """(1000,) int: how many detections have a rescaled score at or above each threshold."""
    low, high = score_range
    # one score alone (an oracle's 1.0) has no range: it is above every threshold
    rescaled = (scores - low) / (high - low) if high > low else np.ones(len(scores))
    return len(scores) - np.searchsorted(rescaled[::-1], THRESHOLDS, side="left")


def _points(true: np.ndarray, ends: np.ndarray, faces: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision of the first ends[i] detections; precision of none is 0."""
    hits = np.append(0, np.cumsum(true))[ends]
    recall = hits / faces if faces else np.full(len(ends), np.nan)
    return recall, hits / np.maximum(ends, 1)


def _area(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under the envelope."""
    recall = np.concatenate([[0.0], recall, [1.0]])
    precision = np.concatenate([[0.0], precision, [0.0]])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(np.sum((recall[steps + 1] - recall[steps]) * envelope[steps + 1]))
