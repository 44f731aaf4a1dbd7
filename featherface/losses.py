"""Losses: MultiBox for labelled faces, and the distillation criterion.

The task loss is MultiBox (SSD, arXiv 1512.02325) with RetinaFace's landmark term. Distillation
copies the teacher's classes, boxes, landmarks and feature maps (PKD, arXiv 2207.02039; attention
as in FGD, arXiv 2111.11837).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert

from featherface.anchors import Matches, decode_boxes, encode_boxes, encode_landmarks, match
from featherface.config import VARIANCES
from featherface.distributed import mean_of, totals
from featherface.structures import Predictions, Target

NEGATIVE_RATIO = 7  # hard negatives per positive anchor
CONFIDENT = 0.3  # boxes and landmarks are copied where the teacher's face probability is higher
ATTENTION_TEMPERATURE = 0.5  # FGD's
MAX_SIZE_DELTA = math.log(1000 / 16) / VARIANCES[1]  # sides from 1/62.5 to 62.5 times the anchor's
_EPSILON = 1e-6  # added to a variance or a mean square of features


def hard_negatives(loss: Tensor, candidates: Tensor, count: Tensor) -> Tensor:
    """Mask the `count` (B,) candidates (B, A) of each image with the highest loss (B, A)."""
    order = loss.masked_fill(~candidates, -1.0).argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(loss.shape[1], device=loss.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, ranks)
    return candidates & (rank < count[:, None])


def _gather_faces(values: Tensor, face: Tensor) -> Tensor:
    """Gather values (B, F, ...) at the face (B, A) of each anchor → (B, A, ...)."""
    images = torch.arange(len(face), device=face.device)[:, None]
    return values[images, face]


def _class_weight(
    entropy: Tensor, matches: Matches, weight: Tensor, labelled: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weight (B, A) of each anchor's `entropy` (B, A) and the divisor of their sum.

    Positives count by their weight (B, A), mined negatives by 1. An image without a face is mined
    and counted as if it had one: its background teaches too. An unlabelled image is neither.
    """
    positives = weight.sum(dim=1).clamp(min=1.0) * labelled  # two half-transparent faces are one
    count = (NEGATIVE_RATIO * positives).round()  # (B,)
    candidates = ~(matches.positive | matches.ignored)
    chosen = weight + hard_negatives(entropy.detach(), candidates, count)
    return chosen, positives.sum()


def _entropy(logits: Tensor, matches: Matches) -> Tensor:
    """Cross-entropy of logits (B, A, 2) with the matched classes → (B, A)."""
    wanted = matches.positive.long()
    each = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
    return each.view_as(wanted)


def _box_distance(deltas: Tensor, targets: Target, matches: Matches, anchors: Tensor) -> Tensor:
    """Smooth L1 of box deltas (B, A, 4) to each positive anchor's face → (B, A)."""
    # where no face is matched the anchor is its own target: a zero-area padding box has no log
    own = box_convert(anchors, "cxcywh", "xyxy")
    boxes = _gather_faces(targets.boxes, matches.face)
    wanted = encode_boxes(torch.where(matches.positive[..., None], boxes, own), anchors)
    return F.smooth_l1_loss(deltas, wanted, reduction="none").sum(-1)


def _landmark_distance(
    deltas: Tensor, targets: Target, matches: Matches, anchors: Tensor
) -> tuple[Tensor, Tensor]:
    """Smooth L1 of landmark deltas (B, A, 10) over the annotated points → (B, A).

    The second tensor (B, A) marks the anchors with at least one annotated point.
    """
    points = _gather_faces(targets.landmarks, matches.face)  # (B, A, 5, 2)
    annotated = _gather_faces(targets.landmark_mask, matches.face)  # (B, A, 5)
    annotated = annotated & matches.positive[..., None]
    wanted = encode_landmarks(torch.where(annotated[..., None], points, 0.0), anchors)
    each = F.smooth_l1_loss(deltas, wanted, reduction="none").unflatten(-1, (5, 2))
    return (each.sum(-1) * annotated).sum(-1), annotated.any(-1)


