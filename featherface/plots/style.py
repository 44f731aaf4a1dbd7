"""The look that all figures share, and how they are written.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart; lines differ
in dash too, bars in hatch.
"""

import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from featherface.errors import ConfigError
from featherface.files import atomic_path

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK)
DASHES = ("-", "--", "-.", ":")
GREY = "0.55"


def finish(ax: Axes, xlabel: str, ylabel: str) -> None:
    """Labels, a light grid behind the data, no box around it."""
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(color="0.9", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def log_scale(ax: Axes) -> None:
    """A logarithmic y axis with plain numbers at 1, 2, 5, 10, …; call it when all is drawn."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    steps = (1, 2, 5) if high < 1000 * low else (1,)
    ax.yaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def save_figure(figure: Figure, path: str | os.PathLike, *, dpi: int = 150) -> None:
    """Write a figure atomically; the suffix of `path` chooses the format (.png, .svg, .pdf).

    ConfigError for a suffix that matplotlib does not write.
    """
    suffix = Path(path).suffix.lstrip(".").lower()
    if suffix not in figure.canvas.get_supported_filetypes():
        raise ConfigError(f"cannot draw into {path}: give it the suffix .png, .svg or .pdf")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format=suffix)
