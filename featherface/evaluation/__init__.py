"""Evaluation of detectors: WIDER FACE's protocol, plain folders, consistency, calibration."""

from featherface.evaluation.consistency import compare
from featherface.evaluation.curves import (
    Evaluation,
    OperatingPoint,
    Reliability,
    calibration_summary,
    reliability,
    threshold_for_precision,
)
from featherface.evaluation.run import evaluate
from featherface.evaluation.sets import find_evaluation_set, precision_recall_boxes
from featherface.evaluation.submission import (
    EvaluationWarning,
    read_submission,
    write_submission,
)
from featherface.evaluation.widerface import evaluate_widerface, precision_recall, published_curves
from featherface.structures import Curve

__all__ = [
    "Curve",
    "Evaluation",
    "EvaluationWarning",
    "OperatingPoint",
    "Reliability",
    "calibration_summary",
    "compare",
    "evaluate",
    "evaluate_widerface",
    "find_evaluation_set",
    "precision_recall",
    "precision_recall_boxes",
    "published_curves",
    "read_submission",
    "reliability",
    "threshold_for_precision",
    "write_submission",
]