def multibox(
    predictions: Predictions,
    targets: Target,
    anchors: Tensor,
    *,
    box_weight: float,
    landmark_weight: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return named scalar terms, and the weight (B, A) float32 of each anchor in the class term.

    Terms: `class`, `box`, `landmark` (unweighted) and their weighted sum `task`. Two-class
    cross-entropy over positives and NEGATIVE_RATIO hard negatives for each, smooth L1 on box
    deltas, smooth L1 on the annotated landmark deltas. Terms of a face carry its weight; sums are
    divided by the sum of the positives' weights (landmarks: of those with a landmark), at least 1,
    so that a batch without a face is finite. Computed in float32. A distributed run gets the terms
    of the whole batch.

    An unlabelled image takes no part: no positives, no negatives, not counted. The anchors' weight
    (a positive's, 1 for a mined negative, else 0) carries no gradient.
    """
    box_deltas, logits, landmark_deltas = (part.float() for part in predictions)
    known = targets._replace(weight=targets.weight * targets.labelled[:, None])
    targets = known.with_count(targets.face_count)
    if targets.boxes.shape[1] == 0:  # no face in the whole batch: there must be a row to gather
        targets = _one_padding_row(targets)
    matches = match(targets, anchors)
    weight = _gather_faces(targets.weight, matches.face) * matches.positive  # (B, A)
    box = _box_distance(box_deltas, targets, matches, anchors)
    landmark, annotated = _landmark_distance(landmark_deltas, targets, matches, anchors)
    entropy = _entropy(logits, matches)
    chosen, divisor = _class_weight(entropy, matches, weight, targets.labelled)
    sums = (entropy * chosen).sum(), (box * weight).sum(), (landmark * weight).sum()
    counts = divisor, weight.sum(), (weight * annotated).sum()
    parts = totals(*sums, *counts)
    means = [part / count.clamp(min=1.0) for part, count in zip(parts[:3], parts[3:], strict=True)]
    terms = dict(zip(("class", "box", "landmark"), means, strict=True))
    task = terms["class"] + box_weight * terms["box"] + landmark_weight * terms["landmark"]
    return {**terms, "task": task}, chosen


def _one_padding_row(targets: Target) -> Target:
    faces = (F.pad(part, (0, 0) * (part.ndim - 2) + (0, 1)) for part in targets[:-1])
    return Target._make((*faces, targets.labelled))


def class_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(teacher ‖ student) per anchor: logits (B, A, 2) → (B, A)."""
    log_student = F.log_softmax(student / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher / temperature, dim=-1)
    kl = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
    return kl * temperature**2


def decode_clamped(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Decode deltas (..., A, 4) to boxes x1, y1, x2, y2 (..., A, 4) in pixels, of sane size.

    Size deltas are clamped to ±MAX_SIZE_DELTA before the exp, which would overflow, or shrink to no
    area, for an early student. The gradient is that at the bound, not 0: under GIoU a huge box
    around the teacher's has no other gradient and could never shrink again.
    """
    center, size = deltas.split(2, dim=-1)
    size = size + (size.clamp(-MAX_SIZE_DELTA, MAX_SIZE_DELTA) - size).detach()
    return decode_boxes(torch.cat((center, size), dim=-1), anchors)


def giou_loss(boxes: Tensor, others: Tensor) -> Tensor:
    """1 − GIoU, 0..2, of pairs of boxes x1, y1, x2, y2 (..., 4) → (...).

    Equals torchvision.ops.generalized_box_iou_loss (the test oracle), which indexes with a boolean
    mask and makes a GPU wait for its host at every call.
    """
    low, high = boxes.split(2, dim=-1)
    other_low, other_high = others.split(2, dim=-1)
    both = torch.minimum(high, other_high) - torch.maximum(low, other_low)
    intersection = _area(both.clamp(min=0.0))
    union = _area(high - low) + _area(other_high - other_low) - intersection
    around = _area(torch.maximum(high, other_high) - torch.minimum(low, other_low))
    return 1 - intersection / (union + 1e-7) + (around - union) / (around + 1e-7)


def _area(size: Tensor) -> Tensor:
    """(..., 2) → (...). Not prod(): its backward waits for the device to look for zeros."""
    return size[..., 0] * size[..., 1]


def spatial_attention(features: Tensor) -> Tensor:
    """Weight the positions of a map (B, C, H, W) → (B, 1, H, W) float32, mean 1, no gradient.

    H·W·softmax over positions of (mean |activation| over channels) / T, with FGD's T = 0.5.
    """
    activity = features.detach().float().abs().mean(1, keepdim=True)
    flat = (activity.flatten(1) / ATTENTION_TEMPERATURE).softmax(-1) * activity[0].numel()
    return flat.view_as(activity)


def pearson_distance(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """1 − correlation, 0..2, of two maps (B, C, H, W), averaged over channels.

    A channel is correlated over batch and positions; `weight` (B, 1, H, W) of mean 1 applies to
    means, variances and covariance. A constant channel equals its mean: finite, no gradient.
    """

    def standardised(x: Tensor) -> Tensor:
        x = x.float()
        x = x - mean_of((weight * x).mean((0, 2, 3), keepdim=True))
        spread = mean_of((weight * x.square()).mean((0, 2, 3), keepdim=True))
        return x * torch.rsqrt(spread + _EPSILON)

    return mean_of((weight * (standardised(student) - standardised(teacher)).square()).mean()) / 2


def l2_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared error of two maps (B, C, H, W), each divided by its RMS.

    The RMS is one number per map, over batch, channels and positions, so that strong channels stay
    stronger (Pearson makes all channels alike). Equals 1 − cosine of the two maps, 0..2.
    """

    def scaled(x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(mean_of(x.square().mean()) + _EPSILON)

    return mean_of((scaled(student) - scaled(teacher)).square().mean()) / 2


class Distillation(nn.Module):
    """The distillation criterion, recipe "improved".

    Classes: KL divergence, weighted per anchor (`anchor_weight`). Boxes: 1 − GIoU. Landmarks:
    smooth L1. Features: Pearson distance after a trained 1×1 projection per level, weighted by the
    teacher's attention. Its projections are trained, so the optimizer must own this module.
    Override a method for another form, and pass the class to `train(config, criterion=…)`.
    """

    projection_bias = False  # a correlation does not see it

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        temperature: float,
        box_weight: float,
        landmark_weight: float,
        levels: int = 3,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.box_weight, self.landmark_weight = box_weight, landmark_weight
        self.projections = nn.ModuleList(
            nn.Conv2d(student_channels, teacher_channels, 1, bias=self.projection_bias)
            for _ in range(levels)
        )

    def anchor_weight(self, student: Tensor, teacher: Tensor, selected: Tensor) -> Tensor:
        """Weight each anchor in the class KL: p_t + |p_t − p_s| + selected → (B, A).

        student, teacher (B, A): face probabilities p_s, p_t at temperature 1. selected (B, A): the
        weight of the anchor in the task's class term, counted as at most 1. No gradient.
        """
        return (teacher - student).abs() + teacher + selected.clamp(0.0, 1.0)

    def box_distance(self, student: Tensor, teacher: Tensor, anchors: Tensor) -> Tensor:
        """Compare two boxes per anchor, from deltas (B, A, 4) → (B, A)."""
        return giou_loss(decode_clamped(student, anchors), decode_clamped(teacher, anchors))

    def feature_distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare two maps (B, C, H, W) → scalar in 0..1."""
        return pearson_distance(student, teacher, spatial_attention(teacher))

    def _class(
        self, student: Tensor, teacher: Tensor, teacher_face: Tensor, selected: Tensor
    ) -> Tensor:
        """Weighted mean of the KL over anchors, from logits (B, A, 2).

        teacher_face (B, A): the teacher's face probability.
        """
        student_face = student.detach().softmax(-1)[..., 1]
        weight = self.anchor_weight(student_face, teacher_face, selected.detach().float())
        kl = class_kl(student, teacher, self.temperature)
        total, scale = totals((kl * weight).sum(), weight.sum())
        return total / scale.clamp(min=1.0)

    def _box_and_landmarks(
        self, student: Predictions, teacher: Predictions, face: Tensor, anchors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Box and landmark term over confident anchors, weighted by face (B, A), the teacher's
        face probability.

        The landmark distance is smooth L1 on the x and y deltas, averaged over the five points. Its
        sum over ten deltas, in tenths of an anchor, would dominate a fresh student's loss: 18,
        against 4 of the class term and 0.6 of the GIoU.
        """
        weight = face * (face > CONFIDENT)
        box = self.box_distance(student.box_deltas, teacher.box_deltas, anchors)
        landmark = F.smooth_l1_loss(
            student.landmark_deltas, teacher.landmark_deltas, reduction="none"
        )
        landmark = landmark.unflatten(-1, (5, 2)).sum(-1).mean(-1)  # (B, A)
        sums = (box * weight).sum(), (landmark * weight).sum(), weight.sum()
        box, landmark, scale = totals(*sums)
        return box / scale.clamp(min=1.0), landmark / scale.clamp(min=1.0)

    def _feature(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """Mean distance over the levels, from maps (B, C, H, W) of each network; 0 without maps."""
        if not student and not teacher:
            return torch.zeros((), device=next(self.parameters()).device)
        levels = []
        for project, mine, theirs in zip(self.projections, student, teacher, strict=True):
            projected, theirs = project(mine.float()), theirs.detach()
            if projected.shape != theirs.shape:
                raise ValueError(
                    f"projected student features {tuple(projected.shape)} and teacher features "
                    f"{tuple(theirs.shape)} differ in shape"
                )
            levels.append(self.feature_distance(projected, theirs))
        return torch.stack(levels).mean()

    def forward(
        self,
        student: Predictions,
        teacher: Predictions,
        student_features: list[Tensor],
        teacher_features: list[Tensor],
        *,
        anchors: Tensor,
        selected: Tensor,
    ) -> dict[str, Tensor]:
        """Return named scalar terms, `distill` (class + weighted box and landmark) and `feature`.

        `anchors` (A, 4) cx, cy, w, h in pixels; `selected` (B, A): the weight of each anchor in the
        task's class term. Boxes and landmarks count where the teacher's face probability is above
        CONFIDENT. Sums are divided by the sum of the weights, at least 1: a batch with few
        confident anchors is finite and not amplified.

        Computed in float32, under autocast too. Raises ValueError if the feature maps do not fit.
        """
        with torch.autocast(student.class_logits.device.type, enabled=False):
            student = Predictions(*(part.float() for part in student))
            teacher = Predictions(*(part.detach().float() for part in teacher))
            face = teacher.class_logits.softmax(-1)[..., 1]  # (B, A)
            classes = self._class(student.class_logits, teacher.class_logits, face, selected)
            box, landmark = self._box_and_landmarks(student, teacher, face, anchors)
            feature = self._feature(student_features, teacher_features)
        return {
            "distill_class": classes,
            "distill_box": box,
            "distill_landmark": landmark,
            "distill": classes + self.box_weight * box + self.landmark_weight * landmark,
            "feature": feature,
        }


class PublishedDistillation(Distillation):
    """Recipe "published": all anchors count alike, boxes by smooth L1, features by L2."""

    projection_bias = True

    def anchor_weight(self, student: Tensor, teacher: Tensor, selected: Tensor) -> Tensor:
        return torch.ones_like(teacher)

    def box_distance(self, student: Tensor, teacher: Tensor, anchors: Tensor) -> Tensor:
        return F.smooth_l1_loss(student, teacher, reduction="none").sum(-1)

    def feature_distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return l2_distance(student, teacher)


RECIPES: dict[str, type[Distillation]] = {
    "improved": Distillation,
    "published": PublishedDistillation,
}
