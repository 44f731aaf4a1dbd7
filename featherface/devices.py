"""Choosing the device to compute on, and the state of its random numbers."""

import torch
from torch import Tensor

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


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the generators that training on the device uses: "cpu", and the device's own."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Go on from `random_state`; a device's own state counts only on a device of that type."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def seed_device(seed: int, device: torch.device) -> None:
    """Start the device's own generator anew; the CPU's is left alone, as processes that share a
    batch mix it by the same numbers (on CPUs their DropBlock masks are alike, too)."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
