"""MobileNetV1 ×0.25 (arXiv 1704.04861), the backbone of V1 and V2, with LeakyReLU as in
RetinaFace."""

from torch import Tensor, nn

from featherface.models.layers import conv_bn

CHANNELS = (64, 128, 256)  # of P3, P4, P5


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
        self.frozen = 0  # first blocks of stage1 that do not learn

    def freeze(self, blocks: int) -> None:
        """Keep the first blocks of stage1 as they are, their batch norms included: 0..6."""
        self.frozen = blocks
        self.stage1[:blocks].requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "MobileNetQuarter":
        super().train(mode)
        self.stage1[: self.frozen].eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        p3 = self.stage1(x)
        p4 = self.stage2(p3)
        return [p3, p4, self.stage3(p4)]
