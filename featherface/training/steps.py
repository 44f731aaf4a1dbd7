"""The one seam of training: a step takes images and targets and returns named losses.

V1 learns from the labels; V2 from the labels and from V1. Both run under the same loop.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from featherface.anchors import make_anchors
from featherface.config import TrainConfig
from featherface.losses.distillation import Distillation
from featherface.losses.multibox import multibox_loss
from featherface.structures import Predictions, Target


class Step(Protocol):
    """`trained` owns every parameter that the optimizer updates; "loss" is what is minimised."""

    trained: nn.ModuleDict

    def __call__(self, images: Tensor, targets: Target) -> dict[str, Tensor]: ...


def _task(
    predictions: Predictions, targets: Target, images: Tensor, config: TrainConfig
) -> dict[str, Tensor]:
    return multibox_loss(
        predictions,
        targets,
        make_anchors(images.shape[2], images.shape[3], images.device),
        box_weight=config.box_weight,
        landmark_weight=config.landmark_weight,
        negative_ratio=config.negative_ratio,
    )


class SupervisedStep:
    """Labels only."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.config = config
        self.trained = nn.ModuleDict({"model": model})

    def __call__(self, images: Tensor, targets: Target) -> dict[str, Tensor]:
        terms = _task(self.trained["model"](images), targets, images, self.config)
        return {"loss": terms["task"], **terms}


class DistillationStep:
    """total = (1 − α)·task + α·distill + λ·feature; teacher and student see the same images."""

    def __init__(self, model: nn.Module, teacher: nn.Module, config: TrainConfig) -> None:
        self.config = config
        self.teacher = teacher.eval().requires_grad_(False)
        criterion = Distillation(
            model.feature_channels,  # type: ignore[arg-type]
            teacher.feature_channels,  # type: ignore[arg-type]
            temperature=config.temperature,
            form=config.distill_form,
            box_weight=config.box_weight,
            landmark_weight=config.landmark_weight,
        )
        self.trained = nn.ModuleDict({"model": model, "criterion": criterion})

    def __call__(self, images: Tensor, targets: Target) -> dict[str, Tensor]:
        config, student = self.config, self.trained["model"]
        with torch.no_grad():
            teacher_features = self.teacher.forward_features(images)  # type: ignore[operator]
            teacher = self.teacher.forward_head(teacher_features)  # type: ignore[operator]
        features = student.forward_features(images)  # type: ignore[operator]
        predictions = student.forward_head(features)  # type: ignore[operator]
        terms = _task(predictions, targets, images, config)
        terms |= self.trained["criterion"](predictions, teacher, features, teacher_features)
        loss = (
            (1 - config.alpha) * terms["task"]
            + config.alpha * terms["distill"]
            + config.feature_weight * terms["feature"]
        )
        return {"loss": loss, **terms}
