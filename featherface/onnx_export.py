"""Export of a network to ONNX without the exporter's messages: for deployment and the teacher."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from onnx import ModelProto

TALKATIVE = ("torch.onnx", "onnx_ir.passes.common.initializer_deduplication")  # loggers


def export_onnx(
    module: nn.Module,
    example: Tensor,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str] | None = None,
    dynamic_shapes: Any = None,
    opset: int,
) -> "ModelProto":
    """Export a module that reads one tensor like `example`; return the ONNX model.

    inputs, outputs: names in the graph; None: chosen by the exporter. dynamic_shapes: dimensions
    that may vary, as torch.onnx.export takes them; None: none.
    """
    with _quiet():
        program = torch.onnx.export(
            module,
            (example,),
            input_names=list(inputs),
            output_names=None if outputs is None else list(outputs),
            dynamic_shapes=dynamic_shapes,
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings and the exporter's loggers inside."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
