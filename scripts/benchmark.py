"""Measure speed in pairs: the training loader, the loss."""

import argparse

from featherface.cli import HelpFormatter, flag, parser, run


def loader(arguments: argparse.Namespace) -> None:
    from featherface.benchmark import loader_speed, summary

    rounds = loader_speed(
        arguments.data,
        image_size=arguments.image_size,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        photos=arguments.photos,
        rounds=arguments.rounds,
    )
    print(f"training loader ({arguments.num_workers} workers) and a plain loop, images/s")
    print(rounds.round(2).to_string(index=False))
    print(summary(rounds).round(2).to_string())


def loss(arguments: argparse.Namespace) -> None:
    from featherface.benchmark import loss_speed, summary

    rounds = loss_speed(
        arguments.data,
        image_size=arguments.image_size,
        batch_size=arguments.batch_size,
        rounds=arguments.rounds,
    )
    print("matching + MultiBox loss with gradient, and V2's forward, seconds a batch")
    print(rounds.round(3).to_string(index=False))
    print(summary(rounds).round(3).to_string())


def add_loader(commands: argparse._SubParsersAction) -> None:
    text = "images/s of the training loader against a plain cv2 loop on the same photos"
    command = commands.add_parser(
        "loader", help=text, description=text, formatter_class=HelpFormatter
    )
    command.add_argument(*flag("data"), default="data/widerface", help="data folder")
    command.add_argument(*flag("image_size"), type=int, default=640, help="side, pixels")
    command.add_argument(*flag("batch_size"), type=count, default=16, help="images a batch")
    command.add_argument(*flag("num_workers"), type=int, default=2, help="loader processes")
    command.add_argument(*flag("photos"), type=count, default=256, help="the first N photos")
    command.add_argument(*flag("rounds"), type=count, default=5, help="paired rounds")
    command.set_defaults(measure=loader)


def add_loss(commands: argparse._SubParsersAction) -> None:
    text = "matching and loss against V2's forward on the same batch"
    command = commands.add_parser(
        "loss", help=text, description=text, formatter_class=HelpFormatter
    )
    command.add_argument(*flag("data"), default="data/widerface", help="data folder")
    command.add_argument(*flag("image_size"), type=int, default=640, help="side, pixels")
    command.add_argument(*flag("batch_size"), type=count, default=32, help="images a batch")
    command.add_argument(*flag("rounds"), type=count, default=5, help="paired rounds")
    command.set_defaults(measure=loss)


def count(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {value}")
    return value


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    commands = options.add_subparsers(required=True, metavar="what")
    add_loader(commands)
    add_loss(commands)
    arguments = options.parse_args()
    arguments.measure(arguments)


if __name__ == "__main__":
    run(main)
