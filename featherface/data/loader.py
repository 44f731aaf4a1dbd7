"""Batches for training: seeded samples, a sampler that can resume, padding of the faces.

Every sample is drawn from (seed, epoch, index) alone, so a run gives the same data whatever the
number of workers, and goes on in the middle of an epoch as if it had never stopped.
"""

import os
import signal
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from featherface.config import TrainConfig
from featherface.data.annotations import Photo
from featherface.data.augment import TrainingTransform
from featherface.data.render import plan_row
from featherface.errors import ConfigError, DataError
from featherface.images import PhotoFile
from featherface.structures import Batch, Target

MAX_WORKERS = 8
Key = tuple[int, int]  # (epoch, index)


class FaceDataset(Dataset):
    """Augmented photos, by key (epoch, index) → (image (3, S, S) uint8 RGB, Target).

    With the headers of the photos' `files`, pixels are made elsewhere (featherface.data.cache):
    in place of the image comes its plan (NUMBERS,), drawn from the same seed.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        config: TrainConfig,
        files: Sequence[PhotoFile] | None = None,
    ) -> None:
        self.photos, self.files = photos, files
        self.seed = config.seed
        self.transform = TrainingTransform(config)

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, key: Key) -> tuple[Tensor, Target]:
        epoch, index = key
        with torch.random.fork_rng(devices=[]):
            # not torch.manual_seed: it would also reseed the GPUs of the training loop
            torch.default_generator.manual_seed(_mix(self.seed, epoch, index))
            if self.files is None:
                return self.transform(self.photos[index])
            recipe, place, target = self.transform.place(self.photos[index], self.files[index])
        return plan_row(index, self.files[index], recipe, place), target

    def __getitems__(self, keys: Sequence[Key]) -> list[tuple[Tensor, Target]] | DataError:
        """What the loader calls for a batch. An error is returned, and raised by FaceLoader: torch
        would put the worker's traceback into the message of one that is raised here."""
        try:
            return [self[key] for key in keys]
        except DataError as error:
            return error


def _mix(*numbers: int) -> int:
    """One 64-bit seed from several numbers; near ones give unrelated seeds."""
    entropy = [number % 2**63 for number in numbers]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def shared_batch(photos: int, batch_size: int, processes: int) -> int:
    """Images a step, of all processes together: the batch size, or the photos where fewer; 0: auto.

    ConfigError where the processes cannot share them equally, or several ask for auto.
    """
    if not batch_size and processes > 1:
        raise ConfigError("--batch-size auto is for one process: give a number with torchrun")
    batch = min(batch_size, photos)
    if batch % processes:
        raise ConfigError(
            f"a batch of {batch} cannot be shared by {processes} processes: give a --batch-size "
            "that they divide"
        )
    return batch


class EpochSampler(Sampler[Key]):
    """Keys (epoch, index) in an order shuffled by (seed, epoch), in full batches.

    The photos that do not fill a last batch are left out, others each epoch; a set smaller than one
    batch is one short batch. The epoch travels in the keys, so workers may persist.
    """

    def __init__(
        self, photos: int, *, batch_size: int, seed: int = 0, shard: tuple[int, int] = (0, 1)
    ) -> None:
        """shard: the number of this process, and of how many; each takes its part of each batch.

        ConfigError where the batch has no equal parts.
        """
        self.photos, self.seed, self.shard = photos, seed, shard
        self.used = photos - photos % batch_size or photos
        self.batch = shared_batch(photos, batch_size, shard[1])
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
        epoch, (number, processes) = self.epoch, self.shard
        part = self.batch // processes
        starts = range(self.start + number * part, self.used, self.batch)
        return iter([(epoch, index) for at in starts for index in order[at : at + part]])


def collate(samples: Sequence[tuple[Tensor, Target]]) -> Batch:
    """Stack B samples; faces are padded to the largest count: zero box, weight 0, mask False.

    The images are channels last in memory, as OpenCV decodes and as GPUs like them. Plans in place
    of images are stacked to (B, NUMBERS).
    """
    images, targets = zip(*samples, strict=True)
    *faces, labelled = zip(*targets, strict=True)
    padded = (pad_sequence(list(parts), batch_first=True) for parts in faces)
    target = Target._make((*padded, torch.stack(labelled)))
    if images[0].ndim == 1:
        return Batch(torch.stack(images), target)
    # default_collate writes into shared memory when it runs in a worker: one copy less
    stacked = default_collate([image.permute(1, 2, 0) for image in images])  # (B, S, S, 3)
    return Batch(stacked.permute(0, 3, 1, 2), target)


class FaceLoader(DataLoader):
    """A DataLoader that yields Batch and raises the DataErrors that its workers met."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        batches = super().__iter__()
        while True:
            try:
                batch = next(batches, None)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise DataError(
                    "a loader process was ended from outside, often for want of memory: go on "
                    "with --resume and a lower --num-workers"
                ) from error
            if batch is None:
                return
            if isinstance(batch, DataError):
                # a new one: an exception that its own frame refers to keeps the loader in a
                # cycle, and torch then waits 5 s for each worker to end
                raise DataError(str(batch))
            yield batch


def _collate_or_pass(samples: Sequence[tuple[Tensor, Target]] | DataError) -> Batch | DataError:
    return samples if isinstance(samples, DataError) else collate(samples)


def worker_count(num_workers: int) -> int:
    """The number of loader processes: −1 is one a core that this process may use, at most 8.

    Of several training processes on one machine (torchrun) each takes its share of the cores.
    """
    if num_workers >= 0:
        return num_workers
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min(MAX_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def make_loader(
    photos: Sequence[Photo],
    config: TrainConfig,
    *,
    files: Sequence[PhotoFile] | None = None,
    shard: tuple[int, int] = (0, 1),
) -> tuple[FaceLoader, EpochSampler]:
    """Training batches of `photos`; call `sampler.set_epoch` before each pass.

    files: give plans in place of images, see FaceDataset. shard: which of how many processes this
    is; each gets its equal part of every batch. Raises DataError if there are no photos.
    """
    if not photos:
        raise DataError("no photos to train on: the annotation names none")
    sampler = EpochSampler(len(photos), batch_size=config.batch_size, seed=config.seed, shard=shard)
    workers = worker_count(config.num_workers)
    loader = FaceLoader(
        FaceDataset(photos, config, files),
        batch_size=sampler.batch // shard[1],
        sampler=sampler,
        collate_fn=_collate_or_pass,
        num_workers=workers,
        worker_init_fn=one_thread,
        pin_memory=torch.cuda.is_available() and config.device.startswith(("auto", "cuda")),
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # its own: the global one belongs to mixing and DropBlock
    )
    return loader, sampler


def one_thread(worker: int) -> None:
    """Workers share the cores; threads inside each would only get in each other's way."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the training process's to handle
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
