"""Exponential moving average of the weights (Polyak averaging), buffers included."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def make_ema(model: nn.Module, decay: float) -> AveragedModel:
    """An averaged copy; `update_parameters(model)` after every optimizer step.

    The decay warms up as (1 + n)/(10 + n), so that a short run is not held back by its start.
    """
    return AveragedModel(model, multi_avg_fn=_averager(decay), use_buffers=True)


def _averager(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    @torch.no_grad()
    def average(
        averaged: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int
    ) -> None:
        count = float(updates)
        share = 1.0 - min(decay, (1.0 + count) / (10.0 + count))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(list(averaged), list(current), share)
        else:  # batch counters: the newest
            for old, new in zip(averaged, current, strict=True):
                old.copy_(new)

    return average
