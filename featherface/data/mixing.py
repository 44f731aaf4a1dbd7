"""MixUp and CutMix for detection: mix the images and faces of a batch, on its device.

MixUp (arXiv 1710.09412) in the same-geometry form for boxes (arXiv 1902.04103): two images are
blended and keep the faces of both, each weighted by its image's share. CutMix (arXiv 1905.04899): a
rectangle of one image replaces the same rectangle of another, and faces count by their visible
share. The partner of each image is the next one of the batch, which is shuffled.
"""

import numpy as np
import torch
from torch import Tensor

from featherface.config import TrainConfig
from featherface.errors import ConfigError
from featherface.structures import Target

IGNORED_SHARE = 0.1  # MixUp: faces of an image blended in with less than this are ignored
UNSEEN_SHARE = 0.02  # with less than this they cannot be seen: unlabelled faces do no harm
KEPT_VISIBLE = 0.5  # a face with at least this share of its area visible stays a face
IGNORED_VISIBLE = 0.1  # with less than that but at least this it is ignored; with less, dropped


def mix(
    config: TrainConfig,
    images: Tensor,
    targets: Target,
    *,
    generator: torch.Generator | None = None,
    stream: int = 0,
) -> tuple[Tensor, Target]:
    """Mix the batch by MixUp (with mixup_prob), else by CutMix (with cutmix_prob), else not at all.

    images: (B, 3, S, S) float; targets: (B, F), which becomes (B, 2F) when mixed: each image also
    holds its partner's faces. All randomness comes from `generator` (on the CPU; None: torch's), so
    the device never waits for the host. An image made of two is labelled only if both are. stream:
    other numbers for each, of the same generator: processes that share a batch agree on how it is
    mixed, not on the shares.
    """
    first, second = torch.rand(2, generator=generator).tolist()
    if config.mixup_alpha > 0 and first < config.mixup_prob:
        alpha = config.mixup_alpha
        mixed = mixup(images, targets, alpha=alpha, generator=generator, stream=stream)
    elif second < config.cutmix_prob:
        least = config.min_face
        mixed = cutmix(images, targets, min_face=least, generator=generator, stream=stream)
    else:
        return images, targets
    count = None if targets.face_count is None else 2 * targets.face_count
    return mixed[0], mixed[1].with_count(count)


def mixup(
    images: Tensor,
    targets: Target,
    *,
    alpha: float,
    generator: torch.Generator | None = None,
    stream: int = 0,
) -> tuple[Tensor, Target]:
    """Blend each image of (B, 3, S, S) with its partner by its own λ ~ Beta(alpha, alpha).

    Returns the images and the faces of both, (B, 2F). Raises ConfigError if alpha is not above 0.
    """
    if not alpha > 0:
        raise ConfigError(f"mixup_alpha must be above 0 to mix; got {alpha!r}")
    share = _numpy_generator(generator, stream).beta(alpha, alpha, len(images))
    return blend(images, targets, _to_device(share, images))


def cutmix(
    images: Tensor,
    targets: Target,
    *,
    alpha: float = 1.0,
    min_face: float = 0.0,
    generator: torch.Generator | None = None,
    stream: int = 0,
) -> tuple[Tensor, Target]:
    """Paste one random rectangle of its partner into each image of (B, 3, S, S).

    The rectangle has the image's shape, its share of the area is 1 − λ with λ ~ Beta(alpha, alpha),
    and its centre is anywhere, so the border may cut it. Returns faces (B, 2F); those left with a
    shorter side under `min_face` pixels are ignored. Raises ConfigError if alpha is not above 0.
    """
    if not alpha > 0:
        raise ConfigError(f"cutmix alpha must be above 0; got {alpha!r}")
    random = _numpy_generator(generator, stream)
    limits = np.array(images.shape[:1:-1])  # width, height
    half = np.sqrt(1 - random.beta(alpha, alpha, (len(images), 1))) * limits / 2
    center = random.uniform(size=(len(images), 2)) * limits
    corners = np.concatenate((center - half, center + half), axis=1).round()  # (B, 4)
    rectangles = corners.clip(0, np.tile(limits, 2))
    return paste(images, targets, _to_device(rectangles, images), min_face=min_face)


def blend(images: Tensor, targets: Target, share: Tensor) -> tuple[Tensor, Target]:
    """share·image + (1 − share)·partner for share (B,); faces of both, weighted likewise.

    The faces of an image with a share under IGNORED_SHARE are ignored: they are hardly visible, and
    as positives they would take anchors from visible faces.
    """
    partner = Target(*(part.roll(-1, 0) for part in targets))
    ratio = share.to(images.dtype)[:, None, None, None]
    mixed = torch.lerp(_next_images(images), images, ratio)  # a share of 1 gives the very image
    return mixed, _union(_faded(targets, share), _faded(partner, 1 - share))


def _faded(targets: Target, share: Tensor) -> Target:
    """Faces (B, F) of images that are blended in with share (B,).

    Under UNSEEN_SHARE an image is invisible, so it counts as labelled.
    """
    return targets._replace(
        weight=targets.weight * share[:, None],
        ignore=targets.ignore | (share < IGNORED_SHARE)[:, None],
        labelled=targets.labelled | (share < UNSEEN_SHARE),
    )


