"""V2's parts in deployment form: each computes what the trained part does, in fewer, faster steps.

What each form gains is in docs/experiments.md.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featherface.models.context import GroupedContext, LightShuffleBlock
from featherface.models.layers import ChannelGate, SpatialGate
from featherface.models.necks import Fusion, LightBiFPN, halve

BLOCK = 16  # channels per block
TILE = 4  # the spatial gate computes 4×4 positions at once


def folded(convolution: nn.Conv2d, bn: nn.BatchNorm2d | None = None) -> nn.Conv2d:
    """Fold the batch norm after a convolution (as in eval mode) into it; with bias.

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
    return [
        folded(layer, after)
        for layer, after in pairwise(part.children())
        if isinstance(layer, nn.Conv2d) and isinstance(after, nn.BatchNorm2d)
    ]


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
    """Merge dense convolutions of one kind that read the same map: their outputs in order."""
    first = convolutions[0]
    return make(
        torch.cat([part.weight for part in convolutions]),
        torch.cat([bias_of(part) for part in convolutions]),
        stride=first.stride[0],
        padding=int(first.padding[0]),
    )


def scale(channels: int, factor: float) -> nn.Conv2d:
    """Multiply by a constant, as a depthwise 1×1 convolution.

    Unlike a multiplication it keeps the blocks, and ONNX Runtime can fuse an addition into it.
    """
    weight = torch.full((channels, 1, 1, 1), factor)
    return make(weight, torch.zeros(channels), groups=channels)


def separable(block: nn.Module) -> nn.Sequential:
    """[depthwise, BN, LeakyReLU, pointwise, BN, LeakyReLU], folded."""
    first, second = folded_all(block)
    slope = _slope(block)
    return nn.Sequential(first, nn.LeakyReLU(slope), second, nn.LeakyReLU(slope))


def _slope(block: nn.Module) -> float:
    return next(p.negative_slope for p in block.children() if isinstance(p, nn.LeakyReLU))


class Stem(nn.Module):
    """The first convolution and the first separable block, (B, 3, H, W) → (B, 16, ⌈H/2⌉, ⌈W/2⌉).

    Their 8 channels fill half a block. The other half holds the depthwise result negated, so that
    LeakyReLU(x) = ReLU(x) − slope·ReLU(−x) becomes a ReLU, which a kernel applies for nothing.
    """

    def __init__(self, first: nn.Module, block: nn.Module) -> None:
        super().__init__()
        (entry,), (depthwise, pointwise) = folded_all(first), folded_all(block)
        self.slope = _slope(first)
        self.entry = merged(entry, entry)
        weight = torch.cat((depthwise.weight, -depthwise.weight))
        bias = torch.cat((bias_of(depthwise), -bias_of(depthwise)))
        self.depthwise = make(weight, bias, padding=1, groups=len(weight))
        weight = pointwise.weight
        self.pointwise = make(torch.cat((weight, -self.slope * weight), dim=1), bias_of(pointwise))

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.entry(x), self.slope)
        return F.leaky_relu(self.pointwise(F.relu(self.depthwise(x))), self.slope)


