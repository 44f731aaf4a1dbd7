"""Two detectors side by side."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featherface.errors import DataError
from featherface.evaluation import compare
from featherface.structures import Detections


def detections(boxes, scores, landmarks=None):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    if landmarks is None:
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        landmarks = np.repeat(centre[:, None], 5, axis=1)
    return Detections(boxes, np.asarray(scores, np.float32), np.asarray(landmarks, np.float32))


def random_detections(seed, count):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 200, (count, 2))
    boxes = np.c_[low, low + rng.uniform(5, 60, (count, 2))]
    return detections(boxes, np.sort(rng.random(count))[::-1])


def test_pairs_missed_and_extra():
    a = detections([[0, 0, 40, 40], [100, 0, 140, 40], [300, 0, 310, 10]], [0.9, 0.8, 0.3])
    b = detections([[100, 0, 140, 40], [2, 0, 42, 40], [500, 0, 516, 16]], [0.85, 0.7, 0.6])
    table, summary = compare({"p.jpg": a}, {"p.jpg": b})
    pairs = table[table["status"] == "matched"].sort_values("index_a")
    assert pairs[["index_a", "index_b"]].to_numpy().tolist() == [[0, 1], [1, 0]]
    assert pairs["iou"].tolist() == pytest.approx([38 / 42, 1.0])
    assert pairs["landmark_distance"].tolist() == pytest.approx([2 / 40, 0])
    assert pairs["size"].tolist() == pytest.approx([40, 40])
    missed, extra = table[table["status"] == "missed"], table[table["status"] == "extra"]
    assert (missed["index_a"].item(), missed["index_b"].item()) == (2, -1)
    assert (extra["index_b"].item(), extra["size"].item()) == (2, 16)
    assert (summary["matched"], summary["missed"], summary["extra"]) == (2, 1, 1)
    assert (summary["images"], summary["faces_a"], summary["faces_b"]) == (1, 3, 3)
    assert summary["agreement"] == pytest.approx(0.5)
    assert summary["score_correlation"] == pytest.approx(-1)
    assert summary["score_difference"] == pytest.approx((-0.2 + 0.05) / 2)


def test_pairing_is_one_to_one_and_best_in_sum():
    a = detections([[0, 0, 10, 10], [0, 0, 10, 9]], [0.9, 0.8])
    b = detections([[0, 0, 10, 10]], [0.9])
    table, summary = compare([a], [b])
    assert summary["matched"] == 1
    assert summary["missed"] == 1
    assert table[table["status"] == "matched"]["index_a"].item() == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 8))
def test_a_detector_agrees_with_itself(seed, count):
    faces = random_detections(seed, count)
    _, summary = compare([faces, Detections()], [faces, Detections()])
    assert (summary["matched"], summary["missed"], summary["extra"]) == (count, 0, 0)
    if count:
        assert summary["agreement"] == 1
        assert summary["iou_mean"] == pytest.approx(1)
        assert summary["landmark_distance_mean"] == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 2), first=st.integers(0, 8), second=st.integers(0, 8))
def test_swapping_the_detectors_swaps_missed_and_extra(seed, first, second):
    a, b = random_detections(seed, first), random_detections(seed + 1, second)
    _, forth = compare([a], [b])
    _, back = compare([b], [a])
    assert (forth["matched"], forth["missed"]) == (back["matched"], back["extra"])
    assert forth["matched"] + forth["missed"] == first
    assert forth["matched"] + forth["extra"] == second


def test_nothing_found():
    table, summary = compare([Detections()], [Detections()])
    assert len(table) == 0
    assert np.isnan(summary["agreement"])
    assert np.isnan(summary["score_correlation"])


def test_images_must_be_the_same():
    with pytest.raises(DataError, match=r"only one detector has seen: b\.jpg"):
        compare({"a.jpg": Detections()}, {"a.jpg": Detections(), "b.jpg": Detections()})


def test_faces_count_only_above_a_score():
    a = detections([[0, 0, 40, 40], [100, 0, 140, 40]], [0.9, 0.5])
    b = detections([[0, 0, 40, 40], [100, 0, 140, 40]], [0.9, 0.51])
    table, summary = compare([a], [b], score_above=0.5)
    assert [summary[name] for name in ("matched", "missed", "extra")] == [1, 0, 1]
    assert len(table) == 2
