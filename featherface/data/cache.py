"""Photos decoded once and kept, as packed uint8 rows in the memory of the device or the host.

Every photo is shrunk to a long side of at most `cache_side` and lies in consecutive rows of one
tensor (rows, 3, width), so that a batch's crops are one row gather. On a CUDA device torchvision
decodes whole batches; else, and what it cannot read, loader processes do (pixels then differ by a
grey level here and there).
"""

import mmap
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from featherface.config import TrainConfig
from featherface.data.annotations import Photo
from featherface.data.loader import EpochSampler, FaceLoader, make_loader, one_thread, worker_count
from featherface.data.render import Plan, render
from featherface.distributed import ALONE, Machine
from featherface.errors import ConfigError, DataError
from featherface.images import SHRINKS, PhotoFile, decode, open_header, open_photo
from featherface.structures import Batch

FOLDER = Path("/dev/shm")
USABLE = 0.9  # share of its room: the loader's processes send their batches through it, too


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


RENDER_BYTES = 2**31  # about what rendering may take at a time
DECODED_TOGETHER = 32  # photos a batch on the device


def cached_size(file: PhotoFile, side: int) -> tuple[int, int]:
    """Height and width of a photo in a cache whose long sides are at most `side`."""
    scale = min(1.0, side / max(file.height, file.width))
    return max(1, round(file.height * scale)), max(1, round(file.width * scale))


