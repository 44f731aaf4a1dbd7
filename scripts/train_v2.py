"""Train FeatherFace V2: featherface train v2."""

from featherface.cli import run
from featherface.commands import train

if __name__ == "__main__":
    run(lambda: train("v2"))
