"""What changes over a run: the learning rate and DropBlock's probability."""

import copy
from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from featherface.config import TrainConfig


def warmup_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Steps of linear warm-up: `warmup_epochs`, but at most a tenth of the run."""
    total = config.epochs * steps_per_epoch
    return min(round(config.warmup_epochs * steps_per_epoch), total // 10)


def make_scheduler(optimizer: Optimizer, config: TrainConfig, steps_per_epoch: int) -> LRScheduler:
    """Linear warm-up, then a cosine down to `min_lr`; stepped after every optimizer step."""
    total, warm = config.epochs * steps_per_epoch, warmup_steps(config, steps_per_epoch)
    cosine = CosineAnnealingLR(optimizer, max(1, total - warm), eta_min=config.min_lr)
    if warm == 0:
        return cosine
    linear = LinearLR(optimizer, start_factor=1 / (warm + 1), total_iters=warm)
    return SequentialLR(optimizer, [linear, cosine], milestones=[warm])


def dropblock_probability(config: TrainConfig, progress: float) -> float:
    """Linear from 0 at the start to `dropblock_prob` at the end; progress 0..1 of the run."""
    return config.dropblock_prob * progress


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


@torch.no_grad()
def estimate_batch_norms(model: torch.nn.Module, images: Iterable[Tensor]) -> None:
    """Running statistics anew, as plain averages over the batches; those of frozen blocks stay.

    torch.optim.swa_utils.update_bn would also forget theirs, and not learn them again.
    """
    was_training = model.training
    model.train()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    norms = [norm for norm in norms if norm.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for batch in images:
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(was_training)
