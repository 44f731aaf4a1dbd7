"""Reliability, calibration error and thresholds by precision."""

import numpy as np
import pytest

from featherface.errors import ConfigError, DataError
from featherface.evaluation import (
    Evaluation,
    calibration_summary,
    precision_recall_boxes,
    reliability,
    threshold_for_precision,
)
from featherface.evaluation.curves import make_curve


def curve(scores, true, faces=10):
    scores, true = np.asarray(scores, float), np.asarray(true, bool)
    order = np.argsort(-scores, kind="stable")
    return make_curve(scores[order], true[order], faces, score_range=(0.0, 1.0))


def test_bins_and_error_by_hand():
    result = reliability(curve([0.9, 0.8, 0.1, 0.5, 1.0, 0.0], [1, 0, 0, 1, 1, 0]), bins=2)
    table = result.table
    assert table["count"].tolist() == [2, 4]  # 0.5 belongs to the upper bin, 1.0 to the last
    assert table["precision"].tolist() == pytest.approx([0, 0.75])
    assert table["score"].tolist() == pytest.approx([0.05, 0.8])
    assert result.error == pytest.approx((2 * 0.05 + 4 * 0.05) / 6)


def test_a_calibrated_detector_has_little_error():
    rng = np.random.default_rng(0)
    scores = rng.random(50_000)
    calibrated = reliability(curve(scores, rng.random(50_000) < scores))
    assert calibrated.error < 0.01
    assert reliability(curve(scores, rng.random(50_000) < scores**3)).error > 0.2


def test_empty_bins_are_nan():
    table = reliability(curve([0.95], [True])).table
    assert table["count"].tolist() == [0] * 9 + [1]
    assert table["precision"].isna().sum() == 9


def test_lowest_threshold_of_a_precision():
    ranked = curve([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [1, 1, 0, 1, 1, 0])
    point = threshold_for_precision(ranked, 0.8)
    assert point == pytest.approx((0.5, 0.8, 0.4))
    assert threshold_for_precision(ranked, 1).threshold == 0.8
    # tied scores pass the threshold together
    tied = curve([0.9, 0.5, 0.5], [1, 1, 0])
    assert threshold_for_precision(tied, 0.9).threshold == 0.9


def test_dropped_detections_take_no_part():
    truths = {"a": np.array([[0, 0, 20, 20], [50, 50, 150, 150]])}
    found = {"a": [[0, 0, 20, 20, 0.6], [50, 50, 100, 100, 0.4]]}
    large = precision_recall_boxes(found, truths).curves["large"]
    assert reliability(large).error == pytest.approx(0.6)  # the one detection of 0.4 is true


def test_what_cannot_be():
    ranked = curve([0.9, 0.8], [0, 1])
    with pytest.raises(
        DataError, match=r"reaches precision 0\.9; the best is 0\.5000 at score 0\.8"
    ):
        threshold_for_precision(ranked, 0.9)
    with pytest.raises(ConfigError, match="precision must be above 0"):
        threshold_for_precision(ranked, 0)
    with pytest.raises(ConfigError, match="bins"):
        reliability(ranked, bins=0)
    with pytest.raises(DataError, match="calibration needs"):
        reliability(curve([3.0], [True]))
    for function in (reliability, lambda c: threshold_for_precision(c, 0.5)):
        with pytest.raises(DataError, match="no detections"):
            function(curve([], []))


def test_summary_of_a_detector():
    truths = {"a": np.array([[0, 0, 20, 20], [50, 50, 150, 150]])}
    found = {"a": [[0, 0, 20, 20, 0.9], [50, 50, 100, 100, 0.4], [300, 300, 9, 9, 0.2]]}
    summary = calibration_summary(precision_recall_boxes(found, truths), precisions=(0.5, 0.95))
    assert (summary["setting"], summary["detections"]) == ("all", 3)
    assert summary["expected_calibration_error"] == pytest.approx((0.1 + 0.6 + 0.2) / 3)
    assert summary["thresholds"] == {
        "0.5": pytest.approx({"threshold": 0.2, "precision": 2 / 3, "recall": 1.0}),
        "0.95": pytest.approx({"threshold": 0.4, "precision": 1.0, "recall": 1.0}),
    }
    false = {"a": [[300, 300, 9, 9, 0.2]]}
    assert calibration_summary(precision_recall_boxes(false, truths))["thresholds"]["0.95"] is None
    empty = calibration_summary(precision_recall_boxes({"a": []}, truths))
    assert (empty["detections"], empty["expected_calibration_error"]) == (0, None)
    assert empty["thresholds"] == {"0.95": None, "0.99": None}


def test_widerface_is_calibrated_on_hard():
    low, high = curve([0.9], [1]), curve([0.9, 0.8], [1, 0])
    wider = Evaluation({"easy": low, "medium": low, "hard": high}, images=1)
    assert (calibration_summary(wider)["setting"], calibration_summary(wider)["detections"]) == (
        "hard",
        2,
    )
