"""FeatherFace: a 256K-parameter face detector (boxes and five landmarks) and its training.

Names are imported on first use: importing the package is quick, and the ONNX detector needs no
torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_HOME = {
    "Detections": "featherface.structures",
    "Detector": "featherface.detector",
    "FeatherFaceV1": "featherface.models.networks",
    "FeatherFaceV2": "featherface.models.networks",
    "OnnxDetector": "featherface.onnx_detector",
    "Predictions": "featherface.structures",
    "blur": "featherface.drawing",
    "draw": "featherface.drawing",
    "load_model": "featherface.checkpoint",
    "make_anchors": "featherface.anchors",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'featherface' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
