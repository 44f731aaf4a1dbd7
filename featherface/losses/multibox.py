"""The task loss: MultiBox (SSD, arXiv 1512.02325) with RetinaFace's landmark term."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert

from featherface.anchors import Matches, encode_boxes, encode_landmarks, match
from featherface.losses.parallel import totals
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
