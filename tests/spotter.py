"""A network that needs no weights: it sees a face at every white cell of 8×8 pixels."""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from featherface.anchors import make_anchors
from featherface.structures import Predictions


class Spotter(nn.Module):
    """The small anchor (16×16) of a cell scores by the cell's brightness; landmarks at its centre.

    Grey is 0, so that with no threshold below one half only what is brighter is a face.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.05))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Predictions:
        self.shapes.append(tuple(images.shape))
        batch, _, height, width = images.shape
        count = len(make_anchors(height, width))
        cells = avg_pool2d(images.mean(1, keepdim=True), 8).flatten(1)  # (B, cells of P3)
        logits = torch.zeros(batch, count, 2)
        logits[..., 0] = 8.0
        small = logits[:, : 2 * cells.shape[1] : 2]
        small[..., 0] = 0.0
        small[..., 1] = (cells - 20) * self.gain
        return Predictions(torch.zeros(batch, count, 4), logits, torch.zeros(batch, count, 10))


def photo(height: int, width: int, *cells: tuple[int, int], value: int = 255):
    """A dark picture (height, width, 3) uint8 whose cells (column, row) are bright."""
    import numpy as np

    pixels = np.zeros((height, width, 3), np.uint8)
    for column, row in cells:
        pixels[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = value
    return pixels
