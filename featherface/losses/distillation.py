"""What the student learns from the teacher's answers and features.

Class answers by KL at a temperature (Hinton et al., arXiv 1503.02531), boxes and landmarks where
the teacher is confident, features by Pearson correlation through trained projections (PKD, arXiv
2207.02039). A mean KL over all anchors is drowned by easy background (TDKD, ACM MM 2020), so the
weighted form looks where the teacher sees a face or the two disagree; the naive form stays for
comparison.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featherface.structures import Predictions

CONFIDENT = 0.3  # teacher's face probability from which its boxes and landmarks are worth copying


def class_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(teacher ‖ student) of each anchor: logits (B, A, 2) → (B, A)."""
    log_student = F.log_softmax(student / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher / temperature, dim=-1)
    kl = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
    return kl * temperature**2


def pearson_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 − correlation of two maps (B, C, H, W), a channel over batch and positions, averaged."""

    def standardised(x: Tensor) -> Tensor:
        mean = x.mean((0, 2, 3), keepdim=True)
        spread = x.var((0, 2, 3), keepdim=True, unbiased=False)
        return (x - mean) * torch.rsqrt(spread + 1e-6)

    return F.mse_loss(standardised(student.float()), standardised(teacher.float())) / 2


class Distillation(nn.Module):
    """The distillation criterion; its 1×1 projections are trained, so the optimizer must own it."""

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        temperature: float = 4.0,
        form: str = "weighted",
        box_weight: float = 2.0,
        landmark_weight: float = 1.0,
        levels: int = 3,
    ) -> None:
        super().__init__()
        self.temperature, self.form = temperature, form
        self.box_weight, self.landmark_weight = box_weight, landmark_weight
        self.projections = nn.ModuleList(
            nn.Conv2d(student_channels, teacher_channels, 1) for _ in range(levels)
        )

    def _anchor_weight(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Class-KL weight of each anchor (B, A), without gradient."""
        if self.form == "naive":
            return torch.ones_like(teacher)
        return teacher + (teacher - student.detach()).abs()

    def forward(
        self,
        student: Predictions,
        teacher: Predictions,
        student_features: list[Tensor],
        teacher_features: list[Tensor],
    ) -> dict[str, Tensor]:
        """Named scalar terms, `distill` (class + weighted box and landmark) and `feature`."""
        student = Predictions(*(part.float() for part in student))
        teacher = Predictions(*(part.float().detach() for part in teacher))
        student_face = student.class_logits.softmax(-1)[..., 1]  # (B, A)
        teacher_face = teacher.class_logits.softmax(-1)[..., 1]

        weight = self._anchor_weight(student_face, teacher_face)
        kl = class_kl(student.class_logits, teacher.class_logits, self.temperature)
        confident = teacher_face * (teacher_face > CONFIDENT)
        scale = confident.sum().clamp(min=1.0)
        box = F.smooth_l1_loss(student.box_deltas, teacher.box_deltas, reduction="none").sum(-1)
        landmark = F.smooth_l1_loss(
            student.landmark_deltas, teacher.landmark_deltas, reduction="none"
        ).sum(-1)
        feature = torch.stack(
            [
                pearson_distance(project(mine), theirs.detach())
                for project, mine, theirs in zip(
                    self.projections, student_features, teacher_features, strict=True
                )
            ]
        ).mean()
        terms = {
            "distill_class": (kl * weight).sum() / weight.sum().clamp(min=1e-6),
            "distill_box": (box * confident).sum() / scale,
            "distill_landmark": (landmark * confident).sum() / scale,
        }
        distill = (
            terms["distill_class"]
            + self.box_weight * terms["distill_box"]
            + self.landmark_weight * terms["distill_landmark"]
        )
        return {**terms, "distill": distill, "feature": feature}