class PhotoCache:
    """Decoded photos; `render` makes training images of them."""

    def __init__(
        self,
        files: Sequence[PhotoFile],
        *,
        side: int,
        place: torch.device,
        rows: Tensor | None = None,
        users: int = 1,
    ) -> None:
        """An empty one for these photos, in the memory of `place`.

        rows: as many bytes there as `packed_shape` says, of which `users` processes see the same.
        """
        self.files, self.side, self.users = files, side, users
        sizes = np.array([cached_size(file, side) for file in files])
        self.sizes = torch.from_numpy(sizes)  # (N, 2) int64, on the host
        self.first_row = torch.from_numpy(np.cumsum(sizes[:, 0]) - sizes[:, 0])  # (N,)
        shape = packed_shape(files, side)
        # not pinned: `_gather` copies into pinned memory what a batch needs
        free = torch.empty(shape, dtype=torch.uint8, device=place) if rows is None else rows
        self.rows = free.view(shape)

    def __str__(self) -> str:
        size = self.rows.numel() / 2**30
        shared = f", shared by {self.users} processes" if self.users > 1 else ""
        return f"{size:.1f} GiB, decoded, in the memory of {self.rows.device}{shared}"

    def put(self, index: int, pixels: Tensor) -> None:
        """Store photo `index`, (h, 3, w) uint8 RGB, of its cached size."""
        height, width = self.sizes[index].tolist()
        start = int(self.first_row[index])
        self.rows[start : start + height, :, :width] = pixels

    def picture(self, index: int) -> Tensor:
        """Photo `index` as it is kept: (3, h, w) uint8 RGB."""
        height, width = self.sizes[index].tolist()
        start = int(self.first_row[index])
        return self.rows[start : start + height, :, :width].permute(1, 0, 2)

    def render(self, plans: Tensor, *, size: int, device: torch.device) -> Tensor:
        """Plans (B, NUMBERS) on the host → images (B, 3, size, size) uint8 RGB on the device.

        The host waits for nothing; the memory that is needed for a while is bounded.
        """
        each = 64 * size * max(self.rows.shape[2], size)  # bytes an image, roughly
        at_once = max(1, RENDER_BYTES // each)
        parts = [self._render(part, size, device) for part in plans.split(at_once)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _render(self, plans: Tensor, size: int, device: torch.device) -> Tensor:
        plan = Plan.from_rows(plans)
        sizes = self.sizes[plan.photo]  # (B, 2)
        # in pixels while it is float64: as float32 a whole one could fall into the next
        source = plan.source * sizes.flip(1)[..., None]  # (B, 2, 2): of x, of y
        start, stop = source[:, 1].unbind(1)  # (B,) rows
        first = torch.minimum(start.floor().long(), sizes[:, 0] - 1)
        count = int((stop.ceil().long() - first).max().clamp(min=1))
        index = (self.first_row[plan.photo] + first)[:, None] + torch.arange(count)  # (B, h)
        index = index.clamp_(max=len(self.rows) - 1)  # rows of other photos weigh nothing
        rows = self._gather(index.flatten(), device).unflatten(0, index.shape)  # (B, h, 3, w)
        # one copy for all the numbers: each costs the host more than the few bytes it moves
        numbers = torch.cat((plans, source.flatten(1), sizes, first[:, None]), dim=1).float()
        numbers = _pinned(numbers, device).to(device, non_blocking=True)
        plans, source, sizes, first = numbers.split((plans.shape[1], 4, 2, 1), dim=1)
        plan = Plan.from_rows(plans)._replace(source=source.unflatten(1, (2, 2)))
        return render(rows, first[:, 0], sizes, plan, size=size)

    def _gather(self, index: Tensor, device: torch.device) -> Tensor:
        """Rows by number (n,) on the host → (n, 3, w) on the device."""
        if self.rows.device.type != "cpu":
            index = _pinned(index, self.rows.device).to(self.rows.device, non_blocking=True)
            return self.rows.index_select(0, index)
        shape = (len(index), *self.rows.shape[1:])
        chosen = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
        torch.index_select(self.rows, 0, index, out=chosen)
        return chosen.to(device, non_blocking=True)


def _pinned(values: Tensor, device: torch.device) -> Tensor:
    return values.pin_memory() if device.type == "cuda" else values


def packed_shape(files: Sequence[PhotoFile], side: int) -> tuple[int, int, int]:
    """(rows, 3, width) of the packed photos; as many bytes."""
    sizes = np.array([cached_size(file, side) for file in files])
    return int(sizes[:, 0].sum()), 3, int(sizes[:, 1].max())


def build_cache(
    photos: Sequence[Photo],
    config: TrainConfig,
    device: torch.device,
    *,
    progress: bool = True,
    machine: Machine = ALONE,
) -> PhotoCache | None:
    """The photos decoded to where `config.cache` says, or None where they are not to be kept.

    In the host's memory the processes of a machine share one cache, of which each decodes its part.
    ConfigError where the photos do not fit there, DataError for one that cannot be read.
    """
    slow = config.cache == "auto" and device.type != "cuda"
    if config.cache == "none" or slow or not photos:
        return None  # on a CPU the loader's processes are faster than dense matrix products
    files = [open_header(photo.path) for photo in photos]
    size, rows = int(np.prod(packed_shape(files, config.cache_side))), None
    sharing = can_share(size, machine)
    place = choose_place(config.cache, size, device, machine=machine, sharing=sharing)
    if sharing and place is not None and place.type == "cpu":
        rows = shared_bytes(size, machine)
        if rows is None:  # refused although there seemed to be room
            place = choose_place(config.cache, size, device, machine=machine)
    if place is None:
        return None
    part = ALONE if rows is None else machine
    cache = PhotoCache(files, side=config.cache_side, place=place, rows=rows, users=part.total)
    indices = range(part.number, len(files), part.total)
    pictures = _decoded([files[index] for index in indices], config, device)
    bar = tqdm(pictures, "decode", len(indices), unit="photo", disable=not progress)
    failure = None
    try:
        for index, pixels in zip(indices, bar, strict=True):
            cache.put(index, pixels)
    except DataError as error:
        failure = error
    if machine.any(failure is not None):  # the others' parts are there, or will not be
        raise failure or DataError("another process cannot read a photo: see what it says")
    return cache


class _Decoder(Dataset):
    """Photo files by index → (h, 3, w) uint8 RGB of their cached size, or the DataError."""

    def __init__(self, files: Sequence[PhotoFile], side: int) -> None:
        self.files, self.side = files, side

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor | DataError:
        try:
            return read_small(self.files[index], self.side)
        except DataError as error:
            return error


def read_small(header: PhotoFile, side: int) -> Tensor:
    """A photo from its file with a long side of at most `side`: (h, 3, w) uint8 RGB.

    A JPEG is decoded at a reduced scale where that is still large enough.
    """
    file = open_photo(header.path)
    height, width = cached_size(file, side)
    scales = SHRINKS if file.is_jpeg else (1,)
    shrink = next(s for s in scales if s == 1 or max(file.shrunk_size(s)) >= max(height, width))
    pixels = decode(file, shrink)
    if pixels.shape[:2] != (height, width):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)).permute(0, 2, 1).contiguous()


