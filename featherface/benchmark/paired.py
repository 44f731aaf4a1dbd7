"""Calls measured in pairs: they alternate in one process, and ratios are taken round by round."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import cv2
import numpy as np
import pandas as pd
import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread each for torch and OpenCV, then the number there was."""
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])


def summary(rounds: pd.DataFrame) -> pd.DataFrame:
    """Median, smallest and largest value of every measured column: the spread beside the figure."""
    return rounds.drop(columns="round").agg(["median", "min", "max"])


WARM_UP = 3  # rounds that are not counted
Times = dict[str, np.ndarray]  # name → (rounds,) seconds


def alternate(
    calls: Mapping[str, Callable[[], object]], *, rounds: int, cpu_time: bool = False
) -> Times:
    """Seconds of each call in each round, after WARM_UP rounds.

    cpu_time: of the calling thread instead of the wall clock, which other work on the machine
    disturbs least; right only where the call works in that thread alone.
    """
    clock = time.thread_time if cpu_time else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(WARM_UP + rounds):
        for name, call in calls.items():
            started = clock()
            call()
            if number >= WARM_UP:
                times[name].append(clock() - started)
    return {name: np.array(seconds) for name, seconds in times.items()}


def ratio(times: Times, name: str, reference: str) -> float:
    """Median over the rounds of one time by another of the same round."""
    return float(np.median(times[name] / times[reference]))
