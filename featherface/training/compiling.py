"""torch.compile of the networks' parts, with a way back where it cannot."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torchvision.ops import DropBlock2d
from tqdm.auto import tqdm

from featherface.training.memory import is_out_of_memory

WORTH_COMPILING = 2_000  # steps: compiling takes a minute or two


def parts_of(model: nn.Module) -> list[nn.Module]:
    """The parts of V1 or V2 that are called as modules, but DropBlock.

    Its probability is a number that changes at every step; a graph with it would be compiled anew
    each time.
    """
    parts: list[nn.Module] = []
    for child in model.children():
        parts += child if isinstance(child, nn.ModuleList) else [child]
    return [part for part in parts if not isinstance(part, DropBlock2d)]


def is_wanted(setting: str, device: torch.device, *, steps: int) -> bool:
    """Whether `--compile` says so; auto: on CUDA, in a run of many steps."""
    return setting == "on" or (
        setting == "auto" and device.type == "cuda" and steps >= WORTH_COMPILING
    )


def compile_networks(models: Iterable[nn.Module], trial: Callable[[], None]) -> bool:
    """Compile the models in place and run the trial, which uses them.

    Where that fails the models are as before, one line says why, and False comes back.
    """
    parts = [part for model in models for part in parts_of(model)]
    for part in parts:
        part.compile(dynamic=False)
    try:
        trial()
    except Exception as error:  # compilers fail in many ways
        if is_out_of_memory(error):
            raise
        for part in parts:
            part._compiled_call_impl = None
        tqdm.write(f"going on without torch.compile, which fails here: {_one_line(error)}")
        return False
    return True


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    return f"{type(error).__name__}: {text[:160]}"
