"""Train FeatherFace V2, the 256K-parameter student, by distillation from a V1 teacher."""

from featherface.cli import run, share_cores
from featherface.config import PRESETS


def main() -> None:
    share_cores()
    from featherface.training.command import train_command

    train_command(PRESETS["v2"], __doc__)


if __name__ == "__main__":
    run(main)
