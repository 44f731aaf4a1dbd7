"""Networks with lively weights and their ONNX models, each made once for all tests."""

from functools import cache

import onnx
import torch
from torch import nn

from featherface.checkpoint import ARCHITECTURES
from featherface.export.graph import build


@cache
def network(name: str = "v2") -> nn.Module:
    """A V1 or V2 whose every parameter and statistic differs from its start; eval mode.

    Its class biases are such that some anchors score above one half and most do not.
    """
    generator = torch.Generator().manual_seed(3)
    model = ARCHITECTURES[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.6, 1.6, generator=generator)
            nn.init.uniform_(module.weight, 0.7, 1.4, generator=generator)
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)
    for key, parameter in model.named_parameters():
        if ".fuse_" in key:
            nn.init.uniform_(parameter, 0.2, 1.5, generator=generator)
        elif ".offset." in key or ".mask." in key:
            nn.init.normal_(parameter, 0, 0.05, generator=generator)
    for heads in model.heads.classes:
        nn.init.normal_(heads.bias, 0, 0.3, generator=generator)
    return model.eval()


@cache
def graph(form: str, size: tuple[int, int] | None = None, name: str = "v2") -> onnx.ModelProto:
    """The ONNX model of `network(name)`."""
    return build(network(name), form=form, size=size)