class Gate(nn.Module):
    """Channel gate, spatial gate and residual on one level: ReLU(spatial(channel(x)) + x).

    The gate's MLP reads the average and the maximum at once: expand(ReLU(reduce a)) +
    expand(ReLU(reduce m)) is one product with stacked weights. The channels' mean is a matrix
    product with the channel gate; their maximum is taken in two halves, as a reduction over the
    first axis is slow. The 7×7 convolution to one channel becomes one of stride 4 to the 16
    positions of a tile. The residual is added inside a convolution.
    """

    def __init__(self, channel: ChannelGate, spatial: SpatialGate) -> None:
        super().__init__()
        reduce, expand = folded(channel.reduce), folded(channel.expand)
        spare = -2 * reduce.out_channels % BLOCK
        weight = F.pad(torch.block_diag(*[reduce.weight.flatten(1)] * 2), (0, 0, 0, spare))
        bias = F.pad(bias_of(reduce).repeat(2), (0, spare))
        self.reduce = make(weight[..., None, None], bias)
        weight = F.pad(expand.weight.flatten(1).repeat(1, 2), (0, spare))
        self.expand = make(weight[..., None, None], 2 * bias_of(expand))
        seven = folded(spatial.conv, spatial.bn)
        self.max_first = spatial.max_first
        seven.weight[:, int(self.max_first)] /= reduce.in_channels  # reads the sum, not the mean
        self.spatial = _tiled(seven)
        self.residual = scale(reduce.in_channels, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat((x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)), dim=1)
        channel = self.expand(F.relu(self.reduce(pooled))).sigmoid()  # (B, C, 1, 1)
        flat = x.flatten(2)  # (B, C, H·W)
        total = channel.reshape(x.shape[0], 1, -1) @ flat  # (B, 1, H·W)
        gated = flat * channel.flatten(2)
        halves = gated.unflatten(1, (2, -1)).amax(2)  # (B, 2, H·W)
        largest = torch.maximum(halves[:, :1], halves[:, 1:])
        planes = (largest, total) if self.max_first else (total, largest)
        gate = self._spatial(torch.cat(planes, dim=1).unflatten(2, x.shape[2:]))
        return F.relu(self.residual((gated * gate).unflatten(2, x.shape[2:])) + x)

    def _spatial(self, planes: Tensor) -> Tensor:
        """(B, 2, H, W) → sigmoid of the 7×7 convolution, (B, 1, H·W)."""
        tiles = self.spatial(F.pad(planes, (3, TILE + 2, 3, TILE + 2))).sigmoid()
        gate = F.pixel_shuffle(tiles, TILE)
        return gate[..., : planes.shape[2], : planes.shape[3]].flatten(2)


def _tiled(seven: nn.Conv2d) -> nn.Conv2d:
    """A 7×7 convolution to one channel → one of stride TILE to the positions of a tile."""
    weights = [
        F.pad(seven.weight, (column, TILE - 1 - column, row, TILE - 1 - row))
        for row in range(TILE)
        for column in range(TILE)
    ]
    return make(torch.cat(weights), bias_of(seven).repeat(TILE**2), stride=TILE)


