"""Measure detectors on WIDER FACE (easy, medium, hard) or on annotated photos (by face size)."""

from featherface.cli import run
from featherface.evaluation.command import evaluate_command

if __name__ == "__main__":
    run(lambda: evaluate_command(__doc__))
