"""A run on disk: its folder, its log, its progress, and its state to save and resume."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from featherface.checkpoint import FORMAT, is_checkpoint, read_file, write_file
from featherface.config import SETTINGS, TrainConfig
from featherface.data.annotations import Photo
from featherface.data.widerface import fingerprint
from featherface.distributed import (
    Worker,
    gather_states,
    pick_device,
    random_state,
    seed_device,
    set_random_state,
    share_state,
)
from featherface.errors import CheckpointError, ConfigError, FeatherFaceError, TrainingError
from featherface.files import commit, locked, remove_temporary, sha256, versions, write_text
from featherface.losses import Distillation
from featherface.training.optim import Averages, make_optimizer, make_scheduler
from featherface.training.step import Step, digest_of, make_step

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def checkpoint_path(config: TrainConfig, what: int | str) -> Path:
    """…/FeatherFaceV2_epoch_10.pth, …_last.pth (to resume from), …_best.pth, …_final.pth."""
    part = f"epoch_{what}" if isinstance(what, int) else what
    return Path(config.save_folder) / f"FeatherFace{config.model.upper()}_{part}.pth"


def log_path(config: TrainConfig) -> Path:
    """Return the path of the table with one row per epoch."""
    return Path(config.save_folder) / "training_log.csv"


def check_folder(config: TrainConfig, *, run_allowed: bool) -> None:
    """Check that the save folder can be written to.

    Raises TrainingError if it holds a run, unless that is allowed: to be resumed, or to be replaced
    by `clear_folder`. Raises OSError if the folder cannot be written to.
    """
    folder = Path(config.save_folder)
    with tempfile.TemporaryFile(dir=folder):
        pass
    last = checkpoint_path(config, "last")
    if last.exists() and not run_allowed:
        raise TrainingError(
            f"{last}: this folder already holds a run: continue with --resume, replace it with "
            "--overwrite, or choose another --save-folder"
        )


@contextmanager
def own_folder(config: TrainConfig, *, run_allowed: bool) -> Iterator[None]:
    """Lock the save folder, check it, and remove the temporary files of killed runs."""
    Path(config.save_folder).mkdir(parents=True, exist_ok=True)
    with locked(config.save_folder):
        check_folder(config, run_allowed=run_allowed)
        remove_temporary(config.save_folder)
        yield


def prepare_folder(config: TrainConfig, *, keep: bool) -> None:
    """Clear the folder, unless its run is to be kept, and write config.json for `--config`."""
    if not keep:
        clear_folder(config)
    settings = json.dumps(config.as_dict(), indent=1, ensure_ascii=False)
    write_text(Path(config.save_folder) / "config.json", settings + "\n")


def clear_folder(config: TrainConfig) -> None:
    """Remove the run of the folder and its log, except its final weights.

    Final weights without a run, as those that come with the project, are copied to a file that is
    named by their SHA-256, and one line says so.
    """
    folder = Path(config.save_folder)
    last, best, final = (checkpoint_path(config, part) for part in ("last", "best", "final"))
    if last.exists():
        numbered = folder.glob(last.name.replace("last", "epoch_*"))
        for old in (*numbered, best, last, log_path(config)):
            old.unlink(missing_ok=True)
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    elif final.exists():
        kept = checkpoint_path(config, f"final_{sha256(final)[:8]}")
        shutil.copyfile(final, kept)
        tqdm.write(f"the final weights in the folder are kept as {kept}")


MOST_LOSSES = 500  # in progress.json; beyond, every other one is dropped


class ProgressFile:
    """progress.json in the save folder: where the run stands, for another process to read.

    As a context it writes how the run ends: done, stopped or failed. Each write is atomic. With
    `log="tensorboard"` loss and speed by step and the log's columns by epoch go to TensorBoard's
    event files too, in the folder tensorboard.
    """

    def __init__(self, config: TrainConfig, *, write: bool, log: str = "") -> None:
        self.path = Path(config.save_folder) / "progress.json"
        self.active = write
        self.board: SummaryWriter | None = None
        self.open_board: Callable[[str], SummaryWriter] | None = None
        if write and log:  # the first figures open it, when the run before is cleared
            from torch.utils import tensorboard  # of an extra, and slow to import

            self.open_board = tensorboard.SummaryWriter
        self.values: dict[str, Any] = {
            "state": "starting",
            "epoch": 0,  # epochs done
            "epochs": config.epochs,
            "step": 0,  # steps done in this epoch
            "steps": 0,  # per epoch
            "loss": None,  # mean of this epoch so far
            "losses": [],  # each as [epochs done, step, loss]
            "device_megabytes": None,  # most memory that the process has reserved on a CUDA device
            "images_per_second": None,
            "error": "",
            "pid": os.getpid(),
        }

    def write(self, state: str, run: "Run | None" = None, **figures: Any) -> None:
        """Record the state: starting, training, validating, stopped, failed or done."""
        self.values |= {"state": state, **figures, "updated": time.time()}
        if run:
            self.values |= {"epoch": run.epoch, "step": run.batch, "steps": run.steps_per_epoch}
            if run.device.type == "cuda":
                reserved = torch.cuda.max_memory_reserved(run.device)
                self.values["device_megabytes"] = round(reserved / 1e6)
            if "loss" in figures:
                self.values["losses"].append([run.epoch, run.batch, figures["loss"]])
                if len(self.values["losses"]) > MOST_LOSSES:
                    del self.values["losses"][1::2]
        if self.active:
            write_text(self.path, json.dumps(self.values, indent=1) + "\n")
        if run and figures:
            self.plot("step", figures, run.epoch * run.steps_per_epoch + run.batch)

    def plot(self, by: str, figures: Mapping[str, float], at: int) -> None:
        """Add numbers to TensorBoard's files, if there are any. by: step or epoch, of number at."""
        if self.open_board:
            self.board = self.board or self.open_board(str(self.path.with_name("tensorboard")))
            for name, value in figures.items():
                self.board.add_scalar(f"{by}/{name}", value, at)
            self.board.flush()

    def __enter__(self) -> "ProgressFile":
        self.write("starting")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.write("done", step=0)
        elif isinstance(error, KeyboardInterrupt):
            self.write("stopped")
        else:
            self.write("failed", error=" ".join(str(error).split()) or type(error).__name__)
        if self.board:
            self.board.close()


