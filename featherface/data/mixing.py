"""MixUp and CutMix for detection: images and faces of a batch are mixed together, on its device.

MixUp (arXiv 1710.09412) in the same-geometry form for boxes (arXiv 1902.04103): two images are
blended and keep the faces of both, each weighted by its image's share. CutMix (arXiv 1905.04899): a
rectangle of one image replaces the same place of another, and faces count by what remains visible.
Each image's partner is the batch's next one: batches are shuffled, so that is as random as any.

    python -m featherface.data.mixing --data data/widerface --out results/mixed_samples.png
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from featherface.config import TrainConfig
from featherface.errors import ConfigError
from featherface.structures import Target

IGNORED_SHARE = 0.1  # MixUp: faces of an image blended in with less than this are ignored
KEPT_VISIBLE = 0.5  # a face with at least this share of its area visible stays a face
IGNORED_VISIBLE = 0.1  # with less than that but at least this it is ignored; with less, dropped


def mix(
    images: Tensor,
    targets: Target,
    *,
    mixup_alpha: float,
    mixup_prob: float,
    cutmix_prob: float,
    generator: torch.Generator | None = None,
    stream: int = 0,
) -> tuple[Tensor, Target]:
    """The batch mixed by MixUp (with mixup_prob), else by CutMix (with cutmix_prob), else as it is.

    images: (B, 3, S, S) float; targets: (B, F), which becomes (B, 2F) when mixed. All randomness
    comes from `generator` (on the CPU; None: torch's), so the device never waits for the host.
    An image made of two counts as labelled only if both are. stream: other numbers for each, of the
    same generator: processes that share a batch agree on how it is mixed, not on the shares.
    """
    first, second = torch.rand(2, generator=generator).tolist()
    if mixup_alpha > 0 and first < mixup_prob:
        return mixup(images, targets, alpha=mixup_alpha, generator=generator, stream=stream)
    if second < cutmix_prob:
        return cutmix(images, targets, generator=generator, stream=stream)
    return images, targets


def mix_as_configured(
    config: TrainConfig,
    images: Tensor,
    targets: Target,
    faces: int,
    *,
    generator: torch.Generator | None = None,
    stream: int = 0,
) -> tuple[Tensor, Target, int]:
    """`mix` with the config's settings, and how many of its `faces` the batch then has: twice as
    many where every image also holds its partner's."""
    pixels, mixed = mix(
        images,
        targets,
        mixup_alpha=config.mixup_alpha,
        mixup_prob=config.mixup_prob,
        cutmix_prob=config.cutmix_prob,
        generator=generator,
        stream=stream,
    )
    return pixels, mixed, faces * (1 + (mixed.boxes.shape[1] > targets.boxes.shape[1]))


def mixup(
    images: Tensor,
    targets: Target,
    *,
    alpha: float,
    generator: torch.Generator | None = None,
    stream: int = 0,
) -> tuple[Tensor, Target]:
    """Blend each image of (B, 3, S, S) with its partner by its own λ ~ Beta(alpha, alpha).

    Returns the images and the faces of both, (B, 2F). Raises ConfigError unless alpha > 0.
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
    generator: torch.Generator | None = None,
    stream: int = 0,
) -> tuple[Tensor, Target]:
    """Paste one random rectangle of its partner into each image of (B, 3, S, S).

    The rectangle has the image's shape, its share of the area is 1 − λ with λ ~ Beta(alpha, alpha),
    and its centre is anywhere, so that it may be cut by the border. Returns faces (B, 2F).
    Raises ConfigError unless alpha > 0.
    """
    if not alpha > 0:
        raise ConfigError(f"cutmix alpha must be above 0; got {alpha!r}")
    random = _numpy_generator(generator, stream)
    limits = np.array(images.shape[:1:-1])  # width, height
    half = np.sqrt(1 - random.beta(alpha, alpha, (len(images), 1))) * limits / 2
    center = random.uniform(size=(len(images), 2)) * limits
    corners = np.concatenate((center - half, center + half), axis=1).round()  # (B, 4)
    rectangles = corners.clip(0, np.tile(limits, 2))
    return paste(images, targets, _to_device(rectangles, images))


def blend(images: Tensor, targets: Target, share: Tensor) -> tuple[Tensor, Target]:
    """share·image + (1 − share)·partner for share (B,); faces of both, weighted likewise.

    The faces of an image with a share under IGNORED_SHARE are ignored: nobody could see them well,
    and as positives they would take anchors from the faces that are seen.
    """
    partner = _partners(targets)
    ratio = share.to(images.dtype)[:, None, None, None]
    mixed = torch.lerp(_next_images(images), images, ratio)  # a share of 1 gives the very image
    return mixed, _union(_faded(targets, share), _faded(partner, 1 - share))


def _faded(targets: Target, share: Tensor) -> Target:
    """Faces (B, F) of images that are blended in with share (B,).

    Of an image with a share of 0 nothing is seen, so nothing is left unknown by it either.
    """
    return targets._replace(
        weight=targets.weight * share[:, None],
        ignore=targets.ignore | (share < IGNORED_SHARE)[:, None],
        labelled=targets.labelled | (share <= 0),
    )


def paste(images: Tensor, targets: Target, rectangles: Tensor) -> tuple[Tensor, Target]:
    """The partner's pixels inside rectangles (B, 4) x1, y1, x2, y2, whole pixels; faces of both.

    A face of the image below counts by what the rectangle leaves of it, a face of the partner by
    what lies in it: kept from KEPT_VISIBLE of its area, ignored from IGNORED_VISIBLE, else dropped.
    Its box becomes the tight box of the visible part; landmarks that are not visible are masked.
    """
    height, width = images.shape[-2:]
    x1, y1, x2, y2 = rectangles[:, :, None].unbind(1)  # (B, 1) each
    x = torch.arange(width, device=images.device)
    y = torch.arange(height, device=images.device)
    columns, rows = (x >= x1) & (x < x2), (y >= y1) & (y < y2)  # (B, W), (B, H)
    inside = (rows[:, :, None] & columns[:, None, :])[:, None]  # (B, 1, H, W)
    mixed = torch.where(inside, _next_images(images), images)
    own, other = _outside(targets, rectangles), _inside(_partners(targets), rectangles)
    covered, untouched = columns.all(1) & rows.all(1), ~(columns.any(1) & rows.any(1))
    return mixed, _union(
        own._replace(labelled=own.labelled | covered),
        other._replace(labelled=other.labelled | untouched),
    )


def _numpy_generator(generator: torch.Generator | None, stream: int) -> np.random.Generator:
    """Seeded by torch's: torch.distributions takes no generator."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return np.random.default_rng([seed, stream] if stream else seed)


def _to_device(values: np.ndarray, images: Tensor) -> Tensor:
    """float32 beside the images; non-blocking, or the host would wait for all queued work."""
    return torch.from_numpy(values.astype(np.float32)).to(images.device, non_blocking=True)


def _next_images(images: Tensor) -> Tensor:
    """Each image's partner, the next of the batch; unlike roll on CUDA this stays channels-last."""
    return torch.cat((images[1:], images[:1]))


def _partners(targets: Target) -> Target:
    """The faces of each image's partner, (B, F): those of the next image of the batch."""
    return Target(*(part.roll(-1, 0) for part in targets))


def _union(own: Target, other: Target) -> Target:
    """(B, F) and (B, F) → (B, 2F); labelled where both are."""
    faces = (torch.cat(parts, dim=1) for parts in zip(own[:-1], other[:-1], strict=True))
    return Target._make((*faces, own.labelled & other.labelled))


def _intersection(boxes: Tensor, rectangles: Tensor) -> Tensor:
    """Boxes (B, F, 4) cut to their rectangle (B, 4); where they do not meet, a size is negative."""
    low = torch.maximum(boxes[..., :2], rectangles[:, None, :2])
    high = torch.minimum(boxes[..., 2:], rectangles[:, None, 2:])
    return torch.cat((low, high), dim=-1)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)


