"""Label photographs by an ensemble of detectors, to train on them."""

from featherface.cli import run
from featherface.commands import label

if __name__ == "__main__":
    run(label)
