"""Parts of both networks: convolution blocks, attention gates, the backbone and the heads.

Attention: CBAM (arXiv 1807.06521). Channel shuffle: ShuffleNet (arXiv 1707.01083). Backbone:
MobileNetV1 ×0.25 (arXiv 1704.04861).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featherface.structures import Predictions

CHANNELS = (64, 128, 256)  # of the backbone's P3, P4, P5
ANCHORS_PER_CELL = 2


def conv_bn(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Convolution without bias, 'same' padding for odd kernels, then batch norm."""
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]


def channel_shuffle(x: Tensor, rows: int) -> Tensor:
    """Transpose the channels (B, C, H, W) as a table of rows × columns."""
    table = x.unflatten(1, (rows, -1))  # (B, rows, C/rows, H, W)
    return table.transpose(1, 2).flatten(1, 2)  # (B, C, H, W)


class ChannelGate(nn.Module):
    """Scale each channel by sigmoid(MLP(average) + MLP(max)); the MLP is shared by both."""

    def __init__(self, channels: int, hidden: int, *, bias: bool) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1, bias=bias)
        self.expand = nn.Conv2d(hidden, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        average = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        largest = x.amax((2, 3), keepdim=True)
        logits = self.expand(F.relu(self.reduce(average))) + self.expand(
            F.relu(self.reduce(largest))
        )
        return x * logits.sigmoid()


class SpatialGate(nn.Module):
    """Scale each position by sigmoid(BN(7×7 conv of the channels' mean and max))."""

    def __init__(self, *, max_first: bool, momentum: float = 0.1) -> None:
        super().__init__()
        self.max_first = max_first  # order of the two planes; V1 and V2 differ
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        planes = (x.mean(1, keepdim=True), x.amax(1, keepdim=True))
        stacked = torch.cat(planes[::-1] if self.max_first else planes, dim=1)  # (B, 2, H, W)
        return x * self.bn(self.conv(stacked)).sigmoid()


class CBAM(nn.Module):
    """V1's attention on one level: ReLU(spatial(channel(x)) + x), with reduction 16."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channel = ChannelGate(channels, channels // 16, bias=True)
        self.spatial = SpatialGate(max_first=True, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.spatial(self.channel(x)) + x)


class SharedAttention(nn.Module):
    """V2's attention on all levels: one channel gate per level (reduction 32), one spatial gate."""

    def __init__(self, level_channels: tuple[int, ...]) -> None:
        super().__init__()
        self.channel = nn.ModuleList(
            ChannelGate(channels, max(4, channels // 32), bias=False) for channels in level_channels
        )
        self.spatial = SpatialGate(max_first=False)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        return [
            F.relu(self.spatial(gate(x)) + x) for gate, x in zip(self.channel, levels, strict=True)
        ]


def _activation() -> nn.Module:
    return nn.LeakyReLU(0.1, inplace=True)


def _separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        *conv_bn(inputs, inputs, 3, stride=stride, groups=inputs),
        _activation(),
        *conv_bn(inputs, outputs, 1),
        _activation(),
    )


class MobileNetQuarter(nn.Module):
    """(B, 3, H, W) → [P3 (B, 64, ⌈H/8⌉, ⌈W/8⌉), P4 (B, 128, …/16), P5 (B, 256, …/32)]."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(
            nn.Sequential(*conv_bn(3, 8, 3, stride=2), _activation()),
            _separable(8, 16),
            _separable(16, 32, stride=2),
            _separable(32, 32),
            _separable(32, 64, stride=2),
            _separable(64, 64),
        )
        self.stage2 = nn.Sequential(
            _separable(64, 128, stride=2), *(_separable(128, 128) for _ in range(5))
        )
        self.stage3 = nn.Sequential(_separable(128, 256, stride=2), _separable(256, 256))

    def forward(self, x: Tensor) -> list[Tensor]:
        p3 = self.stage1(x)
        p4 = self.stage2(p3)
        return [p3, p4, self.stage3(p4)]


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
