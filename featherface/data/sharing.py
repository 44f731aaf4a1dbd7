"""Host memory that all processes of a run on one machine see.

It is a file of the system's memory file system that loses its name once all have it: what holds it
are the processes, and the system frees it after the last one, however that ends.
"""

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

FOLDER = Path("/dev/shm")
USABLE = 0.9  # share of its room: the loader's processes send their batches through it, too


class Machine(NamedTuple):
    """This process among those of its run on this machine; as it stands: alone.

    Every process of the run calls `any` equally often: it is where they wait for each other.
    """

    number: int = 0
    total: int = 1
    any: Callable[[bool], bool] = bool  # in any process of the run, on all machines
    name: str = ""  # of the run on this machine, not to be guessed


ALONE = Machine()


def can_share(size: int, machine: Machine) -> bool:
    """Whether there is something to share and room for `size` bytes; all processes answer alike."""
    several = machine.total > 1
    try:
        status = os.statvfs(FOLDER)
        room = status.f_bavail * status.f_frsize
    except (OSError, AttributeError):  # not Linux
        room = 0
    useful, full = machine.any(several), machine.any(several and size > USABLE * room)
    return useful and not full


def shared_bytes(size: int, machine: Machine) -> Tensor | None:
    """(size,) uint8 that the machine's processes see alike, zero. All call it, after `can_share`.

    None, in all processes, where the system refuses it to one.
    """
    path, first = FOLDER / f"featherface-{machine.name}", machine.number == 0
    file = memory = None
    try:
        if first:
            file = _open(path, size)
        if machine.any(first and file is None):
            return None
        file = file if first else _open(path)
        memory = None if file is None else _map(file, size)
        if machine.any(memory is None):
            return None
        if first:
            path.unlink()  # everyone has it: from here on nothing can be left behind
        # all of the memory now: better refused than a crash at the first byte too many
        if machine.any(first and not _done(os.posix_fallocate, file, 0, size)):
            return None
    finally:
        if first:
            path.unlink(missing_ok=True)
        if file is not None:
            os.close(file)
    assert memory is not None
    return torch.frombuffer(memory, dtype=torch.uint8)


def _open(path: Path, size: int | None = None) -> int | None:
    """The file, made with this size where one is given, to read and write; None if refused."""
    made = 0 if size is None else os.O_CREAT | os.O_EXCL
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | made, 0o600)
    except OSError:
        return None
    if size is not None and not _done(os.ftruncate, file, size):
        os.close(file)
        return None
    return file


def _map(file: int, size: int) -> mmap.mmap | None:
    try:
        return mmap.mmap(file, size)
    except (OSError, ValueError):
        return None


def _done(action: Callable[..., None], *arguments: int | None) -> bool:
    """Whether the system does it."""
    try:
        action(*arguments)
    except OSError:
        return False
    return True
