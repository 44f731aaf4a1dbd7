"""Operations and bytes counted, and what the machine does of each in a second at best.

The roofs are measured, not looked up: a large matrix product and a large copy on the device at
hand. Every tensor that an operation reads or writes is counted once for each operation: fusing can
go beyond the bound of bytes.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from featherface.benchmark.speed import operation_counter
from featherface.config import TrainConfig
from featherface.training.step import autocast


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds until the device has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def median(values: list[float]) -> float:
    return float(pd.Series(values).median())


class _Bytes(TorchDispatchMode):
    """Adds up the bytes that each operation reads and writes; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            touched = [*tree_leaves(args), *tree_leaves(kwargs), *tree_leaves(result)]
            self.total += sum(t.numel() * t.element_size() for t in touched if torch.is_tensor(t))
        return result


def counted(work: Callable[[], Any]) -> tuple[float, float]:
    """The floating-point operations and the bytes of `work`, by what torch is asked to do."""
    rules = {torch.ops.aten.convolution_backward: _backward_operations}
    with operation_counter(rules) as operations, _Bytes() as moved:
        work()
    return float(operations.get_total_flops()), float(moved.total)


def _backward_operations(
    result: Any, image: Any, weight: Any, *others: Any, out_shape: Any = None, **__: Any
) -> int:
    """As many as forward for each gradient that is wanted; torch's count forgets the groups."""
    forward = 2 * math.prod(result) * math.prod(weight[1:])
    return forward * sum(others[-1][:2])


def measured_roofs(device: torch.device, config: TrainConfig) -> tuple[float, float]:
    """Operations a second of a large matrix product in the step's precision, bytes of a copy."""
    large = device.type == "cuda"
    size = 8192 if large else 1024
    with autocast(config, device):
        half = torch.is_autocast_enabled(device.type)
    kind = torch.bfloat16 if half else torch.float32
    one = torch.randn(size, size, device=device, dtype=kind)
    source = torch.empty(2**28 if large else 2**25, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = min(timed(lambda: one @ one, device) for _ in range(5))
    copied = min(timed(lambda: target.copy_(source), device) for _ in range(5))
    return 2 * size**3 / product, 2 * source.numel() / copied
