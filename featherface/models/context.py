"""Context modules (SSH, arXiv 1708.03979) and channel shuffles: V1 deformable, V2 grouped.

Three branches see 3×3, 5×5 and 7×7 neighbourhoods; their concatenation keeps the channel count.
Modulated deformable convolution: arXiv 1811.11168.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from featherface.models.layers import channel_shuffle, conv_bn


class DeformableConv(nn.Module):
    """3×3 modulated deformable convolution; offsets start at 0 and the mask at 1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.offset = nn.Conv2d(inputs, 18, 3, padding=1)
        self.mask = nn.Conv2d(inputs, 9, 3, padding=1)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 3, 3))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        for part in (self.offset, self.mask):
            for parameter in part.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        mask = 2.0 * torch.sigmoid(self.mask(x))
        offset = self.offset(x)
        if x.is_cpu and not torch.compiler.is_compiling():
            # torchvision reads the pixels at NaN offsets without a check: the process would crash
            offset = offset.nan_to_num(posinf=1e6, neginf=-1e6)
        return deform_conv2d(x, offset, self.weight, padding=1, mask=mask)


def _deformable(inputs: int, outputs: int, *, activation: bool) -> nn.Sequential:
    parts: list[nn.Module] = [DeformableConv(inputs, outputs), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*parts, *([nn.LeakyReLU(0.1, inplace=True)] if activation else []))


class DeformableContext(nn.Module):
    """V1: (B, C, H, W) → (B, C, H, W), every convolution deformable."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.near = _deformable(channels, half, activation=False)
        self.shared = _deformable(channels, quarter, activation=True)
        self.middle = _deformable(quarter, quarter, activation=False)
        self.far = nn.Sequential(
            _deformable(quarter, quarter, activation=True),
            _deformable(quarter, quarter, activation=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        shared = self.shared(x)
        return F.relu(torch.cat((self.near(x), self.middle(shared), self.far(shared)), dim=1))


class GroupedContext(nn.Module):
    """V2: (B, C, H, W) → (B, C, H, W) with 3×3 convolutions in four groups."""

    def __init__(self, channels: int, groups: int = 4) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4

        def entry(outputs: int) -> nn.Sequential:
            return nn.Sequential(
                *conv_bn(channels, outputs, 1),
                nn.ReLU(inplace=True),
                *conv_bn(outputs, outputs, 3, groups=groups),
            )

        self.near = entry(half)
        self.shared = entry(quarter)
        self.middle = nn.Sequential(*conv_bn(quarter, quarter, 3, groups=groups))
        self.far = nn.Sequential(
            *conv_bn(quarter, quarter, 3, groups=groups),
            nn.ReLU(inplace=True),
            *conv_bn(quarter, quarter, 3, groups=groups),
        )

    def forward(self, x: Tensor) -> Tensor:
        shared = self.shared(x)
        return F.relu(torch.cat((self.near(x), self.middle(shared), self.far(shared)), dim=1))


class ShuffleBlock(nn.Module):
    """V1: shuffle as a (C/2) × 2 table, then 1×1 C→C/2, depthwise 3×3, 1×1 C/2→C, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.layers = nn.Sequential(
            *conv_bn(channels, half, 1),
            *conv_bn(half, half, 3, groups=half),
            *conv_bn(half, channels, 1),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(channel_shuffle(x, rows=x.shape[1] // 2))


class LightShuffleBlock(nn.Module):
    """V2: shuffle as a 4 × (C/4) table, then grouped 1×1 C→C/2 and C/2→C, each + BN + ReLU."""

    def __init__(self, channels: int, groups: int = 4) -> None:
        super().__init__()
        half = channels // 2
        self.groups = groups
        self.layers = nn.Sequential(
            *conv_bn(channels, half, 1, groups=groups),
            nn.ReLU(inplace=True),
            *conv_bn(half, channels, 1, groups=groups),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(channel_shuffle(x, rows=self.groups))
