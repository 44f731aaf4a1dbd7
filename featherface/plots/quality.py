"""Figures of detections: precision and recall, calibration, agreement of two detectors."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from featherface.errors import DataError
from featherface.evaluation.average_precision import Curve
from featherface.evaluation.calibration import Reliability
from featherface.plots.style import (
    BLACK,
    BLUE,
    COLOURS,
    DASHES,
    GREEN,
    GREY,
    ORANGE,
    RED,
    SKY,
    finish,
)

if TYPE_CHECKING:
    import pandas as pd

_MOST_POINTS = 2000  # of one drawn line: more is slow in vector formats and shows nothing


def plot_precision_recall(
    curves: Mapping[str, Curve] | Mapping[str, Mapping[str, Curve]],
    *,
    title: str = "",
    exact: bool = False,
) -> Figure:
    """Precision against recall, at every score threshold, AP in % in the legend.

    exact: the AP of every threshold; else the official one of 1,000.

    {setting: Curve} gives one panel with a line a setting; {detector: {setting: Curve}} one panel a
    setting with a line a detector. DataError for nothing to draw.
    """
    if not curves:
        raise DataError("no precision-recall curve to draw")
    panels = _panels(curves)
    most = max(len(lines) for lines in panels.values())
    size = (4.2 * len(panels) + 0.8, 4.4 + 0.22 * most)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (name, lines) in zip(axes, panels.items(), strict=True):
        for index, (label, curve) in enumerate(lines.items()):
            ap = f"AP {100 * (curve.ap_exact if exact else curve.ap):.1f}"
            _draw_curve(ax, curve, f"{label}: {ap if curve.faces else 'no face'}", index)
        finish(ax, "recall (share of faces found)", "precision (share of detections true)")
        ax.set(xlim=(0, 1.005), ylim=(0, 1.005), title=name)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    figure.suptitle(title, fontsize="medium")
    return figure


def _panels(
    curves: Mapping[str, Curve] | Mapping[str, Mapping[str, Curve]],
) -> dict[str, dict[str, Curve]]:
    """{panel title: {line label: Curve}}."""
    single: dict[str, Curve] = {}
    panels: dict[str, dict[str, Curve]] = {}
    for name, value in curves.items():
        if isinstance(value, Curve):
            single[name] = value
        else:
            for setting, curve in value.items():
                panels.setdefault(setting, {})[name] = curve
    return panels or {"": single}


def _draw_curve(ax: Axes, curve: Curve, label: str, index: int) -> None:
    points = len(curve.recall)
    shown = np.unique(np.linspace(0, points - 1, min(points, _MOST_POINTS)).astype(int))
    ax.plot(
        curve.recall[shown],
        curve.precision[shown],
        color=COLOURS[index % len(COLOURS)],
        linestyle=DASHES[index % len(DASHES)],
        linewidth=1.8,
        label=label,
    )


def plot_reliability(reliability: Reliability, *, title: str = "") -> Figure:
    """Precision of the detections against their mean score, bin by bin, and how many there are."""
    table = reliability.table
    figure = Figure(figsize=(4.8, 5.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    centre, width = (table["low"] + table["high"]) / 2, table["high"] - table["low"]
    top.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="calibrated")
    top.bar(centre, table["precision"].fillna(0), width * 0.94, color=SKY, label="precision")
    top.plot(table["score"], table["precision"], "o", color=BLACK, label="at mean score of bin")
    top.set(ylim=(0, 1.02), title=title or f"expected calibration error {reliability.error:.3f}")
    top.legend(loc="upper left", frameon=False)
    finish(top, "", "precision (share of detections true)")
    bottom.bar(centre, table["count"], width * 0.94, color=BLUE)
    bottom.set(xlim=(0, 1), ylim=(0.8, 2 * table["count"].max()), yscale="log")
    bottom.yaxis.set_minor_formatter(NullFormatter())
    finish(bottom, "score", "detections")
    return figure


def plot_reliabilities(diagrams: Mapping[str, Reliability], *, title: str = "") -> Figure:
    """Precision against score of several detectors, and how many detections each bin holds."""
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="calibrated")
    for index, (name, diagram) in enumerate(diagrams.items()):
        bins = diagram.table.dropna(subset=["score"])
        colour, dash = COLOURS[index], DASHES[index]
        text = f"{name}: error {diagram.error:.3f}"
        left.plot(bins["score"], bins["precision"], dash, marker="o", color=colour, label=text)
        right.step(diagram.table["high"], diagram.table["count"].clip(lower=0.8), dash,
                   color=colour, label=name)  # fmt: skip
    left.set(xlim=(0, 1), ylim=(0, 1.02))
    left.legend(loc="upper left", frameon=False, fontsize="small")
    right.set(xlim=(0, 1), yscale="log")
    right.legend(loc="upper right", frameon=False, fontsize="small")
    finish(left, "score", "precision (share of detections true)")
    finish(right, "score", "detections in the bin")
    figure.suptitle(title, fontsize="medium")
    return figure


def plot_consistency(
    table: "pd.DataFrame",
    summary: Mapping[str, float],
    *,
    names: tuple[str, str] = ("a", "b"),
    title: str = "",
) -> Figure:
    """Two detectors side by side, from `featherface.evaluation.compare`'s table and summary.

    Four panels: scores of the pairs, box IoU, landmark distance, and which faces only one found,
    by size.
    """
    pairs = table[table["status"] == "matched"]
    figure = Figure(figsize=(9.6, 7.6), layout="constrained")
    (scores, overlap), (points, sizes) = figure.subplots(2, 2)
    scores.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    scores.plot(pairs["score_a"], pairs["score_b"], "o", color=BLUE, alpha=0.4, markersize=4)
    scores.set(xlim=(0, 1.02), ylim=(0, 1.02))
    scores.set_title(f"scores of {len(pairs)} pairs, r = {summary['score_correlation']:.3f}")
    finish(scores, f"score of {names[0]}", f"score of {names[1]}")
    _histogram(overlap, pairs["iou"], np.linspace(0.5, 1, 26), GREEN)
    overlap.set_title(f"box IoU, median {summary['iou_median']:.3f}")
    finish(overlap, "IoU of the two boxes", "pairs")
    distance = pairs["landmark_distance"].to_numpy(float)
    # beyond the 99th percentile a few wild pairs would flatten all the others
    limit = max(1e-3, float(np.percentile(distance, 99))) if len(distance) else 1.0
    _histogram(points, distance.clip(max=limit), np.linspace(0, limit, 26), ORANGE)
    points.set_title(f"landmarks, median {summary['landmark_distance_median']:.4f}")
    finish(points, "mean landmark distance (face sizes; last bar: and more)", "pairs")
    _draw_sizes(sizes, table, names)
    sizes.set_title(f"faces by size, agreement {100 * summary['agreement']:.1f} %")
    figure.suptitle(title, fontsize="medium")
    return figure


def _draw_sizes(ax: Axes, table: "pd.DataFrame", names: tuple[str, str]) -> None:
    """Stacked counts of matched, missed and extra faces in octaves of size."""
    edges = 2.0 ** np.arange(2, 11)
    size = table["size"].to_numpy(float).clip(edges[0], edges[-1] * 0.999)
    groups = {"matched": "both", "missed": f"only {names[0]}", "extra": f"only {names[1]}"}
    counts = [np.histogram(size[table["status"] == status], edges)[0] for status in groups]
    place, base = np.arange(len(edges) - 1), np.zeros(len(edges) - 1)
    fills = zip(counts, groups.values(), (SKY, ORANGE, RED), ("", "//", ".."), strict=True)
    for count, label, colour, hatch in fills:
        ax.bar(place, count, 0.9, base, color=colour, label=label, hatch=hatch, edgecolor="white")
        base = base + count
    ax.set_ylim(0, max(1.0, 1.08 * base.max()))
    ax.set_xticks(place, [f"{low:.0f}–{2 * low:.0f}" for low in edges[:-1]], rotation=30)
    ax.legend(frameon=False)
    finish(ax, "size: √(box area), pixels", "faces")


def _histogram(ax: Axes, values: "np.ndarray | pd.Series", edges: np.ndarray, colour: str) -> None:
    ax.hist(
        np.asarray(values, float), bins=list(edges), color=colour, edgecolor="white", linewidth=0.5
    )
