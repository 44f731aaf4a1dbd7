"""Figures: drawn from small data, labelled, and written whole or not at all."""

import sys

import numpy as np
import pandas as pd
import pytest

from featherface.errors import ConfigError, DataError
from featherface.evaluation import compare, reliability
from featherface.evaluation.curves import make_curve
from featherface.plots import (
    plot_consistency,
    plot_precision_recall,
    plot_progress,
    plot_reliability,
    save_figure,
)
from featherface.structures import Detections


def random_curve(seed, count=5000, faces=4000):
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.random(count))[::-1]
    return make_curve(scores, rng.random(count) < scores, faces, score_range=(0.0, 1.0))


def random_pair(seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 500, (12, 2))
    boxes = np.c_[low, low + rng.uniform(8, 120, (12, 1))].astype(np.float32)
    scores = np.sort(rng.random(12).astype(np.float32))[::-1]
    points = (low[:, None] + rng.uniform(0, 20, (12, 5, 2))).astype(np.float32)
    return Detections(boxes, scores, points), Detections(boxes[:10] + 1, scores[:10], points[:10])


def drawn_axes(figure):
    figure.canvas.draw()
    assert all(ax.get_ylabel() for ax in figure.axes)
    return figure.axes


def test_one_panel_with_a_line_a_setting():
    curves = {name: random_curve(seed) for seed, name in enumerate(("easy", "medium", "hard"))}
    curves["none"] = make_curve(np.zeros(0), np.zeros(0, bool), 0, score_range=(1.0, 0.0))
    (ax,) = drawn_axes(plot_precision_recall(curves, title="160 of 3,226 images"))
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[0] == f"easy: AP {100 * curves['easy'].ap:.1f}"
    assert labels[3] == "none: no face"
    assert all(len(line.get_xdata()) <= 2000 for line in ax.lines)
    assert len({line.get_color() for line in ax.lines}) == 4


def test_several_detectors_have_a_panel_a_setting():
    detectors = {
        name: {"easy": random_curve(seed), "hard": random_curve(seed + 9)}
        for seed, name in enumerate(("V1", "V2"))
    }
    axes = drawn_axes(plot_precision_recall(detectors))
    assert [ax.get_title() for ax in axes] == ["easy", "hard"]
    assert all(len(ax.lines) == 2 for ax in axes)
    with pytest.raises(DataError, match="no precision-recall curve"):
        plot_precision_recall({})


def test_reliability_diagram():
    diagrams = {name: reliability(random_curve(seed)) for seed, name in enumerate(("V1", "V2"))}
    left, right = drawn_axes(plot_reliability(diagrams))
    assert [len(ax.get_legend().get_texts()) for ax in (left, right)] == [3, 2]
    assert f"V2: calibration error {diagrams['V2'].error:.3f}" == left.lines[2].get_label()


def test_consistency_figure_also_of_nothing():
    pairs = [random_pair(seed) for seed in range(3)]
    table, summary = compare([a for a, _ in pairs], [b for _, b in pairs])
    axes = drawn_axes(plot_consistency(table, summary, names=("V1", "V2"), title="demo"))
    assert axes[0].get_ylabel() == "score of V2"
    drawn_axes(plot_consistency(*compare([Detections()], [Detections()])))


def test_a_run_under_way_is_drawn_without_terms_that_are_zero():
    log = pd.DataFrame({"epoch": [1, 2], "lr": [1e-3, 1e-4], "loss": [2.0, 1.0]})
    log = log.assign(**{"class": [1.5, 0.0], "landmark": [0.0, 0.0], "images_per_second": 9.0})
    log["loader_share"] = 0.1
    _, parts, rate, _ = drawn_axes(plot_progress(log, epochs=5))
    assert [line.get_label() for line in parts.lines] == ["class"]
    assert rate.get_xlim() == (0, 5.5)
    low, high = parts.get_ylim()
    assert 0 < low < 1.5 < high


def test_the_loss_by_step_is_drawn_before_the_first_epoch_ends():
    steps = pd.DataFrame({"epoch": [0.2, 0.4], "loss": [9.0, 5.0]})
    (total,) = drawn_axes(plot_progress(pd.DataFrame({"epoch": []}), epochs=5, steps=steps))
    assert total.lines[0].get_ydata().tolist() == [9.0, 5.0]


def test_exact_and_official_ap_in_the_legend():
    curve = random_curve(0)
    for exact, value in ((False, curve.ap), (True, curve.ap_exact)):
        (ax,) = drawn_axes(plot_precision_recall({"easy": curve}, exact=exact))
        label = ax.get_legend().get_texts()[0].get_text()
        assert label == f"easy: AP {100 * value:.1f}"


def test_save_is_atomic(tmp_path):
    figure = plot_reliability({"V2": reliability(random_curve(0))})
    for name in ("a/b.png", "c.svg", "d.pdf"):
        save_figure(figure, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    with pytest.raises(ConfigError, match="give it the suffix"):
        save_figure(figure, tmp_path / "plot.doc")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c.svg", "d.pdf"]


def test_plots_leave_pyplot_alone():
    import subprocess

    code = "import sys, featherface.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
