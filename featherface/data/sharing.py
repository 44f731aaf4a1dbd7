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

from featherface.errors import ConfigError

FOLDER = Path("/dev/shm")


class Machine(NamedTuple):
    """This process among those of its run on this machine; as it stands: alone."""

    number: int = 0
    total: int = 1
    any: Callable[[bool], bool] = bool  # in any process of the run, on all machines; they all wait


ALONE = Machine()


def can_share(size: int, machine: Machine) -> bool:
    """Whether there is room for `size` bytes that the machine's processes see; all answer alike."""
    try:
        status = os.statvfs(FOLDER)
        room = status.f_bavail * status.f_frsize
    except (OSError, AttributeError):  # not Linux
        room = 0
    return not machine.any(machine.total > 1 and room < size)


def shared_bytes(size: int, machine: Machine) -> Tensor:
    """(size,) uint8 that the machine's processes see alike, zero. All call it, after `can_share`.

    ConfigError where the system refuses.
    """
    port = os.environ.get("MASTER_PORT", "0")  # the run's own on this machine
    path, first = FOLDER / f"featherface-{os.getuid()}-{port}", machine.number == 0
    try:
        if first:
            path.unlink(missing_ok=True)  # of a run that was killed just here
            _reserve(path, size)
        machine.any(False)  # it is there
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            memory = mmap.mmap(file, size)
        finally:
            os.close(file)
        machine.any(False)  # everyone has it
    except OSError as error:
        raise ConfigError(
            f"the processes cannot share {size / 2**30:.1f} GiB in {FOLDER} ({error.strerror}); "
            "use --cache none, or one process"
        ) from error
    finally:
        if first:
            path.unlink(missing_ok=True)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _reserve(path: Path, size: int) -> None:
    """Make the file, all of it: better refused now than a crash later."""
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        os.posix_fallocate(file, 0, size)
    finally:
        os.close(file)
