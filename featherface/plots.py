"""Figures of evaluations and runs, one look for all.

Every function returns a matplotlib Figure made through the object interface: no global state, no
window, safe in threads and servers. Colours are those of Okabe and Ito (2008), which colour-blind
readers can tell apart; lines differ in dash too.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from featherface.errors import ConfigError, DataError
from featherface.evaluation.average_precision import Curve
from featherface.evaluation.calibration import Reliability
from featherface.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK)
DASHES = ("-", "--", "-.", ":")
GREY = "0.55"
_MOST_POINTS = 2000  # of one drawn line: more is slow in vector formats and shows nothing


def plot_precision_recall(
    curves: Mapping[str, Curve] | Mapping[str, Mapping[str, Curve]], *, title: str = ""
) -> Figure:
    """Precision against recall, at every score threshold, AP (official, in %) in the legend.

    {setting: Curve} gives one panel with a line a setting; {detector: {setting: Curve}} one panel a
    setting with a line a detector. DataError for nothing to draw.
    """
    if not curves:
        raise DataError("no precision-recall curve to draw")
    panels = _panels(curves)
    figure = Figure(figsize=(4.2 * len(panels) + 0.8, 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (name, lines) in zip(axes, panels.items(), strict=True):
        for index, (label, curve) in enumerate(lines.items()):
            _draw_curve(ax, curve, label, index)
        _finish(ax, "recall (share of faces found)", "precision (share of detections true)")
        ax.set(xlim=(0, 1.005), ylim=(0, 1.005), title=name)
        ax.legend(loc="lower left", frameon=False)
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
    text = f"{label}: AP {100 * curve.ap:.1f}" if curve.faces else f"{label}: no face"
    ax.plot(
        curve.recall[shown],
        curve.precision[shown],
        color=COLOURS[index % len(COLOURS)],
        linestyle=DASHES[index % len(DASHES)],
        linewidth=1.8,
        label=text,
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
    _finish(top, "", "precision (share of detections true)")
    bottom.bar(centre, table["count"], width * 0.94, color=BLUE)
    bottom.set(xlim=(0, 1), ylim=(0.8, 2 * table["count"].max()), yscale="log")
    bottom.yaxis.set_minor_formatter(NullFormatter())
    _finish(bottom, "score", "detections")
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
    _finish(scores, f"score of {names[0]}", f"score of {names[1]}")
    _histogram(overlap, pairs["iou"], np.linspace(0.5, 1, 26), GREEN)
    overlap.set_title(f"box IoU, median {summary['iou_median']:.3f}")
    _finish(overlap, "IoU of the two boxes", "pairs")
    distance = pairs["landmark_distance"].to_numpy(float)
    # beyond the 99th percentile a few wild pairs would flatten all the others
    limit = max(1e-3, float(np.percentile(distance, 99))) if len(distance) else 1.0
    _histogram(points, distance.clip(max=limit), np.linspace(0, limit, 26), ORANGE)
    points.set_title(f"landmarks, median {summary['landmark_distance_median']:.4f}")
    _finish(points, "mean landmark distance (face sizes; last bar: and more)", "pairs")
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
    _finish(ax, "size: √(box area), pixels", "faces")


def _histogram(ax: Axes, values: "np.ndarray | pd.Series", edges: np.ndarray, colour: str) -> None:
    ax.hist(
        np.asarray(values, float), bins=list(edges), color=colour, edgecolor="white", linewidth=0.5
    )


def _finish(ax: Axes, xlabel: str, ylabel: str) -> None:
    """Labels, a light grid behind the data, no box around it."""
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(color="0.9", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: str | os.PathLike, *, dpi: int = 150) -> None:
    """Write a figure atomically; the suffix of `path` chooses the format (.png, .svg, .pdf).

    ConfigError for a suffix that matplotlib does not write.
    """
    suffix = Path(path).suffix.lstrip(".").lower()
    if suffix not in figure.canvas.get_supported_filetypes():
        raise ConfigError(f"cannot draw into {path}: give it the suffix .png, .svg or .pdf")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format=suffix)


def plot_training_log(log: "pd.DataFrame", *, title: str = "") -> Figure:
    """Loss terms, total loss and learning rate, and throughput, against the epoch.

    `log`: training_log.csv as a table. DataError when it holds no epoch.
    """
    if log.empty or "epoch" not in log or "loss" not in log:
        raise DataError("no epoch to draw: the training log is empty or has no epoch and loss")
    others = {"epoch", "loss", "lr", "seconds", "images_per_second"}
    terms = [name for name in log.columns if name not in others and not name.startswith("val_")]
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    total, parts, speed = figure.subplots(1, 3)
    total.plot(log["epoch"], log["loss"], color=BLUE, marker="o", markersize=3)
    total.set_title("total loss")
    rate = total.twinx()
    rate.plot(log["epoch"], log["lr"], color=ORANGE, linestyle="--")
    rate.set_ylabel("learning rate (dashed)", color=ORANGE)
    rate.spines["top"].set_visible(False)
    for index, name in enumerate(terms):
        style = DASHES[index // len(COLOURS) % len(DASHES)]
        colour = COLOURS[index % len(COLOURS)]
        parts.plot(log["epoch"], log[name].clip(lower=1e-6), style, color=colour, label=name)
    parts.set(yscale="log", title="loss terms")
    parts.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    speed.plot(log["epoch"], log["images_per_second"], color=GREEN, marker="o", markersize=3)
    speed.set(title="throughput", ylim=(0, None))
    for ax, label in ((total, "loss"), (parts, "loss (log scale)"), (speed, "images/s")):
        _finish(ax, "epoch", label)
    figure.suptitle(title, fontsize="medium")
    return figure


def plot_ablation(table: "pd.DataFrame") -> Figure:
    """AP of every run of an ablation as a point, by variant; a line marks the mean of `base`."""
    order = table.groupby("variant")["ap_all"].mean().sort_values().index
    rows = {name: row for row, name in enumerate(order)}
    figure = Figure(figsize=(8, 1.2 + 0.26 * len(rows)), layout="constrained")
    ax = figure.subplots()
    for index, (seed, part) in enumerate(table.groupby("seed")):
        ax.scatter(part["ap_all"], part["variant"].map(rows), s=24, label=f"seed {seed}",
                   color=COLOURS[index % len(COLOURS)], zorder=3)  # fmt: skip
    base = table.loc[table["variant"] == "base", "ap_all"]
    if len(base):
        ax.axvline(base.mean(), color=GREY, linestyle="--", linewidth=1, label="mean of base")
    ax.set_yticks(range(len(rows)), order)
    ax.legend(loc="lower right", fontsize="small", frameon=False)
    _finish(ax, "AP at IoU 0.5 of all faces on held-out photos (%)", "")
    return figure


def plot_pictures(pictures: Sequence[tuple[str, np.ndarray]], *, columns: int = 3) -> Figure:
    """Photographs (title, (H, W, 3) uint8 RGB) in rows of `columns`, each under its title."""
    if not pictures:
        raise DataError("no picture to show")
    columns = min(columns, len(pictures))
    lines = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    width = 9.2 / columns
    heights = [max(width * p.shape[0] / p.shape[1] for _, p in line) + 0.3 for line in lines]
    heights = [min(height, 6.5) for height in heights]
    figure = Figure(figsize=(9.2, sum(heights)), layout="constrained")
    grid = figure.subplots(len(lines), columns, squeeze=False, height_ratios=heights)
    for ax in grid.flat:
        ax.axis("off")
    for line, row in zip(lines, grid, strict=True):
        for (title, picture), ax in zip(line, row, strict=False):
            ax.imshow(picture)
            ax.set_title(title, fontsize="medium")
    return figure


def plot_schedule(
    steps: np.ndarray, rates: np.ndarray, *, steps_per_epoch: int, title: str = ""
) -> Figure:
    """The learning rate at each step (T,), against the epoch."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    ax = figure.subplots()
    ax.plot(steps / steps_per_epoch, rates, color=BLUE)
    ax.set(ylim=(0, None), title=title)
    _finish(ax, "epoch", "learning rate of AdamW")
    return figure


