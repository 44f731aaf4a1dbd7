"""Training as a process of its own, so that it outlives the notebook's kernel.

A run leaves training.pid (who trains) and training.log (what it says) in its save folder, beside
the checkpoints and training_log.csv. Everything here is read from those files: a new kernel sees
what the old one saw.
"""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import psutil  # comes with ipykernel: is the process still the one that was started?

from featherface.checkpoint import read_file
from featherface.config import PRESETS, SETTINGS, TrainConfig
from featherface.errors import CheckpointError, TrainingError
from featherface.files import CHECKOUT, write_text
from featherface.training.engine import checkpoint_path
from featherface.training.state import known_settings

PID_FILE, LOG_FILE, TABLE = "training.pid", "training.log", "training_log.csv"
STOP_SECONDS = 120  # a step, a validation and a save may have to end first
TAIL_BYTES = 20_000
FREE_ON_RESUME = {name for name, item in SETTINGS.items() if item.metadata["free"]}
_BAR = re.compile(r"(\d+)/(\d+) \[.*?epoch (\d+), loss ([\d.einfa+-]+), ([\d.]+) images/s")
_TRACEBACK_END = re.compile(r"[\w.]*(Error|Exception)\b")
_WELL = ("done:", "stopped and saved")  # what a run says last that ended as it should
_children: list[subprocess.Popen] = []  # kept, or Python would warn that they still run


@dataclass(frozen=True)
class Status:
    """What is known of a run.

    state: running; finished; stopped (can be resumed); failed (it said why, or was killed); other
    (a run with other settings lies there); none. epoch: epochs done. line: for people. resumable:
    a checkpoint of this run is there to go on from.
    """

    state: str
    epoch: int
    line: str
    resumable: bool = False


def start(config: TrainConfig, *, resume: bool = False, overwrite: bool = False) -> None:
    """Start scripts/train_v1.py or train_v2.py with this config, detached from this process.

    resume: go on from …_last.pth. overwrite: replace an unfinished run that lies in the folder.
    TrainingError where a run of the folder is under way.
    """
    folder = Path(config.save_folder)
    running = find_process(folder)
    if running is not None:
        raise TrainingError(f"{folder}: process {running.pid} trains here already; follow it")
    folder.mkdir(parents=True, exist_ok=True)
    flags = resume_flags(config) if resume else [*config_flags(config)]
    flags += ["--overwrite"] if overwrite else []
    if not resume:
        (folder / TABLE).unlink(missing_ok=True)  # of the run before: not a curve of this one
    command = [sys.executable, str(CHECKOUT / f"scripts/train_{config.model}.py"), *flags]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    environment["TQDM_MININTERVAL"] = "1"  # seconds: the log is read every few
    with open(folder / LOG_FILE, "ab" if resume else "wb") as log:
        offset = log.tell()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    _children.append(child)
    born = psutil.Process(child.pid).create_time()
    record = {"pid": child.pid, "born": born, "log_offset": offset, "command": command[1:]}
    write_text(folder / PID_FILE, json.dumps(record, indent=1) + "\n")


def config_flags(config: TrainConfig) -> list[str]:
    """The flags of the training script that give this config: what differs from its defaults."""
    defaults = PRESETS[config.model]
    changed = [
        (item.name, getattr(config, item.name))
        for item in fields(TrainConfig)
        if item.name != "model" and getattr(config, item.name) != getattr(defaults, item.name)
    ]
    # one word a setting: a value that begins with a minus sign is no flag of its own
    return [f"--{name.replace('_', '-')}={value}" for name, value in changed]


def resume_flags(config: TrainConfig) -> list[str]:
    """The checkpoint to go on from, and the settings that a resumed run may change."""
    free = [
        flag for flag in config_flags(config) if flag[2:].split("=")[0].replace("-", "_")
        in FREE_ON_RESUME
    ]  # fmt: skip
    return [f"--resume={checkpoint_path(config, 'last')}", *free]


def stop(folder: Path, *, wait: float = STOP_SECONDS) -> bool:
    """Ask the run to save and end, and wait for it; False where none is under way.

    TrainingError if it has not ended after `wait` seconds.
    """
    process = find_process(folder)
    if process is None:
        return False
    process.terminate()
    deadline = time.monotonic() + wait
    while find_process(folder) is not None:
        if time.monotonic() > deadline:
            raise TrainingError(
                f"process {process.pid} was asked to stop and has not yet; wait and ask again"
            )
        time.sleep(0.2)
    return True


