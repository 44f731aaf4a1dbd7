"""Measure speed: of detectors, and of the parts of a training step."""

from featherface.benchmark.command import main
from featherface.cli import run

if __name__ == "__main__":
    run(main)