class Run:
    """Step, averages, optimizer, schedule and position: everything that a resumed run needs."""

    def __init__(
        self,
        config: TrainConfig,
        photos: Sequence[Photo] = (),
        status: ProgressFile | None = None,
        *,
        steps_per_epoch: int,
        worker: Worker | None = None,
        criterion: type[Distillation] | None = None,
        initialise: bool = True,
    ) -> None:
        """initialise: load the initial weights; a run to be resumed does not need them."""
        self.config, self.steps_per_epoch = config, steps_per_epoch
        self.status = status or ProgressFile(config, write=False)
        self.worker = worker or Worker(0, 1, pick_device(config.device))
        self.device = self.worker.device
        self.step = make_step(
            config if initialise else config.replace(init="scratch", weights=""),
            device=self.device,
            steps=config.epochs * steps_per_epoch,
            criterion=criterion,
        )
        share_state(self.step.trained)
        self.model = self.step.model
        self.ema = Averages(self.model, config.ema_decay) if config.ema_decay else None
        # the averaged weights, or the trained ones if there is no average
        self.averaged_model = self.ema.module if self.ema else self.model
        self.optimizer = make_optimizer(self.step.trained, config)
        self.scheduler = make_scheduler(self.optimizer, config, steps_per_epoch)
        self.facts = facts_of(self.step, config, photos, processes=self.worker.processes)
        self.log: list[dict[str, Any]] = []  # one row per epoch done
        self.epoch = 0  # epochs done
        self.batch = 0  # batches done in this epoch
        self.sums: dict[str, Tensor] = {}  # of the loss terms over these batches
        self.seconds = 0.0  # spent on them
        self.waited = 0.0  # of these, for the loader
        self.best_ap = -1.0  # highest validation AP so far

    @property
    def images_per_step(self) -> int:
        """The batch size, or the number of photos if that is smaller."""
        photos = self.facts["data"]["photos"]
        return min(self.config.batch_size, photos or self.config.batch_size)

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0..1."""
        return (self.epoch + self.batch / self.steps_per_epoch) / self.config.epochs

    @property
    def description(self) -> str:
        """The run in one line."""
        config, count, data = self.config, self.worker.processes, self.facts["data"]
        batch = f"{self.images_per_step} images per step"
        if count > 1:
            batch += f" ({count} processes of {self.images_per_step // count})"
        if config.accumulate > 1:
            batch += f" in {config.accumulate} parts"
        return (
            f"{config.model}: {data['photos']:,} photos, {data['faces']:,} faces, "
            f"{config.epochs} epochs of {self.steps_per_epoch} steps on {self.device}, from epoch "
            f"{self.epoch}; {batch}, learning rate up to {config.lr:g}"
        )

    def print0(self, text: str) -> None:
        """Print a line, from rank 0 only."""
        if self.worker.first:
            tqdm.write(text)

    def finish_epoch(self, scores: dict[str, float]) -> None:
        """Add the epoch's row to the log, write the log and reset the counters."""
        means = {name: float(value) / self.batch for name, value in self.sums.items()}
        row: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "lr": self.scheduler.get_last_lr()[0],
            **means,
            "images_per_second": self.batch * self.images_per_step / self.seconds,
            "seconds": self.seconds,
            "loader_share": self.waited / self.seconds,
            **scores,
        }
        self.log.append(row)
        self.epoch, self.batch, self.sums = self.epoch + 1, 0, {}
        self.seconds = self.waited = 0.0
        if self.worker.first:
            table = pd.DataFrame(self.log)
            write_text(log_path(self.config), table.to_csv(index=False, float_format="%.6g"))
        self.status.write("training", self)
        self.status.plot("epoch", row, self.epoch)

    def save(self, path: Path) -> None:
        """Write everything to resume from. All processes call this; rank 0 writes."""
        self._refuse_non_finite()
        random = gather_states(random_state(self.device))
        if not self.worker.first:
            return
        content = self.facts | {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "trained": self.step.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "log": self.log,
            "batch": self.batch,
            "sums": self.sums,
            "best_ap": self.best_ap,
            "seconds": self.seconds,
            "waited": self.waited,
            "rng_of_processes": random,
        }
        if self.ema:
            content |= {"ema": self.ema.module.state_dict(), "ema_updates": self.ema.updates}
        write_file(path, content)

    def save_weights(self, path: Path, notes: dict[str, Any] | None = None) -> None:
        """Write only the weights to use, what made them, and the notes."""
        self._refuse_non_finite()
        state = {k: v.cpu() for k, v in self.averaged_model.state_dict().items()}
        write_file(path, self.facts | {"epoch": self.epoch, "model": state} | (notes or {}))

    def _refuse_non_finite(self) -> None:
        """Raise TrainingError if any weight is not finite."""
        for name, value in self.step.trained.state_dict().items():
            if not torch.isfinite(value).all():
                raise TrainingError(
                    f"weights became infinite or not a number ({name}); "
                    "nothing was saved: resume from the last checkpoint, or use a lower --lr"
                )

    def resume(self, path: Path) -> None:
        """Restore the state that `save` wrote. Raises ConfigError for another run."""
        content = read_resumable(path)
        before, now = _in_words(content), _in_words(self.facts)
        for what in before:
            if before[what] != now[what]:
                raise ConfigError(
                    f"{path}: was trained with {what} ({before[what]}; now {now[what]}); resume it "
                    "with the same, or start a new run from its weights with --weights"
                )
        try:
            self._restore(content)
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise TrainingError(
                f"{path}: its state does not fit this run ({type(error).__name__}: {reason}); "
                "resume from another checkpoint"
            ) from error

    def _restore(self, content: dict[str, Any]) -> None:
        check_state(content, self.config.epochs, self.steps_per_epoch)
        self.step.trained.load_state_dict(content["trained"])
        if self.ema:
            self.ema.module.load_state_dict(content["ema"])
            self.ema.updates = content["ema_updates"]
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.load_state_dict(content["scheduler"])
        self.epoch, self.batch = content["epoch"], content["batch"]
        self.sums = {name: value.to(self.device) for name, value in content["sums"].items()}
        self.seconds, self.waited = content["seconds"], content["waited"]
        same = content["config"]["validate_photos"] == self.config.validate_photos
        if same and checkpoint_path(self.config, "best").exists():
            self.best_ap = content["best_ap"]  # else the next network validated is the best so far
        self.log = content["log"]
        states = content["rng_of_processes"]
        if len(states) == self.worker.processes:
            set_random_state(states[self.worker.rank], self.device)
            return
        # another number of processes than before: new random numbers on the GPUs
        set_random_state({"cpu": states[0]["cpu"]}, self.device)
        seed_device(self.config.seed + self.worker.rank + (self.epoch << 16), self.device)


