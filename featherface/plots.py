"""Figures of training, evaluation and speed, and how they are written.

Colours are those of Okabe and Ito (2008), which colour-blind readers can distinguish; lines differ
in dash too, bars in hatch.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

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
_MOST_POINTS = 2000  # of one line: more is slow in vector formats and shows nothing new


def finish(ax: Axes, xlabel: str, ylabel: str) -> None:
    """Set labels, a light grid behind the data, and no box around it."""
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(color="0.9", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def log_scale(ax: Axes) -> None:
    """Make the y axis logarithmic with plain numbers at 1, 2, 5, 10, …; call it after drawing."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    steps = (1, 2, 5) if high < 1000 * low else (1,)
    ax.yaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
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


def plot_reliability(
    diagrams: "Mapping[str, tuple[pd.DataFrame, float]]", *, title: str = ""
) -> Figure:
    """Plot precision against score for each detector, and the number of detections per bin.

    diagrams: {detector: `featherface.evaluation.reliability` of a curve}.
    """
    figure = Figure(figsize=(9.2, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="calibrated")
    for index, (name, (table, error)) in enumerate(diagrams.items()):
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
        bins = table.dropna(subset=["score"])
        text = f"{name}: calibration error {error:.3f}"
        left.plot(bins["score"], bins["precision"], dash, marker="o", color=colour, label=text)
        counts = table["count"].clip(lower=0.8).to_numpy(float)
        edges = np.append(table["low"], 1.0)
        right.stairs(counts, edges, baseline=0.8, linestyle=dash, color=colour, label=name)
    left.set(xlim=(0, 1), ylim=(0, 1.02))
    right.set(xlim=(0, 1), yscale="log")
    finish(left, "score", "precision (share of detections true)")
    finish(right, "score", "detections in the bin")
    left.legend(loc="lower right", frameon=False, fontsize="small")
    right.legend(loc="upper right", frameon=False, fontsize="small")
    figure.suptitle(title, fontsize="medium")
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
    """Draw stacked counts of matched, missed and extra faces in octaves of size."""
    edges = 2.0 ** np.arange(2, 11)
    size = table["size"].to_numpy(float).clip(edges[0], edges[-1] * 0.999)
    groups = {"matched": "both", "missed": f"only {names[0]}", "extra": f"only {names[1]}"}
    counts = [np.histogram(size[table["status"] == status], edges)[0] for status in groups]
    position, base = np.arange(len(edges) - 1), np.zeros(len(edges) - 1)
    fills = zip(counts, groups.values(), (SKY, ORANGE, RED), ("", "//", ".."), strict=True)
    for count, label, colour, hatch in fills:
        ax.bar(
            position, count, 0.9, base, color=colour, label=label, hatch=hatch, edgecolor="white"
        )
        base = base + count
    ax.set_ylim(0, max(1.0, 1.08 * base.max()))
    ax.set_xticks(position, [f"{low:.0f}–{2 * low:.0f}" for low in edges[:-1]], rotation=30)
    ax.legend(frameon=False)
    finish(ax, "size: √(box area), pixels", "faces")


def _histogram(ax: Axes, values: "np.ndarray | pd.Series", edges: np.ndarray, colour: str) -> None:
    ax.hist(
        np.asarray(values, float), bins=list(edges), color=colour, edgecolor="white", linewidth=0.5
    )


def plot_schedule(
    steps: np.ndarray, rates: np.ndarray, *, steps_per_epoch: int, title: str = ""
) -> Figure:
    """Plot the learning rate at each step (T,) against the epoch."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    ax = figure.subplots()
    ax.plot(steps / steps_per_epoch, rates, color=BLUE)
    ax.set(ylim=(0, None), title=title)
    finish(ax, "epoch", "learning rate of AdamW")
    return figure


def plot_progress(log: "pd.DataFrame", *, epochs: int, title: str = "") -> Figure:
    """Plot a run so far: total loss, each term, learning rate, throughput, and AP if measured.

    log: training_log.csv as a table, which may be empty; epochs: of the whole run.
    """
    figure = Figure(figsize=(9.2, 5.8), layout="constrained")
    (total, parts), (rate, last) = figure.subplots(2, 2)
    if len(log):
        total.plot(log["epoch"], log["loss"], color=BLUE, marker="o", markersize=3)
        _draw_terms(parts, log)
        rate.plot(log["epoch"], log["lr"], color=ORANGE, marker="o", markersize=3)
        rate.set_ylim(0, None)
        _draw_speed(last, log)
    labels = ("total loss", "loss terms (log scale)", "learning rate", "images/s")
    for ax, label in zip((total, parts, rate, last), labels, strict=True):
        ax.set_xlim(0, epochs + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        finish(ax, "epoch", label)
    figure.suptitle(title, fontsize="medium")
    return figure


def _draw_terms(ax: Axes, log: "pd.DataFrame") -> None:
    """Draw each loss term that is not always 0 on a logarithmic scale, with a legend outside."""
    others = {"epoch", "loss", "lr", "seconds", "images_per_second", "loader_share"}
    terms = [name for name in log.columns if name not in others and not name.startswith("val_")]
    for index, name in enumerate(name for name in terms if (log[name] > 0).any()):
        style = DASHES[index // len(COLOURS) % len(DASHES)]
        colour = COLOURS[index % len(COLOURS)]
        values = log[name].where(log[name] > 0)
        ax.plot(log["epoch"], values, style, color=colour, label=name, marker="o", markersize=2)
    log_scale(ax)
    ax.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _draw_speed(ax: Axes, log: "pd.DataFrame") -> None:
    """Draw throughput, and on a second scale the validation AP if the run measures it."""
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
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    panels = (
        ("parameters", 1e3, "parameters (thousands)"),
        ("macs", 1e6, "multiply-accumulates (millions)"),
    )
    position = np.arange(len(table))
    axes = figure.subplots(1, 2, sharey=True)
    for ax, (what, unit, label) in zip(axes, panels, strict=True):
        for name, colour, shift, hatch in (("v1", ORANGE, -0.2, "//"), ("v2", BLUE, 0.2, "")):
            values = table[f"{name}_{what}"].to_numpy(float) / unit
            text = f"{name.upper()}: {values.sum():,.0f} in all"
            bars = ax.barh(position + shift, values, 0.38, color=colour, hatch=hatch, label=text)
            ax.bar_label(bars, fmt="%.1f", padding=3, fontsize="small")
        ax.margins(x=0.15)
        ax.legend(loc="lower right", frameon=False)
        finish(ax, label, "")
    axes[0].set_yticks(position, table["part"])
    axes[0].invert_yaxis()
    return figure


def plot_speed(table: "pd.DataFrame") -> Figure:
    """Plot times of V1 and V2 by engine and image size: medians, with quartiles as whiskers.

    table: of `featherface.benchmark` for one number of threads; one panel per kind of time.
    """
    figure = Figure(figsize=(9.2, 3.8), layout="constrained")
    kinds = list(dict.fromkeys(table["what"]))
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
        ax.set(title=TIMES.get(what, what))
        ax.margins(y=0.12)
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
    figure = Figure(figsize=(9.2, sum(heights)), layout="constrained")
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
    chosen = table[
        (table["what"] == "forward")
        & (table["engine"] == "onnx")
        & (table["threads"] == 1)
        & (table["height"] == 640)
        & (table["width"] == 640)
    ]
    chosen = chosen.dropna(subset=settings)
    if chosen.empty:
        raise DataError("no detector has both an AP and a time at 640×640 on one thread")
    chosen = chosen.assign(detector=chosen["detector"].str.replace(_SUFFIX, "", regex=True))
    chosen = chosen.drop_duplicates("detector").sort_values("median")
    figure = Figure(figsize=(2.6 * len(settings) + 2.4, 3.6), layout="constrained")
    axes = figure.subplots(1, len(settings), squeeze=False)[0]
    for ax, setting in zip(axes, settings, strict=True):
        for index, row in enumerate(chosen.to_dict("records")):
            colour = BLUE if row["detector"] == "V2" else COLOURS[1 + index % (len(COLOURS) - 1)]
            label = f"{row['detector']}, {row['median']:.0f} ms"
            ax.plot(row["median"], row[setting], MARKERS[index % len(MARKERS)], color=colour,
                    markersize=8, label=label)  # fmt: skip
        ax.set(xscale="log", title=setting.removeprefix("ap_"), xlabel="forward (ms)")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:.0f}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.grid(color="0.9", linewidth=0.8, which="both")
        ax.margins(x=0.1, y=0.1)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("exact AP (%), long side 640")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small")
    figure.suptitle(title, fontsize="medium")
    return figure
