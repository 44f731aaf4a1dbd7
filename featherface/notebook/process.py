"""Sections 5 and 6: training as a separate process, so that it outlives the notebook's kernel.

The process gets its settings as run.json and reports through progress.json; both are in its save
folder, with training.pid (which process trains) and training.log (what it prints). Everything is
read from these files: a new kernel sees what the old one saw.
"""

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil  # comes with ipykernel

from featherface.config import SETTINGS, TrainConfig
from featherface.errors import TrainingError
from featherface.files import write_text
from featherface.notebook.display import Live, is_headless, note
from featherface.notebook.session import RESULTS
from featherface.plots import plot_progress
from featherface.training.state import checkpoint_path

CONFIG_FILE, PROGRESS_FILE = "run.json", "progress.json"
PID_FILE, LOG_FILE, TABLE = "training.pid", "training.log", "training_log.csv"
LOOK_EVERY = 2.0  # seconds between two looks at a run that is followed
DRAW_EVERY = 10.0  # seconds between figures; headless only the last one is drawn
STOP_SECONDS = 120  # a step, a validation and a checkpoint may have to end first
_children: list[subprocess.Popen] = []  # kept, or Python would warn that they still run


@dataclass(frozen=True)
class Status:
    """The state of a run.

    state: "running"; "finished"; "stopped"; "failed" (with an error, or killed); "other" (the
    folder holds a run with other settings); "none". epoch: epochs done. line: one line for people.
    resumable: a checkpoint of this run exists.
    """

    state: str
    epoch: int
    line: str
    resumable: bool = False


def start(config: TrainConfig, *, resume: bool = False, overwrite: bool = False) -> None:
    """Start `featherface train` with this config, detached from this process.

    resume: continue from …_last.pth. overwrite: replace an unfinished run in the folder. Raises
    TrainingError if a process already trains into the folder.
    """
    folder = Path(config.save_folder)
    running = find_process(folder)
    if running is not None:
        raise TrainingError(f"{folder}: process {running.pid} already trains here; follow it")
    (folder / PROGRESS_FILE).unlink(missing_ok=True)
    if not resume:
        (folder / TABLE).unlink(missing_ok=True)
    write_text(folder / CONFIG_FILE, json.dumps(config.as_dict(), indent=1) + "\n")
    command = [sys.executable, "-m", "featherface", "train", config.model]
    command += ["--config", str(folder / CONFIG_FILE)]
    command += ["--resume"] * resume + ["--overwrite"] * overwrite
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    with open(folder / LOG_FILE, "ab" if resume else "wb") as log:
        log.write(b"resumed\n" if resume else b"")
        log.flush()
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log,
                                 stderr=subprocess.STDOUT, env=environment,
                                 start_new_session=True)  # fmt: skip
    _children.append(child)
    record = {"pid": child.pid, "born": psutil.Process(child.pid).create_time()}
    write_text(folder / PID_FILE, json.dumps(record) + "\n")


def stop(folder: Path, *, wait: float = STOP_SECONDS) -> bool:
    """Ask the run to save and end, and wait for it; return False if no process trains there.

    Raises TrainingError if it has not ended after `wait` seconds.
    """
    process = find_process(folder)
    if process is None:
        return False
    process.terminate()
    try:
        process.wait(wait)
    except psutil.TimeoutExpired as error:
        text = f"process {process.pid} was asked to stop and still runs; wait and ask again"
        raise TrainingError(text) from error
    return True


def find_process(folder: Path) -> psutil.Process | None:
    """The process that trains into `folder`, or None."""
    record = _read_json(folder / PID_FILE)
    try:
        process = psutil.Process(int(record["pid"]))
        same = abs(process.create_time() - float(record["born"])) < 1  # the number is not reused
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (KeyError, ValueError, psutil.Error):
        return None


