"""The folder that a run writes to: the names in it, and that no other run is lost there."""

import itertools
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from featherface.checkpoint import (
    FORMAT,
    is_checkpoint,
    read_file,
    write_file,
)
from featherface.config import SETTINGS, TrainConfig
from featherface.distributed import (
    Process,
    gathered,
    pick_device,
    random_state,
    seed_device,
    set_random_state,
    share_state,
)
from featherface.errors import ConfigError, TrainingError
from featherface.files import atomic_path, commit, sha256, versions, write_text
from featherface.losses import Distillation
from featherface.training.optim import make_ema, make_scheduler
from featherface.training.step import TorchTeacher, digest_of, make_optimizer, make_step


def checkpoint_path(config: TrainConfig, what: int | str) -> Path:
    """…/FeatherFaceV2_epoch_10.pth, …_last.pth (to resume from), …_best.pth, …_final.pth."""
    part = f"epoch_{what}" if isinstance(what, int) else what
    return Path(config.save_folder) / f"FeatherFace{config.model.upper()}_{part}.pth"


def log_path(config: TrainConfig) -> Path:
    """The table with a row an epoch."""
    return Path(config.save_folder) / "training_log.csv"


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


class TrainingLog:
    """Rows of one run; `resume_from(epoch)` drops the rows that the resumed run will write
    again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def resume_from(self, epoch: int) -> None:
        """Keep the rows of the `epoch` epochs that are done."""
        if not self.path.exists():
            return
        try:
            frame = pd.read_csv(self.path)
            self.rows = frame[frame["epoch"] <= epoch].to_dict("records")
        except (ValueError, KeyError) as error:
            raise TrainingError(
                f"{self.path}: not a training log ({error}); move it away to resume without it"
            ) from error

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with atomic_path(self.path) as temporary:
            pd.DataFrame(self.rows).to_csv(temporary, index=False, float_format="%.6g")


class ProgressFile:
    """progress.json in the save folder: where the run stands, for another process to read.

    As a context it writes how the run ends: done, stopped or failed. Each write is atomic.
    """

    def __init__(self, config: TrainConfig, *, write: bool) -> None:
        self.path = Path(config.save_folder) / "progress.json"
        self.active = write
        self.values: dict[str, Any] = {
            "state": "starting", "epoch": 0, "epochs": config.epochs, "step": 0, "steps": 0,
            "loss": None, "images_per_second": None, "error": "", "pid": os.getpid(),
        }  # fmt: skip

    def write(self, state: str, run: "Run | None" = None, **figures: Any) -> None:
        """Record the state: starting, training, validating, stopped, failed or done."""
        self.values |= {"state": state, **figures, "updated": time.time()}
        if run:
            self.values |= {"epoch": run.epoch, "step": run.batch, "steps": run.steps_per_epoch}
        if self.active:
            write_text(self.path, json.dumps(self.values, indent=1) + "\n")

    def __enter__(self) -> "ProgressFile":
        self.write("starting")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.write("done", step=0)
        elif isinstance(error, KeyboardInterrupt):
            self.write("stopped")
        else:
            text = " ".join(str(error).split()) or kind.__name__  # type: ignore[union-attr]
            self.write("failed", error=text)


class Run:
    """Model, averages, optimizer, schedule and position; everything a resumed run needs."""

    def __init__(
        self,
        config: TrainConfig,
        steps_per_epoch: int,
        *,
        data: dict[str, Any] | None = None,
        start: bool = True,
        process: Process | None = None,
        criterion: type[Distillation] | None = None,
    ) -> None:
        """data: what is trained on, as plain values: a resumed run must have the same.

        start: load what the config starts from; a run to be resumed does not need it. process: this
        one among those of the run; None: it is the only one.
        """
        self.config, self.data = config, data or {}
        self.provenance = {"versions": versions(), "commit": commit()}  # of the code that runs
        self.process = process or Process(0, 1, pick_device(config.device))
        self.device = self.process.device
        self.step = make_step(
            config if start else config.replace(init="scratch", weights=""),
            device=self.device,
            steps=config.epochs * steps_per_epoch,
            criterion=criterion,
        )
        share_state(self.step.trained)
        self.ema = make_ema(self.model, config.ema_decay) if config.ema_decay else None
        self.optimizer = make_optimizer(self.step, config)
        self.scheduler = make_scheduler(self.optimizer, config, steps_per_epoch)
        self.steps_per_epoch = steps_per_epoch
        self.epoch = 0  # epochs done
        self.batch = 0  # batches done of the epoch under way
        self.sums: dict[str, Tensor] = {}  # of the loss terms over those batches
        self.seconds = 0.0  # spent on them
        self.waited = 0.0  # of these, for the loader
        self.status = ProgressFile(config, write=False)
        self.best_ap = -1.0  # highest validation AP so far

    @property
    def images_per_step(self) -> int:
        """The batch size, or the number of photos where there are fewer."""
        return min(self.config.batch_size, self.data.get("photos", self.config.batch_size))

    @property
    def networks(self) -> list[nn.Module]:
        """The student, and the teacher where torch runs it."""
        teacher = getattr(self.step, "teacher", None)
        return [self.model] + ([teacher.model] if isinstance(teacher, TorchTeacher) else [])

    @property
    def teacher_digest(self) -> str:
        """Of the teacher's weights; "" without a teacher."""
        teacher = getattr(self.step, "teacher", None)
        return "" if teacher is None else digest_of(teacher.model)

    @property
    def description(self) -> str:
        """What is trained on what, in one line."""
        config, count = self.config, self.process.total
        batch = f"{self.images_per_step} images a step"
        if count > 1:
            batch += f" ({count} processes of {self.images_per_step // count})"
        if config.accumulate > 1:
            batch += f" in {config.accumulate} parts"
        return (
            f"{config.model}: {self.data.get('photos', 0):,} photos, "
            f"{self.data.get('faces', 0):,} faces, {config.epochs} epochs of "
            f"{self.steps_per_epoch} steps on {self.device}, from epoch {self.epoch}; {batch}, "
            f"learning rate up to {config.lr:g}"
        )

    def say(self, text: str) -> None:
        """A line for people, from the first process alone."""
        if self.process.first:
            tqdm.write(text)

    @property
    def model(self) -> nn.Module:
        return self.step.trained["model"]

    @property
    def averaged_model(self) -> nn.Module:
        """The averaged weights if there are any."""
        return self.ema.module if self.ema else self.model

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0..1."""
        return (self.epoch + self.batch / self.steps_per_epoch) / self.config.epochs

    def _described(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "architecture": self.config.model,
            "config": self.config.as_dict(),
            "epoch": self.epoch,
            "data": self.data,
            "processes": self.process.total,
            "teacher": self.teacher_digest,
            **self.provenance,
        }

    def _refuse_non_finite(self) -> None:
        """TrainingError instead of a checkpoint that nothing can go on from."""
        for name, value in self.step.trained.state_dict().items():
            if not torch.isfinite(value).all():
                raise TrainingError(
                    f"weights became infinite or not a number ({name}); "
                    "nothing was saved: resume from the last checkpoint, or use a lower --lr"
                )

    def save(self, path: Path) -> None:
        """Everything, to resume from. All processes call this; the first one writes."""
        self._refuse_non_finite()
        random = gathered(random_state(self.device))
        if not self.process.first:
            return
        content = self._described() | {
            "model": self.model.state_dict(),
            "trained": self.step.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "steps_per_epoch": self.steps_per_epoch,
            "batch": self.batch,
            "sums": self.sums,
            "best_ap": self.best_ap,
            "seconds": self.seconds,
            "waited": self.waited,
            "rng": random[0],
            "rng_of_processes": random,
        }
        if self.ema:
            content |= {
                "ema": self.ema.module.state_dict(),
                "ema_updates": self.ema.updates,
            }
        write_file(path, content)

    def save_weights(self, path: Path, notes: dict[str, Any] | None = None) -> None:
        """Only the weights to use, with what made them and the given notes."""
        self._refuse_non_finite()
        state = {k: v.cpu() for k, v in self.averaged_model.state_dict().items()}
        write_file(path, self._described() | {"model": state} | (notes or {}))

    def resume(self, path: Path) -> None:
        """Continue from `save`'s file, with the same settings as it was made with."""
        content = _resumable(path)
        if content["architecture"] != self.config.model:
            raise TrainingError(f"{path}: is a run of {content['architecture']}, not of "
                                f"{self.config.model}")  # fmt: skip
        if self.data != content["data"] or self.steps_per_epoch != content["steps_per_epoch"]:
            raise ConfigError(
                f"{path}: was trained on other photos ({_described_data(content['data'])}; now "
                f"{_described_data(self.data)}); give it the same data, or start a new run from "
                "its weights with --weights"
            )
        if content.get("teacher", self.teacher_digest) != self.teacher_digest:  # old files: unknown
            raise ConfigError(
                f"{path}: had another teacher than {self.config.teacher_model} is now; give it the "
                "same one (--teacher-model), or start a new run from its weights with --weights"
            )
        self.step.trained.load_state_dict(content["trained"])
        if self.ema:
            self.ema.module.load_state_dict(content["ema"])
            self.ema.updates = content["ema_updates"]
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.load_state_dict(content["scheduler"])
        self.epoch, self.batch = content["epoch"], content["batch"]
        self.sums = {name: value.to(self.device) for name, value in content["sums"].items()}
        self.seconds = content["seconds"]
        same = content["config"].get("validate_photos") == self.config.validate_photos
        if checkpoint_path(self.config, "best").exists() and same:
            self.best_ap = content["best_ap"]  # else the next network measured is the best so far
        self.waited = content.get("waited", 0.0)
        states = content.get("rng_of_processes", [content["rng"]])
        if len(states) == self.process.total:
            set_random_state(states[self.process.number], self.device)
            return
        # other processes than before: those after the first start their GPU's numbers anew
        set_random_state({"cpu": states[0]["cpu"]}, self.device)
        seed_device(self.config.seed + self.process.number + (self.epoch << 16), self.device)


