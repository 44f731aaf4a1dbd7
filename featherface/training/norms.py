"""The batch norms' statistics at the end of a run, for weights that are averages over it."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from featherface.preprocess import normalise
from featherface.structures import Batch
from featherface.training.run import Run


def renew_batch_norms(run: Run, loader: Iterable[Batch], sampler: Any) -> None:
    """Mean and variance of every batch norm for the averaged weights, over fresh batches.

    Running averages with V1's momentum of 0.01 need some 500 steps to forget their start. The
    batches are those of epochs after the run's last one, as many as `bn_batches` wants.
    """
    if run.config.model == "v2":
        run.averaged_model.set_drop_prob(0.0)  # type: ignore[operator]
    if run.config.bn_batches:
        fresh = _batches_from(run.config.epochs, loader, sampler)
        batches = itertools.islice(fresh, run.config.bn_batches * run.process.total)
        pixels = (normalise(images.to(run.device)) for images, _ in batches)
        estimate_batch_norms(run.averaged_model, pixels)


def _batches_from(epoch: int, loader: Iterable[Batch], sampler: Any) -> Iterator[Batch]:
    """Of that epoch and those after it, without end."""
    for number in itertools.count(epoch):
        sampler.set_epoch(number)
        yield from loader


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
