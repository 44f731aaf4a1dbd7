"""Do scores mean what they say? Reliability, calibration error, and thresholds by precision.

A detector is calibrated when, of the detections with a score near 0.7, seven in ten are faces. The
reliability diagram and the expected calibration error are those of Guo et al., "On Calibration of
Modern Neural Networks" (ICML 2017), with precision in the place of accuracy, as for detectors in
Küppers et al. (CVPR workshops 2020). Which detections are true comes from a `Curve` of the
evaluation: its setting decides which faces count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from featherface.errors import ConfigError, DataError
from featherface.evaluation.average_precision import Curve, Evaluation

if TYPE_CHECKING:
    import pandas as pd


class Reliability(NamedTuple):
    """Scores against precision, in bins of equal width over 0..1."""

    table: pd.DataFrame  # a row a bin: low, high, count, score (mean), precision; NaN if empty
    error: float  # expected calibration error: mean |score − precision|, weighted by count


class OperatingPoint(NamedTuple):
    """What a detector does at one score threshold, all in 0..1."""

    threshold: float
    precision: float
    recall: float


def reliability(curve: Curve, *, bins: int = 10) -> Reliability:
    """The reliability of a curve's detections.

    A score of exactly an inner edge belongs to the bin above it, 1 to the last. DataError without
    detections or with scores outside 0..1 (which no calibration can be about).
    """
    import pandas as pd

    if bins < 1:
        raise ConfigError(f"bins must be at least 1; got {bins}")
    scores, true = curve.scores, curve.true
    if not len(scores):
        raise DataError("no detections to calibrate: lower the score threshold of the detector")
    if scores[-1] < 0 or scores[0] > 1:
        raise DataError(f"scores lie in {scores[-1]:.4g}..{scores[0]:.4g}; calibration needs 0..1")
    edges = np.linspace(0, 1, bins + 1)
    index = np.searchsorted(edges[1:-1], scores, side="right")
    count = np.bincount(index, minlength=bins)
    filled = np.where(count > 0, count, np.nan)
    score = np.bincount(index, scores, minlength=bins) / filled
    precision = np.bincount(index, true, minlength=bins) / filled
    table = pd.DataFrame(
        {
            "low": edges[:-1],
            "high": edges[1:],
            "count": count,
            "score": score,
            "precision": precision,
        }
    )
    error = np.nansum(count * np.abs(score - precision)) / len(scores)
    return Reliability(table, float(error))


def threshold_for_precision(curve: Curve, precision: float) -> OperatingPoint:
    """The lowest score threshold whose detections (score ≥ threshold) are this precise.

    Of all thresholds that reach `precision` the lowest finds the most faces. Precision does not
    fall evenly with the threshold, so thresholds just above may miss it by a little. DataError
    where no threshold reaches it, naming the best one.
    """
    if not 0 < precision <= 1:
        raise ConfigError(f"a precision lies above 0 and up to 1; got {precision}")
    if not len(curve.scores):
        raise DataError("no detections to choose a threshold from")
    enough = np.flatnonzero(curve.precision >= precision)
    if not len(enough):
        best = int(curve.precision.argmax())
        raise DataError(
            f"no score threshold reaches precision {precision}; the best is "
            f"{curve.precision[best]:.4f} at score {curve.thresholds[best]:.4f}"
        )
    point = enough[-1]  # thresholds descend
    values = curve.thresholds[point], curve.precision[point], curve.recall[point]
    return OperatingPoint(*map(float, values))


def setting_of_most_faces(result: Evaluation) -> str:
    """The setting to calibrate on: "hard" of WIDER FACE, "all" of a folder.

    Detections of faces that a setting does not keep are dropped, so a stricter one judges fewer.
    """
    return "hard" if "hard" in result.curves else "all"


def summarise(result: Evaluation, *, precisions: Sequence[float] = (0.95, 0.99)) -> dict[str, Any]:
    """What a report says about a detector's scores, as plain numbers; no error for lack of them.

    {"setting": the one of most faces, "detections": M, "expected_calibration_error": …,
    "thresholds": {"0.95": {"threshold", "precision", "recall"}, …}}. The error is None without
    detections, and a threshold is None where no score is precise enough.
    """
    setting = setting_of_most_faces(result)
    curve = result.curves[setting]
    thresholds: dict[str, dict[str, float] | None] = {}
    for precision in precisions:
        try:
            point = threshold_for_precision(curve, precision)
            thresholds[f"{precision:g}"] = point._asdict()
        except DataError:
            thresholds[f"{precision:g}"] = None
    return {
        "setting": setting,
        "detections": len(curve.scores),
        "expected_calibration_error": reliability(curve).error if len(curve.scores) else None,
        "thresholds": thresholds,
    }