def _described_data(data: dict[str, Any]) -> str:
    fingerprint = str(data.get("fingerprint", ""))[:12]
    return f"{data.get('photos', 0):,} photos, fingerprint {fingerprint or 'unknown'}"


def _resumable(path: Path) -> dict[str, Any]:
    """What `Run.save` has written. TrainingError for a file that nothing can go on from."""
    content = read_file(path, "there is nothing to resume; start without --resume")
    if not is_checkpoint(content) or not isinstance(content.get("config"), dict):
        raise TrainingError(f"{path}: holds no training run to resume")
    if "optimizer" not in content:
        raise TrainingError(
            f"{path}: holds weights but no training state; resume from a …_epoch_N.pth or "
            "…_last.pth file"
        )
    return content


def resumed_config(path: Path, explicit: dict[str, Any]) -> TrainConfig:
    """The config of the run in `path`, with those of the explicit flags that may change.

    A different learning rate, batch size or length would silently be another run: ConfigError.
    """
    config = TrainConfig(**known_settings(_resumable(path)["config"]))
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
    # the run has started from the backbone weights that it names
    return config.replace(**(explicit | {"backbone_weights": config.backbone_weights}))


def known_settings(stored: dict[str, Any]) -> dict[str, Any]:
    """Return those settings of a checkpoint that still exist."""
    return {name: value for name, value in stored.items() if name in SETTINGS}
