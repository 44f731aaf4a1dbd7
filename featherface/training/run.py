"""The state of a training run: what is built from a config, saved to a checkpoint and resumed."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherface.checkpoint import (
    FORMAT,
    is_checkpoint,
    load_backbone,
    load_model,
    read_file,
    write_file,
)
from featherface.config import TrainConfig
from featherface.devices import pick_device
from featherface.errors import ConfigError, TrainingError
from featherface.models.v1 import FeatherFaceV1
from featherface.models.v2 import FeatherFaceV2
from featherface.provenance import commit, versions
from featherface.training.ema import make_ema
from featherface.training.schedule import make_scheduler
from featherface.training.steps import DistillationStep, Step, SupervisedStep
from featherface.training.teacher import make_teacher

TEACHER_HINT = (
    "the student needs its V1 teacher: put the published V1 weights there, or train one with "
    "scripts/train_v1.py, or name another file with --teacher-model (see weights/README.md)"
)
# settings that say where and how fast a run goes, not what it computes: free to change on --resume
FREE_ON_RESUME = frozenset(
    "data training_dataset unlabelled teacher_model backbone_weights weights "
    "num_workers save_folder save_every device "
    "validate_every validate_photos validate_protocol".split()
)


def make_model(config: TrainConfig, teacher: nn.Module | None) -> nn.Module:
    """The network to train, started from `weights`, or its backbone as `init` says."""
    if config.model == "v1":
        model: nn.Module = FeatherFaceV1()
    else:
        model = FeatherFaceV2(dropblock_size=config.dropblock_size)
    if config.weights:
        start = load_model(config.weights)
        if start.name != config.model:
            raise ConfigError(
                f"{config.weights}: holds {start.name}, but {config.model} is trained"
            )
        model.load_state_dict(start.state_dict())
    elif config.init == "imagenet":
        load_backbone(model, config.backbone_weights)
    elif config.init == "teacher":
        if teacher is None:
            raise ConfigError("--init teacher needs a teacher; V1 has none: imagenet or scratch")
        model.backbone.load_state_dict(teacher.backbone.state_dict())  # type: ignore[union-attr]
    return model


def make_step(config: TrainConfig, *, device: torch.device, steps: int) -> Step:
    """V1 supervised, or V2 distilled from the teacher file that the config names, on the device.

    steps: of the whole run.
    """
    if config.model == "v1":
        return SupervisedStep(_placed(make_model(config, None), device), config)
    teacher = load_model(config.teacher_model, TEACHER_HINT)
    if teacher.name != "v1":
        raise ConfigError(f"{config.teacher_model}: holds {teacher.name}; the teacher must be V1")
    model = _placed(make_model(config, teacher), device)
    step = DistillationStep(
        model, make_teacher(_placed(teacher, device), config, device=device, steps=steps), config
    )
    step.trained.to(device)
    return step


def _placed(model: nn.Module, device: torch.device) -> nn.Module:
    """On the device, with the channels last in memory: as the photos come, and faster."""
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def make_optimizer(step: Step, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; biases, norms and fusion weights are not decayed."""
    parameters = [p for p in step.trained.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.lr,
    )


