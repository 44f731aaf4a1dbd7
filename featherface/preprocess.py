"""From stored pixels to what the networks read."""

from functools import lru_cache

import torch
from torch import Tensor

from featherface.config import MEAN_BGR


def normalise(images: Tensor) -> Tensor:
    """RGB uint8 (B, 3, H, W) → BGR float32 minus the mean, on the same device."""
    return images.flip(1) - _mean(images.device)  # one pass: no float copy in between


@lru_cache
@torch.inference_mode(False)  # a cached inference tensor could not be used in training later
def _mean(device: torch.device) -> Tensor:
    """(3, 1, 1). Made once: to copy it to a GPU for each batch makes the host wait."""
    return torch.tensor(MEAN_BGR, device=device).view(3, 1, 1)
