"""Measure speed: of detectors; of training by its parts and against another commit."""

import argparse
from collections.abc import Callable
from typing import Any

from featherface.cli import HelpFormatter, flag, parser, run, share_cores
from featherface.config import TrainConfig

LOADER = "images/s of the training loader against a plain cv2 loop on the same photos"
LOSS = "seconds for matching and MultiBox loss against V2's forward, same batch"


TRAIN = "a distillation step by its parts: time, work, and the share of what the device could do"
TRAIN_SETTINGS = (
    "device cache cache_side amp compile teacher_model teacher_engine num_workers".split()
)
VERSIONS = "images/s of training, here and at another commit, in short runs that take turns"
SPEED = "V1, V2 and other detectors: time, work, size, and AP where --data is given"
TITLES = {"loader": LOADER, "loss": LOSS, "versions": VERSIONS}


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
    print(TITLES[what])
    print(rounds.round(3).to_string(index=False))
    print(benchmark.summary(rounds).round(3).to_string())


def add(
    commands: Any, what: str, text: str, *, batch_size: int, image_size: int = 640
) -> Callable[..., Any]:
    command = commands.add_parser(what, help=text, description=text, formatter_class=HelpFormatter)
    command.set_defaults(what=what)
    command.add_argument(*flag("data"), default="data/widerface", help="data folder")
    for name, default, meaning in (
        ("image_size", image_size, "side of the training image, pixels"),
        ("batch_size", batch_size, "images a batch"),
        ("rounds", 5, "paired rounds"),
    ):
        command.add_argument(*flag(name), type=count, default=default, help=meaning)
    return command.add_argument


def add_speed(commands: Any) -> None:
    command = commands.add_parser(
        "speed", help=SPEED, description=SPEED, formatter_class=HelpFormatter
    )
    command.set_defaults(what="speed")
    for name, default, meaning in (
        ("v1", "weights/featherface_v1.pth", "weights of V1; its time does not depend on them"),
        ("v2", "weights/v2/FeatherFaceV2_final.pth", "weights of V2"),
        ("peers", "", "folder of other detectors' ONNX files, or files, comma-separated"),
        ("data", "", "data folder whose val split AP is measured on"),
        ("sizes", "320x320,480x640,640x640,720x1280", "image sizes, height x width"),
        ("threads", "1,2", "numbers of threads"),
        ("engines", "eager,onnx", "of eager, compile (640x640 only; minutes), onnx"),
        ("out", "results/v2", "folder for performance_comparison.csv and speed_ap.png"),
    ):
        command.add_argument(*flag(name), default=default, help=meaning)
    command.add_argument(*flag("rounds"), type=count, default=15, help="paired rounds")


def measure_speed(options: dict[str, Any]) -> None:
    """Run featherface.benchmark.speed, write its table and plot, print the main columns."""
    from featherface.benchmark.speed import compare_speed

    compare_speed(**options)


def add_versions(commands: Any) -> None:
    argument = add(commands, "versions", VERSIONS, batch_size=16, image_size=320)
    argument(*flag("against"), required=True, help="commit to compare with")
    argument(*flag("teacher_model"), default=TrainConfig.teacher_model, help="weights of V1")
    argument(*flag("photos"), type=count, default=160, help="the first N photos")
    argument(*flag("processes"), type=count, default=1, help="of the run here")
    argument(*flag("flags"), default="", help='of train_v2.py, for both: --flags="--lr 0.1"')
    argument(*flag("flags_here"), default="", help="as --flags, for the run here alone")


def add_train(commands: Any) -> None:
    argument = add(commands, "train", TRAIN, batch_size=32)
    argument(*flag("photos"), type=count, default=256, help="the first N photos")
    argument(*flag("out"), default="", help="CSV file for the table; empty: only print it")
    for name in TRAIN_SETTINGS:  # as train_v2.py's, with their defaults and help
        setting = TrainConfig.__dataclass_fields__[name]
        argument(
            *flag(name),
            type=type(setting.default),
            default=setting.default,
            choices=setting.metadata["choices"],
            help=setting.metadata["help"],
        )


def measure_train(options: dict[str, Any]) -> None:
    """Run featherface.benchmark.train, print its table and what it says."""
    share_cores()
    from featherface.benchmark.train import report

    report(**options)


def main() -> None:
    options = parser(__doc__)
    commands = options.add_subparsers(required=True, metavar="what")
    argument = add(commands, "loader", LOADER, batch_size=16)
    argument(*flag("num_workers"), type=count, default=2, help="loader processes")
    argument(*flag("photos"), type=count, default=256, help="the first N photos")
    add(commands, "loss", LOSS, batch_size=32)
    add_speed(commands)
    add_train(commands)
    add_versions(commands)
    arguments = vars(options.parse_args())
    what = arguments.pop("what")
    if what == "speed":
        measure_speed(arguments)
    elif what == "train":
        measure_train(arguments)
    else:
        measure(what, arguments)


if __name__ == "__main__":
    run(main)
