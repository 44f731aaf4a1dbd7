"""The figure of a speed comparison: time of a forward against average precision."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from featherface.errors import DataError
from featherface.plots import BLUE, COLOURS

MARKERS = "osD^vP*X"
_SUFFIX = r"_(dyn|\d+x\d+)$"  # of the files' names: which sizes they take


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
