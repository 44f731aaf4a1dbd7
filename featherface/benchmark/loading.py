"""The training loader against a plain loop, and the loss against the network it trains."""

import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from featherface.anchors import make_anchors
from featherface.benchmark.paired import one_thread
from featherface.config import TrainConfig
from featherface.data.annotations import Photo
from featherface.data.loader import FaceDataset, make_loader
from featherface.data.widerface import read_split
from featherface.detector import normalise
from featherface.errors import DataError
from featherface.losses import multibox
from featherface.models.networks import FeatherFaceV2
from featherface.structures import Predictions


def loader_speed(
    data: str | Path,
    *,
    image_size: int = 640,
    batch_size: int = 16,
    num_workers: int = 2,
    photos: int = 256,
    rounds: int = 5,
) -> pd.DataFrame:
    """Images a second of the training loader against a plain loop over the same photos.

    The plain loop is one process with one thread, as each worker is: cv2.imread, a random square
    crop, cv2.resize, to tensor; no colours, no flip, no boxes. One row a round: round, plain and
    loader (images/s), ratio. One round more runs first, not reported, so that files are in memory
    and the workers are up.
    Raises DataError if `data` has no training photos, or one cannot be read.
    """
    chosen = read_split(data, limit=photos)
    config = TrainConfig(image_size=image_size, batch_size=batch_size, num_workers=num_workers)
    loader, sampler = make_loader(FaceDataset(chosen, config))
    rows = []
    for number in range(rounds + 1):
        started = time.perf_counter()
        with one_thread():
            _plain_epoch(chosen, image_size, seed=number)
        plain = len(chosen) / (time.perf_counter() - started)
        sampler.set_epoch(number)
        started = time.perf_counter()
        images = sum(len(batch.images) for batch in loader)
        fast = images / (time.perf_counter() - started)
        rows.append({"round": number, "plain": plain, "loader": fast, "ratio": fast / plain})
    return pd.DataFrame(rows[1:])


def loss_speed(
    data: str | Path, *, image_size: int = 640, batch_size: int = 32, rounds: int = 5
) -> pd.DataFrame:
    """Seconds for matching and MultiBox loss, with gradient, against V2's forward, same batch.

    Real augmented photos of `data`, the same batch in every round; threads as torch has them. One
    row a round: round, forward, loss (seconds), ratio, faces (the most in one image). One round
    more runs first, not reported. Raises DataError if `data` has no training photos.
    """
    config = TrainConfig(image_size=image_size, batch_size=batch_size, num_workers=0)
    batch = next(iter(make_loader(FaceDataset(read_split(data), config))[0]))
    model, pixels = FeatherFaceV2().eval(), normalise(batch.images)
    anchors = make_anchors(image_size, image_size)
    rows = []
    for number in range(rounds + 1):
        started = time.perf_counter()
        with torch.no_grad():
            predictions = Predictions(*model(pixels))
        between = time.perf_counter()
        leaves = Predictions(*(part.requires_grad_() for part in predictions))
        multibox(leaves, batch.targets, anchors, box_weight=2.0, landmark_weight=1.0)[0][
            "task"
        ].backward()
        forward, loss = between - started, time.perf_counter() - between
        faces = batch.targets.boxes.shape[1]
        rows.append(
            {"round": number, "forward": forward, "loss": loss, "ratio": loss / forward}
            | {"faces": faces}
        )
    return pd.DataFrame(rows[1:])


def _plain_epoch(photos: Sequence[Photo], size: int, *, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for photo in photos:
        image = cv2.imread(str(photo.path))
        if image is None:
            raise DataError(f"photo {photo.path} cannot be read")
        height, width = image.shape[:2]
        side = max(1, int(rng.uniform(0.3, 1.0) * min(height, width)))
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        part = cv2.resize(image[top : top + side, left : left + side], (size, size))
        torch.from_numpy(part).permute(2, 0, 1).contiguous()
