"""Sections 5 and 6: start a run, follow it live, stop it, resume it, list what it wrote."""

import time
from pathlib import Path

import pandas as pd

from featherface.config import TrainConfig
from featherface.errors import TrainingError
from featherface.notebook.display import Live, is_headless, note
from featherface.notebook.process import read_log, start, status_of, stop
from featherface.notebook.session import RESULTS
from featherface.plots import plot_progress

LOOK_EVERY = 2.0  # seconds
DRAW_EVERY = 10.0  # seconds between figures; headless only the last one is drawn


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
    if status.state == "running":
        text = "Already running"
    elif status.state == "finished" and not fresh:
        text = "Kept: a run with these settings is finished"
    elif status.resumable and not fresh:
        start(config, resume=True)
        text = f"Resumed after epoch {status.epoch}"
    elif status.state == "other" and not (scratch or fresh):
        raise TrainingError(
            f"{status.line}; name another save_folder in SETTINGS, or set FRESH = True to replace"
        )
    else:
        start(config, overwrite=scratch or fresh)
        text = f"Started: {config.epochs} epochs"
    note(f"{text}, in `{config.save_folder}`.")


def follow_training(config: TrainConfig) -> None:
    """Show progress and curves in place until the run ends.

    Interrupting the cell ends the watching, not the training. Raises TrainingError if the run
    failed or was never started.
    """
    folder, live = Path(config.save_folder), Live()
    drawn_at, drawn_epoch = 0.0, -1
    try:
        while True:
            status = status_of(config)
            live.line(f"{config.model.upper()}: {status.line}")
            due = time.monotonic() - drawn_at > DRAW_EVERY and not is_headless()
            if status.epoch != drawn_epoch and due:
                live.figure(plot_progress(read_log(folder), epochs=config.epochs))
                drawn_at, drawn_epoch = time.monotonic(), status.epoch
            if status.state != "running":
                break
            time.sleep(LOOK_EVERY)
    except KeyboardInterrupt:
        note("Stopped watching; the training continues. Run the cell again to watch.")
        return
    log = read_log(folder)
    if len(log):
        live.figure(plot_progress(log, epochs=config.epochs, title=config.model.upper()))
    if status.state in ("failed", "other", "none"):
        hint = "nb.resume_training(config) continues" if status.resumable else "run section 5"
        raise TrainingError(f"{config.model.upper()}: {status.line}; {hint}")


def stop_training(config: TrainConfig) -> None:
    """Let the run save its state and end."""
    stopped = stop(Path(config.save_folder))
    note(status_of(config).line if stopped else "No training is running.")


def resume_training(config: TrainConfig) -> None:
    """Continue from the last checkpoint if the run has stopped, and follow it.

    Raises TrainingError if there is nothing to resume from.
    """
    status = status_of(config)
    if status.state == "finished":
        note(f"Nothing to resume: {status.line}.")
        return
    if status.state != "running":
        if not status.resumable or status.state == "other":
            raise TrainingError(f"nothing to resume: {status.line}; start a run in section 5")
        start(config, resume=True)
    follow_training(config)


def checkpoints(folder: Path) -> pd.DataFrame:
    """List the weights files of a run, oldest first: file, use, MB."""
    uses = {"last": "to resume from", "best": "highest validation AP", "final": "to use"}
    rows = []
    for path in sorted(folder.glob("FeatherFace*.pth"), key=lambda path: path.stat().st_mtime):
        part = path.stem.split("_", 1)[1]
        use = uses.get(part, "weights from before this run" if "before" in part else part)
        rows.append({"file": path.name, "use": use, "MB": path.stat().st_size / 1e6})
    return pd.DataFrame(rows, columns=["file", "use", "MB"])