def status_of(config: TrainConfig) -> Status:
    """The state of the run with this config."""
    folder, of = Path(config.save_folder), config.epochs
    progress = _read_json(folder / PROGRESS_FILE)
    done, state = int(progress.get("epoch", len(read_log(folder)))), progress.get("state", "")
    process = find_process(folder)
    if process is not None:
        return Status("running", done, f"process {process.pid}, {_position(progress, config)}")
    last = checkpoint_path(config, "last")
    if not is_same_run(folder, config):
        if last.is_file():
            return Status("other", done, f"{folder}: holds a run with other settings")
        return Status("none", 0, "not started")
    final, resumable = checkpoint_path(config, "final"), last.is_file()
    if state == "done" and final.is_file():
        return Status("finished", of, f"finished: {of} epochs, weights in {final}")
    after = f"after {done} of {of} epochs"
    if state == "stopped":
        return Status("stopped", done, f"stopped {after}; it can be resumed", resumable)
    if not (folder / PID_FILE).is_file():
        return Status("none", 0, "not started")
    reason = progress.get("error") or logged_error(folder) or (
        f"the process ended without a message {after} (killed, or out of memory?); "
        f"see {folder / LOG_FILE}"
    )  # fmt: skip
    return Status("failed", done, reason + "; it can be resumed" * resumable, resumable)


def _position(progress: dict[str, Any], config: TrainConfig) -> str:
    """Epoch, step, loss, speed, time left and device memory of a running process."""
    state, done = progress.get("state", "starting"), int(progress.get("epoch", 0))
    place = f"epoch {min(done + 1, config.epochs)} of {config.epochs}"
    if state != "training" or not progress.get("steps"):
        return f"{place}: {state}"
    step, steps = progress["step"], progress["steps"]
    text = f"{place}, step {step} of {steps} ({100 * step / steps:.0f} %)"
    if progress.get("loss") is not None:
        speed = progress["images_per_second"]
        steps_left = (config.epochs - done) * steps - step
        minutes = math.ceil(steps_left * config.batch_size / speed / 60)  # without validation
        left = f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
        text += f", loss {progress['loss']:.3f}, {speed:.1f} images/s, about {left} left"
    if progress.get("device_megabytes"):
        text += f", {progress['device_megabytes']:,} MB on the device"
    return text


def read_steps(folder: Path) -> pd.DataFrame:
    """Read the losses by step of a run: epoch (not whole) and loss, the mean since the row above.

    Since the run was started or resumed last; without rows before its first steps.
    """
    progress = _read_json(folder / PROGRESS_FILE)
    table = pd.DataFrame(progress.get("losses", []), columns=["epochs", "step", "mean"])
    table = table.astype(float)
    before = table.groupby("epochs").shift(fill_value=0.0)
    losses = table["mean"] * table["step"] - before["mean"] * before["step"]
    epoch = table["epochs"] + table["step"] / max(1, progress.get("steps", 1))
    return pd.DataFrame({"epoch": epoch, "loss": losses / (table["step"] - before["step"])})


def is_same_run(folder: Path, config: TrainConfig) -> bool:
    """True if the run that was started last in `folder` has these settings.

    Settings that a resumed run may change are left out, but for the data folder.
    """
    stored, wanted = _read_json(folder / CONFIG_FILE), config.as_dict()
    names = [name for name in wanted if name == "data" or not SETTINGS[name].metadata["free"]]
    return bool(stored) and all(stored.get(name) == wanted[name] for name in names)


