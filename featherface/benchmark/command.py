"""The command line of scripts/benchmark.py: speed of detectors, and of a training step's parts."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featherface.cli import HelpFormatter, flag, parser, share_cores
from featherface.config import TrainConfig
from featherface.errors import ConfigError, DataError
from featherface.files import check_writable, write_text

TABLE, PLOT = "performance_comparison.csv", "speed_ap.png"
SPEED = "compare V1, V2 and other detectors: time, work, size, and AP where --data is given"
SPEED_FLAGS = (
    ("v1", TrainConfig.teacher_model, "weights of V1; its time does not depend on them"),
    ("v2", "", "weights of V2 (default: the shipped ones)"),
    ("peers", "", "other detectors' or exported ONNX files, or folders of them, comma-separated"),
    ("data", "", "data folder whose val split AP is measured on"),
    ("sizes", "320x320,480x640,640x640,720x1280", "image sizes, height x width"),
    ("threads", "1,2", "numbers of threads"),
    ("engines", "eager,onnx", "eager (PyTorch), onnx or both"),
    ("out", "results/v2", f"folder for {TABLE} and {PLOT}"),
    ("rounds", 15, "paired rounds"),
)
TRAIN = "time the parts of a distillation step"
TRAIN_FLAGS = (
    ("data", "data/widerface", "data folder"),
    ("image_size", 640, "side of the training image, pixels"),
    ("batch_size", 32, "images per batch"),
    ("rounds", 5, "measured rounds"),
    ("photos", 256, "use the first N photos"),
    ("out", "", "CSV file for the table; empty: none"),
)
TRAIN_SETTINGS = (
    "device cache cache_side amp compile teacher_model teacher_engine num_workers".split()
)
SHOWN = ["detector", "engine", "what", "height", "width", "threads", "median", "low", "high",
         "ratio_to_v1"]  # fmt: skip


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1; got {text!r}")
    return int(text)


def main() -> None:
    """Read the flags, measure, print a table and write it."""
    options = parser("Measure speed: of detectors, and of the parts of a training step.")
    commands = options.add_subparsers(required=True, metavar="what")
    _add(commands, "speed", SPEED, measure_speed, SPEED_FLAGS)
    train = _add(commands, "train", TRAIN, measure_train, TRAIN_FLAGS)
    for name in TRAIN_SETTINGS:  # as in train_v2.py
        field = TrainConfig.__dataclass_fields__[name]
        train.add_argument(
            *flag(name),
            type=type(field.default),
            default=field.default,
            choices=field.metadata["choices"],
            help=field.metadata["help"],
        )
    arguments = vars(options.parse_args())
    arguments.pop("run")(**arguments)


def _add(
    commands: Any, name: str, text: str, run: Any, flags: Sequence[tuple[str, Any, str]]
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text, formatter_class=HelpFormatter)
    command.set_defaults(run=run)
    for option, default, meaning in flags:
        kind = count if isinstance(default, int) else str
        command.add_argument(*flag(option), type=kind, default=default, help=meaning)
    return command


def measure_speed(
    *, v1: str, v2: str, peers: str, sizes: str, threads: str, engines: str, out: str, **rest: Any
) -> None:
    """Write the table and the plot of `compare_speed`; lists are comma-separated."""
    check_writable(out)
    from featherface.benchmark.speed import compare_speed, v1_or_untrained  # torch takes seconds
    from featherface.checkpoint import load_model
    from featherface.detector import SHIPPED_WEIGHTS
    from featherface.export import parse_size
    from featherface.plots import plot_speed_against_ap, save_figure

    rest |= {"peers": _files(peers), "threads": _counts(threads), "engines": _parts(engines)}
    rest["sizes"] = [parse_size(size) for size in _parts(sizes)]
    if not rest["sizes"]:
        raise ConfigError("give at least one size, such as --sizes 640x640")
    table = compare_speed(
        {"V1": v1_or_untrained(v1), "V2": load_model(v2 or SHIPPED_WEIGHTS)}, **rest
    )
    if not Path(v1).is_file():  # untrained weights: the time is right, the AP is not
        table.loc[table["detector"] == "V1", [c for c in table if c.startswith("ap_")]] = None
    print(table[SHOWN].round(3).to_string(index=False))
    _remark(v1)
    folder = Path(out)
    _write(table, folder / TABLE)
    try:
        figure = plot_speed_against_ap(table, title="640×640, one thread, ONNX Runtime")
    except DataError as error:
        print(f"no plot: {error}")
    else:
        save_figure(figure, folder / PLOT, dpi=110)
        print(f"written: {folder / PLOT}")


def measure_train(*, out: str, **options: Any) -> None:
    """Print the table of `train_speed`; with `out` write it as CSV too."""
    share_cores()
    from featherface.benchmark.train import train_speed  # torch takes seconds

    table = train_speed(**options)
    print(table.round(3).to_string(index=False))
    _remark(options["teacher_model"])
    if out:
        _write(table, Path(out))


def _remark(v1: str) -> None:
    if not Path(v1).is_file():
        print(f"{v1} does not exist: V1 was timed untrained, which takes as long, and has no AP")


def _write(table: Any, path: Path) -> None:
    write_text(path, table.to_csv(index=False, lineterminator="\n", float_format="%.5g"))
    print(f"written: {path}")


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _counts(text: str) -> list[int]:
    parts = _parts(text)
    if not parts or not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"--threads must be whole numbers from 1, such as 1,2; got {text!r}")
    return [int(part) for part in parts]


def _files(text: str) -> list[Path]:
    """List the ONNX files that are named, or that the named folders hold."""
    found = []
    for path in map(Path, _parts(text)):
        inside = sorted(path.glob("*.onnx")) if path.is_dir() else [path]
        if not inside:
            raise ConfigError(f"{path}: no ONNX file in this folder")
        found += inside
    return found
