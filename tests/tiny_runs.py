"""Training runs of seconds, for the tests of the loop: a config, its data, its teacher."""

from pathlib import Path

import torch
from tiny_sets import draw_squares

from featherface.checkpoint import FORMAT, read_file, write_file
from featherface.config import TrainConfig
from featherface.models.networks import FeatherFaceV1
from featherface.training import engine


def prepare(root: Path) -> Path:
    """Photos with bright squares as faces (eight and four), and an untrained teacher."""
    draw_squares(root / "data", train=8, val=4)
    torch.manual_seed(7)
    content = {"format": FORMAT, "architecture": "v1", "model": FeatherFaceV1().state_dict()}
    write_file(root / "v1.pth", content)
    return root


def tiny_config(root: Path, out: Path) -> TrainConfig:
    """Two epochs of four steps at 64 pixels."""
    return TrainConfig(
        data=str(root / "data"),
        teacher_model=str(root / "v1.pth"),
        save_folder=str(out),
        image_size=64,
        batch_size=2,
        lr=1e-3,
        epochs=2,
        save_every=1,
        num_workers=0,
        device="cpu",
    )


def trained(config: TrainConfig, **options) -> dict[str, torch.Tensor]:
    """The weights that a run ends with."""
    return read_file(engine.train(config, progress=False, **options))["model"]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are the same to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
