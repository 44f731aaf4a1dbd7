"""Exponential moving average of the weights (Polyak averaging), buffers included."""

import copy
from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn


class Averages:
    """An averaged copy of a network; `update_parameters(model)` after every optimizer step.

    The decay warms up as (1 + n)/(10 + n), so that a short run is not held back by its start. As
    torch.optim.swa_utils.AveragedModel with a foreach average, but the count of updates is a number
    of the host: theirs goes to the device and back at every step, and the host waits for it.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move towards the network's weights; the first time, take them."""
        count = float(self.updates)
        share = 1.0 - min(self.decay, (1.0 + count) / (10.0 + count))
        averaged, counters = _divided(self.module)
        current, newest = _divided(model)
        if self.updates:
            torch._foreach_lerp_(averaged, current, share)
        else:
            torch._foreach_copy_(averaged, current)
        torch._foreach_copy_(counters, newest)  # of batches: nothing to average
        self.updates += 1


def _divided(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The floating-point tensors of a network, and the others."""
    tensors: Iterable[Tensor] = chain(model.parameters(), model.buffers())
    everything = [tensor.detach() for tensor in tensors]
    floats = [tensor for tensor in everything if tensor.is_floating_point()]
    return floats, [tensor for tensor in everything if not tensor.is_floating_point()]


def make_ema(model: nn.Module, decay: float) -> Averages:
    """An averaged copy of the network."""
    return Averages(model, decay)
