"""Figures of two networks side by side: what they cost, and photographs with what they find."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from featherface.errors import DataError
from featherface.plots.style import BLUE, GREY, ORANGE, RED, SKY, finish

if TYPE_CHECKING:
    import pandas as pd

_BARS = {  # colour and hatch by detector and engine
    ("V1", "eager"): (ORANGE, "//"),
    ("V2", "eager"): (BLUE, ""),
    ("V1", "onnx"): (RED, "\\\\"),
    ("V2", "onnx"): (SKY, ".."),
}
TIMES = {"forward": "forward of the network", "end-to-end": "picture to faces"}


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
    """V1 and V2 by engine and image size: median milliseconds, quartiles as whiskers.

    table: of `featherface.benchmark.speed` on one number of threads; a panel a kind of time.
    """
    figure = Figure(figsize=(9.2, 3.8), layout="constrained")
    kinds = list(dict.fromkeys(table["what"]))
    axes = figure.subplots(1, len(kinds), squeeze=False)[0]
    for ax, what in zip(axes, kinds, strict=True):
        part = table[table["what"] == what]
        places = part["width"].astype(str) + "×" + part["height"].astype(str)
        sizes = list(dict.fromkeys(places))
        groups = part.groupby(["detector", "engine"], sort=False)
        step = 0.8 / len(groups)
        for index, ((detector, engine), rows) in enumerate(groups):
            colour, hatch = _BARS.get((detector, engine), (GREY, "xx"))
            place = [sizes.index(places[row]) + (index + 0.5) * step - 0.4 for row in rows.index]
            spread = [rows["median"] - rows["low"], rows["high"] - rows["median"]]
            label = f"{detector}, {'PyTorch' if engine == 'eager' else 'ONNX Runtime'}"
            bars = ax.bar(place, rows["median"], 0.94 * step, yerr=spread, color=colour,
                          hatch=hatch, capsize=2, label=label)  # fmt: skip
            ax.bar_label(bars, fmt="%.0f", padding=3, fontsize="small")
        ax.set_xticks(range(len(sizes)), sizes)
        ax.set(title=TIMES.get(what, what))
        ax.margins(y=0.12)
        finish(ax, "image, width × height (pixels)", "time on one thread (ms)")
    axes[0].legend(frameon=False, fontsize="small", loc="upper left")
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
