"""FeatherFace V1, the teacher: 592,371 parameters (Electronics 2025, 14(3), 517)."""

from torch import Tensor, nn

from featherface.models.backbone import CHANNELS, MobileNetQuarter
from featherface.models.context import DeformableContext, ShuffleBlock
from featherface.models.heads import Heads
from featherface.models.layers import CBAM
from featherface.models.necks import BiFPN
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
        """The maps that the heads read: P3, P4, P5, each (B, 64, ⌈H/stride⌉, ⌈W/stride⌉)."""
        levels = _each(self.backbone_attention, self.backbone(x))
        levels = _each(self.neck_attention, self.neck(levels))
        return _each(self.shuffle, _each(self.context, levels))

    def forward_head(self, features: list[Tensor]) -> Predictions:
        return self.heads(features)

    def forward(self, x: Tensor) -> Predictions:
        return self.forward_head(self.forward_features(x))


def _each(modules: nn.ModuleList, levels: list[Tensor]) -> list[Tensor]:
    """One module a level."""
    return [module(x) for module, x in zip(modules, levels, strict=True)]
