"""Figures of evaluations and runs, one look for all.

Every function returns a matplotlib Figure made through the object interface: no global state, no
window, safe in threads and servers.
"""

from featherface.plots.networks import plot_networks, plot_pictures, plot_speed
from featherface.plots.quality import (
    plot_consistency,
    plot_precision_recall,
    plot_reliabilities,
    plot_reliability,
)
from featherface.plots.runs import plot_ablation, plot_progress, plot_schedule, plot_training_log
from featherface.plots.style import (
    BLACK,
    BLUE,
    COLOURS,
    DASHES,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    finish,
    log_scale,
    save_figure,
)

__all__ = [
    "BLACK",
    "BLUE",
    "COLOURS",
    "DASHES",
    "GREEN",
    "GREY",
    "ORANGE",
    "PURPLE",
    "RED",
    "SKY",
    "finish",
    "log_scale",
    "plot_ablation",
    "plot_consistency",
    "plot_networks",
    "plot_pictures",
    "plot_precision_recall",
    "plot_progress",
    "plot_reliabilities",
    "plot_reliability",
    "plot_schedule",
    "plot_speed",
    "plot_training_log",
    "save_figure",
]
