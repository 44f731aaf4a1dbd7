"""The output layers: three 1×1 convolutions a level, flattened into one anchor axis."""

import torch
from torch import Tensor, nn

from featherface.structures import Predictions

ANCHORS_PER_CELL = 2


class Heads(nn.Module):
    """Feature maps of P3, P4, P5 → Predictions."""

    def __init__(self, channels: int, levels: int = 3) -> None:
        super().__init__()

        def convolutions(values: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Conv2d(channels, ANCHORS_PER_CELL * values, 1) for _ in range(levels)
            )

        self.boxes = convolutions(4)
        self.classes = convolutions(2)
        self.landmarks = convolutions(10)

    @staticmethod
    def _flatten(convolutions: nn.ModuleList, features: list[Tensor], values: int) -> Tensor:
        levels = []
        for convolution, x in zip(convolutions, features, strict=True):
            y = convolution(x).permute(0, 2, 3, 1)  # (B, H, W, 2·values)
            levels.append(y.reshape(y.shape[0], -1, values))  # (B, H·W·2, values)
        return torch.cat(levels, dim=1)

    def forward(self, features: list[Tensor]) -> Predictions:
        return Predictions(
            box_deltas=self._flatten(self.boxes, features, 4),
            class_logits=self._flatten(self.classes, features, 2),
            landmark_deltas=self._flatten(self.landmarks, features, 10),
        )
