"""Figures of training, evaluation and speed, and how they are written.

Colours are those of Okabe and Ito (2008), which colour-blind readers can distinguish; lines differ
in dash too, bars in hatch.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from featherface.errors import ConfigError, DataError
from featherface.files import atomic_path
from featherface.structures import Curve

if TYPE_CHECKING:
    import pandas as pd

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK)
DASHES = ("-", "--", "-.", ":")
GREY = "0.55"
_OUTSIDE: dict[str, dict[str, Any]] = {  # where a legend hides no data
    "below": {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16)},
    "right": {"loc": "center left", "bbox_to_anchor": (1, 0.5)},
}
_MOST_POINTS = 2000  # of one line: more is slow in vector formats and shows nothing new


def new_figure(size: tuple[float, float], title: str = "") -> Figure:
    """Make an empty figure of width, height in inches that leaves room for its texts."""
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize="medium")
    return figure


def finish(ax: Axes, xlabel: str, ylabel: str, *, legend: str = "", **settings: Any) -> None:
    """Set labels, a light grid behind the data, and no box around it.

    legend: "below" or "right" of the axes, or a position in them. settings: of `Axes.set`.
    """
    ax.set(xlabel=xlabel, ylabel=ylabel, **settings)
    ax.grid(color="0.9", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    if legend:
        where = _OUTSIDE.get(legend, {"loc": legend})
        ax.legend(**where, frameon=False, fontsize="small")


def line_style(index: int) -> dict[str, Any]:
    """Colour and dash of the line with this number."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)]}


