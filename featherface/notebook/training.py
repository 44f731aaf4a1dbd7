"""Sections 5 and 6: start the runs, follow them live, stop, resume, list what they wrote."""

import time
from pathlib import Path

import pandas as pd

import featherface.notebook.process as process
from featherface.config import TrainConfig
from featherface.errors import FeatherFaceError, TrainingError
from featherface.notebook.display import Live, explained, note, problem, show_figure, show_table
from featherface.notebook.sessions import Session, make_drawn_set
from featherface.plots import plot_progress

LOOK_EVERY = 2.0  # seconds
DRAW_EVERY = 10.0  # seconds between figures, headless: the last one only


@explained("the teacher")
def prepare_teacher(current: Session) -> None:
    """Use the teacher that is there; in quick mode train one, as its own process, and wait."""
    config = current.teacher_config
    own = current.teacher == process.checkpoint_path(config, "final")
    if not own and not current.teacher.is_file():
        raise TrainingError(
            f"{current.teacher}: the V1 teacher is missing; put the published weights there "
            "(weights/README.md) or train one: python scripts/train_v1.py --data data/widerface"
        )
    if not own:
        note(f"Teacher: `{current.teacher}`, as it is.")
        return
    make_drawn_set(current)
    note(
        f"No published V1 weights here, so a small teacher is trained first: {config.epochs} "
        f"epochs at {config.image_size} pixels, its backbone started from the shipped V2."
    )
    _begin(config, fresh=current.fresh, scratch=True)
    _follow(current, config)


@explained("starting the training")
def start_training(current: Session) -> None:
    """Start V2's run as its own process; attach to one under way, go on with a stopped one.

    A finished run with the same settings is kept, unless the session is `fresh`.
    """
    make_drawn_set(current)
    if not current.teacher.is_file():
        raise TrainingError(f"{current.teacher}: the V1 teacher is missing; see the cell above")
    line = _begin(current.config, fresh=current.fresh, scratch=current.mode == "quick")
    note(f"{line}. Section 6 follows it; it goes on when this notebook is closed.")


def _begin(config: TrainConfig, *, fresh: bool, scratch: bool) -> str:
    """Start or resume what has to be, and say what was done. scratch: any old run may go."""
    status = process.look(config)
    if status.state == "running":
        return f"A run is under way in `{config.save_folder}`"
    if status.state == "finished" and not fresh:
        return f"Kept: a run with these settings is finished in `{config.save_folder}`"
    if status.resumable and not fresh:
        process.start(config, resume=True)
        return f"Going on after epoch {status.epoch} in `{config.save_folder}`"
    if status.state == "other" and not scratch:
        raise TrainingError(
            f"{status.line}; name another save_folder in SETTINGS, or set FRESH = True to replace"
        )
    process.start(config, overwrite=scratch or fresh)
    return f"Started: {config.epochs} epochs into `{config.save_folder}`"


@explained("following the training")
def follow_training(current: Session) -> None:
    """Curves and progress in place until the run ends; Ctrl-C (the stop button) only looks away."""
    _follow(current, current.config)


def _follow(current: Session, config: TrainConfig) -> None:
    folder, live = Path(config.save_folder), Live()
    drawn_at, drawn_epoch = 0.0, -1
    try:
        while True:
            status = process.look(config)
            live.line(f"{config.model.upper()}: {status.line}")
            log, due = process.read_table(folder), time.monotonic() - drawn_at > DRAW_EVERY
            if status.epoch != drawn_epoch and due and not current.headless:
                live.figure(plot_progress(log, epochs=config.epochs))
                drawn_at, drawn_epoch = time.monotonic(), status.epoch
            if status.state != "running":
                break
            time.sleep(LOOK_EVERY)
    except KeyboardInterrupt:
        note("Stopped watching; the training goes on. Run the cell again to watch.")
        return
    _show_end(current, config, status, live)


def _show_end(current: Session, config: TrainConfig, status: process.Status, live: Live) -> None:
    folder = Path(config.save_folder)
    log = process.read_table(folder)
    if len(log):
        name = "training.png" if config.model == "v2" else "training_teacher.png"
        figure = plot_progress(log, epochs=config.epochs, title=config.model.upper())
        if current.headless:
            show_figure(figure, current.results / name)
        else:
            live.figure(figure)
        named = log.rename(columns=lambda name: name.replace("_", " "))  # so that they can wrap
        show_table(named, f"every term of every epoch ({len(log)} rows)", fold=True)
    if status.state in ("failed", "other", "none"):
        problem(f"training of {config.model.upper()}", status.line + _what_to_do(status))
    elif status.state == "stopped":
        note(f"{status.line}: run `nb.resume_training(session)`.")


def _what_to_do(status: process.Status) -> str:
    if status.state == "none":
        return "; start it in section 5"
    if status.resumable:
        return ": nb.resume_training(session) goes on from the last checkpoint"
    return ". Mend what it says, then run section 5 again"


@explained("stopping the training")
def stop_training(current: Session) -> None:
    """The run saves its state and ends."""
    stopped = process.stop(current.run)
    note(process.look(current.config).line if stopped else "No training is under way.")


@explained("resuming the training")
def resume_training(current: Session) -> None:
    """Go on from the last checkpoint, if the run has stopped, and follow it."""
    status = process.look(current.config)
    if status.state == "finished":
        note(f"Nothing to resume: {status.line}.")
        return
    if status.state in ("none", "other"):
        raise TrainingError(f"nothing to resume: {status.line}; start a run in section 5")
    if status.state != "running":
        if not status.resumable:
            raise TrainingError(f"{status.line}; nothing was saved yet, so run section 5 again")
        process.start(current.config, resume=True)
        time.sleep(LOOK_EVERY)
    _follow(current, current.config)


@explained("listing the checkpoints")
def show_checkpoints(current: Session) -> None:
    """Every weights file of the run's folder: what it holds, from which epoch, how large."""
    from featherface.checkpoint import read_file

    rows = []
    for path in sorted(current.run.glob("FeatherFaceV2_*.pth"), key=lambda p: p.stat().st_mtime):
        try:
            content = read_file(path)
        except FeatherFaceError as error:
            rows.append({"file": path.name, "epoch": "", "holds": str(error), "MB": 0.0})
            continue
        holds = "everything, to resume from" if "optimizer" in content else "weights, to use"
        holds = "weights that lay here before" if "_before" in path.name else holds
        size = path.stat().st_size / 1e6
        rows.append(
            {"file": path.name, "epoch": content.get("epoch", ""), "holds": holds, "MB": size}
        )
    if not rows:
        note(f"No checkpoint in `{current.run}` yet.")
        return
    show_table(pd.DataFrame(rows), f"checkpoints in {current.run}", digits=1)