class Pyramid(nn.Module):
    """One round of LightBiFPN; fusion weights are constants inside convolutions.

    exact: every level is just twice as large as the next, so that no map needs cutting.
    """

    def __init__(self, neck: LightBiFPN, width: int, *, exact: bool) -> None:
        super().__init__()
        self.exact = exact
        lateral = [convolution for part in neck.lateral for convolution in folded_all(part)]
        self.node_p4_down, self.node_p3 = _node(neck.node_p4_down), _node(neck.node_p3)
        self.node_p4, self.node_p5 = _node(neck.node_p4), _node(neck.node_p5)
        self.p4_down, self.p3 = _scales(neck.fuse_p4_down, width), _scales(neck.fuse_p3, width)
        self.p4, self.p5 = _scales(neck.fuse_p4, width), _scales(neck.fuse_p5, width)
        if lateral:  # its P3 is read by one fusion only
            factor = _factors(neck.fuse_p3)[0]
            lateral[0] = make(lateral[0].weight * factor, bias_of(lateral[0]) * factor)
            self.p3[0] = nn.Identity()
        self.lateral = nn.ModuleList(lateral)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        if self.lateral:
            levels = [f(x) for f, x in zip(self.lateral, levels, strict=True)]
        p3, p4, p5 = levels
        middle = self.node_p4_down(self.p4_down[0](p4) + self._double(self.p4_down[1](p5), p4))
        out3 = self.node_p3(self.p3[0](p3) + self._double(self.p3[1](middle), p3))
        out4 = self.node_p4(self.p4[0](p4) + self.p4[1](middle) + self.p4[2](halve(out3)))
        out5 = self.p5[0](p5) + self.p5[1](halve(out4)) + self.p5[2](halve(middle))
        return [out3, out4, self.node_p5(out5)]

    def _double(self, x: Tensor, like: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if self.exact else x[..., : like.shape[2], : like.shape[3]]


def _factors(fusion: Fusion) -> list[float]:
    """ReLU(w) / (Σ ReLU(w) + 1e-4)."""
    weight = F.relu(fusion.weight.detach().double())
    return (weight / (weight.sum() + 1e-4)).tolist()


def _scales(fusion: Fusion, width: int) -> nn.ModuleList:
    return nn.ModuleList(scale(width, factor) for factor in _factors(fusion))


def _node(node: nn.Module) -> nn.Sequential:
    """[SiLU, depthwise, BN, ReLU, pointwise, BN], folded."""
    depthwise, pointwise = folded_all(node)
    return nn.Sequential(nn.SiLU(), depthwise, nn.ReLU(), pointwise)


class PairSums(nn.Module):
    """A 3×3 convolution of C channels in groups of two, as a depthwise and a 1×1 convolution.

    Reads the map twice over, (B, 2C, H, W): depthwise channel c is what input c mod C gives to the
    first (c < C) or the second output of its pair, and the 1×1 convolution adds. V2's C = 8 fills a
    block, at half the price of a dense convolution. Writes its C channels at `offsets` of `width`.
    """

    def __init__(self, grouped: nn.Conv2d, *, offsets: tuple[int, ...], width: int) -> None:
        super().__init__()
        weight, count = grouped.weight, grouped.out_channels  # (C, C, 3, 3), zero between pairs
        source = torch.arange(count)
        first = source // 2 * 2  # of each channel's pair
        kernels = torch.cat((weight[first, source], weight[first + 1, source]))  # (2C, 3, 3)
        self.depthwise = make(kernels[:, None], torch.zeros(2 * count), padding=1, groups=2 * count)
        total, bias = torch.zeros(width, 2 * count), torch.zeros(width)
        for offset in offsets:
            total[first + offset, source] = 1.0
            total[first + 1 + offset, source + count] = 1.0
            bias[offset : offset + count] = bias_of(grouped)
        self.pointwise = make(total[..., None, None], bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class Context(nn.Module):
    """GroupedContext and the LightShuffleBlock after it, in blocks of 16 channels.

    Middle and far branch are written into one block by two convolutions that add up. The shuffle is
    a permutation of the next weights, whose halves read near and far: nothing is concatenated.
    """

    def __init__(self, context: GroupedContext, shuffle: LightShuffleBlock) -> None:
        super().__init__()
        self.near_entry, self.near = folded_all(context.near)
        entry, shared = folded_all(context.shared)
        (middle,), (far, last) = folded_all(context.middle), folded_all(context.far)
        quarter = entry.out_channels
        both, width = (0, quarter), 2 * quarter
        self.shared_entry = merged(entry, entry)
        self.shared = PairSums(shared, offsets=both, width=width)
        self.middle = PairSums(middle, offsets=(0,), width=width)
        self.far = PairSums(far, offsets=both, width=width)
        self.last = PairSums(last, offsets=(quarter,), width=width)
        squeeze, self.expand = folded_all(shuffle.layers)
        order = torch.arange(2 * width).unflatten(0, (shuffle.groups, -1)).T.flatten()
        weight = torch.empty_like(squeeze.weight)
        weight[:, order] = squeeze.weight  # the shuffled channel i is channel order[i]
        near, rest = weight.split(width, dim=1)
        self.squeeze_near = make(near, torch.zeros(len(near)))
        self.squeeze_rest = make(rest, bias_of(squeeze))

    def forward(self, x: Tensor) -> Tensor:
        near = F.relu(self.near(F.relu(self.near_entry(x))))
        shared = self.shared(F.relu(self.shared_entry(x)))
        rest = F.relu(self.middle(shared) + self.last(F.relu(self.far(shared))))
        return F.relu(self.expand(F.relu(self.squeeze_near(near) + self.squeeze_rest(rest))))
