"""The task loss: MultiBox (SSD, arXiv 1512.02325) with RetinaFace's landmark term."""

import torch
from torch import Tensor
from torch.nn import functional as F

from featherface.anchors import Matches, encode_boxes, encode_landmarks, match
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


def _classification(
    logits: Tensor, matches: Matches, weight: Tensor, negative_ratio: int
) -> Tensor:
    """Cross-entropy over positives (by their weight) and mined negatives, a positive.

    An image without a face is mined, and counted, as if it had one: its background teaches too.
    """
    entropy = F.cross_entropy(
        logits.flatten(0, 1), matches.positive.long().flatten(), reduction="none"
    ).view_as(weight)  # (B, A)
    positives = weight.sum(dim=1).clamp(min=1.0)  # (B,): two half-transparent faces are one
    count = (negative_ratio * positives).round()
    candidates = ~(matches.positive | matches.ignored)
    negative = hard_negatives(entropy.detach(), candidates, count)
    return (entropy * (weight + negative)).sum() / positives.sum()


def multibox_loss(
    predictions: Predictions,
    targets: Target,
    anchors: Tensor,
    *,
    box_weight: float = 2.0,
    landmark_weight: float = 1.0,
    negative_ratio: int = 7,
) -> dict[str, Tensor]:
    """Named scalar terms `class`, `box`, `landmark` (unweighted) and their weighted sum `task`.

    Two-class cross-entropy over positives and `negative_ratio` hard negatives for each, smooth L1
    on box deltas, smooth L1 on the landmark deltas that are annotated. Every face's terms carry its
    weight; the sums are divided by the sum of the positives' weights (landmarks: of those that have
    any), at least 1, so that a batch without a face is finite. Computed in float32.
    """
    box_deltas, logits, landmark_deltas = (part.float() for part in predictions)
    if targets.boxes.shape[1] == 0:  # no face in the whole batch: there must be a row to gather
        targets = _one_padding_row(targets)
    matches = match(targets, anchors)
    weight = _gather_faces(targets.weight, matches.face) * matches.positive  # (B, A)
    positives = weight.sum().clamp(min=1.0)
    positive = matches.positive[..., None]

    # where no face is matched the anchor is its own target: a zero-area padding box has no log
    anchor_boxes = torch.cat(
        (anchors[:, :2] - anchors[:, 2:] / 2, anchors[:, :2] + anchors[:, 2:] / 2), dim=-1
    )
    boxes = torch.where(positive, _gather_faces(targets.boxes, matches.face), anchor_boxes)
    box = F.smooth_l1_loss(box_deltas, encode_boxes(boxes, anchors), reduction="none").sum(-1)

    points = _gather_faces(targets.landmarks, matches.face)  # (B, A, 5, 2)
    annotated = _gather_faces(targets.landmark_mask, matches.face) & positive  # (B, A, 5)
    wanted = encode_landmarks(torch.where(annotated[..., None], points, 0.0), anchors)
    each = F.smooth_l1_loss(landmark_deltas, wanted, reduction="none").unflatten(-1, (5, 2))
    landmark = (each.sum(-1) * annotated).sum(-1)  # (B, A)
    with_landmarks = (weight * annotated.any(-1)).sum().clamp(min=1.0)

    terms = {
        "class": _classification(logits, matches, weight, negative_ratio),
        "box": (box * weight).sum() / positives,
        "landmark": (landmark * weight).sum() / with_landmarks,
    }
    task = terms["class"] + box_weight * terms["box"] + landmark_weight * terms["landmark"]
    return {**terms, "task": task}


def _one_padding_row(targets: Target) -> Target:
    return Target(*(F.pad(part, (0, 0) * (part.ndim - 2) + (0, 1)) for part in targets))
