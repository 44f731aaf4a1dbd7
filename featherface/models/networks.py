"""FeatherFace V1, the teacher, with 592,371 parameters (Electronics 2025, 14(3), 517), and V2, the
student, with 256,156.
"""

from torch import Tensor, nn
from torchvision.ops import DropBlock2d

from featherface.models.context import (
    DeformableContext,
    GroupedContext,
    LightShuffleBlock,
    ShuffleBlock,
)
from featherface.models.layers import CBAM, CHANNELS, Heads, MobileNetQuarter, SharedAttention
from featherface.models.necks import BiFPN, LightBiFPN
from featherface.structures import Predictions


class FeatherFaceV1(nn.Module):
    """(B, 3, H, W) BGR minus mean, any H and W → Predictions."""

    name = "v1"
    feature_channels = 64

    def __init__(self) -> None:
        super().__init__()
        width = self.feature_channels
        self.backbone = MobileNetQuarter()
        self.backbone_attention = nn.ModuleList(CBAM(channels) for channels in CHANNELS)
        self.neck = nn.Sequential(BiFPN(width, CHANNELS), BiFPN(width), BiFPN(width))
        self.neck_attention = nn.ModuleList(CBAM(width) for _ in CHANNELS)
        self.context = nn.ModuleList(DeformableContext(width) for _ in CHANNELS)
        self.shuffle = nn.ModuleList(ShuffleBlock(width) for _ in CHANNELS)
        self.heads = Heads(width)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """The inputs of the heads: P3, P4, P5, each (B, 64, ⌈H/stride⌉, ⌈W/stride⌉)."""
        levels = _each(self.backbone_attention, self.backbone(x))
        levels = _each(self.neck_attention, self.neck(levels))
        return _each(self.shuffle, _each(self.context, levels))

    def forward_head(self, features: list[Tensor]) -> Predictions:
        return self.heads(features)

    def forward(self, x: Tensor) -> Predictions:
        return self.forward_head(self.forward_features(x))


def _each(modules: nn.ModuleList, levels: list[Tensor]) -> list[Tensor]:
    """Apply one module per level."""
    return [module(x) for module, x in zip(modules, levels, strict=True)]


class FeatherFaceV2(nn.Module):
    """(B, 3, H, W) BGR minus mean, any H and W → Predictions.

    DropBlock (arXiv 1810.12890) follows the neck and the context modules, in training only; the
    training loop ramps its probability with `set_drop_prob`.
    """

    name = "v2"
    feature_channels = 32

    def __init__(self, *, dropblock_prob: float = 0.0, dropblock_size: int = 3) -> None:
        super().__init__()
        width = self.feature_channels
        self.backbone = MobileNetQuarter()
        self.backbone_attention = SharedAttention(CHANNELS)
        self.neck = nn.Sequential(LightBiFPN(width, CHANNELS), LightBiFPN(width))
        self.neck_attention = SharedAttention((width,) * len(CHANNELS))
        self.context = nn.ModuleList(GroupedContext(width) for _ in CHANNELS)
        self.shuffle = nn.ModuleList(LightShuffleBlock(width) for _ in CHANNELS)
        self.heads = Heads(width)
        self.drop = DropBlock2d(dropblock_prob, dropblock_size)

    def set_drop_prob(self, probability: float) -> None:
        """Set DropBlock's probability, 0..1; 0 turns it off."""
        self.drop.p = probability

    def _drop(self, level: Tensor) -> Tensor:
        """Apply DropBlock unless the map is smaller than a block, which would drop all of it."""
        return level if min(level.shape[2:]) < self.drop.block_size else self.drop(level)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """The inputs of the heads: P3, P4, P5, each (B, 32, ⌈H/stride⌉, ⌈W/stride⌉)."""
        levels = self.neck(self.backbone_attention(self.backbone(x)))
        levels = self.neck_attention([self._drop(level) for level in levels])
        return [
            shuffle(self._drop(context(level)))
            for context, shuffle, level in zip(self.context, self.shuffle, levels, strict=True)
        ]

    def forward_head(self, features: list[Tensor]) -> Predictions:
        return self.heads(features)

    def forward(self, x: Tensor) -> Predictions:
        return self.forward_head(self.forward_features(x))
