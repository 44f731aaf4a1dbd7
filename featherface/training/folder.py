"""The folder that a run writes to: the names in it, and that no other run is lost there."""

import itertools
import shutil
import tempfile
from pathlib import Path

from featherface.config import TrainConfig
from featherface.errors import TrainingError
from featherface.files import atomic_path, sha256


def checkpoint_path(config: TrainConfig, what: int | str) -> Path:
    """…/FeatherFaceV2_epoch_10.pth, …_last.pth (to resume from), …_best.pth, …_final.pth."""
    part = f"epoch_{what}" if isinstance(what, int) else what
    return Path(config.save_folder) / f"FeatherFace{config.model.upper()}_{part}.pth"


def log_path(config: TrainConfig) -> Path:
    """The table with a row an epoch."""
    return Path(config.save_folder) / "training_log.csv"


def answers_folder(config: TrainConfig) -> Path:
    """Where a run keeps the teacher's answers while it lasts, see `replay_epochs`."""
    return Path(config.save_folder) / ".teacher_answers"


def forget_answers(config: TrainConfig) -> None:
    """Remove them."""
    shutil.rmtree(answers_folder(config), ignore_errors=True)


def check_folder(config: TrainConfig, *, run_allowed: bool) -> None:
    """Make the save folder, see that it can be written to, and that no run lies there.

    TrainingError if one does, unless it may: to be resumed, or to be replaced by `clear_folder`.
    OSError if the folder cannot be written to.
    """
    folder = Path(config.save_folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    last = checkpoint_path(config, "last")
    if last.exists() and not run_allowed:
        raise TrainingError(
            f"{last}: a run lies here; go on with --resume, or start anew with --overwrite or in "
            "another --save-folder"
        )


def clear_folder(config: TrainConfig) -> Path | None:
    """Remove the run that lies there and its log, all but its final weights, which stay until
    there are new ones.

    Final weights without a run, as those that come with the project, are kept as
    …_final_before.pth: returns its path then.
    """
    folder, last = Path(config.save_folder), checkpoint_path(config, "last")
    if not last.exists():
        return _keep_foreign_weights(config)
    name = last.name.removesuffix("last.pth")
    checkpoints = (*folder.glob(f"{name}epoch_*.pth"), checkpoint_path(config, "best"), last)
    for old in (*checkpoints, log_path(config)):
        old.unlink(missing_ok=True)
    forget_answers(config)
    return None


def _keep_foreign_weights(config: TrainConfig) -> Path | None:
    final = checkpoint_path(config, "final")
    if not final.exists():
        return None
    copies = (checkpoint_path(config, f"final_before{n or ''}") for n in itertools.count())
    kept = next(path for path in copies if not path.exists() or sha256(path) == sha256(final))
    with atomic_path(kept) as temporary:
        shutil.copyfile(final, temporary)
    return kept
