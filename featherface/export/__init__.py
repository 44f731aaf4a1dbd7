"""From trained weights to files that run anywhere: ONNX in several forms, a package, a README."""

from featherface.export.graph import FORMS, OPSET, OPSETS, build
from featherface.export.int8 import quantise
from featherface.export.run import Settings, export, parse_size

__all__ = [
    "FORMS",
    "OPSET",
    "OPSETS",
    "Settings",
    "build",
    "export",
    "parse_size",
    "quantise",
]