def _inside(targets: Target, rectangles: Tensor) -> Target:
    """The faces as seen through the rectangles."""
    cut = _intersection(targets.boxes, rectangles)
    visible = _area(cut) / _area(targets.boxes).clamp(min=1e-6)
    return _judge(targets, cut, visible, _contains(rectangles, targets.landmarks))


def _outside(targets: Target, rectangles: Tensor) -> Target:
    """The faces with the rectangles laid over them."""
    cut = _intersection(targets.boxes, rectangles)
    covered = _area(cut) / _area(targets.boxes).clamp(min=1e-6)
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
    hidden = _contains(rectangles, targets.landmarks)
    return _judge(targets, torch.stack(box, dim=-1), 1 - covered, ~hidden)


def _contains(rectangles: Tensor, points: Tensor) -> Tensor:
    """Whether points (B, F, 5, 2) lie in their image's rectangle (B, 4): (B, F, 5) bool."""
    low, high = rectangles[:, None, None, :2], rectangles[:, None, None, 2:]
    return ((points >= low) & (points < high)).all(dim=-1)


def _judge(targets: Target, boxes: Tensor, visible: Tensor, landmarks_visible: Tensor) -> Target:
    """Keep, ignore or drop faces by their visible share (B, F); a dropped one becomes padding."""
    dropped = visible < IGNORED_VISIBLE
    return Target(
        boxes=boxes.masked_fill(dropped[..., None], 0.0),
        landmarks=targets.landmarks,
        landmark_mask=targets.landmark_mask & landmarks_visible & ~dropped[..., None],
        ignore=(targets.ignore | (visible < KEPT_VISIBLE)) & ~dropped,
        weight=targets.weight.masked_fill(dropped, 0.0),
        labelled=targets.labelled,
    )


