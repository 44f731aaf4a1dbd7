"""FeatherFace V2 for fine-tuning on CPU: batch norms keep their statistics and are folded into the convolutions.

State dict names and parameters are exactly the library's, so weights go back and forth unchanged.
"""
import sys

import torch
from torch import nn
from torch.nn import functional as F


from featherface.checkpoint import load_model  # noqa: E402
from featherface.models.layers import SpatialGate  # noqa: E402


class SilentNorm(nn.BatchNorm2d):
    """Holds scale, shift and statistics; the convolution before it applies them."""

    def forward(self, x):
        return x


class FoldedConv(nn.Conv2d):
    """Convolution and the batch norm after it as one; small groups run as a dense convolution."""

    dense = True

    def forward(self, x):
        norm = self.norm
        scale = norm.weight * self.inverse
        weight = self.weight * scale[:, None, None, None]
        bias = norm.bias - norm.running_mean * scale
        groups = self.groups
        if self.dense and 1 < groups < self.in_channels:
            weight, groups = block_diagonal(weight, groups), 1
        return F.conv2d(x, weight, bias, self.stride, self.padding, 1, groups)


def block_diagonal(weight, groups):
    """(O, I/g, k, k) of a grouped convolution → (O, I, k, k)."""
    o, i, k, _ = weight.shape
    parts = weight.view(groups, o // groups, i, k, k)
    eye = torch.eye(groups, device=weight.device, dtype=weight.dtype)
    return torch.einsum("gh,goikl->gohikl", eye, parts).reshape(o, groups * i, k, k)


def fold(module):
    for child in module.children():
        if isinstance(child, nn.Sequential):
            for a, b in zip(list(child), list(child)[1:]):
                if isinstance(a, nn.Conv2d) and isinstance(b, nn.BatchNorm2d):
                    a.__class__, b.__class__ = FoldedConv, SilentNorm
                    object.__setattr__(a, "norm", b)
                    object.__setattr__(a, "inverse", (b.running_var + b.eps).rsqrt())
        if isinstance(child, SpatialGate):
            child.bn.train(False)
            child.bn.train = lambda mode=True, bn=child.bn: bn
        fold(child)
    return module


def fast_v2(path):
    model = fold(load_model(path))
    return model.requires_grad_(True)
