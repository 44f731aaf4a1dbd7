"""Optimizer, learning rate and averaged weights."""

import copy
from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from featherface.config import TrainConfig


def make_optimizer(trained: nn.Module, config: TrainConfig) -> Optimizer:
    """Return AdamW; biases, norms and fusion weights are not decayed."""
    parameters = list(trained.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.lr,
        # one kernel for all parameters, where there is one
        fused=True if all(p.device.type in ("cuda", "cpu") for p in parameters) else None,
    )


def make_scheduler(optimizer: Optimizer, config: TrainConfig, steps_per_epoch: int) -> LRScheduler:
    """Return linear warm-up, then a cosine to `min_lr`; step it after every optimizer step.

    The warm-up takes `warmup_epochs`, at most a tenth of the run.
    """
    total = config.epochs * steps_per_epoch
    warm = min(round(config.warmup_epochs * steps_per_epoch), total // 10)
    cosine = CosineAnnealingLR(optimizer, max(1, total - warm), eta_min=config.min_lr)
    if warm == 0:
        return cosine
    linear = LinearLR(optimizer, start_factor=1 / (warm + 1), total_iters=warm)
    return SequentialLR(optimizer, [linear, cosine], milestones=[warm])


class Averages:
    """An averaged copy of a network; call `update(model)` after every optimizer step.

    The decay warms up as (1 + n)/(10 + n), so that short runs forget their start. As
    torch.optim.swa_utils.AveragedModel with a foreach average, which keeps its count of updates on
    the device and so makes the host wait at every step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the network's weights; the first call copies them."""
        count = float(self.updates)
        share = 1.0 - min(self.decay, (1.0 + count) / (10.0 + count))
        averaged, counters = _floats_and_counters(self.module)
        current, newest = _floats_and_counters(model)
        if self.updates:
            torch._foreach_lerp_(averaged, current, share)
        else:
            torch._foreach_copy_(averaged, current)
        torch._foreach_copy_(counters, newest)  # of batches, not averaged
        self.updates += 1


def _floats_and_counters(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    tensors: Iterable[Tensor] = chain(model.parameters(), model.buffers())
    everything = [tensor.detach() for tensor in tensors]
    floats = [tensor for tensor in everything if tensor.is_floating_point()]
    return floats, [tensor for tensor in everything if not tensor.is_floating_point()]
