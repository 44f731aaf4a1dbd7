"""The one seam of training: a step takes images and targets and returns named losses.

V1 learns from the labels; V2 from the labels and from V1. Both run under the same loop.
"""

from typing import Protocol

from torch import Tensor, nn

from featherface.anchors import make_anchors
from featherface.config import TrainConfig
from featherface.losses.distillation import Distillation
from featherface.losses.multibox import multibox
from featherface.structures import Predictions, Target
from featherface.training.teacher import Teacher


class Step(Protocol):
    """`trained` owns every parameter that the optimizer updates; "loss" is what is minimised."""

    trained: nn.ModuleDict

    def __call__(self, images: Tensor, targets: Target) -> dict[str, Tensor]: ...


def _task(
    predictions: Predictions, targets: Target, anchors: Tensor, config: TrainConfig
) -> tuple[dict[str, Tensor], Tensor]:
    return multibox(
        predictions,
        targets,
        anchors,
        box_weight=config.box_weight,
        landmark_weight=config.landmark_weight,
        negative_ratio=config.negative_ratio,
    )


def _anchors(images: Tensor) -> Tensor:
    return make_anchors(images.shape[2], images.shape[3], images.device)


class SupervisedStep:
    """Labels only."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.config = config
        self.trained = nn.ModuleDict({"model": model})

    def __call__(self, images: Tensor, targets: Target) -> dict[str, Tensor]:
        terms, _ = _task(self.trained["model"](images), targets, _anchors(images), self.config)
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
            box_form=config.distill_box,
            feature_form=config.feature_form,
            feature_attention=config.feature_attention,
            box_weight=config.box_weight,
            landmark_weight=config.landmark_weight,
        )
        self.trained = nn.ModuleDict({"model": model, "criterion": criterion})

    def __call__(self, images: Tensor, targets: Target) -> dict[str, Tensor]:
        config, student, anchors = self.config, self.trained["model"], _anchors(images)
        teacher = self.teacher(images)
        features = student.forward_features(images)  # type: ignore[operator]
        predictions = student.forward_head(features)  # type: ignore[operator]
        terms, selected = _task(predictions, targets, anchors, config)
        terms |= self.trained["criterion"](
            predictions,
            teacher.predictions,
            features,
            teacher.features,
            anchors=anchors,
            selected=selected,
        )
        loss = (
            (1 - config.alpha) * terms["task"]
            + config.alpha * terms["distill"]
            + config.feature_weight * terms["feature"]
        )
        return {"loss": loss, **terms}
