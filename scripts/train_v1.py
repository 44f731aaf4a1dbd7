"""Train FeatherFace V1, the 592K-parameter teacher, on labelled photos."""

from featherface.cli import run, share_cores
from featherface.config import PRESETS


def main() -> None:
    share_cores()
    from featherface.training.command import train_command

    train_command(PRESETS["v1"], __doc__)


if __name__ == "__main__":
    run(main)
