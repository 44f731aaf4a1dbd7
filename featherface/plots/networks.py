"""Figures of two networks side by side: what they cost, and photographs with what they find."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from featherface.errors import DataError
from featherface.plots.style import BLUE, ORANGE, finish

if TYPE_CHECKING:
    import pandas as pd


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
    axes = figure.subplots(1, 2, sharey=True)
    for ax, (what, unit, label) in zip(axes, panels, strict=True):
        for name, colour, shift, hatch in (("v1", ORANGE, -0.2, "//"), ("v2", BLUE, 0.2, "")):
            values = table[f"{name}_{what}"].to_numpy(float) / unit
            text = f"{name.upper()}: {values.sum():,.0f} in all"
            bars = ax.barh(place + shift, values, 0.38, color=colour, hatch=hatch, label=text)
            ax.bar_label(bars, fmt="%.1f", padding=3, fontsize="small")
        ax.margins(x=0.15)
        ax.legend(loc="lower right", frameon=False)
        finish(ax, label, "")
    axes[0].set_yticks(place, table["part"])
    axes[0].invert_yaxis()
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
    finish(ax, "image, width × height (pixels)", "time of a forward (ms)")
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
