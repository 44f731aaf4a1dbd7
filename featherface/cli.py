"""Command-line helpers of all scripts: flags made from the settings, and exit codes.

Exit codes: 0 done, 2 wrong input (one line on stderr says what, where and what to do), 130 Ctrl-C.
"""

import argparse
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from featherface.config import NMS_IOU, SETTINGS, TrainConfig
from featherface.errors import FeatherFaceError, MissingExtraError, extra_of, printable


def flag(name: str) -> tuple[str, ...]:
    """Return the spellings of a flag: --batch-size and --batch_size."""
    dashed = f"--{name.replace('_', '-')}"
    return (dashed, f"--{name}") if "_" in name else (dashed,)


class HelpFormatter(argparse.HelpFormatter):
    """Show each option once, by its first spelling."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        if action.nargs == 0:
            return action.option_strings[0]
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{action.option_strings[0]} {value}"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        """Append the default to the help text, unless there is none or the text has it."""
        silent = (None, "", argparse.SUPPRESS)
        if action.nargs == 0 or action.default in silent or "(default:" in (action.help or ""):
            return action.help
        return f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports a wrong flag in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {printable(message)}; {self.prog} --help lists all flags\n")


def parser(description: str, **options: object) -> argparse.ArgumentParser:
    return Parser(
        description=description,
        formatter_class=HelpFormatter,
        **options,  # type: ignore[arg-type]
    )


def add_config_flags(target: argparse.ArgumentParser, defaults: TrainConfig) -> None:
    """Add one flag per field of TrainConfig.

    A flag that is not given leaves no trace in the parsed arguments: a resumed run must tell what
    was asked for from a default.
    """
    for name, item in SETTINGS.items():
        if name == "model":
            continue  # the script decides
        default = getattr(defaults, name)
        target.add_argument(
            *flag(name),
            type=type(item.default),
            default=argparse.SUPPRESS,
            choices=item.metadata["choices"],
            help=item.metadata["help"] + (f" (default: {default})" if default != "" else ""),
        )


def add_detection_flags(target: argparse.ArgumentParser, *, score_threshold: float) -> None:
    """Add --score-threshold, --iou-threshold and --device, for a script that runs a detector."""
    for name, default, text in (
        ("score_threshold", score_threshold, "lowest score of a face, 0 to 1"),
        ("iou_threshold", NMS_IOU, "NMS removes faces with a higher IoU to a better one, 0 to 1"),
    ):
        target.add_argument(*flag(name), type=float, default=default, help=text)
    target.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")


def share_cores() -> None:
    """Let OpenMP's threads sleep while they wait, unless the environment says otherwise.

    Spinning threads take ten times as long when loader processes need the same cores. Call this
    before torch is imported; later it has no effect.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def run(main: Callable[[], None]) -> None:
    """Call `main`; exit with one line and code 2 for an expected error, with 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console without α must not end a run
    try:
        main()
    except FeatherFaceError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if extra_of(error) is None:
            raise
        print(f"error: {MissingExtraError('this command', error)}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # no permission, no space, and the like
        name = error.filename2 or error.filename  # of a renaming that failed, the target
        where = f"{name}: " if name else ""
        print(f"error: {printable(where)}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
