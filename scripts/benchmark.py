"""Measure speed in pairs: the training loader, the loss."""

import argparse
from collections.abc import Callable
from typing import Any

from featherface.cli import HelpFormatter, flag, parser, run

LOADER = "images/s of the training loader against a plain cv2 loop on the same photos"
LOSS = "seconds for matching and MultiBox loss against V2's forward, same batch"


def count(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {value}")
    return value


def measure(what: str, options: dict[str, Any]) -> None:
    """Run featherface.benchmark's function and print its rounds, their medians and spread."""
    from featherface import benchmark

    rounds = getattr(benchmark, f"{what}_speed")(**options)
    print(LOADER if what == "loader" else LOSS)
    print(rounds.round(3).to_string(index=False))
    print(benchmark.summary(rounds).round(3).to_string())


def add(commands: Any, what: str, text: str, *, batch_size: int) -> Callable[..., Any]:
    command = commands.add_parser(what, help=text, description=text, formatter_class=HelpFormatter)
    command.set_defaults(what=what)
    command.add_argument(*flag("data"), default="data/widerface", help="data folder")
    for name, default, meaning in (
        ("image_size", 640, "side of the training image, pixels"),
        ("batch_size", batch_size, "images a batch"),
        ("rounds", 5, "paired rounds"),
    ):
        command.add_argument(*flag(name), type=count, default=default, help=meaning)
    return command.add_argument


def main() -> None:
    options = parser(__doc__)
    commands = options.add_subparsers(required=True, metavar="what")
    argument = add(commands, "loader", LOADER, batch_size=16)
    argument(*flag("num_workers"), type=count, default=2, help="loader processes")
    argument(*flag("photos"), type=count, default=256, help="the first N photos")
    add(commands, "loss", LOSS, batch_size=32)
    arguments = vars(options.parse_args())
    measure(arguments.pop("what"), arguments)


if __name__ == "__main__":
    run(main)
