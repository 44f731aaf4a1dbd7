"""What every benchmark here shares: fair threads, and the spread beside the figure."""

from collections.abc import Iterator
from contextlib import contextmanager

import cv2
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
