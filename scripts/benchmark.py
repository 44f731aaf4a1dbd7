"""Measure speed: of detectors, and of the parts of a training step."""

from featherface.cli import run
from featherface.commands import benchmark

if __name__ == "__main__":
    run(benchmark)