def find_process(folder: Path) -> psutil.Process | None:
    """The process that trains into `folder`; None where it has ended, or never was."""
    record = _record(folder)
    try:
        process = psutil.Process(int(record["pid"]))
        same = abs(process.create_time() - float(record["born"])) < 1
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (KeyError, ValueError, psutil.Error):
        return None


def look(config: TrainConfig) -> Status:
    """Where the run of this config stands."""
    folder = Path(config.save_folder)
    done, of = _epochs_done(folder), config.epochs
    process = find_process(folder)
    if process is not None:
        return Status("running", done, _running_line(folder, process.pid, done, of))
    final, last = checkpoint_path(config, "final"), checkpoint_path(config, "last")
    if is_same_run(final, config) and not _is_newer(last, final):
        return Status("finished", of, f"finished: {of} epochs, weights in {final}")
    resumable = is_same_run(last, config)
    reason = _failure(folder, done, of)
    if reason:
        go_on = "; it can be resumed" if resumable else ""
        return Status("failed", done, reason + go_on, resumable)
    if resumable:
        line = f"stopped after {done} of {of} epochs; it can be resumed"
        return Status("stopped", done, line, resumable)
    if last.is_file():
        return Status("other", done, f"{last}: a run with other settings lies here")
    return Status("none", 0, "not started")


def _failure(folder: Path, done: int, of: int) -> str:
    """Why the run that was started last did not end well; "" where it was stopped, or none was."""
    said = last_lines(folder)
    error = next((line for line in reversed(said) if line.startswith("error:")), "")
    if error:
        return error.removeprefix("error:").strip()
    if not _record(folder) or any(line.startswith(_WELL) for line in said):
        return ""
    tail = said[-1] if said else "its log is empty"
    if _TRACEBACK_END.match(tail):
        return f"{tail} (not foreseen: please report it, with {folder / LOG_FILE})"
    return (
        f"the process ended without a word after {done} of {of} epochs (killed, or out of "
        f"memory?); last line of {folder / LOG_FILE}: {tail}"
    )


def _running_line(folder: Path, pid: int, done: int, of: int) -> str:
    text = "".join(last_lines(folder, whole_bars=True))
    bars = _BAR.findall(text)
    if not bars:
        return f"process {pid}, epoch {done + 1} of {of}: starting"
    step, steps, epoch, loss, speed = bars[-1]
    share = 100 * int(step) / int(steps)
    return (
        f"process {pid}, epoch {epoch} of {of}, step {step} of {steps} ({share:.0f} %), "
        f"loss {float(loss):.3f}, {float(speed):.1f} images/s"
    )


def last_lines(folder: Path, *, whole_bars: bool = False) -> list[str]:
    """The end of training.log since the run was last started, without progress bars."""
    try:
        with open(folder / LOG_FILE, "rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(int(_record(folder).get("log_offset", 0)), size - TAIL_BYTES))
            text = log.read().decode("utf-8", "replace")
    except OSError:
        return []
    if whole_bars:
        return [text]
    lines = [line.rsplit("\r", 1)[-1].strip() for line in text.split("\n")]
    return [line for line in lines if line and not _BAR.search(line)]


def read_table(folder: Path) -> pd.DataFrame:
    """training_log.csv so far, one row an epoch; empty before the first."""
    try:
        return pd.read_csv(folder / TABLE)
    except (OSError, ValueError):
        return pd.DataFrame({"epoch": []})


def is_same_run(path: Path, config: TrainConfig) -> bool:
    """Whether the checkpoint is of a run with these settings (those that change nothing apart)."""
    try:
        stored = TrainConfig().as_dict() | known_settings(read_file(path)["config"])
    except (CheckpointError, KeyError):
        return False
    wanted = config.as_dict()
    if not config.batch_size:  # the run found out what fits, and keeps that
        wanted.pop("batch_size")
    return all(
        stored.get(name) == value
        for name, value in wanted.items()
        if name not in FREE_ON_RESUME or name == "data"
    )


def _is_newer(path: Path, other: Path) -> bool:
    return path.is_file() and path.stat().st_mtime > other.stat().st_mtime


def _epochs_done(folder: Path) -> int:
    table = read_table(folder)
    return int(table["epoch"].max()) if len(table) else 0


def _record(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / PID_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
