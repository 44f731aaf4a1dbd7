"""Train FeatherFace V1, the 592K-parameter teacher, on labelled photos."""

from featherface.cli import run
from featherface.config import PRESETS
from featherface.training.command import train_command

if __name__ == "__main__":
    run(lambda: train_command(PRESETS["v1"], __doc__))
