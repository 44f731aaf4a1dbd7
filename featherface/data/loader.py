"""Batches for training: seeded samples, a sampler that can resume, padding of the faces.

Every sample is drawn from (seed, epoch, index) alone, so a run gives the same data for any number
of workers, and continues in the middle of an epoch exactly where it stopped.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from featherface.config import TrainConfig
from featherface.data.annotations import Photo
from featherface.data.augment import Plan, draw, make_image, place_faces
from featherface.errors import ConfigError, DataError
from featherface.images import PhotoFile, open_photo
from featherface.structures import Batch, Target

MAX_WORKERS = 8
Key = tuple[int, int]  # (epoch, index)


class FaceDataset(Dataset):
    """Augmented photos, by key (epoch, index) → (image (3, S, S) uint8 RGB, Target)."""

    def __init__(self, photos: Sequence[Photo], config: TrainConfig) -> None:
        self.photos, self.config = photos, config

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, key: Key) -> tuple[Tensor, Target]:
        epoch, index = key
        with torch.random.fork_rng(devices=[]):
            # not torch.manual_seed: it would also reseed the GPUs of the training loop
            torch.default_generator.manual_seed(_mix(self.config.seed, epoch, index))
            return self.sample(index)

    def sample(self, index: int) -> tuple[Tensor, Target]:
        """Photo `index` augmented at random."""
        plan, target = self.plan(index, open_photo(self.photos[index].path))
        return make_image(plan), target

    def plan(self, index: int, file: PhotoFile) -> tuple[Plan, Target]:
        """A random plan for photo `index`, and the faces that it gives."""
        photo, config = self.photos[index], self.config
        scale = config.crop_scale_min, config.crop_scale_max
        plan = draw(photo, file, size=config.image_size, scale=scale)
        return plan, place_faces(photo, plan, min_face=config.min_face)

    def collate(self, samples: Sequence[tuple[Tensor, Target]]) -> Any:
        """Stack B samples. The images are channels last in memory, as OpenCV's, best for GPUs."""
        images, targets = zip(*samples, strict=True)
        # default_collate writes into shared memory when it runs in a worker: one copy less
        stacked = default_collate([image.permute(1, 2, 0) for image in images])  # (B, S, S, 3)
        return Batch(stacked.permute(0, 3, 1, 2), pad(targets))

    def __getitems__(self, keys: Sequence[Key]) -> Any:
        """The batch of these keys, called by DataLoader.

        Returns a DataError, which FaceLoader raises: torch would put the worker's traceback into
        the message of an error that is raised here.
        """
        try:
            return self.collate([self[key] for key in keys])
        except DataError as error:
            return error


def _mix(*numbers: int) -> int:
    """One 64-bit seed from several numbers; near ones give unrelated seeds."""
    entropy = [number % 2**63 for number in numbers]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def pad(targets: Sequence[Target]) -> Target:
    """Targets (F,) of B images → (B, largest F); padding has a zero box, weight 0, mask False."""
    *faces, labelled = zip(*targets, strict=True)
    padded = (pad_sequence(list(parts), batch_first=True) for parts in faces)
    return Target._make((*padded, torch.stack(labelled)))


def images_per_step(photos: int, batch_size: int, processes: int) -> int:
    """Return the images per step of all processes: the batch size, or the photos if fewer.

    Raises ConfigError if the processes cannot share them equally.
    """
    batch = min(batch_size, photos)
    if batch % processes:
        raise ConfigError(
            f"a batch of {batch} cannot be shared by {processes} processes: choose a --batch-size "
            "that is a multiple of them"
        )
    return batch


class EpochSampler(Sampler[Key]):
    """Keys (epoch, index) in an order shuffled by (seed, epoch), in full batches.

    The photos that do not fill a last batch are left out, different ones in each epoch; a set
    smaller than one batch is one short batch. The epoch is part of the keys, so workers persist.
    """

    def __init__(
        self, photos: int, *, batch_size: int, seed: int = 0, shard: tuple[int, int] = (0, 1)
    ) -> None:
        """shard: rank and number of processes; each takes its part of each batch.

        Raises ConfigError if the batch has no equal parts.
        """
        self.photos, self.seed, self.shard = photos, seed, shard
        self.used = photos - photos % batch_size or photos
        self.batch = images_per_step(photos, batch_size, shard[1])
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the next epoch and skip its first `start` samples (a multiple of the batch,
        counted over all processes)."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return max(0, self.used - self.start) // self.shard[1]

    def __iter__(self) -> Iterator[Key]:
        generator = torch.Generator().manual_seed(_mix(self.seed, self.epoch))
        order = torch.randperm(self.photos, generator=generator).tolist()
        epoch, (rank, processes) = self.epoch, self.shard
        part = self.batch // processes
        starts = range(self.start + rank * part, self.used, self.batch)
        return iter([(epoch, index) for at in starts for index in order[at : at + part]])


class FaceLoader(DataLoader):
    """Yields the batches that its dataset collates, and raises its workers' DataErrors."""

    finish: Callable[[Any], Batch] | None = None  # called here with each batch, if set

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        try:
            for batch in super().__iter__():
                if isinstance(batch, DataError):
                    # a new one: an exception that its own frame refers to keeps the loader in a
                    # cycle, and torch then waits 5 s for each worker to end
                    raise DataError(str(batch))
                yield self.finish(batch) if self.finish else batch
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                "a loader process was killed, often for lack of memory: continue with --resume "
                "and a lower --num-workers"
            ) from error


def make_loader(
    dataset: FaceDataset, *, shard: tuple[int, int] = (0, 1)
) -> tuple[FaceLoader, EpochSampler]:
    """Training batches of a dataset; call `sampler.set_epoch` before each pass.

    shard: rank and number of processes; each gets its equal part of every batch. Raises DataError
    if there are no photos.
    """
    if not len(dataset):
        raise DataError("no photos to train on: the annotation names none")
    config = dataset.config
    sampler = EpochSampler(
        len(dataset), batch_size=config.batch_size, seed=config.seed, shard=shard
    )
    workers = worker_count(config.num_workers)
    loader = FaceLoader(
        dataset,
        batch_size=sampler.batch // shard[1],
        sampler=sampler,
        collate_fn=_as_it_is,  # the dataset has collated
        num_workers=workers,
        worker_init_fn=one_thread,
        pin_memory=torch.cuda.is_available() and config.device.startswith(("auto", "cuda")),
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # its own: the global one belongs to mixing and DropBlock
    )
    return loader, sampler


def _as_it_is(batch: Any) -> Any:
    return batch


def worker_count(num_workers: int) -> int:
    """The number of loader processes: −1 is one per core that this process may use, at most 8.

    Several training processes of one machine (torchrun) divide its cores.
    """
    if num_workers >= 0:
        return num_workers
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(1, min(MAX_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def one_thread(worker: int) -> None:
    """Set up a worker: one thread, as workers share the cores, and signals left to the parent."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