def logged_error(folder: Path) -> str:
    """The last line of training.log if it is an error, else "": what a run says before it can
    report progress."""
    try:
        lines = (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if last.startswith("error:"):
        return last.removeprefix("error:").strip()
    return last if last.split(":")[0].endswith(("Error", "Exception")) else ""


def read_log(folder: Path) -> pd.DataFrame:
    """training_log.csv so far, one row per epoch; empty before the first."""
    try:
        return pd.read_csv(folder / TABLE)
    except (OSError, ValueError):
        return pd.DataFrame({"epoch": []})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def start_training(config: TrainConfig, *, fresh: bool = False) -> None:
    """Train with this config as a separate process; this is `featherface.training.train` detached.

    A running process is left alone, a stopped run is resumed, and a finished one with the same
    settings is kept unless `fresh`. Raises TrainingError if V2's teacher is missing, or if the
    folder holds another run (runs below results/v2 may be replaced).
    """
    teacher = Path(config.teacher_model)
    if config.model == "v2" and not teacher.is_file():
        raise TrainingError(
            f"{teacher}: the V1 teacher is missing; put the published weights there "
            "(weights/README.md) or train one: python scripts/train_v1.py --data data/widerface"
        )
    status, scratch = status_of(config), RESULTS in Path(config.save_folder).parents
    text = f"Started: {config.epochs} epochs"
    if status.state == "running":
        text = "Already running"
    elif status.state == "finished" and not fresh:
        text = "Kept: a run with these settings is finished"
    elif status.resumable and not fresh:
        start(config, resume=True)
        text = f"Resumed after epoch {status.epoch}"
    elif status.state == "other" and not (scratch or fresh):
        hint = "name another save_folder in SETTINGS, or set FRESH = True to replace"
        raise TrainingError(f"{status.line}; {hint}")
    else:
        start(config, overwrite=scratch or fresh)
    note(f"{text}, in `{config.save_folder}`.")


def follow_training(config: TrainConfig) -> pd.DataFrame:
    """Show progress and curves in place until the run ends; return its log, one row per epoch.

    Interrupting the cell ends the watching, not the training. Raises TrainingError if the run
    failed or was never started.
    """
    folder, live, drawn_at = Path(config.save_folder), Live(), 0.0
    try:
        while True:
            status = status_of(config)
            live.line(f"{config.model.upper()}: {status.line}")
            if time.monotonic() - drawn_at > DRAW_EVERY and not is_headless():
                _draw(config, live)
                drawn_at = time.monotonic()
            if status.state != "running":
                break
            time.sleep(LOOK_EVERY)
    except KeyboardInterrupt:
        note("Stopped watching; the training continues. Run the cell again to watch.")
        return read_log(folder)
    _draw(config, live)
    if status.state in ("failed", "other", "none"):
        hint = "nb.resume_training(config) continues" if status.resumable else "run section 5"
        raise TrainingError(f"{config.model.upper()}: {status.line}; {hint}")
    return read_log(folder)


def _draw(config: TrainConfig, live: Live) -> None:
    """Draw the curves as soon as there is something to see."""
    log, steps = (read(Path(config.save_folder)) for read in (read_log, read_steps))
    if len(log) or len(steps):
        title = config.model.upper()
        live.figure(plot_progress(log, epochs=config.epochs, steps=steps, title=title))


def stop_training(config: TrainConfig) -> None:
    """Let the run save its state and end."""
    stopped = stop(Path(config.save_folder))
    note(status_of(config).line if stopped else "No training is running.")


def resume_training(config: TrainConfig) -> pd.DataFrame:
    """Continue from the last checkpoint if the run has stopped, and follow it; return its log.

    Raises TrainingError if there is nothing to resume from.
    """
    status = status_of(config)
    if status.state == "finished":
        note(f"Nothing to resume: {status.line}.")
        return read_log(Path(config.save_folder))
    if status.state != "running":
        if not status.resumable or status.state == "other":
            raise TrainingError(f"nothing to resume: {status.line}; start a run in section 5")
        start(config, resume=True)
    return follow_training(config)


def checkpoints(folder: Path) -> pd.DataFrame:
    """List the weights files of a run, oldest first: file, use, MB."""
    uses = {"last": "to resume from", "best": "highest validation AP", "final": "to use"}
    rows = []
    for path in sorted(folder.glob("FeatherFace*.pth"), key=lambda path: path.stat().st_mtime):
        part = path.stem.split("_", 1)[1]
        use = uses.get(part, "weights from before this run" if "before" in part else part)
        rows.append({"file": path.name, "use": use, "MB": path.stat().st_size / 1e6})
    return pd.DataFrame(rows, columns=["file", "use", "MB"])
