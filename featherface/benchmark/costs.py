"""What a network costs apart from time: parameters, multiply-accumulates, bytes."""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto, numpy_helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_MULTIPLYING = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def network_costs(network: nn.Module, height: int, width: int) -> dict[str, int]:
    """parameters, and macs of one forward: convolutions and linear layers, as is the custom.

    A deformable convolution counts as a plain one of its shape.
    """
    device = next(network.parameters()).device
    with torch.no_grad(), operation_counter() as counter:
        network(torch.zeros(1, 3, height, width, device=device))
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "macs": counter.get_total_flops() // 2,  # an operation is a multiplication or an addition
    }


def operation_counter(rules: Mapping[Any, Callable[..., int]] | None = None) -> FlopCounterMode:
    """torch's counter, which knows deformable convolutions too; rules: for more operations.

    Two operations an output value, input channel and kernel tap, as of the plain convolution of its
    shape. Its offset and mask convolutions are plain ones; the bilinear sampling (4 more
    multiply-accumulates an input channel and tap, shared by all output channels) is left out, as in
    the published 1.24 G.
    """
    known = {torch.ops.torchvision.deform_conv2d: _deformable, **(rules or {})}
    return FlopCounterMode(display=False, custom_mapping=known)


def _deformable(image: Any, weight: Any, *rest: Any, out_shape: Any, **options: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def file_costs(path: str | os.PathLike) -> dict[str, int]:
    """parameters (weights of convolutions and products, with biases) and bytes of an ONNX file."""
    model = onnx.load(os.fspath(path))
    return {"parameters": _weights(model), "bytes": Path(path).stat().st_size}


def _weights(model: ModelProto) -> int:
    sizes = {i.name: numpy_helper.to_array(i).size for i in model.graph.initializer}
    names = {
        name
        for node in model.graph.node
        if node.op_type in (*_MULTIPLYING, "DeformConv", "BatchNormalization", "PRelu")
        for name in node.input
    }
    return sum(sizes.get(name, 0) for name in names)
