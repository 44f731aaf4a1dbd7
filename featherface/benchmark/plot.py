"""The figure of a speed comparison: time of a forward against average precision."""

import pandas as pd
from matplotlib.figure import Figure

from featherface.errors import DataError
from featherface.plots import BLUE, COLOURS


def plot_speed_against_ap(table: pd.DataFrame, *, title: str = "") -> Figure:
    """A point a detector and AP setting: milliseconds of a forward at 640×640 on one thread in ONNX
    Runtime, against exact AP in percent. `table`: of `speed`. DataError where it has no AP."""
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
    figure = Figure(figsize=(3.4 * len(settings) + 0.6, 3.8), layout="constrained")
    axes = figure.subplots(1, len(settings), squeeze=False)[0]
    for ax, setting in zip(axes, settings, strict=True):
        for index, row in enumerate(chosen.to_dict("records")):
            ours = str(row["detector"]) == "V2"
            colour = BLUE if ours else COLOURS[1 + index % (len(COLOURS) - 1)]
            ax.plot(row["median"], row[setting], "o" if ours else "s", color=colour)
            ax.annotate(
                row["detector"],
                (row["median"], row[setting]),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize="small",
            )
        ax.set(xscale="log", title=setting.removeprefix("ap_"), xlabel="forward at 640×640 (ms)")
        ax.grid(color="0.9", linewidth=0.8, which="both")
        ax.margins(x=0.25, y=0.15)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("exact AP (%), long side 640")
    figure.suptitle(title, fontsize="medium")
    return figure