def log_scale(ax: Axes) -> None:
    """Make the y axis logarithmic with plain numbers at 1, 2, 5, 10, …; call it after drawing."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    steps = (1, 2, 5) if high < 1000 * low else (1,)
    ax.yaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def save_figure(figure: Figure, path: str | os.PathLike, *, dpi: int = 150) -> None:
    """Write a figure atomically; the suffix of `path` chooses the format (.png, .svg, .pdf).

    Raises ConfigError for a suffix that matplotlib cannot write.
    """
    suffix = Path(path).suffix.lstrip(".").lower()
    if suffix not in figure.canvas.get_supported_filetypes():
        raise ConfigError(f"cannot draw into {path}: give it the suffix .png, .svg or .pdf")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format=suffix)


def plot_precision_recall(
    curves: Mapping[str, Curve] | Mapping[str, Mapping[str, Curve]],
    *,
    title: str = "",
    exact: bool = False,
) -> Figure:
    """Plot precision against recall with AP in percent.

    curves: {setting: Curve} for one panel with a line per setting, or {detector: {setting: Curve}}
    for one panel per setting with a line per detector. exact: show the exact AP in the legend
    instead of the official one of 1,000 thresholds. Raises DataError without curves.
    """
    if not curves:
        raise DataError("no precision-recall curve to draw")
    panels: dict[str, dict[str, Curve]] = {}
    for name, value in curves.items():
        for setting, curve in {"": value}.items() if isinstance(value, Curve) else value.items():
            panels.setdefault(setting, {})[name] = curve
    most = max(len(lines) for lines in panels.values())
    figure = new_figure((4.2 * len(panels) + 0.8, 4.4 + 0.22 * most), title)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (name, lines) in zip(axes, panels.items(), strict=True):
        for index, (label, curve) in enumerate(lines.items()):
            points = len(curve.recall)
            shown = np.linspace(0, points - 1, min(points, _MOST_POINTS)).astype(int)
            ap = f"AP {100 * (curve.ap_exact if exact else curve.ap):.1f}"
            text = f"{label}: {ap if curve.faces else 'no face'}"
            recall, precision = curve.recall[shown], curve.precision[shown]
            ax.plot(recall, precision, **line_style(index), linewidth=1.8, label=text)
        ax.set(xlim=(0, 1.005), ylim=(0, 1.005), title=name)
        labels = "recall (share of faces found)", "precision (share of detections true)"
        finish(ax, *labels, legend="below")
    return figure


def plot_reliability(
    diagrams: "Mapping[str, tuple[pd.DataFrame, float]]", *, title: str = ""
) -> Figure:
    """Plot precision against score for each detector, and the number of detections per bin.

    diagrams: {detector: `featherface.evaluation.reliability` of a curve}.
    """
    figure = new_figure((9.2, 3.9 + 0.2 * len(diagrams)), title)
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="calibrated")
    for index, (name, (table, error)) in enumerate(diagrams.items()):
        style, bins = line_style(index), table.dropna(subset=["score"])
        text = f"{name}: calibration error {error:.3f}"
        left.plot(bins["score"], bins["precision"], marker="o", markersize=4, **style, label=text)
        counts, edges = table["count"].clip(lower=0.8), np.append(table["low"], 1.0)
        right.stairs(counts.to_numpy(float), edges, baseline=None, **style, label=name)
    left.set(xlim=(0, 1.01), ylim=(0, 1.02))
    finish(left, "score", "precision (share of detections true)", legend="below")
    log_scale(right)
    finish(right, "score", "detections in the bin", legend="below", xlim=(0, 1))
    return figure


def plot_consistency(
    table: "pd.DataFrame",
    summary: Mapping[str, float],
    *,
    names: tuple[str, str] = ("a", "b"),
    title: str = "",
) -> Figure:
    """Plot the table and summary of `featherface.evaluation.compare`.

    Four panels: scores of the pairs, box IoU, landmark distance, and the faces by size that both
    detectors or only one found.
    """
    pairs = table[table["status"] == "matched"]
    figure = new_figure((9.6, 7.6), title)
    (scores, overlap), (points, sizes) = figure.subplots(2, 2)
    scores.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    scores.plot(pairs["score_a"], pairs["score_b"], "o", color=BLUE, alpha=0.4, markersize=4)
    scores.set_title(f"scores of {len(pairs)} pairs, r = {summary['score_correlation']:.3f}")
    finish(scores, f"score of {names[0]}", f"score of {names[1]}", xlim=(0, 1.02), ylim=(0, 1.02))
    bars: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.5}
    overlap.hist(pairs["iou"].to_numpy(float), np.linspace(0.5, 1, 26), color=GREEN, **bars)
    overlap.set_title(f"box IoU, median {summary['iou_median']:.3f}")
    finish(overlap, "IoU of the two boxes", "pairs")
    distance = pairs["landmark_distance"].to_numpy(float)
    # beyond the 99th percentile a few wild pairs would flatten all the others
    limit = max(1e-3, float(np.percentile(distance, 99))) if len(distance) else 1.0
    points.hist(distance.clip(max=limit), np.linspace(0, limit, 26), color=ORANGE, **bars)
    points.set_title(f"landmarks, median {summary['landmark_distance_median']:.4f}")
    finish(points, "mean landmark distance (face sizes; last bar: and more)", "pairs")
    _draw_sizes(sizes, table, names)
    sizes.set_title(f"faces by size, agreement {100 * summary['agreement']:.1f} %")
    return figure


def _draw_sizes(ax: Axes, table: "pd.DataFrame", names: tuple[str, str]) -> None:
    """Draw stacked counts of matched, missed and extra faces in octaves of size."""
    edges = 2.0 ** np.arange(2, 11)
    size = table["size"].to_numpy(float).clip(edges[0], edges[-1] * 0.999)
    position, base = np.arange(len(edges) - 1), np.zeros(len(edges) - 1)
    for status, label, colour, hatch in (
        ("matched", "both", SKY, ""),
        ("missed", f"only {names[0]}", ORANGE, "//"),
        ("extra", f"only {names[1]}", RED, ".."),
    ):
        count = np.histogram(size[table["status"] == status], edges)[0]
        ax.bar(position, count, 0.9, base, color=colour, label=label, hatch=hatch, ec="white")
        base = base + count
    ax.set_xticks(position, [f"{low:.0f}–{2 * low:.0f}" for low in edges[:-1]], rotation=30)
    # a third more than the highest bar: room for the legend
    ax.set_ylim(0, max(1.0, 1.35 * base.max()))
    finish(ax, "size: √(box area), pixels", "faces", legend="upper right")


def plot_schedule(
    steps: np.ndarray, rates: np.ndarray, *, steps_per_epoch: int, title: str = ""
) -> Figure:
    """Plot the learning rate at each step (T,) against the epoch."""
    figure = new_figure((7, 2.8), title)
    ax = figure.subplots()
    ax.plot(steps / steps_per_epoch, rates, color=BLUE)
    finish(ax, "epoch", "learning rate of AdamW", ylim=(0, None))
    return figure


def plot_progress(
    log: "pd.DataFrame", *, epochs: int, steps: "pd.DataFrame | None" = None, title: str = ""
) -> Figure:
    """Plot a run so far: total loss, each term, learning rate, throughput, and AP if measured.

    log: training_log.csv as a table; epochs: of the whole run. steps: losses between, with columns
    epoch (not whole) and loss. If the log is still empty, there is one panel, of the loss by step.
    """
    first = not len(log)
    figure = new_figure((9.2, 3.2 if first else 5.8), title)
    if steps is None:
        steps = log.reindex(columns=["epoch", "loss"])[:0]
    if first:
        ax = figure.subplots()
        ax.plot(steps["epoch"], steps["loss"], color=SKY)
        finish(ax, "epoch", "total loss by step", xlim=(0, max(1.0, 1.1 * steps["epoch"].max())))
        return figure
    (total, parts), (rate, last) = figure.subplots(2, 2)
    points: dict[str, Any] = {"marker": "o", "markersize": 3}
    total.plot(steps["epoch"], steps["loss"], color=SKY, linewidth=1, label="by step")
    total.plot(log["epoch"], log["loss"], color=BLUE, **points, label="mean of the epoch")
    _draw_terms(parts, log)
    rate.plot(log["epoch"], log["lr"], color=ORANGE, **points)
    last.plot(log["epoch"], log["images_per_second"], color=GREEN, **points)
    for ax, label, low in (
        (total, "total loss", None),
        (parts, "loss terms (log scale)", None),
        (rate, "learning rate", 0),
        (last, "images/s", 0),
    ):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(xlim=(0, epochs + 0.5), ylim=(low, None))
        finish(ax, "epoch", label, legend={parts: "right", total: "upper right"}.get(ax, ""))
    if "val_ap" in log:
        measured, right = log.dropna(subset=["val_ap"]), last.twinx()
        right.plot(measured["epoch"], 100 * measured["val_ap"], "--s", color=PURPLE, markersize=4)
        right.set_ylim(0, 100)
        right.set_ylabel("validation AP, % (dashed)", color=PURPLE)
        right.spines["top"].set_visible(False)
    return figure


def plot_runs(logs: "Mapping[str, pd.DataFrame]") -> Figure:
    """Draw loss and validation AP of several runs over each other. logs: tables by run's name."""
    figure = new_figure((9, 3.6))
    axes = figure.subplots(1, 2)
    for index, (name, log) in enumerate(logs.items()):
        for ax, column in zip(axes, ("loss", "val_ap"), strict=True):
            if column in log:
                points = log[["epoch", column]].dropna()
                marker = "o" if len(points) == 1 else None
                ax.plot(*points.to_numpy().T, label=name, marker=marker, **line_style(index))
    finish(axes[0], "epoch", "loss", legend="below")
    finish(axes[1], "epoch", "validation AP")
    return figure


