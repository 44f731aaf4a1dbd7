"""FeatherFace: a 256K-parameter face detector (boxes and five landmarks) and its training.

Names are imported on first use: importing the package is quick, and the ONNX detector needs no
torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # type checkers and editors read this, Python reads _HOME
    from featherface.anchors import make_anchors as make_anchors
    from featherface.checkpoint import load_model as load_model
    from featherface.detector import Detector as Detector
    from featherface.drawing import blur as blur
    from featherface.drawing import draw as draw
    from featherface.models.networks import FeatherFaceV1 as FeatherFaceV1
    from featherface.models.networks import FeatherFaceV2 as FeatherFaceV2
    from featherface.onnx_detector import OnnxDetector as OnnxDetector
    from featherface.structures import Detections as Detections
    from featherface.structures import Predictions as Predictions

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
    if name not in _HOME:
        raise AttributeError(f"module 'featherface' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        from featherface.errors import MissingExtraError, extra_of

        if extra_of(error) is None:
            raise
        raise MissingExtraError(f"featherface.{name}", error) from error


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
