"""The command line of scripts/train_v1.py and scripts/train_v2.py."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from featherface.cli import add_config_flags, flag, parser
from featherface.config import PRESETS, TrainConfig
from featherface.training.engine import checkpoint_path, train
from featherface.training.state import resumed_config


def train_command(defaults: TrainConfig, description: str | None) -> None:
    """Read the flags, then train or go on."""
    commands = parser(description or "")
    commands.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="FILE",
        help="go on from FILE, or from the …_last.pth in the save folder",
    )
    commands.add_argument(
        *flag("quick"),
        action="store_true",
        help="5 epochs at 320 pixels: a trial run, into the save folder's name with _quick",
    )
    if defaults.model == "v2":
        commands.add_argument(
            "--preset",
            choices=("published",),
            help="settings that other flags may change; published: FeatherFace V2 as published",
        )
    commands.add_argument(
        *flag("overwrite"), action="store_true", help="replace an unfinished run in the save folder"
    )
    add_config_flags(commands, defaults)
    arguments = commands.parse_args()
    names = {item.name for item in fields(TrainConfig)}
    explicit = {name: value for name, value in vars(arguments).items() if name in names}
    for preset in filter(None, (arguments.quick and "quick", getattr(arguments, "preset", None))):
        explicit = _changes(preset) | explicit
    config, resume = defaults.replace(**explicit), None
    if arguments.quick and "save_folder" not in explicit:  # no trial replaces good weights
        config = config.replace(save_folder=f"{defaults.save_folder}_quick")
    if arguments.resume is not None:
        resume = Path(arguments.resume or checkpoint_path(config, "last"))
        config = resumed_config(resume, {"save_folder": str(resume.parent), **explicit})
    train(config, resume=resume, overwrite=arguments.overwrite)


def _changes(preset: str) -> dict[str, Any]:
    """The settings of a preset that are not V2's defaults."""
    wanted, plain = PRESETS[preset].as_dict(), PRESETS["v2"].as_dict()
    return {name: value for name, value in wanted.items() if value != plain[name]}
