"""Feature pyramids: V1's and V2's BiFPN (EfficientDet, arXiv 1911.09070) on three levels.

Both are top-down, then bottom-up, with fast normalised fusion. They differ in their nodes, in the
pooling, and in the inputs of P5.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featherface.models.layers import conv_bn


class Fusion(nn.Module):
    """Σ ReLU(wᵢ)·xᵢ / (Σ ReLU(w) + 1e-4), over the given inputs."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(inputs))

    def forward(self, *maps: Tensor) -> Tensor:
        weight = F.relu(self.weight)
        weight = weight / (weight.sum() + 1e-4)
        total = weight[0] * maps[0]
        for index, x in enumerate(maps[1:], start=1):
            total = total + weight[index] * x
        return total


def double(x: Tensor, like: Tensor) -> Tensor:
    """Nearest up-sampling ×2, cut to the size of `like` (odd sizes lose the last row or column)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")[..., : like.shape[2], : like.shape[3]]


def halve_tf(x: Tensor) -> Tensor:
    """3×3 stride-2 max-pool with TensorFlow's 'same' padding: zeros, the odd one at the end."""
    rows, columns = (1 + n % 2 for n in x.shape[2:])  # ⌈n/2⌉ windows reach n + 1 or n + 2
    padding = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    return F.max_pool2d(F.pad(x, padding), 3, 2)


def halve(x: Tensor) -> Tensor:
    """3×3 stride-2 max-pool, padding 1: n → ⌈n/2⌉."""
    return F.max_pool2d(x, 3, 2, 1)


class Node(nn.Module):
    """V1: SiLU → depthwise 3×3 → pointwise 1×1 with bias → BN."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.bn = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.pointwise(self.depthwise(F.silu(x))))


def light_node(channels: int) -> nn.Sequential:
    """V2: SiLU → depthwise 3×3 + BN + ReLU → pointwise 1×1 + BN, no biases."""
    return nn.Sequential(
        nn.SiLU(),
        *conv_bn(channels, channels, 3, groups=channels),
        nn.ReLU(inplace=True),
        *conv_bn(channels, channels, 1),
    )


def _lateral(inputs: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, channels, 1), nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
    )


class BiFPN(nn.Module):
    """One round of V1's BiFPN: [P3, P4, P5] → [P3, P4, P5], all with `channels` channels.

    With `lateral_channels` it is the first round, which projects the backbone's maps; the bottom-up
    half has its own projections of P4 and P5.
    """

    def __init__(self, channels: int, lateral_channels: tuple[int, ...] | None = None) -> None:
        super().__init__()
        levels = lateral_channels or ()
        self.lateral = nn.ModuleList(_lateral(inputs, channels) for inputs in levels)
        self.lateral_up = nn.ModuleList(_lateral(inputs, channels) for inputs in levels[1:])
        self.fuse_p4_down, self.fuse_p3 = Fusion(2), Fusion(2)
        self.fuse_p4, self.fuse_p5 = Fusion(3), Fusion(3)  # P5 leaves its third weight unused
        self.node_p4_down, self.node_p3 = Node(channels), Node(channels)
        self.node_p4, self.node_p5 = Node(channels), Node(channels)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        p4_up, p5_up = levels[1:]
        if self.lateral:
            p4_up, p5_up = (f(x) for f, x in zip(self.lateral_up, levels[1:], strict=True))
            levels = [f(x) for f, x in zip(self.lateral, levels, strict=True)]
        p3, p4, p5 = levels
        p4_middle = self.node_p4_down(self.fuse_p4_down(p4, double(p5, p4)))
        p3_out = self.node_p3(self.fuse_p3(p3, double(p4_middle, p3)))
        p4_out = self.node_p4(self.fuse_p4(p4_up, p4_middle, halve_tf(p3_out)))
        p5_out = self.node_p5(self.fuse_p5(p5_up, halve_tf(p4_out)))
        return [p3_out, p4_out, p5_out]


class LightBiFPN(nn.Module):
    """One round of V2's BiFPN: light nodes, one projection per level, and P5 fused from P5, the
    pooled P4 output and the pooled top-down P4."""

    def __init__(self, channels: int, lateral_channels: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(
            nn.Sequential(*conv_bn(inputs, channels, 1)) for inputs in lateral_channels or ()
        )
        self.fuse_p4_down, self.fuse_p3 = Fusion(2), Fusion(2)
        self.fuse_p4, self.fuse_p5 = Fusion(3), Fusion(3)
        self.node_p4_down, self.node_p3 = light_node(channels), light_node(channels)
        self.node_p4, self.node_p5 = light_node(channels), light_node(channels)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        if self.lateral:
            levels = [f(x) for f, x in zip(self.lateral, levels, strict=True)]
        p3, p4, p5 = levels
        p4_middle = self.node_p4_down(self.fuse_p4_down(p4, double(p5, p4)))
        p3_out = self.node_p3(self.fuse_p3(p3, double(p4_middle, p3)))
        p4_out = self.node_p4(self.fuse_p4(p4, p4_middle, halve(p3_out)))
        p5_out = self.node_p5(self.fuse_p5(p5, halve(p4_out), halve(p4_middle)))
        return [p3_out, p4_out, p5_out]
