"""What a run is made of, from its config: the network, the step that trains it, the optimizer."""

import torch
from torch import nn

from featherface.checkpoint import load_backbone, load_model
from featherface.config import TrainConfig
from featherface.errors import ConfigError
from featherface.models.layers import keep_norms
from featherface.models.v1 import FeatherFaceV1
from featherface.models.v2 import FeatherFaceV2
from featherface.training.answers import RememberingTeacher
from featherface.training.folder import answers_folder
from featherface.training.processes import with_shared_norms
from featherface.training.steps import DistillationStep, Step, SupervisedStep
from featherface.training.teacher import make_teacher

TEACHER_HINT = (
    "the student needs its V1 teacher: put the published V1 weights there, or train one with "
    "scripts/train_v1.py, or name another file with --teacher-model (see weights/README.md)"
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
    teacher = None if config.model == "v1" else load_teacher(config)
    model = make_model(config, teacher)
    model.backbone.freeze(config.frozen_blocks)  # type: ignore[operator, union-attr]
    if config.frozen_norms == "on":
        keep_norms(model)
    else:
        model = with_shared_norms(model, config, device)
    model = _placed(model, device)
    if teacher is None:
        return SupervisedStep(model, config)
    engine = make_teacher(_placed(teacher, device), config, device=device, steps=steps)
    if config.replay_epochs:
        if device.type != "cpu":
            raise ConfigError(
                f"--replay-epochs is for a CPU, where the teacher takes long; leave it out on "
                f"{device}"
            )
        engine = RememberingTeacher(engine, answers_folder(config))
    step = DistillationStep(model, engine, config)
    step.trained.to(device)
    return step


def load_teacher(config: TrainConfig) -> nn.Module:
    """The V1 that the config names. Raises ConfigError for another network."""
    teacher = load_model(config.teacher_model, TEACHER_HINT)
    if teacher.name != "v1":
        raise ConfigError(f"{config.teacher_model}: holds {teacher.name}; the teacher must be V1")
    return teacher


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
        # one kernel for all of them; a resumed run goes on with what its checkpoint says
        fused=True if all(p.device.type in ("cuda", "cpu") for p in parameters) else None,
    )
