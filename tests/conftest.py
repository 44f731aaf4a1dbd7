"""Shared pieces of the tests: where optional material lies, small batches, a tiny data set."""

from pathlib import Path

import numpy as np
import pytest
import torch

from featherface.structures import Target

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared(*parts: str) -> Path:
    """A file beside the checkout, not part of it; the test is skipped where it is missing."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(('shared', *parts))}, which is not here")
    return path


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


def make_targets(*images: list[tuple[float, float, float, float]]) -> Target:
    """A padded batch from lists of boxes; landmarks at fixed places inside each box."""
    faces = max(1, max(len(boxes) for boxes in images))
    boxes = torch.zeros(len(images), faces, 4)
    weight = torch.zeros(len(images), faces)
    for row, given in enumerate(images):
        for column, box in enumerate(given):
            boxes[row, column] = torch.tensor(box)
            weight[row, column] = 1.0
    places = torch.tensor([(0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8)])
    size = boxes[..., 2:] - boxes[..., :2]
    landmarks = boxes[..., None, :2] + places * size[..., None, :]
    present = weight > 0
    mask = present[..., None].expand(-1, -1, 5).clone()
    return Target(boxes, landmarks, mask, torch.zeros_like(present), weight)
