"""Measure detectors on WIDER FACE or on annotated photos."""

from featherface.cli import run
from featherface.commands import evaluate

if __name__ == "__main__":
    run(evaluate)
