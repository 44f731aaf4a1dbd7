"""Anchors, the box and landmark codec, and the matching of anchors to faces.

The scheme is SSD's (arXiv 1512.02325) with RetinaFace's anchors: two square anchors per cell on
three levels, variances 0.1 and 0.2, matching by IoU 0.35 with each face's best anchor forced.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from featherface.config import ANCHOR_SIZES, STRIDES, VARIANCES
from featherface.structures import Target

POSITIVE_IOU = 0.35
FORCED_IOU = 0.2
_FACES_AT_ONCE = 512  # bounds the memory that crowds need


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # a cached inference tensor could not be used in training later
def _anchors(height: int, width: int, device: torch.device) -> Tensor:
    levels = []
    for stride, sizes in zip(STRIDES, ANCHOR_SIZES, strict=True):
        rows = (torch.arange(-(-height // stride), device=device) + 0.5) * stride
        columns = (torch.arange(-(-width // stride), device=device) + 0.5) * stride
        y, x, size = torch.meshgrid(
            rows, columns, torch.tensor(sizes, dtype=torch.float32, device=device), indexing="ij"
        )
        levels.append(torch.stack((x, y, size, size), dim=-1).reshape(-1, 4))  # (rows·cols·2, 4)
    return torch.cat(levels)


def make_anchors(height: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """Make the anchors (A, 4) cx, cy, w, h in pixels of an image of height × width.

    Order: level P3, P4, P5; inside a level row by row; inside a cell small anchor, then large. The
    tensor is cached: do not modify it.
    """
    if height < 1 or width < 1:
        raise ValueError(f"an image has at least 1×1 pixels; got {height}×{width}")
    return _anchors(int(height), int(width), torch.device(device or "cpu"))


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Encode boxes x1, y1, x2, y2 (..., A, 4) in pixels as deltas (..., A, 4) to anchors (A, 4).

    delta = ((cx−ax)/(0.1·aw), (cy−ay)/(0.1·ah), ln(w/aw)/0.2, ln(h/ah)/0.2); boxes need an area.
    """
    center, size = box_convert(boxes, "xyxy", "cxcywh").split(2, dim=-1)
    anchor_center, anchor_size = anchors.split(2, dim=-1)
    shift = (center - anchor_center) / (VARIANCES[0] * anchor_size)
    return torch.cat((shift, torch.log(size / anchor_size) / VARIANCES[1]), dim=-1)


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Decode deltas (..., A, 4) to boxes x1, y1, x2, y2 in pixels. Inverse of encode_boxes."""
    anchor_center, anchor_size = anchors.split(2, dim=-1)
    center = anchor_center + deltas[..., :2] * VARIANCES[0] * anchor_size
    half = torch.exp(deltas[..., 2:] * VARIANCES[1]) * anchor_size / 2
    return torch.cat((center - half, center + half), dim=-1)


def encode_landmarks(landmarks: Tensor, anchors: Tensor) -> Tensor:
    """Encode five points (..., A, 5, 2) in pixels as deltas (..., A, 10), as box centres are."""
    center, size = anchors.unsqueeze(-2).split(2, dim=-1)  # (A, 1, 2) each
    return ((landmarks - center) / (VARIANCES[0] * size)).flatten(-2)


def decode_landmarks(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Decode deltas (..., A, 10) to points (..., A, 5, 2). Inverse of encode_landmarks."""
    center, size = anchors.unsqueeze(-2).split(2, dim=-1)
    return center + deltas.unflatten(-1, (5, 2)) * VARIANCES[0] * size


class Matches(NamedTuple):
    """The target of each anchor; B images, A anchors."""

    face: Tensor  # (B, A) int64: the face of a positive anchor; arbitrary for others
    positive: Tensor  # (B, A) bool
    ignored: Tensor  # (B, A) bool: not in the loss; never positive


def _faces_to_match(targets: Target) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes to match (B, F, 4), and masks (B, F) of wanted and of ignored faces.

    A face too small to force an anchor (under about 7 × 7 px) is ignored too: it could not become
    positive, and as background it would be among the hardest negatives. To take anchors out of the
    loss, an ignored face counts as at least as large as the smallest anchor.
    """
    smallest = min(ANCHOR_SIZES[0])
    center, size = box_convert(targets.boxes, "xyxy", "cxcywh").split(2, dim=-1)
    present = targets.weight > 0
    ignored = present & (targets.ignore | (size.prod(-1) < FORCED_IOU * smallest**2))
    half = size.clamp(min=smallest) / 2
    grown = torch.cat((center - half, center + half), dim=-1)
    boxes = torch.where(ignored[..., None], grown, targets.boxes)
    return boxes, present & ~ignored, ignored


def match(targets: Target, anchors: Tensor) -> Matches:
    """Match a padded batch of faces (B, F) to anchors (A, 4), without a loop over images.

    Positive: IoU ≥ 0.35 with a face, for its best face; and each face's best anchor if their IoU is
    ≥ 0.2 (of faces that share it the one of highest weight wins, of equal ones the last). An
    ignored face takes the anchors that it would have matched out of the loss.

    Without `targets.face_count` the host has to wait for a GPU to count the faces.
    """
    batch, most = targets.boxes.shape[:2]
    boxes, wanted, ignorable = _faces_to_match(targets)
    anchor_boxes = box_convert(anchors, "cxcywh", "xyxy")
    chosen = _present((wanted | ignorable).flatten(), targets.face_count)
    # rank of a face that claims an anchor; its number is the remainder by F + 1
    number = chosen % most
    rank = (targets.weight.flatten()[chosen] * 1000).long() * (most + 1) + number + 1
    best = torch.zeros(batch, len(anchors), device=anchors.device)
    face = torch.zeros_like(best, dtype=torch.long)
    forced = torch.zeros_like(face)  # rank of the face that this anchor is forced on, or 0
    ignored = torch.zeros_like(best)
    for part in torch.arange(len(chosen), device=anchors.device).split(_FACES_AT_ONCE):
        index = chosen[part]  # (n,), ascending, so that an image's faces are together
        image = index // most
        row = image[:, None].expand(-1, len(anchors))  # (n, A)
        iou = box_iou(boxes.flatten(0, 1)[index], anchor_boxes)  # (n, A)
        blocked = (iou >= POSITIVE_IOU) & ignorable.flatten()[index, None]
        ignored.scatter_reduce_(0, row, blocked.float(), "amax")
        iou = iou.masked_fill(~wanted.flatten()[index, None], 0.0)
        part_best = torch.zeros_like(best).scatter_reduce_(0, row, iou, "amax")
        # the first of the faces with this IoU
        first = torch.where(iou == part_best[image], number[part, None], most)
        part_face = torch.full_like(face, most).scatter_reduce_(0, row, first, "amin")
        face = torch.where(part_best > best, part_face, face)
        best = torch.maximum(best, part_best)
        own_best, own_anchor = iou.max(dim=1)  # (n,)
        claim = rank[part] * (own_best >= FORCED_IOU)
        forced.view(-1).scatter_reduce_(0, image * len(anchors) + own_anchor, claim, "amax")
    positive = (best >= POSITIVE_IOU) | (forced > 0)
    face = torch.where(forced > 0, forced % (most + 1) - 1, face)
    return Matches(face, positive, (ignored > 0) & ~positive)


def _present(mask: Tensor, count: int | None) -> Tensor:
    """Indices of the True values of a mask (N,), ascending; exactly `count` if given.

    If `count` is more than there are, the rest are indices of False values.
    """
    if count is None:
        return mask.nonzero()[:, 0]
    return mask.byte().argsort(descending=True, stable=True)[:count]
