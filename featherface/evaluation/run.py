"""Run a detector over many photos: batches of like size, files decoded while the network works."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
from tqdm.auto import tqdm

from featherface.data.decode import decode, open_photo
from featherface.data.widerface import Photo
from featherface.evaluation.protocols import View, views, vote
from featherface.images import padded_size
from featherface.structures import Detections

BATCH_PIXELS = 16 * 640 * 640  # of the network input that share a forward on an accelerator
CPU_BATCH_PIXELS = 640 * 640  # larger batches leave a CPU's cache and gain nothing
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class BatchDetector(Protocol):
    """A Detector or OnnxDetector that neither shrinks images (max_side) nor draws."""

    def detect_batch(
        self, images: Iterable[np.ndarray], *, bgr: bool = False
    ) -> list[Detections]: ...


def detect_photos(
    detector: BatchDetector,
    photos: Sequence[Photo],
    *,
    protocol: str = "original",
    batch_pixels: int | None = None,
    progress: bool = True,
    label: str = "detect",
) -> dict[str, Detections]:
    """The faces of every photo, {photo name: Detections} in pixels of the photo as stored.

    protocol: see `protocols`; batch_pixels: the most that share a forward (a larger photo runs
    alone), by default what suits the detector's device. Photos are read as stored, without EXIF
    rotation, as annotations are. Raises DataError for a file that cannot be read, and for damaged
    headers before any detection.
    """
    plans = [views(protocol, *_size(photo)) for photo in photos]
    found: dict[str, Detections] = {}
    if batch_pixels is None:
        on_cpu = str(getattr(detector, "device", "cpu")) == "cpu"
        batch_pixels = CPU_BATCH_PIXELS if on_cpu else BATCH_PIXELS
    batches = _batches(plans, batch_pixels)
    with tqdm(total=len(photos), desc=label, unit="image", disable=not progress) as bar:
        for batch, drawn in _ahead(batches, lambda batch: _draw(batch, photos, plans)):
            faces = iter(detector.detect_batch((image for image, _ in drawn), bgr=True))
            sizes = iter(size for _, size in drawn)
            for index in batch:
                parts = [view.restore(next(faces), *next(sizes)) for view in plans[index]]
                found[photos[index].name] = parts[0] if len(parts) == 1 else vote(parts)
            bar.update(len(batch))
    return {photo.name: found[photo.name] for photo in photos}


def _size(photo: Photo) -> tuple[int, int]:
    """Width and height from the file's header, pixels."""
    file = open_photo(photo.path)
    return file.width, file.height


def _batches(plans: Sequence[list[View]], batch_pixels: int) -> list[list[int]]:
    """Photo indices in batches of one padded input size, the largest first.

    Largest first: if the memory does not do, that shows at once and not after an hour.
    """
    sizes = [padded_size(view[0].height, view[0].width) for view in plans]
    pixels = [sum(np.prod(padded_size(v.height, v.width)) for v in view) for view in plans]
    order = sorted(range(len(plans)), key=lambda index: (-pixels[index], sizes[index], index))
    batches: list[list[int]] = []
    for index in order:
        last = batches[-1] if batches else []
        room = (len(last) + 1) * pixels[index] <= batch_pixels
        if last and room and sizes[last[0]] == sizes[index]:
            last.append(index)
        else:
            batches.append([index])
    return batches


def _draw(
    batch: list[int], photos: Sequence[Photo], plans: Sequence[list[View]]
) -> list[tuple[np.ndarray, tuple[int, int]]]:
    """Every view of every photo of a batch, BGR, with the width and height of the photo."""
    drawn = []
    for index in batch:
        pixels = decode(open_photo(photos[index].path))
        size = pixels.shape[1], pixels.shape[0]
        drawn += [(view.draw(pixels), size) for view in plans[index]]
    return drawn


def _ahead(
    items: Iterable[_Item], work: Callable[[_Item], _Result]
) -> Iterator[tuple[_Item, _Result]]:
    """(item, work(item)) in order, a few items worked on by threads ahead of the one in use."""
    workers = min(4, os.cpu_count() or 1)
    left = iter(items)
    pool = ThreadPoolExecutor(workers)
    try:
        pending: deque[tuple[_Item, Future[_Result]]] = deque(
            (item, pool.submit(work, item)) for item in islice(left, workers + 1)
        )
        while pending:
            item, future = pending.popleft()
            yield item, future.result()
            pending.extend((item, pool.submit(work, item)) for item in islice(left, 1))
    finally:  # on an error or Ctrl-C nobody waits for work that nobody will use
        pool.shutdown(wait=False, cancel_futures=True)
