"""Photos decoded once, as packed uint8 rows in the memory of the device or the host.

Every photo is shrunk to a long side of at most `cache_side` and fills consecutive rows of one
tensor (rows, 3, width), so that a batch's crops are one row gather. The processes of one machine
share a host cache.
"""

import contextlib
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from featherface.config import TrainConfig
from featherface.data.annotations import Photo
from featherface.data.loader import (
    EpochSampler,
    FaceDataset,
    FaceLoader,
    make_loader,
    pad,
    worker_count,
)
from featherface.data.render import Plans, plan_row, render
from featherface.distributed import ALONE, Machine
from featherface.errors import ConfigError, DataError
from featherface.images import PhotoFile, decode, open_header, open_photo
from featherface.structures import Batch, Target

HOST = torch.device("cpu")
DEVICE_SHARE = 0.6  # of the free device memory that the photos may take
HOST_SHARE = 0.5  # of the available host memory
UNKNOWN_HOST = 4 * 2**30  # assumed host memory where the system does not tell
SHARED_FOLDER = Path("/dev/shm")
SHARED_SHARE = 0.9  # of its room: the loader's processes send their batches through it, too
RENDER_BYTES = 2**31  # about what rendering may take at a time


class PhotoCache:
    """Decoded photos; `render` makes training images from them."""

    def __init__(
        self, files: Sequence[PhotoFile], sizes: np.ndarray, rows: Tensor, *, users: int = 1
    ) -> None:
        """files: N headers; sizes (N, 2): height and width of the photos as stored.

        rows (rows, 3, width) uint8: the memory for them, shared by `users` processes.
        """
        self.files, self.rows, self.users = files, rows, users
        self.sizes = torch.from_numpy(sizes)  # (N, 2) int64, on the host
        self.first_row = self.sizes[:, 0].cumsum(0) - self.sizes[:, 0]  # (N,)

    def __str__(self) -> str:
        size = self.rows.numel() / 2**30
        shared = f", shared by {self.users} processes" if self.users > 1 else ""
        return f"{size:.1f} GiB, decoded, in the memory of {self.rows.device}{shared}"

    def pixels(self, index: int) -> Tensor:
        """Photo `index` as stored: (h, 3, w) uint8 RGB, a view to read or write."""
        height, width = self.sizes[index].tolist()
        return self.rows[self.first_row[index] :][:height, :, :width]

    def render(self, plans: Tensor, *, size: int, device: torch.device) -> Tensor:
        """Plans (B, NUMBERS) on the host → images (B, 3, size, size) uint8 RGB on the device.

        The host does not wait for the device; temporary memory is bounded.
        """
        each = 64 * size * max(self.rows.shape[2], size)  # bytes per image, roughly
        at_once = max(1, RENDER_BYTES // each)
        parts = [self._render(part, size, device) for part in plans.split(at_once)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _render(self, rows: Tensor, size: int, device: torch.device) -> Tensor:
        plans = Plans.from_rows(rows)
        sizes = self.sizes[plans.photo]  # (B, 2)
        # in pixels while it is float64: as float32 a whole one could fall into the next
        source = plans.source * sizes.flip(1)[..., None]  # (B, 2, 2): of x, of y
        start, stop = source[:, 1].unbind(1)  # (B,) rows
        first = torch.minimum(start.floor().long(), sizes[:, 0] - 1)
        count = int((stop.ceil().long() - first).max().clamp(min=1))
        index = (self.first_row[plans.photo] + first)[:, None] + torch.arange(count)  # (B, h)
        index = index.clamp_(max=len(self.rows) - 1)  # rows of other photos weigh nothing
        pixels = self._gather(index.flatten(), device).unflatten(0, index.shape)  # (B, h, 3, w)
        # one copy for all the numbers: each costs the host more than the few bytes it moves
        numbers = torch.cat((rows, source.flatten(1), sizes, first[:, None]), dim=1).float()
        numbers = _moved(numbers, device)
        rows, source, sizes, first = numbers.split((rows.shape[1], 4, 2, 1), dim=1)
        plans = Plans.from_rows(rows)._replace(source=source.unflatten(1, (2, 2)))
        return render(pixels, first[:, 0], sizes, plans, size=size)

    def _gather(self, index: Tensor, device: torch.device) -> Tensor:
        """Rows by number (n,) on the host → (n, 3, w) on the device."""
        if self.rows.device.type != "cpu":
            return self.rows.index_select(0, _moved(index, self.rows.device))
        shape = (len(index), *self.rows.shape[1:])
        chosen = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
        torch.index_select(self.rows, 0, index, out=chosen)
        return chosen.to(device, non_blocking=True)


def _moved(values: Tensor, device: torch.device) -> Tensor:
    pinned = values.pin_memory() if device.type == "cuda" else values
    return pinned.to(device, non_blocking=True)


def allocate(
    size: int, cache: str, device: torch.device, machine: Machine = ALONE
) -> tuple[Tensor, int] | None:
    """`size` bytes in the memory that `cache` names, and the number of processes that share them.

    `auto` takes the device's memory if there is room in all processes of the run, else the host's,
    else None. In the host's the machine's processes share one copy if they can. Raises ConfigError
    if the memory asked for is too small.
    """
    options = {"device": (device, DEVICE_SHARE), "ram": (HOST, HOST_SHARE)}
    several = machine.any(machine.total > 1)
    for name in ("device", "ram") if cache == "auto" else (cache,):
        memory, share = options[name]
        room = share * free_bytes(memory)
        if name == "ram" and several and not machine.any(size > room):
            rows = shared_bytes(size, machine)
            if rows is not None:
                return rows, machine.total
        wanted = size * (machine.total if memory == HOST else 1)
        if not machine.any(wanted > room):
            # not pinned: `_gather` copies into pinned memory what a batch needs
            return torch.empty(size, dtype=torch.uint8, device=memory), 1
    if cache == "auto":
        return None
    here = f"{room / 2**30:.1f} GiB here" + (", or less in another process" if several else "")
    raise ConfigError(
        f"--cache {cache}: the photos take {wanted / 2**30:.1f} GiB, but only {100 * share:.0f} % "
        f"of the free memory may be used ({here}); lower --cache-side, or use "
        f"--cache {'ram' if cache == 'device' else 'none'}"
    )


def free_bytes(memory: torch.device) -> int:
    """Free memory of a CUDA device, or the available memory of the host."""
    if memory.type == "cuda":
        return torch.cuda.mem_get_info(memory)[0]
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if "MemAvailable:" in line)
    return UNKNOWN_HOST


def shared_bytes(size: int, machine: Machine) -> Tensor | None:
    """(size,) uint8 zeros in one memory of the machine's processes, which all call it.

    None in all processes if one machine has no room. The file behind it is removed as soon as all
    have mapped it, so nothing can be left behind.
    """
    path, first = SHARED_FOLDER / f"featherface-{machine.name}", machine.number == 0
    try:
        if machine.any(first and not _reserve(path, size)):
            return None
        rows = torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)
        machine.any(False)  # all have mapped it
        return rows
    finally:
        if first:
            path.unlink(missing_ok=True)


