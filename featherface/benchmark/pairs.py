"""Times that can be compared: every candidate in turn, round after round, in one process."""

import time
from collections.abc import Callable, Mapping

import numpy as np

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
