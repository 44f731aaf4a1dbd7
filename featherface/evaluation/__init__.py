"""How good a detector is: WIDER FACE's protocol, plain folders, agreement, calibration."""

from featherface.evaluation.consistency import compare
from featherface.evaluation.curves import (
    Curve,
    Evaluation,
    OperatingPoint,
    Reliability,
    reliability,
    threshold_for_precision,
)
from featherface.evaluation.sets import evaluate_boxes, precision_recall_boxes
from featherface.evaluation.submission import (
    EvaluationWarning,
    read_submission,
    write_submission,
)
from featherface.evaluation.widerface import evaluate_widerface, precision_recall

__all__ = [
    "Curve",
    "Evaluation",
    "EvaluationWarning",
    "OperatingPoint",
    "Reliability",
    "compare",
    "evaluate_boxes",
    "evaluate_widerface",
    "precision_recall",
    "precision_recall_boxes",
    "read_submission",
    "reliability",
    "threshold_for_precision",
    "write_submission",
]