def facts_of(
    step: Step, config: TrainConfig, photos: Sequence[Photo], *, processes: int
) -> dict[str, Any]:
    """Describe the run for its checkpoints: what it is trained with, and by what code."""
    faces = sum(len(photo.boxes) for photo in photos)
    criterion = type(step.criterion)
    return {
        "format": FORMAT,
        "architecture": config.model,
        "config": config.as_dict(),
        "data": {"photos": len(photos), "faces": faces, "fingerprint": fingerprint(photos)},
        "processes": processes,
        "teacher": digest_of(step.teacher.model) if step.teacher else "",
        "criterion": f"{criterion.__module__}.{criterion.__qualname__}" if step.criterion else "",
        "versions": versions(),
        "commit": commit(),
    }


def _in_words(facts: dict[str, Any]) -> dict[str, str]:
    """Say what a resumed run has in common with the run before."""
    data = facts["data"]
    return {
        "another network": facts["architecture"],
        "other photos": f"{data['photos']:,} photos, fingerprint {data['fingerprint'][:12]}",
        "another teacher": f"SHA-256 {facts['teacher'][:12]}",
        "another criterion": facts["criterion"],
    }


def read_resumable(path: Path) -> dict[str, Any]:
    """Read what `Run.save` wrote. Raises TrainingError for any other file."""
    content = read_file(path, "there is nothing to resume; start without --resume")
    if not is_checkpoint(content) or not isinstance(content.get("config"), dict):
        raise TrainingError(f"{path}: holds no training run to resume")
    if "optimizer" not in content:
        raise TrainingError(
            f"{path}: holds weights but no training state; resume from a …_epoch_N.pth or "
            "…_last.pth file"
        )
    if content["config"].keys() != SETTINGS.keys() or "criterion" not in content:
        raise TrainingError(
            f"{path}: was written by another version of this project; start a new run from its "
            "weights with --weights"
        )
    return content


