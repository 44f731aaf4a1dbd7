"""V1 and V2 as deployed: the same function, one output layer per level, decoded in pixels.

`deployed(model)` converts a trained network, for inference only. `Raw` turns its values into boxes
of all anchors; the graph of `end_to_end` turns them into faces.
"""

import copy

import torch
from torch import Tensor, nn

from featherface.config import ANCHOR_SIZES, STRIDES, VARIANCES
from featherface.export.blocks import Context, Gate, Pyramid, Stem, make, separable
from featherface.models.layers import ChannelGate, Heads, SharedAttention
from featherface.models.necks import LightBiFPN
from featherface.models.networks import FeatherFaceV1, FeatherFaceV2

PARTS = (2, 4, 4, 20)  # channels of `head`: logits, centres, ln half sizes, landmarks


def head(heads: Heads, level: int) -> nn.Conv2d:
    """Merge the three heads of a level into one 1×1 convolution to 30 channels, in pixels.

    Each part holds the small anchor's values, then the large one's: face logit (the difference of
    the two classes'); offset of the centre x, y from the cell's; ln of half the width and height;
    offsets of five landmarks. A box is cell + offset ∓ exp(ln half).
    """
    sizes = torch.tensor(ANCHOR_SIZES[level], dtype=torch.float64)[:, None, None]  # (2, 1, 1)
    step = VARIANCES[0] * sizes
    classes, boxes, landmarks = (
        _affine(part[level]).unflatten(0, (2, -1))  # (2 anchors, values, I + 1)
        for part in (heads.classes, heads.boxes, heads.landmarks)
    )
    halves = boxes[:, 2:] * VARIANCES[1]
    halves[..., -1] += torch.log(sizes[..., 0] / 2)
    logits = classes[:, 1:] - classes[:, :1]
    parts = (logits, boxes[:, :2] * step, halves, landmarks * step)
    rows = torch.cat([part.flatten(0, 1) for part in parts])  # (30, I + 1)
    return make(rows[:, :-1, None, None], rows[:, -1])


def _affine(convolution: nn.Module) -> Tensor:
    """Join a 1×1 convolution's weight and bias in one (O, I + 1) matrix, float64."""
    assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
    weight = convolution.weight.detach().double().flatten(1)
    return torch.cat((weight, convolution.bias.detach().double()[:, None]), dim=1)


class _Deployed(nn.Module):
    """(B, 3, H, W) BGR minus mean → values (B, 30, N) and centres (2, N) of the N cells.

    The cells are those of P3, then P4, then P5, each row by row; the channels are `head`'s.
    """

    def __init__(self, heads: Heads) -> None:
        super().__init__()
        self.heads = nn.ModuleList(head(heads, level) for level in range(len(STRIDES)))

    def features(self, x: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = [f(level) for f, level in zip(self.heads, self.features(x), strict=True)]
        return torch.cat([level.flatten(2) for level in maps], dim=2), _centres(maps)


def _centres(maps: list[Tensor]) -> Tensor:
    """Return (2, N): x and y of every cell's centre, pixels of the input."""
    levels = []
    for level, stride in zip(maps, STRIDES, strict=True):
        rows, columns = (
            (torch.arange(count, device=level.device) + 0.5) * stride for count in level.shape[2:]
        )
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        levels.append(torch.stack((x.flatten(), y.flatten())))
    return torch.cat(levels, dim=1)


class DeployedV1(_Deployed):
    """V1 with merged heads; ONNX Runtime folds the batch norms that it can."""

    def __init__(self, model: FeatherFaceV1) -> None:
        super().__init__(model.heads)
        self.model = model

    def features(self, x: Tensor) -> list[Tensor]:
        return self.model.forward_features(x)


class DeployedV2(_Deployed):
    """V2 in the parts of `blocks`. exact: H and W will be multiples of 32: no map needs cutting."""

    def __init__(self, model: FeatherFaceV2, *, exact: bool) -> None:
        super().__init__(model.heads)
        stage1, stage2, stage3 = (list(part.children()) for part in model.backbone.children())
        stem = Stem(stage1[0], stage1[1])
        stages = ([stem, *map(separable, stage1[2:])], map(separable, stage2),
                  map(separable, stage3))  # fmt: skip
        self.backbone = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
        self.backbone_gates = _gates(model.backbone_attention)
        necks = [part for part in model.neck if isinstance(part, LightBiFPN)]
        self.neck = nn.ModuleList(
            Pyramid(part, model.feature_channels, exact=exact) for part in necks
        )
        self.neck_gates = _gates(model.neck_attention)
        pairs = zip(model.context, model.shuffle, strict=True)
        self.context = nn.ModuleList(Context(*pair) for pair in pairs)  # type: ignore[arg-type]

    def features(self, x: Tensor) -> list[Tensor]:
        levels = []
        for stage in self.backbone:
            x = stage(x)
            levels.append(x)
        levels = _each(self.backbone_gates, levels)
        for part in self.neck:
            levels = part(levels)
        return _each(self.context, _each(self.neck_gates, levels))


def _gates(attention: SharedAttention) -> nn.ModuleList:
    gates = [part for part in attention.channel if isinstance(part, ChannelGate)]
    return nn.ModuleList(Gate(part, attention.spatial) for part in gates)


def _each(modules: nn.ModuleList, levels: list[Tensor]) -> list[Tensor]:
    return [module(x) for module, x in zip(modules, levels, strict=True)]


def deployed(model: nn.Module, *, exact: bool = False) -> nn.Module:
    """Copy a trained V1 or V2 into its deployment form, in eval mode, without gradients.

    exact: the height and width of its inputs will be multiples of 32.
    """
    if isinstance(model, FeatherFaceV2):
        return DeployedV2(model, exact=exact).eval()
    if isinstance(model, FeatherFaceV1):
        return DeployedV1(copy.deepcopy(model)).eval().requires_grad_(False)
    raise TypeError(f"model must be FeatherFaceV1 or FeatherFaceV2; got {type(model).__name__}")


class Raw(nn.Module):
    """(B, 3, H, W) BGR minus mean → boxes (B, A, 4) x1 y1 x2 y2, scores (B, A), landmarks
    (B, A, 5, 2), in pixels; A and its order are those of `make_anchors`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, cells = self.network(image)
        logits, centres, halves, points = values.split(PARTS, dim=1)
        scores = logits.transpose(1, 2).flatten(1).sigmoid()
        centres = centres.unflatten(1, (2, 2)) + cells  # (B, 2 anchors, 2, N)
        halves = halves.unflatten(1, (2, 2)).exp()
        boxes = torch.cat((centres - halves, centres + halves), dim=2).permute(0, 3, 1, 2)
        points = (points.unflatten(1, (2, 5, 2)) + cells).permute(0, 4, 1, 2, 3)
        return boxes.flatten(1, 2), scores, points.flatten(1, 2)
