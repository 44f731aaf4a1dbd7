"""Train FeatherFace V2, the 256K-parameter student, by distillation from a V1 teacher."""

from featherface.cli import run
from featherface.config import PRESETS
from featherface.training.command import train_command

if __name__ == "__main__":
    run(lambda: train_command(PRESETS["v2"], __doc__))
