"""Figures of training runs: the schedule, a run under way, a log, an ablation."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from featherface.errors import DataError
from featherface.plots.style import (
    BLUE,
    COLOURS,
    DASHES,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    finish,
    log_scale,
)

if TYPE_CHECKING:
    import pandas as pd


def plot_schedule(
    steps: np.ndarray, rates: np.ndarray, *, steps_per_epoch: int, title: str = ""
) -> Figure:
    """The learning rate at each step (T,), against the epoch."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    ax = figure.subplots()
    ax.plot(steps / steps_per_epoch, rates, color=BLUE)
    ax.set(ylim=(0, None), title=title)
    finish(ax, "epoch", "learning rate of AdamW")
    return figure


def plot_progress(log: "pd.DataFrame", *, epochs: int, title: str = "") -> Figure:
    """A run so far: total loss, every term, learning rate, throughput, and AP where measured.

    log: training_log.csv as a table, also an empty one; epochs: of the whole run.
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
    """Every loss term that is not 0 throughout, on a logarithmic scale, the legend beside it."""
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


def plot_training_log(log: "pd.DataFrame", *, title: str = "") -> Figure:
    """Loss terms, total loss and learning rate, and throughput, against the epoch.

    `log`: training_log.csv as a table. DataError when it holds no epoch.
    """
    if log.empty or "epoch" not in log or "loss" not in log:
        raise DataError("no epoch to draw: the training log is empty or has no epoch and loss")
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    total, parts, speed = figure.subplots(1, 3)
    total.plot(log["epoch"], log["loss"], color=BLUE, marker="o", markersize=3)
    total.set_title("total loss")
    rate = total.twinx()
    rate.plot(log["epoch"], log["lr"], color=ORANGE, linestyle="--")
    rate.set_ylabel("learning rate (dashed)", color=ORANGE)
    rate.spines["top"].set_visible(False)
    _draw_terms(parts, log)
    parts.set(title="loss terms")
    speed.plot(log["epoch"], log["images_per_second"], color=GREEN, marker="o", markersize=3)
    speed.set(title="throughput", ylim=(0, None))
    for ax, label in ((total, "loss"), (parts, "loss (log scale)"), (speed, "images/s")):
        finish(ax, "epoch", label)
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
    finish(ax, "AP at IoU 0.5 of all faces on held-out photos (%)", "")
    return figure