def draw_mixed(images: Tensor, targets: Target, *, columns: int = 4) -> np.ndarray:
    """A sheet (H, W, 3) uint8 of RGB images (B, 3, S, S), 0..255, with their faces drawn.

    Faces are yellow with their weight, ignored faces are magenta; dropped ones are not there.
    """
    from torchvision.utils import make_grid

    pictures = images.detach().cpu().round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    drawn = [
        _draw_one(picture, Target(*(part[index].cpu() for part in targets)))
        for index, picture in enumerate(pictures)
    ]
    stacked = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)  # (B, S, S, 3) → (B, 3, S, S)
    return make_grid(stacked, nrow=columns, padding=4).permute(1, 2, 0).numpy()


def _draw_one(picture: np.ndarray, faces: Target) -> np.ndarray:
    import cv2

    from featherface.drawing import draw
    from featherface.structures import Detections

    points = faces.landmarks.masked_fill(~faces.landmark_mask[..., None], torch.nan)
    order = faces.weight.argsort(descending=True)
    kept = order[((faces.weight > 0) & ~faces.ignore)[order]]
    parts = (faces.boxes[kept], faces.weight[kept], points[kept])
    sheet = draw(picture, Detections(*(part.float().numpy() for part in parts)))
    for box in faces.boxes[(faces.weight > 0) & faces.ignore].round().int().tolist():
        cv2.rectangle(sheet, box[:2], box[2:], (204, 121, 167), 2)
    return sheet


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw eight mixed samples of a training set: a row of MixUp and a row of CutMix."""
    from PIL import Image

    from featherface import cli
    from featherface.config import V2
    from featherface.data.loader import make_loader
    from featherface.data.widerface import read_split
    from featherface.files import atomic_path

    parser = cli.parser(main.__doc__ or "")
    parser.add_argument("--data", default=V2.data, help="data folder, as for training")
    parser.add_argument("--out", default="results/mixed_samples.png", help="the picture to write")
    parser.add_argument(*cli.flag("image_size"), type=int, default=320, help="side of a sample")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other samples")
    args = parser.parse_args(arguments)
    config = V2.replace(
        data=args.data, image_size=args.image_size, seed=args.seed, batch_size=4, num_workers=0
    )
    loader, _ = make_loader(read_split(config.data, config.split), config)
    batches = iter(loader)
    generator = torch.Generator().manual_seed(config.seed)
    sheets = []
    for function in (mixup, cutmix):
        batch = next(batches)
        mixed = function(batch.images.float(), batch.targets, alpha=1.0, generator=generator)
        sheets.append(draw_mixed(*mixed))
    with atomic_path(args.out) as temporary:
        Image.fromarray(np.concatenate(sheets)).save(temporary)
    print(f"four MixUp samples over four CutMix samples: {args.out}")


if __name__ == "__main__":
    from featherface.cli import run

    run(main)