def _decoded(
    files: Sequence[PhotoFile], config: TrainConfig, device: torch.device
) -> Iterator[Tensor]:
    """Every photo in turn, (h, 3, w) uint8 RGB of its cached size."""
    if device.type == "cuda" and has_decoder(device):
        yield from _by_device(files, config.cache_side, device)
        return
    loader = DataLoader(
        _Decoder(files, config.cache_side),
        batch_size=None,
        num_workers=worker_count(config.num_workers),
        worker_init_fn=one_thread,
        generator=torch.Generator(),
    )
    for pixels in loader:
        if isinstance(pixels, DataError):
            raise DataError(str(pixels))
        yield pixels


def _by_device(files: Sequence[PhotoFile], side: int, device: torch.device) -> Iterator[Tensor]:
    """As `_decoded`, by the device's JPEG decoder; what that cannot read is decoded here."""
    for start in range(0, len(files), DECODED_TOGETHER):
        part = [open_photo(file.path) for file in files[start : start + DECODED_TOGETHER]]
        pictures = decode_on_device([file.data for file in part], device)
        for file, pixels in zip(part, pictures, strict=True):
            size = cached_size(file, side)
            if pixels is None or pixels.shape[1:] != (file.height, file.width):
                yield read_small(file, side)
            elif size == (file.height, file.width):
                yield pixels.permute(1, 0, 2)
            else:
                small = F.interpolate(pixels[None].float(), size, mode="bilinear", antialias=True)
                yield small[0].round_().to(torch.uint8).permute(1, 0, 2)


def has_decoder(device: torch.device) -> bool:
    """Whether this torchvision decodes JPEG on the device."""
    _, example = cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))
    return decode_on_device([example.tobytes()], device)[0] is not None


def decode_on_device(files: Sequence[bytes], device: torch.device) -> list[Tensor | None]:
    """(3, h, w) uint8 RGB of each file's content; None for one that the device cannot decode."""
    data = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
    try:
        return _decode_together(data, device)
    except ImportError:  # torchvision has announced that its decoders will go
        return [None] * len(data)
    except (RuntimeError, ValueError):  # an odd one among them, or there is no such decoder
        return [_decode_alone(item, device) for item in data]


def _decode_together(data: list[Tensor], device: torch.device) -> list[Tensor | None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from torchvision.io import ImageReadMode, decode_jpeg

        return list(decode_jpeg(data, mode=ImageReadMode.RGB, device=device))


def _decode_alone(data: Tensor, device: torch.device) -> Tensor | None:
    try:
        return _decode_together([data], device)[0]
    except (RuntimeError, ValueError):
        return None


class CachedLoader:
    """Batches whose images are made on the device; their targets are still on the host."""

    def __init__(
        self, plans: FaceLoader, cache: PhotoCache, *, size: int, device: torch.device
    ) -> None:
        self.plans, self.cache, self.size, self.device = plans, cache, size, device

    def __len__(self) -> int:
        return len(self.plans)

    def __iter__(self) -> Iterator[Batch]:
        for plans, targets in self.plans:
            yield Batch(self.cache.render(plans, size=self.size, device=self.device), targets)


def make_batches(
    photos: Sequence[Photo],
    config: TrainConfig,
    device: torch.device,
    cache: PhotoCache | None,
    *,
    shard: tuple[int, int] = (0, 1),
) -> tuple[FaceLoader | CachedLoader, EpochSampler]:
    """`make_loader`, or the same from the cache of these photos. Raises as `make_loader` does."""
    if cache is None:
        return make_loader(photos, config, shard=shard)
    loader, sampler = make_loader(photos, config, files=cache.files, shard=shard)
    return CachedLoader(loader, cache, size=config.image_size, device=device), sampler
