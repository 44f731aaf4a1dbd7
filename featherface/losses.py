"""The task loss: MultiBox (SSD, arXiv 1512.02325) with RetinaFace's landmark term."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert

from featherface.anchors import Matches, decode_boxes, encode_boxes, encode_landmarks, match
from featherface.config import VARIANCES
from featherface.distributed import mean_of, totals
from featherface.structures import Predictions, Target


def hard_negatives(loss: Tensor, candidates: Tensor, count: Tensor) -> Tensor:
    """The `count` (B,) candidates (B, A) of each image with the highest loss (B, A), as a mask."""
    order = loss.masked_fill(~candidates, -1.0).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(loss.shape[1], device=loss.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    return candidates & (rank < count[:, None])


def _gather_faces(values: Tensor, face: Tensor) -> Tensor:
    """values (B, F, ...) at each anchor's face (B, A) → (B, A, ...)."""
    images = torch.arange(len(face), device=face.device)[:, None]
    return values[images, face]


def _class_weight(
    entropy: Tensor, matches: Matches, weight: Tensor, labelled: Tensor, negative_ratio: int
) -> tuple[Tensor, Tensor]:
    """The weight (B, A) of each anchor's `entropy` (B, A), and by how much to divide their sum.

    Positives count by their weight (B, A), mined negatives by 1. An image without a face is mined,
    and counted, as if it had one: its background teaches too. An unlabelled one is neither.
    """
    positives = weight.sum(dim=1).clamp(min=1.0) * labelled  # two half-transparent faces are one
    count = (negative_ratio * positives).round()  # (B,)
    candidates = ~(matches.positive | matches.ignored)
    chosen = weight + hard_negatives(entropy.detach(), candidates, count)
    return chosen, positives.sum()


def _entropy(logits: Tensor, matches: Matches) -> Tensor:
    """Cross-entropy of logits (B, A, 2) with what is matched, (B, A)."""
    wanted = matches.positive.long()
    each = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
    return each.view_as(wanted)


def _box_distance(deltas: Tensor, targets: Target, matches: Matches, anchors: Tensor) -> Tensor:
    """Smooth L1 of box deltas (B, A, 4) to each positive anchor's face, (B, A)."""
    # where no face is matched the anchor is its own target: a zero-area padding box has no log
    own = box_convert(anchors, "cxcywh", "xyxy")
    boxes = _gather_faces(targets.boxes, matches.face)
    wanted = encode_boxes(torch.where(matches.positive[..., None], boxes, own), anchors)
    return F.smooth_l1_loss(deltas, wanted, reduction="none").sum(-1)


def _landmark_distance(
    deltas: Tensor, targets: Target, matches: Matches, anchors: Tensor
) -> tuple[Tensor, Tensor]:
    """Smooth L1 of landmark deltas (B, A, 10) over the annotated points, and where any is: (B, A).

    0 where there is none.
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
    box_weight: float = 2.0,
    landmark_weight: float = 1.0,
    negative_ratio: int = 7,
    faces: int | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Named scalar terms, and the weight (B, A) float32 that each anchor had in the class term.

    Terms: `class`, `box`, `landmark` (unweighted) and their weighted sum `task`. Two-class
    cross-entropy over positives and `negative_ratio` hard negatives for each, smooth L1 on box
    deltas, smooth L1 on the landmark deltas that are annotated. Every face's terms carry its
    weight; the sums are divided by the sum of the positives' weights (landmarks: of those that have
    any), at least 1, so that a batch without a face is finite. Computed in float32. The terms of a
    distributed run are those of the whole batch. `faces`: see `match`.

    An unlabelled image takes no part: no positives, no negatives, not counted. The anchors' weight
    (a positive's, 1 for a mined negative, else 0) carries no gradient.
    """
    box_deltas, logits, landmark_deltas = (part.float() for part in predictions)
    targets = targets._replace(weight=targets.weight * targets.labelled[:, None])
    if targets.boxes.shape[1] == 0:  # no face in the whole batch: there must be a row to gather
        targets = _one_padding_row(targets)
    matches = match(targets, anchors, faces=faces)
    weight = _gather_faces(targets.weight, matches.face) * matches.positive  # (B, A)
    box = _box_distance(box_deltas, targets, matches, anchors)
    landmark, annotated = _landmark_distance(landmark_deltas, targets, matches, anchors)
    entropy = _entropy(logits, matches)
    chosen, divisor = _class_weight(entropy, matches, weight, targets.labelled, negative_ratio)
    sums = (entropy * chosen).sum(), (box * weight).sum(), (landmark * weight).sum()
    counts = divisor, weight.sum(), (weight * annotated).sum()
    parts = totals(*sums, *counts)
    means = [part / count.clamp(min=1.0) for part, count in zip(parts[:3], parts[3:], strict=True)]
    terms = dict(zip(("class", "box", "landmark"), means, strict=True))
    task = terms["class"] + box_weight * terms["box"] + landmark_weight * terms["landmark"]
    return {**terms, "task": task}, chosen