def _draw_terms(ax: Axes, log: "pd.DataFrame") -> None:
    """Draw each loss term that is not always 0 on a logarithmic scale, with a legend outside."""
    others = {"epoch", "loss", "lr", "seconds", "images_per_second", "loader_share"}
    terms = [name for name in log.columns if name not in others and not name.startswith("val_")]
    for index, name in enumerate(name for name in terms if (log[name] > 0).any()):
        values = log[name].where(log[name] > 0)
        ax.plot(log["epoch"], values, **line_style(index), label=name, marker="o", markersize=2)
    log_scale(ax)


_BARS = {  # colour and hatch by detector and engine
    ("V1", "eager"): (ORANGE, "//"),
    ("V2", "eager"): (BLUE, ""),
    ("V1", "onnx"): (RED, "\\\\"),
    ("V2", "onnx"): (SKY, ".."),
}
TIMES = {"forward": "forward of the network", "end-to-end": "picture to faces"}


def plot_networks(table: "pd.DataFrame") -> Figure:
    """Plot parameters and multiply-accumulates of V1 and V2 by part.

    table: one row per part: part, v1_parameters, v2_parameters, v1_macs, v2_macs.
    """
    figure, position = new_figure((9.2, 3.6)), np.arange(len(table))
    axes = figure.subplots(1, 2, sharey=True)
    for ax, what, unit, label in (
        (axes[0], "parameters", 1e3, "parameters (thousands)"),
        (axes[1], "macs", 1e6, "multiply-accumulates (millions)"),
    ):
        for name, colour, shift, hatch in (("v1", ORANGE, -0.2, "//"), ("v2", BLUE, 0.2, "")):
            values = table[f"{name}_{what}"].to_numpy(float) / unit
            text = f"{name.upper()}: {values.sum():,.0f} in all"
            bars = ax.barh(position + shift, values, 0.38, color=colour, hatch=hatch, label=text)
            ax.bar_label(bars, fmt="%.1f", padding=3, fontsize="small")
        ax.margins(x=0.15)
        finish(ax, label, "", legend="lower right")
    axes[0].set_yticks(position, table["part"])
    axes[0].invert_yaxis()
    return figure


