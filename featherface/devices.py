"""Choosing the device to compute on."""

import torch

from featherface.errors import ConfigError


def pick_device(name: str = "auto") -> torch.device:
    """ "auto": CUDA, else the CPU. Any other name is torch's; ConfigError when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError(f"a detector does not run on {device.type}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {name!r} is not available here; use auto or cpu") from error
    return device