def _reserve(path: Path, size: int) -> bool:
    """Create the file with all its memory: a refusal now is better than a crash when it is used."""
    try:
        if size > SHARED_SHARE * shutil.disk_usage(path.parent).free:
            return False
        with open(path, "xb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except (OSError, AttributeError):  # not Linux: no such folder or function
        return False
    return True


def build_cache(
    photos: Sequence[Photo],
    config: TrainConfig,
    device: torch.device,
    *,
    progress: bool = True,
    machine: Machine = ALONE,
) -> PhotoCache | None:
    """The photos decoded into the memory that `config.cache` names, or None for no cache.

    In the host's memory the processes of a machine share one cache, and each decodes its part.
    Raises ConfigError if the photos do not fit there, DataError for one that cannot be read.
    """
    slow = config.cache == "auto" and device.type != "cuda"
    if config.cache == "none" or slow or not photos:
        return None  # on a CPU the loader's processes are faster than dense matrix products
    files = [open_header(photo.path) for photo in photos]
    sizes = np.array([(file.height, file.width) for file in files])
    scale = np.minimum(1, config.cache_side / sizes.max(axis=1, keepdims=True))
    sizes = np.maximum(1, np.rint(scale * sizes)).astype(np.int64)
    shape = int(sizes[:, 0].sum()), 3, int(sizes[:, 1].max())
    memory = allocate(int(np.prod(shape)), config.cache, device, machine)
    if memory is None:
        return None
    rows, users = memory
    cache = PhotoCache(files, sizes, rows.view(shape), users=users)
    failure = None
    try:
        _fill(cache, config, machine if users > 1 else ALONE, progress=progress)
    except DataError as error:
        failure = error
    if machine.any(failure is not None):  # this is also where all wait for each other's part
        raise failure or DataError("another process cannot read a photo: see its message")
    return cache


def _fill(cache: PhotoCache, config: TrainConfig, part: Machine, *, progress: bool) -> None:
    """Decode this process's part of the photos into the cache."""

    def store(index: int) -> None:
        photo = open_photo(cache.files[index].path)
        cache.pixels(index).copy_(small_picture(photo, *cache.sizes[index].tolist()))

    mine = range(part.number, len(cache.files), part.total)
    bar = tqdm(desc="decode", total=len(mine), unit="photo", disable=not progress)
    with bar, ThreadPoolExecutor(max(1, worker_count(config.num_workers))) as pool:
        for _ in pool.map(store, mine):
            bar.update()


def small_picture(file: PhotoFile, height: int, width: int) -> Tensor:
    """A photo of that size, at most its own: (h, 3, w) uint8 RGB. Raises DataError.

    A JPEG is decoded at a reduced scale that is still large enough.
    """
    pixels = decode(file, file.shrink_for(max(file.height, file.width), max(height, width)))
    if pixels.shape[:2] != (height, width):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)).permute(0, 2, 1)