def multibox_loss(
    predictions: Predictions, targets: Target, anchors: Tensor, **options: Any
) -> dict[str, Tensor]:
    """The terms of `multibox` alone; same options."""
    return multibox(predictions, targets, anchors, **options)[0]


def _one_padding_row(targets: Target) -> Target:
    faces = (F.pad(part, (0, 0) * (part.ndim - 2) + (0, 1)) for part in targets[:-1])
    return Target._make((*faces, targets.labelled))


CONFIDENT = 0.3  # teacher's face probability from which its boxes and landmarks are worth copying
UNSURE = (0.1, 0.9)  # TDKD: the teacher's face probabilities that are worth more than a label
HALF_AT = 0.1  # difference of face probabilities that counts half under "saturating"
ATTENTION_TEMPERATURE = 0.5  # FGD's
MAX_SIZE_DELTA = (
    math.log(1000 / 16) / VARIANCES[1]
)  # sides up to 62.5 times the anchor's, or 1/62.5
_EPSILON = 1e-6  # added to a variance or a mean square of features

FORMS = ("naive", "weighted", "disagreement", "saturating", "band")
BOX_FORMS = ("giou", "smooth_l1")
FEATURE_FORMS = ("pkd", "l2")
ATTENTIONS = ("none", "teacher")


def class_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(teacher ‖ student) of each anchor: logits (B, A, 2) → (B, A)."""
    log_student = F.log_softmax(student / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher / temperature, dim=-1)
    kl = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
    return kl * temperature**2


def anchor_weight(
    form: str, student: Tensor, teacher: Tensor, selected: Tensor | None = None
) -> Tensor:
    """Class-KL weight of each anchor (B, A), without gradient.

    `student`, `teacher` (B, A): face probabilities p_s, p_t at temperature 1. naive: 1;
    weighted: p_t + |p_t − p_s|; disagreement: |p_t − p_s|; saturating: d²/(d² + HALF_AT²) of that
    d; band: 1 where p_t lies inside `UNSURE`. The KL's gradient in the logits is itself p_s − p_t
    at T = 1, so that sure background scored 0.2 pulls a sixteenth of what 0.8 does under
    disagreement, and a fifth under saturating.
    `selected` (B, A), the weight that the task's class term gave an anchor, is added in every form
    but naive, at most 1 an anchor.
    """
    student, teacher = student.detach(), teacher.detach()
    if form == "naive":
        return torch.ones_like(teacher)
    if form == "band":
        weight = ((teacher > UNSURE[0]) & (teacher < UNSURE[1])).to(teacher.dtype)
    else:
        weight = (teacher - student).abs()
        if form == "weighted":
            weight = weight + teacher
        elif form == "saturating":
            weight = weight.square() / (weight.square() + HALF_AT**2)
    return weight if selected is None else weight + selected.detach().float().clamp(0.0, 1.0)


def decode_clamped(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Deltas (..., A, 4) → boxes x1, y1, x2, y2 (..., A, 4) in pixels, of sane size.

    A size delta outside ±`MAX_SIZE_DELTA` counts as that, before the exp: a wild early student
    would overflow, or shrink to no area. Its gradient is the one at the bound, not 0: a huge box
    around the teacher's has no other gradient under GIoU and could never come back.
    """
    place, size = deltas.split(2, dim=-1)
    size = size + (size.clamp(-MAX_SIZE_DELTA, MAX_SIZE_DELTA) - size).detach()
    return decode_boxes(torch.cat((place, size), dim=-1), anchors)


