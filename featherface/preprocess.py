"""From stored pixels to what the networks read."""

import torch
from torch import Tensor

from featherface.config import MEAN_BGR


def normalise(images: Tensor) -> Tensor:
    """RGB uint8 (B, 3, H, W) → BGR float32 minus the mean, on the same device."""
    mean = torch.tensor(MEAN_BGR, device=images.device).view(3, 1, 1)
    return images.flip(1).float() - mean
