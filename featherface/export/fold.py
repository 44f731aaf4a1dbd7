"""Rewriting convolutions without changing what they compute.

ONNX Runtime's CPU kernels keep maps in blocks of 16 channels (AVX-512). A grouped convolution that
is not depthwise has no such kernel: its map is reordered before and after. So batch norm goes into
the convolution before it, and groups become one dense convolution with zeros.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

BLOCK = 16  # channels a block


def folded(convolution: nn.Conv2d, bn: nn.BatchNorm2d | None = None) -> nn.Conv2d:
    """The convolution with the batch norm after it (as in eval mode) folded in; with bias.

    Groups become dense; a depthwise convolution stays depthwise.
    """
    weight = convolution.weight.detach().double()  # (O, I/groups, kH, kW)
    bias = weight.new_zeros(len(weight))
    if convolution.bias is not None:
        bias = convolution.bias.detach().double()
    if bn is not None:
        assert bn.running_mean is not None and bn.running_var is not None
        factor = bn.weight.detach().double() / (bn.running_var.double() + bn.eps).sqrt()
        bias = (bias - bn.running_mean.double()) * factor + bn.bias.detach().double()
        weight = weight * factor[:, None, None, None]
    groups = convolution.groups
    if groups > 1 and weight.shape[1] > 1:
        weight, groups = _dense(weight, groups), 1
    stride, padding = convolution.stride[0], int(convolution.padding[0])
    return make(weight, bias, stride=stride, padding=padding, groups=groups)


def folded_all(part: nn.Module) -> list[nn.Conv2d]:
    """Every convolution of [convolution, batch norm, activation, convolution, batch norm, …]."""
    layers = list(part.children())
    convolutions = []
    for layer, after in pairwise(layers):
        if isinstance(layer, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
            convolutions.append(folded(layer, after))
    return convolutions


def _dense(weight: Tensor, groups: int) -> Tensor:
    """(O, I/groups, kH, kW) → (O, I, kH, kW), zero between the groups."""
    taps = [torch.block_diag(*tap.chunk(groups)) for tap in weight.flatten(2).unbind(2)]
    return torch.stack(taps, dim=2).unflatten(2, tuple(weight.shape[2:]))


def make(
    weight: Tensor, bias: Tensor, *, stride: int = 1, padding: int = 0, groups: int = 1
) -> nn.Conv2d:
    """A convolution of weight (O, I/groups, kH, kW) and bias (O,), without gradient."""
    outputs, inputs, *kernel = weight.shape
    convolution = nn.Conv2d(
        inputs * groups, outputs, (kernel[0], kernel[1]), stride, padding, groups=groups
    ).requires_grad_(False)
    convolution.weight.copy_(weight)
    bias_of(convolution).copy_(bias)
    return convolution


def bias_of(convolution: nn.Conv2d) -> Tensor:
    """The bias of a folded convolution, which always has one."""
    assert convolution.bias is not None
    return convolution.bias


def merged(*convolutions: nn.Conv2d) -> nn.Conv2d:
    """Dense convolutions of one kind that read the same map as one: outputs one after the other."""
    first = convolutions[0]
    return make(
        torch.cat([part.weight for part in convolutions]),
        torch.cat([bias_of(part) for part in convolutions]),
        stride=first.stride[0],
        padding=int(first.padding[0]),
    )


def scale(channels: int, factor: float) -> nn.Conv2d:
    """Multiply by a constant, as a depthwise 1×1 convolution.

    Unlike a multiplication it keeps the blocks, and ONNX Runtime lets it add another map for
    nothing.
    """
    weight = torch.full((channels, 1, 1, 1), factor)
    return make(weight, torch.zeros(channels), groups=channels)
