"""Make the pixels of a batch of plans on the device, from photos that are decoded there.

Crop, resize, padding and mirror image of a photo are one linear map of its rows and one of its
columns, so a batch is two batched matrix products with the very weights of torchvision's
antialiased bilinear resize (a triangle as wide as the shrinking asks for), which grid_sample lacks.
Most weights are 0, yet tensor cores need less time for them than memory does. One 3 × 3 product per
pixel then changes the colours. Half precision on a GPU (errors below a twentieth of a grey level),
float32 elsewhere.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from featherface.data.augment import FILL_RGB, LUMA, Plan, colour_matrix, colour_offset

NUMBERS = 20  # of a plan, as one row


class Plans(NamedTuple):
    """Plans of B training images as tensors. Leading shape (B,)."""

    photo: Tensor  # () index of the photo
    source: Tensor  # (2, 2) start and end of its visible part: of x, of y, as shares of its sides
    shown: Tensor  # (2, 2) the same in the training image: of x, of y, pixels before the flip
    flip: Tensor  # () 1: mirrored
    colour: Tensor  # (3, 3) on (r, g, b)
    offset: Tensor  # () added to each channel, times the mean luma of the visible part

    @classmethod
    def from_rows(cls, rows: Tensor) -> "Plans":
        """(B, NUMBERS), see `plan_row`."""
        photo, source, shown, flip, colour, offset = rows.split((1, 4, 4, 1, 9, 1), dim=1)
        return cls(
            photo[:, 0].long(),
            source.unflatten(1, (2, 2)),
            shown.unflatten(1, (2, 2)),
            flip[:, 0],
            colour.unflatten(1, (3, 3)),
            offset[:, 0],
        )


def plan_row(index: int, plan: Plan) -> Tensor:
    """The plan for photo `index` as (NUMBERS,) float64, which a loader process can hand over."""
    file, window = plan.file, plan.window
    source = window.shrink * file.inside(window) / np.array([[file.width], [file.height]])
    colour = *colour_matrix(plan.colour).flat, colour_offset(plan.colour)
    row = (index, *source.flat, *plan.shown.flat, plan.flip, *colour)
    return torch.from_numpy(np.array(row, np.float64))


def sampling_weights(
    source: Tensor, shown: Tensor, length: Tensor, *, size: int, first: Tensor, taps: int
) -> Tensor:
    """The share of each of `taps` pixels from `first` (B,) on in each of `size`: (B, size, taps).

    source (B, 2) start and end in the photo of `length` (B,) pixels; shown (B, 2) start and end
    in the result, outside of which all weights are 0. The weights of torch's interpolate with
    antialias=True: inside the source only, and they add up to 1.
    """
    start, end = (part[:, None] for part in source.unbind(1))  # (B, 1) each
    left, right = (part[:, None] for part in shown.unbind(1))
    scale = (end - start) / (right - left)
    result = torch.arange(size, device=source.device) + 0.5  # (size,) centres
    low = start.floor().clamp(min=0.0)
    high = torch.maximum(torch.minimum(end.ceil(), length[:, None]), low + 1)
    centre = start + (result - left) * scale  # (B, size)
    centre = torch.minimum(torch.maximum(centre, low + 0.5), high - 0.5)
    tap = first[:, None] + torch.arange(taps, device=source.device) + 0.5  # (B, taps)
    distance = (tap[:, None, :] - centre[:, :, None]).abs_()  # (B, size, taps)
    weight = distance.div_(scale.clamp(min=1.0)[..., None]).neg_().add_(1).clamp_(min=0.0)
    weight.mul_(((tap > low) & (tap < high))[:, None, :])
    covered = (result > left) & (result < right)
    share = covered / weight.sum(-1).clamp(min=1e-6)  # (B, size)
    return weight.mul_(share[..., None])


def resample(rows: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Rows (B, h, 3, w) uint8, weights (B, S, h) and (B, S, w) → (B, S, 3, S) float32: y, c, x."""
    kind = torch.float16 if rows.is_cuda else torch.float32
    batch, height, _, width = rows.shape
    size = vertical.shape[1]
    with torch.autocast(rows.device.type, enabled=False):
        lines = vertical.to(kind) @ rows.view(batch, height, 3 * width).to(kind)  # (B, S, 3w)
        lines = lines.view(batch, size * 3, width)
        pixels = lines @ horizontal.to(kind).mT  # (B, 3S, S)
    return pixels.float().view(batch, size, 3, size)


def recolour(pixels: Tensor, covered: Tensor, colour: Tensor, offset: Tensor) -> Tensor:
    """Change the colours and fill the outside: (B, S, 3, S) → (B, 3, S, S) uint8, channels last.

    pixels: 0 outside `covered` (B, S, S). colour, offset: as in Plans.
    """
    device = pixels.device
    channels = pixels.sum((1, 3)) / covered.sum((1, 2))[:, None]  # (B, 3) of the visible part
    lift = offset * (channels @ _constant(LUMA, device))  # (B,)
    changed = torch.einsum("bdc,bycx->byxd", colour, pixels) + lift[:, None, None, None]
    filled = torch.where(covered[..., None], changed, _constant(FILL_RGB, device))
    return filled.clamp_(0, 255).round_().to(torch.uint8).permute(0, 3, 1, 2)


@functools.cache
def _constant(values: tuple, device: torch.device) -> Tensor:
    """A small tensor that is copied to the device once: copying makes the host wait."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def render(rows: Tensor, first: Tensor, sizes: Tensor, plans: Plans, *, size: int) -> Tensor:
    """The images of plans: (B, 3, size, size) uint8 RGB, channels last in memory.

    rows (B, h, 3, w) uint8: h rows of each photo from `first` (B,) on, with all columns. sizes
    (B, 2): height and width of the stored photo. plans.source is in its pixels here, not in shares.
    All but `rows` are float32, on the same device.
    """
    source_x, source_y = plans.source.unbind(1)  # (B, 2) each
    shown_x, shown_y = plans.shown.unbind(1)
    height, width = sizes.unbind(1)
    zero = torch.zeros_like(first)
    vertical = sampling_weights(
        source_y, shown_y, height, size=size, first=first, taps=rows.shape[1]
    )
    horizontal = sampling_weights(
        source_x, shown_x, width, size=size, first=zero, taps=rows.shape[3]
    )
    horizontal = torch.where(plans.flip[:, None, None] > 0, horizontal.flip(1), horizontal)
    covered = (vertical.sum(-1) > 0)[:, :, None] & (horizontal.sum(-1) > 0)[:, None, :]
    return recolour(resample(rows, vertical, horizontal), covered, plans.colour, plans.offset)