def plot_networks(table: "pd.DataFrame") -> Figure:
    """V1 against V2 by part: thousands of parameters and millions of multiply-accumulates.

    table: columns part, v1_parameters, v2_parameters, v1_macs, v2_macs, a row a part.
    """
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    panels = (
        ("parameters", 1e3, "parameters (thousands)"),
        ("macs", 1e6, "multiply-accumulates (millions)"),
    )
    place = np.arange(len(table))
    for ax, (what, unit, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for name, colour, shift, hatch in (("v1", ORANGE, -0.2, "//"), ("v2", BLUE, 0.2, "")):
            values = table[f"{name}_{what}"].to_numpy(float) / unit
            text = f"{name.upper()}: {values.sum():,.0f}"
            bars = ax.barh(place + shift, values, 0.38, color=colour, hatch=hatch, label=text)
            ax.bar_label(bars, fmt="%.1f", padding=3, fontsize="small")
        ax.set_yticks(place, table["part"])
        ax.invert_yaxis()
        ax.margins(x=0.15)
        ax.legend(loc="lower right", frameon=False)
        _finish(ax, label, "")
    return figure


def plot_progress(log: "pd.DataFrame", *, epochs: int, title: str = "") -> Figure:
    """A run so far: total loss, every term, learning rate, throughput, and AP where measured.

    log: training_log.csv as a table, also an empty one; epochs: of the whole run.
    """
    figure = Figure(figsize=(9.2, 5.8), layout="constrained")
    (total, parts), (rate, last) = figure.subplots(2, 2)
    axes = (total, parts, rate, last)
    labels = ("total loss", "loss terms (log scale)", "learning rate", "images/s")
    others = {"epoch", "loss", "lr", "seconds", "images_per_second"}
    terms = [name for name in log.columns if name not in others and not name.startswith("val_")]
    if len(log):
        total.plot(log["epoch"], log["loss"], color=BLUE, marker="o", markersize=3)
        for index, name in enumerate(terms):
            style = DASHES[index // len(COLOURS) % len(DASHES)]
            colour = COLOURS[index % len(COLOURS)]
            parts.plot(log["epoch"], log[name].clip(lower=1e-6), style, color=colour, label=name,
                       marker="o", markersize=2)  # fmt: skip
        parts.set_yscale("log")
        parts.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        rate.plot(log["epoch"], log["lr"], color=ORANGE, marker="o", markersize=3)
        rate.set_ylim(0, None)
        _draw_speed(last, log)
    for ax, label in zip(axes, labels, strict=True):
        ax.set_xlim(0, epochs + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        _finish(ax, "epoch", label)
    figure.suptitle(title, fontsize="medium")
    return figure


def _draw_speed(ax: Axes, log: "pd.DataFrame") -> None:
    """Throughput, and on a second scale the validation AP where the run measures it."""
    ax.plot(log["epoch"], log["images_per_second"], color=GREEN, marker="o", markersize=3)
    ax.set_ylim(0, None)
    if "val_ap" not in log:
        return
    measured = log.dropna(subset=["val_ap"])
    right = ax.twinx()
    right.plot(measured["epoch"], 100 * measured["val_ap"], "--s", color=PURPLE, markersize=4)
    right.set_ylim(0, 100)
    right.set_ylabel("validation AP, % (dashed)", color=PURPLE)
    right.spines["top"].set_visible(False)


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
    _finish(left, "score", "precision (share of detections true)")
    _finish(right, "score", "detections in the bin")
    figure.suptitle(title, fontsize="medium")
    return figure


def plot_speed(table: "pd.DataFrame") -> Figure:
    """V1 and V2, milliseconds a forward by image size: median, smallest and largest of the rounds.

    table: columns size, network, median, min, max (ms).
    """
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    ax = figure.subplots()
    sizes = list(dict.fromkeys(table["size"]))
    for shift, (name, part) in zip((-0.2, 0.2), table.groupby("network"), strict=True):
        place = np.array([sizes.index(size) for size in part["size"]]) + shift
        spread = [part["median"] - part["min"], part["max"] - part["median"]]
        colour, hatch = (ORANGE, "//") if name == "V1" else (BLUE, "")
        bars = ax.bar(place, part["median"], 0.38, yerr=spread, color=colour, hatch=hatch,
                      capsize=3, label=name)  # fmt: skip
        ax.bar_label(bars, fmt="%.0f", padding=3, fontsize="small")
    ax.set_xticks(range(len(sizes)), sizes)
    ax.margins(y=0.15)
    ax.legend(frameon=False)
    _finish(ax, "image, width × height (pixels)", "time of a forward (ms)")
    return figure