def paste(
    images: Tensor, targets: Target, rectangles: Tensor, *, min_face: float = 0.0
) -> tuple[Tensor, Target]:
    """The partner's pixels inside rectangles (B, 4) x1, y1, x2, y2, whole pixels; faces of both.

    A face counts by its visible share (outside the rectangle for the image's own, inside for the
    partner's): kept from KEPT_VISIBLE of its area, ignored from IGNORED_VISIBLE, else dropped. Its
    box becomes the tight box of the visible part; hidden landmarks are masked. A face whose box
    then has a shorter side under `min_face` is ignored.
    """
    height, width = images.shape[-2:]
    x1, y1, x2, y2 = rectangles[:, :, None].unbind(1)  # (B, 1) each
    x = torch.arange(width, device=images.device)
    y = torch.arange(height, device=images.device)
    columns, rows = (x >= x1) & (x < x2), (y >= y1) & (y < y2)  # (B, W), (B, H)
    inside = (rows[:, :, None] & columns[:, None, :])[:, None]  # (B, 1, H, W)
    mixed = torch.where(inside, _next_images(images), images)
    partners = Target(*(part.roll(-1, 0) for part in targets))
    own = _outside(targets, rectangles, min_face)
    other = _inside(partners, rectangles, min_face)
    covered, untouched = columns.all(1) & rows.all(1), ~(columns.any(1) & rows.any(1))
    return mixed, _union(
        own._replace(labelled=own.labelled | covered),
        other._replace(labelled=other.labelled | untouched),
    )


def _numpy_generator(generator: torch.Generator | None, stream: int) -> np.random.Generator:
    """A generator seeded by torch's, because torch.distributions takes none."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return np.random.default_rng([seed, stream] if stream else seed)


def _to_device(values: np.ndarray, images: Tensor) -> Tensor:
    """float32 on the images' device; non-blocking: the host must not wait for queued work."""
    return torch.from_numpy(values.astype(np.float32)).to(images.device, non_blocking=True)


def _next_images(images: Tensor) -> Tensor:
    """The partner of each image; unlike roll on CUDA this stays channels-last."""
    return torch.cat((images[1:], images[:1]))


def _union(own: Target, other: Target) -> Target:
    """(B, F) and (B, F) → (B, 2F); labelled where both are."""
    faces = (torch.cat(parts, dim=1) for parts in zip(own[:-1], other[:-1], strict=True))
    return Target._make((*faces, own.labelled & other.labelled))


def _intersection(boxes: Tensor, rectangles: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (B, F, 4) cut to their rectangle (B, 4), and the share (B, F) of them that is left.

    Where they do not meet, a size is negative and the share 0.
    """
    low = torch.maximum(boxes[..., :2], rectangles[:, None, :2])
    high = torch.minimum(boxes[..., 2:], rectangles[:, None, 2:])
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)
    share = (high - low).clamp(min=0).prod(dim=-1) / area.clamp(min=1e-6)
    return torch.cat((low, high), dim=-1), share


def _inside(targets: Target, rectangles: Tensor, min_face: float) -> Target:
    """The faces as seen through the rectangles."""
    cut, share = _intersection(targets.boxes, rectangles)
    shown = _contains(rectangles, targets.landmarks)
    return _keep_visible(targets, cut, share, shown, min_face)


def _outside(targets: Target, rectangles: Tensor, min_face: float) -> Target:
    """The faces with the rectangles laid over them."""
    cut, covered = _intersection(targets.boxes, rectangles)
    # The visible part's tight box is smaller than the face only where the rectangle covers a whole
    # side of it: all of its width (then top or bottom moves) or all of its height (left or right).
    x1, y1, x2, y2 = targets.boxes.unbind(-1)  # (B, F) each
    left, top, right, bottom = cut.unbind(-1)
    wide = (covered > 0) & (left <= x1) & (right >= x2)
    tall = (covered > 0) & (top <= y1) & (bottom >= y2)
    box = (
        torch.where(tall & (left <= x1), right, x1),
        torch.where(wide & (top <= y1), bottom, y1),
        torch.where(tall & (right >= x2), left, x2),
        torch.where(wide & (bottom >= y2), top, y2),
    )
    shown = ~_contains(rectangles, targets.landmarks)
    return _keep_visible(targets, torch.stack(box, dim=-1), 1 - covered, shown, min_face)


def _contains(rectangles: Tensor, points: Tensor) -> Tensor:
    """True for points (B, F, 5, 2) inside their image's rectangle (B, 4): (B, F, 5) bool."""
    low, high = rectangles[:, None, None, :2], rectangles[:, None, None, 2:]
    return ((points >= low) & (points < high)).all(dim=-1)


def _keep_visible(
    targets: Target, boxes: Tensor, visible: Tensor, landmarks_visible: Tensor, min_face: float
) -> Target:
    """Keep, ignore or drop faces by their visible share (B, F); a dropped one becomes padding."""
    dropped = visible < IGNORED_VISIBLE
    small = ((boxes[..., 2:] - boxes[..., :2]).amin(-1) < min_face) & (targets.weight > 0)
    return Target(
        boxes=boxes.masked_fill(dropped[..., None], 0.0),
        landmarks=targets.landmarks,
        landmark_mask=targets.landmark_mask & landmarks_visible & ~dropped[..., None],
        ignore=(targets.ignore | (visible < KEPT_VISIBLE) | small) & ~dropped,
        weight=targets.weight.masked_fill(dropped, 0.0),
        labelled=targets.labelled,
    )
