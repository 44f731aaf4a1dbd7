"""What every script shares: flags made from the config, and one way to end.

Exit codes: 0 done, 2 wrong input (one line on stderr says what, where and what to do), 130 Ctrl-C.
"""

import argparse
import io
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import NoReturn

from featherface.config import NMS_IOU, TrainConfig
from featherface.errors import FeatherFaceError


def flag(name: str) -> tuple[str, ...]:
    """The spellings of a flag: --batch-size and --batch_size."""
    dashed = f"--{name.replace('_', '-')}"
    return (dashed, f"--{name}") if "_" in name else (dashed,)


class HelpFormatter(argparse.HelpFormatter):
    """Shows each option once, by its first spelling."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        if action.nargs == 0:
            return action.option_strings[0]
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{action.option_strings[0]} {value}"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        """The help text with the default, unless there is none worth saying or it is there."""
        silent = (None, "", argparse.SUPPRESS)
        if action.nargs == 0 or action.default in silent or "(default:" in (action.help or ""):
            return action.help
        return f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """argparse's, but a wrong flag is one line, too, not ten of usage and then what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; {self.prog} --help lists what there is\n")


def parser(description: str, **options: object) -> argparse.ArgumentParser:
    return Parser(
        description=description,
        formatter_class=HelpFormatter,
        **options,  # type: ignore[arg-type]
    )


def add_config_flags(target: argparse.ArgumentParser, defaults: TrainConfig) -> None:
    """One flag a field of the config, its help text and default taken from there.

    A flag that is not given leaves no trace in the parsed arguments, so that a resumed run can tell
    what was asked for from what is only the default.
    """
    for item in fields(TrainConfig):
        if item.name == "model":
            continue  # the script decides
        default = getattr(defaults, item.name)
        target.add_argument(
            *flag(item.name),
            type=item.metadata["parse"],
            default=argparse.SUPPRESS,
            choices=item.metadata["choices"],
            help=f"{item.metadata['help']}" + (f" (default: {default})" if default != "" else ""),
        )


def add_detection_flags(target: argparse.ArgumentParser, *, score_threshold: float) -> None:
    """--score-threshold, --iou-threshold and --device of a script that runs a detector."""
    for name, default, text in (
        ("score_threshold", score_threshold, "faces must score more, 0..1"),
        ("iou_threshold", NMS_IOU, "NMS removes faces that overlap a better one by more, 0..1"),
    ):
        target.add_argument(*flag(name), type=float, default=default, help=text)
    target.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")


def share_cores() -> None:
    """Let OpenMP's threads sleep while they wait, unless the environment says otherwise.

    Threads that spin for each other take ten times as long when another process wants the same
    cores, as the loader's do. It counts only before torch is loaded, so scripts call it first.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def run(main: Callable[[], None]) -> None:
    """Call `main` and exit: a deliberate error is one line and code 2, Ctrl-C is code 130."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console without α must not end a run
    try:
        main()
    except FeatherFaceError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # no permission, no space, and the like
        name = error.filename2 or error.filename  # of a renaming that failed, the target
        where = f"{name}: " if name else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
