"""The one seam of training: a step takes images and targets and returns named losses.

V1 learns from the labels; V2 from the labels and from V1. Both run under the same loop.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from featherface.anchors import make_anchors
from featherface.config import TrainConfig
from featherface.losses.distillation import Distillation
from featherface.losses.multibox import multibox
from featherface.structures import Predictions, Target
from featherface.training.teacher import Answer, Teacher


class Step(Protocol):
    """`trained` owns every parameter that the optimizer updates; "loss" is what is minimised.

    faces: how many the targets hold at most, padding not counted, if known: see anchors.match.
    """

    trained: nn.ModuleDict

    def __call__(
        self, images: Tensor, targets: Target, faces: int | None = None
    ) -> dict[str, Tensor]: ...


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager:
    """The precision to run a step in, as the config's `amp` says.

    V1 on a CPU is always float32: its deformable convolution knows no bfloat16 there.
    """
    if config.model == "v1" and device.type == "cpu":
        return nullcontext()
    on_cuda = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if config.amp == "bf16" or (config.amp == "auto" and on_cuda):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def _task(
    predictions: Predictions,
    targets: Target,
    anchors: Tensor,
    config: TrainConfig,
    faces: int | None,
) -> tuple[dict[str, Tensor], Tensor]:
    return multibox(
        predictions,
        targets,
        anchors,
        box_weight=config.box_weight,
        landmark_weight=config.landmark_weight,
        negative_ratio=config.negative_ratio,
        faces=faces,
    )


def _anchors(images: Tensor) -> Tensor:
    return make_anchors(images.shape[2], images.shape[3], images.device)


class SupervisedStep:
    """Labels only."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.config = config
        self.trained = nn.ModuleDict({"model": model})

    def student(self, images: Tensor) -> Answer:
        """The network's answer, with gradient, for (B, 3, H, W); its features are not needed."""
        return Answer(self.trained["model"](images), [])

    def __call__(
        self, images: Tensor, targets: Target, faces: int | None = None
    ) -> dict[str, Tensor]:
        config = self.config
        answer = in_parts(self.student, images, config.accumulate, self.trained["model"])
        terms, _ = _task(answer.predictions, targets, _anchors(images), config, faces)
        return {"loss": terms["task"], **terms}


class DistillationStep:
    """total = (1 − α)·task + α·distill + λ·feature; teacher and student see the same images."""

    def __init__(self, model: nn.Module, teacher: Teacher, config: TrainConfig) -> None:
        self.config = config
        self.teacher = teacher
        criterion = Distillation(
            model.feature_channels,  # type: ignore[arg-type]
            teacher.model.feature_channels,  # type: ignore[arg-type]
            temperature=config.temperature,
            form=config.distill_form,
            crowd_power=config.crowd_power,
            box_form=config.distill_box,
            feature_form=config.feature_form,
            feature_attention=config.feature_attention,
            box_weight=config.box_weight,
            landmark_weight=config.landmark_weight,
        )
        self.trained = nn.ModuleDict({"model": model, "criterion": criterion})

    def student(self, images: Tensor) -> Answer:
        """The student's answer, with gradient, for (B, 3, H, W)."""
        student = self.trained["model"]
        features = student.forward_features(images)  # type: ignore[operator]
        answer = Answer(student.forward_head(features), features)  # type: ignore[operator]
        return answer if self.config.feature_weight else answer._replace(features=[])

    def __call__(
        self, images: Tensor, targets: Target, faces: int | None = None
    ) -> dict[str, Tensor]:
        parts = self.config.accumulate
        teacher = _joined([self.teacher(part) for part in images.chunk(parts)])
        student = in_parts(self.student, images, parts, self.trained["model"])
        return self.losses(student, teacher, targets, _anchors(images), faces)

    def losses(
        self,
        student: Answer,
        teacher: Answer,
        targets: Target,
        anchors: Tensor,
        faces: int | None = None,
    ) -> dict[str, Tensor]:
        """The named terms of both answers to the same images, and their total "loss"."""
        config = self.config
        terms, selected = _task(student.predictions, targets, anchors, config, faces)
        terms |= self.trained["criterion"](
            student.predictions,
            teacher.predictions,
            student.features,
            teacher.features if config.feature_weight else [],
            anchors=anchors,
            selected=selected,
        )
        loss = (
            (1 - config.alpha) * terms["task"]
            + config.alpha * terms["distill"]
            + config.feature_weight * terms["feature"]
        )
        return {"loss": loss, **terms}


def in_parts(
    network: Callable[[Tensor], Answer], images: Tensor, parts: int, model: nn.Module
) -> Answer:
    """The answer for (B, 3, H, W), with the memory that the gradient needs of one part at a time.

    Gradient accumulation by checkpointing (arXiv 1604.06174): each part is computed again in the
    backward pass, so that the loss is that of the whole batch. Its sums over anchors and its
    correlation over the batch have no meaning in parts. Batch norms see one part at a time; their
    running statistics take each part once.
    """
    if parts == 1:
        return network(images)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), running_statistics_kept(model)

    answers = [
        checkpoint(network, part, use_reentrant=False, context_fn=contexts)
        for part in images.chunk(parts)
    ]
    return _joined(answers)


@contextmanager
def running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Batch norms leave their running averages and counts alone inside, in training mode too.

    By a momentum of 0: without their buffers they would keep other tensors for the gradient.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    counts = [norm.num_batches_tracked.clone() for norm in norms]  # type: ignore[union-attr]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)  # type: ignore[union-attr]


def _joined(answers: list[Answer]) -> Answer:
    """The answers for the parts of a batch as one."""
    if len(answers) == 1:
        return answers[0]
    predictions = zip(*(answer.predictions for answer in answers), strict=True)
    features = zip(*(answer.features for answer in answers), strict=True)
    return Answer(
        Predictions(*(torch.cat(parts) for parts in predictions)),
        [torch.cat(parts) for parts in features],
    )