def giou_loss(boxes: Tensor, others: Tensor) -> Tensor:
    """1 − GIoU, 0..2, of boxes x1, y1, x2, y2 (..., 4), pair by pair → (...).

    The values of torchvision.ops.generalized_box_iou_loss (its test oracle), which indexes with a
    boolean mask and so makes a GPU wait for its host at every call.
    """
    low, high = boxes.split(2, dim=-1)
    other_low, other_high = others.split(2, dim=-1)
    both = torch.minimum(high, other_high) - torch.maximum(low, other_low)
    intersection = _area(both.clamp(min=0.0))
    union = _area(high - low) + _area(other_high - other_low) - intersection
    around = _area(torch.maximum(high, other_high) - torch.minimum(low, other_low))
    return 1 - intersection / (union + 1e-7) + (around - union) / (around + 1e-7)


def _area(size: Tensor) -> Tensor:
    """(..., 2) → (...). Not prod(): its backward asks the device whether a factor is 0."""
    return size[..., 0] * size[..., 1]


def spatial_attention(features: Tensor) -> Tensor:
    """Where a map (B, C, H, W) is active: weights (B, 1, H, W), float32, mean 1, no gradient.

    H·W·softmax over positions of (mean |activation| over channels) / T, with FGD's T = 0.5.
    """
    activity = features.detach().float().abs().mean(1, keepdim=True)
    flat = (activity.flatten(1) / ATTENTION_TEMPERATURE).softmax(-1) * activity[0].numel()
    return flat.view_as(activity)


