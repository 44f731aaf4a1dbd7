"""Pictures of mixed batches with their faces.

They show what MixUp and CutMix make of a training set:

    python -m featherface.data.mixing_sheet --data data/widerface --out results/mixed_samples.png
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from featherface.data.mixing import cutmix, mixup
from featherface.errors import DataError
from featherface.structures import Target

SAMPLES = 8  # half by MixUp, half by CutMix


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
        data=args.data,
        image_size=args.image_size,
        seed=args.seed,
        batch_size=SAMPLES // 2,
        num_workers=0,
    )
    photos = read_split(config.data, config.split)
    if len(photos) < SAMPLES:
        raise DataError(f"{config.data} has {len(photos)} photos: the sheet needs {SAMPLES}")
    loader, _ = make_loader(photos, config)
    batches = iter(loader)
    generator = torch.Generator().manual_seed(config.seed)
    sheets = []
    for function in (mixup, partial(cutmix, min_face=config.min_face)):
        batch = next(batches)
        mixed = function(batch.images.float(), batch.targets, alpha=1.0, generator=generator)
        sheets.append(draw_mixed(*mixed))
    with atomic_path(args.out) as temporary:
        Image.fromarray(np.concatenate(sheets)).save(temporary)
    print(f"four MixUp samples over four CutMix samples: {args.out}")


if __name__ == "__main__":
    from featherface.cli import run

    run(main)
