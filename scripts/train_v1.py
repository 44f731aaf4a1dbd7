"""Train FeatherFace V1: featherface train v1."""

from featherface.cli import run
from featherface.commands import train

if __name__ == "__main__":
    run(lambda: train("v1"))
