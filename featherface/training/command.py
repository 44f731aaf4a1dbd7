"""The command line of scripts/train_v1.py and scripts/train_v2.py."""

import json
import signal
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from featherface.cli import add_config_flags, flag, parser
from featherface.config import PRESETS, QUICK, SETTINGS, TrainConfig, teacher_changes
from featherface.errors import ConfigError
from featherface.training.engine import end_signals, train
from featherface.training.state import newest_intact, resumed_config


def train_command(defaults: TrainConfig, description: str | None) -> None:
    """Read the flags, then start or resume a run. Flags win over --config, that over presets."""
    for number in end_signals():  # until the training handles them
        signal.signal(number, signal.default_int_handler)
    arguments = vars(_flags(defaults, description or "").parse_args())
    explicit = {name: value for name, value in arguments.items() if name in SETTINGS}
    if arguments["config"]:
        explicit = read_settings(arguments["config"], defaults.model) | explicit
    if arguments.get("preset"):
        explicit = PRESETS[arguments["preset"]].changes() | explicit
    if arguments["quick"]:
        explicit = (QUICK if defaults.model == "v2" else teacher_changes(QUICK)) | explicit
    config, resume = defaults.replace(**explicit), None
    if arguments["quick"] and "save_folder" not in explicit:  # keep weights trained before
        config = config.replace(save_folder=f"{defaults.save_folder}_quick")
    if arguments["resume"] is not None:
        resume = Path(arguments["resume"]) if arguments["resume"] else newest_intact(config)
        config = resumed_config(resume, {"save_folder": str(resume.parent), **explicit})
    train(config, resume=resume, overwrite=arguments["overwrite"], log=arguments["log"])


def _flags(defaults: TrainConfig, description: str) -> ArgumentParser:
    commands = parser(description)
    commands.add_argument("--config", type=Path, metavar="FILE", help="JSON object of settings")
    commands.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="FILE",
        help="continue the run in FILE, or the newest intact state of the save folder",
    )
    commands.add_argument(
        *flag("quick"),
        action="store_true",
        help="a trial of minutes, 5 epochs of small images, in a save folder of its own",
    )
    if defaults.model == "v2":
        commands.add_argument(
            "--preset", choices=("published",), help="published: FeatherFace V2 as published"
        )
    commands.add_argument(
        *flag("overwrite"), action="store_true", help="replace an unfinished run in the save folder"
    )
    commands.add_argument(
        "--log", choices=("tensorboard",), default="", help="event files of TensorBoard as well"
    )
    add_config_flags(commands, defaults)
    return commands


def read_settings(path: Path, model: str) -> dict[str, Any]:
    """Read a JSON object of settings; `model` may be among them.

    Raises ConfigError if it is not one, names an unknown setting or is for another network.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: must hold a JSON object of settings")
    try:
        PRESETS[model].replace(**settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if settings.pop("model", model) != model:
        raise ConfigError(f"{path}: is for the other network; this script trains {model}")
    return settings