def pearson_distance(student: Tensor, teacher: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """1 − correlation, 0..2, of two maps (B, C, H, W), averaged over channels.

    A channel is correlated over batch and positions; `weight` (B, 1, H, W) of mean 1 weights the
    positions in means, variances and covariance alike. A channel that is constant (as is a map of
    one position in a batch of one) counts as its own mean: finite, without gradient.
    """

    def standardised(x: Tensor) -> Tensor:
        x = x.float()
        x = x - mean_of((weight * x).mean((0, 2, 3), keepdim=True))
        spread = mean_of((weight * x.square()).mean((0, 2, 3), keepdim=True))
        return x * torch.rsqrt(spread + _EPSILON)

    return mean_of((weight * (standardised(student) - standardised(teacher)).square()).mean()) / 2


def l2_distance(student: Tensor, teacher: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Half the mean squared error of two maps (B, C, H, W), each divided by its RMS.

    The RMS is one number a map, over batch, channels and positions, so that loud channels and
    places stay louder than others (Pearson makes all channels alike). Equals 1 − cosine of the two
    maps, 0..2, the range of `pearson_distance`, so one λ suits both. `weight` as there.
    """

    def scaled(x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(mean_of((weight * x.square()).mean()) + _EPSILON)

    return mean_of((weight * (scaled(student) - scaled(teacher)).square()).mean()) / 2


class Distillation(nn.Module):
    """The distillation criterion; its 1×1 projections are trained, so the optimizer must own it.

    form             weights of the anchors in the class KL, see `anchor_weight`
    crowd_power      an image whose anchors weigh W > 1 together counts W^crowd_power in the class
                     KL: at 1 a crowd of a hundred faces outvotes the images beside it, at 0 it
                     counts as one of them
    box_form         "giou" on decoded boxes, or "smooth_l1" summed over the four deltas
    feature_form     "pkd" (`pearson_distance`) or "l2" (`l2_distance`)
    feature_attention  "teacher": places by `spatial_attention` of the teacher; "none": all alike
    box_weight, landmark_weight  weights of these terms in `distill`
    levels           number of feature maps; a projection each. Under "pkd" it has no bias, which a
                     correlation does not see.

    ValueError for an unknown form.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        temperature: float = 4.0,
        form: str = "weighted",
        crowd_power: float = 1.0,
        box_form: str = "giou",
        feature_form: str = "pkd",
        feature_attention: str = "teacher",
        box_weight: float = 2.0,
        landmark_weight: float = 1.0,
        levels: int = 3,
    ) -> None:
        super().__init__()
        _check("form", form, FORMS)
        _check("box_form", box_form, BOX_FORMS)
        _check("feature_form", feature_form, FEATURE_FORMS)
        _check("feature_attention", feature_attention, ATTENTIONS)
        self.temperature, self.form, self.crowd_power = temperature, form, crowd_power
        self.box_form = box_form
        self.feature_form, self.feature_attention = feature_form, feature_attention
        self.box_weight, self.landmark_weight = box_weight, landmark_weight
        self.projections = nn.ModuleList(
            nn.Conv2d(student_channels, teacher_channels, 1, bias=feature_form != "pkd")
            for _ in range(levels)
        )

    def _class(
        self, student: Tensor, teacher: Tensor, teacher_face: Tensor, selected: Tensor | None
    ) -> Tensor:
        """Weighted mean of the KL over anchors, from logits (B, A, 2).

        teacher_face (B, A): the teacher's face probability.
        """
        student_face = student.softmax(-1)[..., 1]
        weight = anchor_weight(self.form, student_face, teacher_face, selected)
        if self.crowd_power != 1.0:
            together = weight.sum(1, keepdim=True).clamp(min=1.0)
            weight = weight * together ** (self.crowd_power - 1.0)
        kl = class_kl(student, teacher, self.temperature)
        total, scale = totals((kl * weight).sum(), weight.sum())
        return total / scale.clamp(min=1.0)

    def _box(self, student: Tensor, teacher: Tensor, anchors: Tensor) -> Tensor:
        """Distance of two boxes an anchor, from deltas (B, A, 4) → (B, A)."""
        if self.box_form == "giou":
            return giou_loss(decode_clamped(student, anchors), decode_clamped(teacher, anchors))
        return F.smooth_l1_loss(student, teacher, reduction="none").sum(-1)

    def _places(
        self, student: Predictions, teacher: Predictions, face: Tensor, anchors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Box and landmark term: over confident anchors, by the teacher's face probability (B, A).

        A landmark's distance is smooth L1 on its x and y deltas, averaged over the five points. The
        sum over the ten, in tenths of an anchor, began at 18 for a fresh student beside a class
        term of 4 and a GIoU of 0.6: the total would have taught landmarks first.
        """
        weight = face * (face > CONFIDENT)
        box = self._box(student.box_deltas, teacher.box_deltas, anchors)
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
        distance = pearson_distance if self.feature_form == "pkd" else l2_distance
        levels = []
        for project, mine, theirs in zip(self.projections, student, teacher, strict=True):
            projected, theirs = project(mine.float()), theirs.detach()
            if projected.shape != theirs.shape:
                raise ValueError(
                    f"projected student features {tuple(projected.shape)} and teacher features "
                    f"{tuple(theirs.shape)} differ in shape"
                )
            weight = spatial_attention(theirs) if self.feature_attention == "teacher" else 1.0
            levels.append(distance(projected, theirs, weight))
        return torch.stack(levels).mean()

    def forward(
        self,
        student: Predictions,
        teacher: Predictions,
        student_features: list[Tensor],
        teacher_features: list[Tensor],
        *,
        anchors: Tensor,
        selected: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Named scalar terms, `distill` (class + weighted box and landmark) and `feature`.

        `anchors` (A, 4) cx, cy, w, h in pixels; `selected` (B, A): the weight of each anchor in the
        task's class term. Boxes and landmarks: where the teacher's face probability is above
        `CONFIDENT`. Sums are divided by the sum of the weights, at least 1, so that a batch in
        which hardly an anchor counts is finite and not amplified.

        Computed in float32, under autocast too. ValueError if the feature maps do not fit.
        """
        with torch.autocast(student.class_logits.device.type, enabled=False):
            student = Predictions(*(part.float() for part in student))
            teacher = Predictions(*(part.detach().float() for part in teacher))
            face = teacher.class_logits.softmax(-1)[..., 1]  # (B, A)
            classes = self._class(student.class_logits, teacher.class_logits, face, selected)
            box, landmark = self._places(student, teacher, face, anchors)
            feature = self._feature(student_features, teacher_features)
        return {
            "distill_class": classes,
            "distill_box": box,
            "distill_landmark": landmark,
            "distill": classes + self.box_weight * box + self.landmark_weight * landmark,
            "feature": feature,
        }


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
