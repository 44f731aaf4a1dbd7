"""WIDER FACE average precision: easy, medium and hard, as the official evaluation computes them.

Yang et al., "WIDER FACE: A Face Detection Benchmark", CVPR 2016. `evaluate_widerface` gives the
numbers of its eval_tools to the last bit (1,000 thresholds) and, beside them, the exact ones.
"""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from featherface.evaluation.average_precision import Evaluation, evaluate
from featherface.evaluation.ground_truth import GroundTruth, read_ground_truth
from featherface.evaluation.matching import match
from featherface.evaluation.submission import Found, gather, image_stem


def evaluate_widerface(
    predictions: Found,
    ground_truth_dir: str | os.PathLike,
    images: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Average precision of detections on the WIDER FACE validation set, or on some of its images.

    predictions: {image: (K, 5) x, y, w, h, score, or Detections} with names matched by their stem,
    or a submission folder or zip; scores in any monotone range, rows in any order.
    ground_truth_dir: folder of the four official .mat files (or one with them in ground_truth/).
    images: names of a subset; only its images, faces and detections count. None: all 3,226.

    Returns {"easy": {"ap", "ap_exact", "faces"}, "medium": …, "hard": …, "images": n}: AP in 0..1,
    NaN where a subset has no such face. Raises DataError for malformed predictions or ground truth;
    an EvaluationWarning names images without prediction, which count as without detections.
    """
    return precision_recall(predictions, ground_truth_dir, images).as_dict()


def precision_recall(
    predictions: Found,
    ground_truth: str | os.PathLike | GroundTruth,
    images: Iterable[str] | None = None,
) -> Evaluation:
    """The same evaluation with its curves; arguments and errors are `evaluate_widerface`'s.

    ground_truth: the folder, or what `read_ground_truth` read from it, to evaluate many times.
    """
    whole = ground_truth
    if not isinstance(whole, GroundTruth):
        whole = read_ground_truth(whole)
    truth = whole if images is None else whole.subset(images)
    names = [f"{event}/{stem}" for event, stem in zip(truth.events, truth.stems, strict=True)]
    rows = gather(predictions, names, known=whole.stems, key=image_stem)
    kept = {name: np.concatenate(masks) for name, masks in truth.kept.items()}
    return evaluate(match(rows, truth.boxes), kept, images=len(truth.stems))
