"""Finds what would make the host wait for a GPU, on CPU tensors."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal")


class _Refusal(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in READS, f"{name} reads a value: a GPU would be waited for"
        if name in ("index", "index_put_"):
            kinds = [each.dtype for each in args[1] if each is not None]
            assert torch.bool not in kinds, "a boolean index asks how many there are"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting() -> Iterator[None]:
    """AssertionError for an operation inside that reads a value: .item(), a mask, a branch."""
    with _Refusal():
        yield