class PlanDataset(FaceDataset):
    """The samples of FaceDataset as plans (NUMBERS,) for the cache, of the same seed."""

    def __init__(
        self, photos: Sequence[Photo], config: TrainConfig, files: Sequence[PhotoFile]
    ) -> None:
        """files: the headers of the photos."""
        super().__init__(photos, config)
        self.files = files

    def sample(self, index: int) -> tuple[Tensor, Target]:
        plan, target = self.plan(index, self.files[index])
        return plan_row(index, plan), target

    def collate(self, samples: Sequence[tuple[Tensor, Target]]) -> tuple[Tensor, Target]:
        """Plans (B, NUMBERS) and targets (B, F): a batch whose pixels are not made yet."""
        plans, targets = zip(*samples, strict=True)
        return torch.stack(plans), pad(targets)


def make_batches(
    photos: Sequence[Photo],
    config: TrainConfig,
    device: torch.device,
    cache: PhotoCache | None,
    *,
    shard: tuple[int, int] = (0, 1),
) -> tuple[FaceLoader, EpochSampler]:
    """`make_loader` for these photos, from their cache if there is one. Raises as it does.

    With a cache the images are made on the device, and the targets are still on the host.
    """
    if cache is None:
        return make_loader(FaceDataset(photos, config), shard=shard)

    def render(batch: tuple[Tensor, Target]) -> Batch:
        return Batch(cache.render(batch[0], size=config.image_size, device=device), batch[1])

    loader, sampler = make_loader(PlanDataset(photos, config, cache.files), shard=shard)
    loader.finish = render
    return loader, sampler