def plot_speed(table: "pd.DataFrame") -> Figure:
    """Plot times of V1 and V2 by engine and image size: medians, with quartiles as whiskers.

    table: of `featherface.benchmark` for one number of threads; one panel per kind of time.
    """
    figure, kinds = new_figure((9.2, 3.8)), list(dict.fromkeys(table["what"]))
    axes = figure.subplots(1, len(kinds), squeeze=False)[0]
    for ax, what in zip(axes, kinds, strict=True):
        part = table[table["what"] == what]
        labels = part["width"].astype(str) + "×" + part["height"].astype(str)
        sizes = list(dict.fromkeys(labels))
        groups = part.groupby(["detector", "engine"], sort=False)
        step = 0.8 / len(groups)
        for index, ((detector, engine), rows) in enumerate(groups):
            colour, hatch = _BARS.get((detector, engine), (GREY, "xx"))
            position = [sizes.index(labels[row]) + (index + 0.5) * step - 0.4 for row in rows.index]
            spread = [rows["median"] - rows["low"], rows["high"] - rows["median"]]
            label = f"{detector}, {'PyTorch' if engine == 'eager' else 'ONNX Runtime'}"
            bars = ax.bar(position, rows["median"], 0.94 * step, yerr=spread, color=colour,
                          hatch=hatch, capsize=2, label=label)  # fmt: skip
            ax.bar_label(bars, fmt="%.0f", padding=3, fontsize="small")
        ax.set_xticks(range(len(sizes)), sizes)
        ax.margins(y=0.12)
        ax.set_title(TIMES.get(what, what))
        finish(ax, "image, width × height (pixels)", "time on one thread (ms)")
    axes[0].legend(frameon=False, fontsize="small", loc="upper left")
    return figure


def plot_pictures(pictures: Sequence[tuple[str, np.ndarray]], *, columns: int = 3) -> Figure:
    """Show pictures (title, (H, W, 3) uint8 RGB) in rows of `columns`, each under its title."""
    if not pictures:
        raise DataError("no picture to show")
    columns = min(columns, len(pictures))
    lines = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    width = 9.2 / columns
    heights = [max(width * p.shape[0] / p.shape[1] for _, p in line) + 0.3 for line in lines]
    heights = [min(height, 6.5) for height in heights]
    figure = new_figure((9.2, sum(heights)))
    grid = figure.subplots(len(lines), columns, squeeze=False, height_ratios=heights)
    for ax in grid.flat:
        ax.axis("off")
    for line, row in zip(lines, grid, strict=True):
        for (title, picture), ax in zip(line, row, strict=False):
            ax.imshow(picture)
            ax.set_title(title, fontsize="medium")
    return figure


MARKERS = "osD^vP*X"
_SUFFIX = r"_(dyn|\d+x\d+)$"  # of the files' names: which sizes they take


def plot_speed_against_ap(table: "pd.DataFrame", *, title: str = "") -> Figure:
    """Plot exact AP against the time of a forward: a point per detector and AP setting.

    table: of `compare_speed`; times at 640×640 on one thread in ONNX Runtime. DataError without AP.
    """
    settings = [name for name in table.columns if name.startswith("ap_")]
    if not settings:
        raise DataError("no detector has an AP: give --data")
    wanted = "what == 'forward' and engine == 'onnx' and threads == 1 and height == width == 640"
    chosen = table.query(wanted).dropna(subset=settings)
    if chosen.empty:
        raise DataError("no detector has both an AP and a time at 640×640 on one thread")
    chosen = chosen.assign(detector=chosen["detector"].str.replace(_SUFFIX, "", regex=True))
    chosen = chosen.drop_duplicates("detector").sort_values("median")
    figure = new_figure((2.6 * len(settings) + 2.4, 3.6), title)
    axes = figure.subplots(1, len(settings), squeeze=False)[0]
    for ax, setting in zip(axes, settings, strict=True):
        for index, row in enumerate(chosen.to_dict("records")):
            colour = BLUE if row["detector"] == "V2" else COLOURS[1 + index % (len(COLOURS) - 1)]
            label = f"{row['detector']}, {row['median']:.0f} ms"
            ax.plot(row["median"], row[setting], MARKERS[index % len(MARKERS)], color=colour,
                    markersize=8, label=label)  # fmt: skip
        ax.set(xscale="log", title=setting.removeprefix("ap_"))
        label = "exact AP (%), long side 640" if ax is axes[0] else ""
        finish(ax, "forward (ms)", label, legend="right" if ax is axes[-1] else "")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:.0f}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.margins(x=0.1, y=0.1)
    return figure
