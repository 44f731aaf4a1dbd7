"""Choosing the device to compute on, and the state of its random numbers."""

import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from featherface.config import TrainConfig
from featherface.errors import ConfigError


def pick_device(name: str = "auto") -> torch.device:
    """ "auto": CUDA, else the CPU. Any other name is torch's; ConfigError when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError(f"a detector does not run on {device.type}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {name!r} is not available here; use auto or cpu") from error
    return device


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the generators that training on the device uses: "cpu", and the device's own."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Go on from `random_state`; a device's own state counts only on a device of that type."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def seed_device(seed: int, device: torch.device) -> None:
    """Start the device's own generator anew; the CPU's is left alone, as processes that share a
    batch mix it by the same numbers (on CPUs their DropBlock masks are alike, too)."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


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


PATIENCE = timedelta(hours=2)  # the first process measures and writes while the others wait
ENOUGH_FOR_NORMS = 16  # images a process from which its own batch statistics will do


class Process(NamedTuple):
    """This process of a run."""

    number: int  # 0 writes the log and the checkpoints
    total: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.number == 0

    @property
    def shard(self) -> tuple[int, int]:
        return self.number, self.total


@contextmanager
def joined(device: str) -> Iterator[Process]:
    """This process among those that torchrun started, or alone; `device` as in the config.

    ConfigError where there are more processes than CUDA devices.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or distributed.is_initialized():
        yield Process(*process(), pick_device(device))
        return
    chosen = _own_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Process(*process(), chosen)
    finally:
        distributed.destroy_process_group()


def _own_device(name: str, local: int) -> torch.device:
    device = pick_device(name)
    if device.type != "cuda":
        return device
    if local >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}; "
            "start as many processes as GPUs (--nproc-per-node)"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def wait_for_all() -> None:
    """Until every process is here."""
    if process()[1] > 1:
        distributed.all_reduce(torch.zeros(1))


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any of the processes."""
    if process()[1] == 1:
        return flag
    found = torch.tensor(float(flag))  # on the CPU: no GPU is waited for
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return bool(found)


class Machine(NamedTuple):
    """This process among those of its run on this machine; as it stands: alone.

    Every process of the run calls `any` equally often: it is where they wait for each other.
    """

    number: int = 0
    total: int = 1
    any: Callable[[bool], bool] = bool  # in any process of the run, on all machines
    name: str = ""  # of the run on this machine, not to be guessed


ALONE = Machine()


def this_machine() -> Machine:
    """This process among those that torchrun started on this machine."""
    if process()[1] == 1:
        return Machine()
    number, total = (os.environ.get(name, "") for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    token = [secrets.token_hex(8)]
    distributed.broadcast_object_list(token, 0, device=torch.device("cpu"))
    name = f"{token[0]}-{os.environ.get('GROUP_RANK', '0')}"
    return Machine(int(number or 0), int(total or 1), any_process, name)


def share_state(module: nn.Module) -> None:
    """Give every process the first one's weights and buffers."""
    if process()[1] == 1:
        return
    with torch.no_grad():
        for tensor in module.state_dict().values():
            value = tensor.contiguous()  # in one order in memory, whatever the tensor's is
            distributed.broadcast(value, 0)
            tensor.copy_(value)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """The mean of the processes' gradients, in one exchange, in place."""
    count = process()[1]
    if count == 1:
        return
    gradients = [each.grad for each in parameters if each.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    parts = flat.div_(count).split([gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, parts, strict=True):
        gradient.copy_(mean.view_as(gradient))


def gathered(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The same dict of CPU tensors from every process, in their order."""
    count = process()[1]
    if count == 1:
        return [state]
    states: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for name, value in state.items():
        parts = [torch.empty_like(value) for _ in range(count)]
        distributed.all_gather(parts, value)
        for each, part in zip(states, parts, strict=True):
            each[name] = part
    return states


def with_shared_norms(model: nn.Module, config: TrainConfig, device: torch.device) -> nn.Module:
    """Synchronise batch norms over the processes on CUDA where each has few images at a time."""
    count = process()[1]
    images = config.batch_size // count // config.accumulate
    if count == 1 or device.type != "cuda" or images >= ENOUGH_FOR_NORMS:
        return model
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)
