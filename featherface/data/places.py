"""Where decoded photos have room: the device's memory or the host's."""

import os
from pathlib import Path

import torch

from featherface.data.sharing import ALONE, FOLDER, Machine
from featherface.errors import ConfigError

DEVICE_SHARE = 0.6  # of the free device memory that the photos may take
HOST_SHARE = 0.5  # of the available host memory
UNKNOWN_HOST = 4 * 2**30  # free host memory where the system does not tell


def choose_place(
    cache: str,
    size: int,
    device: torch.device,
    *,
    machine: Machine = ALONE,
    sharing: bool = False,
) -> torch.device | None:
    """The memory to keep `size` bytes in: the device's, the host's, or None for neither.

    `auto` takes the first of device and host that fits, in all processes of the run. sharing: the
    machine's processes keep them once. ConfigError where what is asked for does not fit.
    """
    host = torch.device("cpu")
    memory = {"device": (device, DEVICE_SHARE), "ram": (host, HOST_SHARE)}
    wanted = ("device", "ram") if cache == "auto" else (cache,)
    for name in wanted:
        place, share = memory[name]
        free = free_bytes(place) * (machine.total if sharing and place == host else 1)
        if not machine.any(size > share * free):
            return place
    if cache == "auto":
        return None
    reason = f"of {free / 2**30:.1f} GiB free {100 * share:.0f} % may be used"
    if size <= share * free:
        reason = "too much for another process of the run"
    if machine.total > 1 and not sharing and place == host:
        reason += f" by each process, as {FOLDER} has no room for one copy for all"
    raise ConfigError(
        f"--cache {cache}: the photos take {size / 2**30:.1f} GiB, {reason}; lower --cache-side, "
        f"or use --cache {'ram' if cache == 'device' else 'none'}"
    )


def free_bytes(place: torch.device) -> int:
    """Free memory of a CUDA device, or this process's share of what the host has available."""
    if place.type == "cuda":
        return torch.cuda.mem_get_info(place)[0]
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable:"))
        return 1024 * int(found.split()[1]) // processes
    except (OSError, StopIteration):  # not Linux: half of what there is, or a modest guess
        names = getattr(os, "sysconf_names", {})
        if "SC_PHYS_PAGES" not in names:
            return UNKNOWN_HOST // processes
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 // processes
