"""Sums over a batch that several processes share, so that its loss is that of one process.

The losses divide by sums over the batch (weights of anchors, moments of features). Each process
holds its part of the batch; with these sums taken over all of them every process computes the loss
of the whole batch, and the mean of the processes' gradients is the gradient of one process.
"""

from typing import Any

import torch
from torch import Tensor, distributed


def process() -> tuple[int, int]:
    """The number of this process, and of how many: (0, 1) outside a distributed run."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def totals(*parts: Tensor) -> tuple[Tensor, ...]:
    """Each tensor summed over the processes, with gradient, in one exchange; the same shapes."""
    if process()[1] == 1:
        return parts
    flat = torch.cat([part.float().flatten() for part in parts])
    summed = _Total.apply(flat).split([part.numel() for part in parts])
    return tuple(new.view_as(part) for new, part in zip(summed, parts, strict=True))


def mean_of(part: Tensor) -> Tensor:
    """The mean over the processes, with gradient: of means over equal parts, that of the whole."""
    return totals(part)[0] / process()[1]


class _Total(torch.autograd.Function):
    """Sum over the processes; its gradient is the sum of theirs.

    torch.distributed.nn has the same, and says that it will go.
    """

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return _summed(value)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(value: Tensor) -> Tensor:
    value = value.contiguous().clone()
    distributed.all_reduce(value)
    return value
