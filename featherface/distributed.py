"""Devices, random states, and what several training processes exchange (torch.distributed)."""

import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from featherface.errors import ConfigError


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of that name; "auto" is CUDA if available, else the CPU.

    Raises ConfigError if the device is not available.
    """
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
    """Return the states of the generators that training uses: "cpu" and that of the device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore `random_state`; a device's own state only on a device of that type."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def seed_device(seed: int, device: torch.device) -> None:
    """Seed the generator of a CUDA device, not that of the CPU.

    Processes that share a batch mix it by the same random numbers of the CPU.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def rank_and_size() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; (0, 1) for a single one."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def totals(*parts: Tensor) -> tuple[Tensor, ...]:
    """Sum each tensor over the processes, with gradient, in one exchange; shapes stay."""
    if rank_and_size()[1] == 1:
        return parts
    flat = torch.cat([part.float().flatten() for part in parts])
    summed = _Total.apply(flat).split([part.numel() for part in parts])
    return tuple(new.view_as(part) for new, part in zip(summed, parts, strict=True))


def mean_of(part: Tensor) -> Tensor:
    """Average over the processes, with gradient. Means of equal parts give that of the whole."""
    return totals(part)[0] / rank_and_size()[1]


class _Total(torch.autograd.Function):
    """Sum over the processes; the gradient is the sum of their gradients.

    torch.distributed.nn.functional.all_reduce does the same, but is deprecated.
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


PATIENCE = timedelta(hours=2)  # rank 0 validates and writes while the others wait
ENOUGH_FOR_NORMS = 16  # images per process from which its own batch statistics suffice


class Worker(NamedTuple):
    """One process of a run."""

    rank: int  # 0 writes the log and the checkpoints
    processes: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def shard(self) -> tuple[int, int]:
        return self.rank, self.processes


@contextmanager
def process_group(device: str) -> Iterator[Worker]:
    """Join the processes that torchrun started; without torchrun, work alone.

    device: as in the config. Raises ConfigError for more processes than CUDA devices.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or distributed.is_initialized():
        yield Worker(*rank_and_size(), pick_device(device))
        return
    chosen = _own_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Worker(*rank_and_size(), chosen)
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
    """Block until every process has called this."""
    if rank_and_size()[1] > 1:
        distributed.all_reduce(torch.zeros(1))


def any_process(flag: bool) -> bool:
    """Return True if the flag is set in any process."""
    if rank_and_size()[1] == 1:
        return flag
    found = torch.tensor(float(flag))  # on the CPU: no GPU is waited for
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return bool(found)


class Machine(NamedTuple):
    """This process among those of its run on the same machine; the default is a single process.

    Every process of the run calls `any` equally often: there they wait for each other.
    """

    number: int = 0
    total: int = 1
    any: Callable[[bool], bool] = bool  # true in any process of the run, on all machines
    name: str = ""  # random name of the run on this machine


ALONE = Machine()


def this_machine() -> Machine:
    """Describe this process among those that torchrun started on this machine."""
    if rank_and_size()[1] == 1:
        return Machine()
    number, total = (os.environ.get(name, "") for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    token = [secrets.token_hex(8)]
    distributed.broadcast_object_list(token, 0, device=torch.device("cpu"))
    name = f"{token[0]}-{os.environ.get('GROUP_RANK', '0')}"
    return Machine(int(number or 0), int(total or 1), any_process, name)


def share_state(module: nn.Module) -> None:
    """Copy the weights and buffers of rank 0 to all processes."""
    if rank_and_size()[1] == 1:
        return
    with torch.no_grad():
        for tensor in module.state_dict().values():
            value = tensor.contiguous()  # the same order in memory in all processes
            distributed.broadcast(value, 0)
            tensor.copy_(value)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients over the processes, in one exchange, in place."""
    count = rank_and_size()[1]
    if count == 1:
        return
    gradients = [each.grad for each in parameters if each.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    parts = flat.div_(count).split([gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, parts, strict=True):
        gradient.copy_(mean.view_as(gradient))


def gather_states(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Collect a dict of CPU tensors from every process, by rank."""
    count = rank_and_size()[1]
    if count == 1:
        return [state]
    states: list[dict[str, Tensor]] = [{}] * count
    distributed.all_gather_object(states, state)
    return states


def sync_batch_norms(model: nn.Module, images: int, device: torch.device) -> None:
    """Share batch statistics among the processes, on CUDA if each has few `images` at a time."""
    few = images < ENOUGH_FOR_NORMS
    if rank_and_size()[1] > 1 and device.type == "cuda" and few:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place: the model itself is no norm