def check_state(content: dict[str, Any], epochs: int, steps: int) -> None:
    """Raise ValueError if position, log and optimizer of a run's state contradict each other."""
    epoch, batch, log = content["epoch"], content["batch"], content["log"]
    if not (0 <= epoch <= epochs and 0 <= batch <= steps):
        raise ValueError(f"it is at epoch {epoch}, step {batch} of {epochs} epochs of {steps}")
    if [row["epoch"] for row in log] != list(range(1, epoch + 1)):
        raise ValueError(f"{epoch} epochs are done, but its log has other rows")
    if not all(isinstance(value, int | float) for row in log for value in row.values()):
        raise ValueError("its log holds something else than numbers")
    if (epoch or batch) and not content["optimizer"]["state"]:
        raise ValueError("the optimizer's state is empty")


def newest_intact(config: TrainConfig) -> Path:
    """The …_last.pth of the save folder or, if that is damaged, the newest intact …_epoch_N.pth.

    One line says so. Raises the error of …_last.pth if there is none.
    """
    last = checkpoint_path(config, "last")
    try:
        read_resumable(last)
        return last
    except CheckpointError as error:
        found = last.parent.glob(last.name.replace("last", "epoch_*"))
        numbers = (path.stem.rpartition("_")[2] for path in found)
        for number in sorted((int(each) for each in numbers if each.isdecimal()), reverse=True):
            path = checkpoint_path(config, number)
            try:
                read_resumable(path)
            except FeatherFaceError:
                continue
            tqdm.write(f"{error}; continuing from {path}")
            return path
        raise


def resumed_config(path: Path, explicit: dict[str, Any]) -> TrainConfig:
    """Return the config of the run in `path` with the explicit settings that may change.

    Raises ConfigError for a setting that would make it another run, such as another learning rate.
    """
    config = TrainConfig(**read_resumable(path)["config"])
    changed = [
        f"--{name.replace('_', '-')} {value} (was {getattr(config, name)})"
        for name, value in explicit.items()
        if not SETTINGS[name].metadata["free"] and value != getattr(config, name)
    ]
    if changed:
        raise ConfigError(
            f"{path}: a resumed run keeps its settings; leave out {', '.join(changed)}, or start "
            "a new run from its weights with --weights"
        )
    # a run that has started keeps the name of the backbone weights it started from
    return config.replace(**(explicit | {"backbone_weights": config.backbone_weights}))
