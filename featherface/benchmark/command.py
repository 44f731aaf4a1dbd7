"""The command line of scripts/benchmark.py: speed of detectors, and of a training step's parts."""

import argparse
from pathlib import Path
from typing import Any

from featherface.cli import HelpFormatter, flag, parser, share_cores
from featherface.config import TrainConfig
from featherface.errors import ConfigError, DataError
from featherface.files import check_writable, write_text

SPEED = "compare V1, V2 and other detectors: time, work, size, and AP where --data is given"
TRAIN = "time the parts of a distillation step"
TRAIN_SETTINGS = (
    "device cache cache_side amp compile teacher_model teacher_engine num_workers".split()
)
TABLE, PLOT = "performance_comparison.csv", "speed_ap.png"
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
    _add_speed(commands)
    _add_train(commands)
    arguments = vars(options.parse_args())
    arguments.pop("run")(**arguments)


def _add(commands: Any, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text, formatter_class=HelpFormatter)
    command.set_defaults(run=run)
    return command


def _add_speed(commands: Any) -> None:
    command = _add(commands, "speed", SPEED, measure_speed)
    for name, default, meaning in (
        ("v1", TrainConfig.teacher_model, "weights of V1; its time does not depend on them"),
        ("v2", "weights/v2/FeatherFaceV2_final.pth", "weights of V2"),
        ("peers", "", "folder of other detectors' ONNX files, or files, comma-separated"),
        ("data", "", "data folder whose val split AP is measured on"),
        ("sizes", "320x320,480x640,640x640,720x1280", "image sizes, height x width"),
        ("threads", "1,2", "numbers of threads"),
        ("engines", "eager,onnx", "eager (PyTorch), onnx or both"),
        ("out", "results/v2", f"folder for {TABLE} and {PLOT}"),
    ):
        command.add_argument(*flag(name), default=default, help=meaning)
    command.add_argument(*flag("rounds"), type=count, default=15, help="paired rounds")


def _add_train(commands: Any) -> None:
    command = _add(commands, "train", TRAIN, measure_train)
    command.add_argument(*flag("data"), default="data/widerface", help="data folder")
    for name, default, meaning in (
        ("image_size", 640, "side of the training image, pixels"),
        ("batch_size", 32, "images per batch"),
        ("rounds", 5, "measured rounds"),
        ("photos", 256, "use the first N photos"),
    ):
        command.add_argument(*flag(name), type=count, default=default, help=meaning)
    command.add_argument(*flag("out"), default="", help="CSV file for the table; empty: none")
    for name in TRAIN_SETTINGS:  # as in train_v2.py
        field = TrainConfig.__dataclass_fields__[name]
        command.add_argument(
            *flag(name),
            type=type(field.default),
            default=field.default,
            choices=field.metadata["choices"],
            help=field.metadata["help"],
        )


def measure_speed(
    *,
    v1: str,
    v2: str,
    peers: str,
    data: str,
    sizes: str,
    threads: str,
    engines: str,
    out: str,
    rounds: int,
) -> None:
    """Write the table and the plot of `compare_speed`; lists are comma-separated."""
    check_writable(out)
    from featherface.benchmark.speed import compare_speed, v1_or_untrained  # torch takes seconds
    from featherface.checkpoint import load_model
    from featherface.export import parse_size
    from featherface.plots import plot_speed_against_ap, save_figure

    shapes = [size for size in map(parse_size, _parts(sizes)) if size]
    if not shapes:
        raise ConfigError("give at least one size, such as --sizes 640x640")
    table = compare_speed(
        {"V1": v1_or_untrained(v1), "V2": load_model(v2)},
        peers=_files(peers),
        sizes=shapes,
        threads=_counts(threads),
        engines=_parts(engines),
        rounds=rounds,
        data=data,
    )
    if not Path(v1).is_file():  # untrained weights: the time is right, the AP is not
        table.loc[table["detector"] == "V1", [c for c in table if c.startswith("ap_")]] = None
    folder = Path(out)
    text = table.to_csv(index=False, lineterminator="\n", float_format="%.5g")
    write_text(folder / TABLE, text)
    print(table[SHOWN].round(3).to_string(index=False))
    print(f"written: {folder / TABLE}")
    try:
        figure = plot_speed_against_ap(table, title="640×640, one thread, ONNX Runtime")
    except DataError as error:
        print(f"no plot: {error}")
    else:
        save_figure(figure, folder / PLOT, dpi=110)
        print(f"written: {folder / PLOT}")


def measure_train(*, out: str, **options: Any) -> None:
    """Print the table of `train_speed` and a sentence; with `out` write it as CSV too."""
    share_cores()
    from featherface.benchmark.train import summary_line, train_speed  # torch takes seconds
    from featherface.distributed import pick_device

    table = train_speed(**options)
    print(table.round(3).to_string(index=False))
    print(summary_line(table, pick_device(options["device"])))
    if out:
        write_text(out, table.to_csv(index=False, lineterminator="\n", float_format="%.5g"))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _counts(text: str) -> list[int]:
    """ "1,2" → [1, 2]."""
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