class Run:
    """Model, averages, optimizer, schedule and position; everything a resumed run needs."""

    def __init__(
        self,
        config: TrainConfig,
        steps_per_epoch: int,
        *,
        data: dict[str, Any] | None = None,
        start: bool = True,
    ) -> None:
        """data: what is trained on, as plain values: a resumed run must have the same.

        start: load what the config starts from; a run to be resumed does not need it.
        """
        self.config, self.data = config, data or {}
        self.provenance = {"versions": versions(), "commit": commit()}  # of the code that runs
        self.device = pick_device(config.device)
        self.step = make_step(
            config if start else config.replace(init="scratch", weights=""),
            device=self.device,
            steps=config.epochs * steps_per_epoch,
        )
        self.ema = make_ema(self.model, config.ema_decay) if config.ema_decay else None
        self.optimizer = make_optimizer(self.step, config)
        self.scheduler = make_scheduler(self.optimizer, config, steps_per_epoch)
        self.steps_per_epoch = steps_per_epoch
        self.epoch = 0  # epochs done
        self.batch = 0  # batches done of the epoch under way
        self.sums: dict[str, Tensor] = {}  # of the loss terms over those batches
        self.seconds = 0.0  # spent on them
        self.best_ap = -1.0  # highest validation AP so far

    @property
    def images_per_step(self) -> int:
        """The batch size, or the number of photos where there are fewer."""
        return min(self.config.batch_size, self.data.get("photos", self.config.batch_size))

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
        """Everything, to resume from."""
        self._refuse_non_finite()
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
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
            "rng": rng,
        }
        if self.ema:
            content |= {
                "ema": self.ema.module.state_dict(),
                "ema_updates": int(self.ema.n_averaged),
            }
        write_file(path, content)

    def save_weights(self, path: Path, notes: dict[str, Any] | None = None) -> None:
        """Only the weights to use, with what made them and the given notes."""
        self._refuse_non_finite()
        state = {k: v.cpu() for k, v in self.averaged_model.state_dict().items()}
        write_file(path, self._described() | {"model": state} | (notes or {}))

    def resume(self, path: Path) -> None:
        """Continue from `save`'s file, with the same settings as it was made with."""
        content = read_file(path, "there is nothing to resume; start without --resume")
        if not is_checkpoint(content) or "optimizer" not in content:
            raise TrainingError(f"{path}: holds weights but no training state; resume from a "
                                "…_epoch_N.pth or …_last.pth file")  # fmt: skip
        if content["architecture"] != self.config.model:
            raise TrainingError(f"{path}: is a run of {content['architecture']}, not of "
                                f"{self.config.model}")  # fmt: skip
        if self.data != content["data"] or self.steps_per_epoch != content["steps_per_epoch"]:
            raise ConfigError(
                f"{path}: was trained on other photos ({_described_data(content['data'])}; now "
                f"{_described_data(self.data)}); give it the same data, or start a new run from "
                "its weights with --weights"
            )
        self.step.trained.load_state_dict(content["trained"])
        if self.ema:
            self.ema.module.load_state_dict(content["ema"])
            self.ema.n_averaged.fill_(content["ema_updates"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.load_state_dict(content["scheduler"])
        self.epoch, self.batch = content["epoch"], content["batch"]
        self.sums = {name: value.to(self.device) for name, value in content["sums"].items()}
        self.seconds, self.best_ap = content["seconds"], content["best_ap"]
        torch.set_rng_state(content["rng"]["cpu"])
        if self.device.type == "cuda" and "cuda" in content["rng"]:
            torch.cuda.set_rng_state(content["rng"]["cuda"], self.device)


def _described_data(data: dict[str, Any]) -> str:
    fingerprint = str(data.get("fingerprint", ""))[:12]
    return f"{data.get('photos', 0):,} photos, fingerprint {fingerprint or 'unknown'}"


def resumed_config(path: Path, explicit: dict[str, Any]) -> TrainConfig:
    """The config of the run in `path`, with those of the explicit flags that may change.

    A different learning rate, batch size or length would silently be another run: ConfigError.
    """
    content = read_file(path, "there is nothing to resume; start without --resume")
    stored = content.get("config")
    if not is_checkpoint(content) or not isinstance(stored, dict):
        raise TrainingError(f"{path}: holds no training run to resume")
    known = {item.name for item in fields(TrainConfig)}
    config = TrainConfig(**{name: value for name, value in stored.items() if name in known})
    changed = [
        f"--{name.replace('_', '-')} {value} (was {getattr(config, name)})"
        for name, value in explicit.items()
        if name not in FREE_ON_RESUME and value != getattr(config, name)
    ]
    if changed:
        raise ConfigError(
            f"{path}: a resumed run keeps its settings; leave out {', '.join(changed)}, or start "
            "a new run from its weights with --weights"
        )
    return config.replace(**explicit)
