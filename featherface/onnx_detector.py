"""Face detection with ONNX Runtime, without torch.

Needs onnxruntime, numpy and OpenCV; Pillow only to read files exactly as Detector does. Runs the
files that scripts/export.py writes, which carry their own description.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from featherface.config import DISPLAY_SCORE, MEAN_BGR, NMS_IOU
from featherface.errors import CheckpointError, ConfigError
from featherface.face_detector import Arrays, FaceDetector
from featherface.files import shipped_file
from featherface.images import fit_long_side, network_input

if TYPE_CHECKING:
    import torch
    from onnxruntime import InferenceSession

SHIPPED_GRAPH = shipped_file("results/v2/featherface_v2_deployment.onnx")
Provider = str | tuple[str, dict[str, Any]]  # a name, or a name with options
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxDetector(FaceDetector):
    """Finds faces with an exported V1 or V2, in either form; interface and results of Detector.

    weights: an .onnx file of scripts/export.py, or None for the shipped V2.
    device: auto (CUDA where ONNX Runtime has it, else CPU), cpu, cuda, cuda:1.
    score_threshold: faces must score more, 0..1.  iou_threshold: of NMS, 0..1.
    max_side: larger images are shrunk to this long side first, pixels; None: never. A model of one
        fixed size shrinks larger images in any case.
    second_look: see images of more than 640 pixels again at long side 640, to find large faces; its
        time is (640 / long side)² of the first look's, see FaceDetector. The file runs twice.
    threads: CPU threads of one run; None: one per core. They do not spin while they wait.
    providers: ONNX Runtime's execution providers, in order, instead of those of `device`.
    A pickled detector opens its file again where it is loaded.
    Raises CheckpointError for the file and ConfigError for invalid settings.
    """

    def __init__(
        self,
        weights: str | os.PathLike | None = None,
        device: "str | torch.device" = "auto",
        score_threshold: float = DISPLAY_SCORE,
        iou_threshold: float = NMS_IOU,
        max_side: int | None = None,
        *,
        second_look: bool = True,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        super().__init__(score_threshold, iou_threshold, max_side, second_look)
        self.path = SHIPPED_GRAPH if weights is None else Path(weights)
        self.threads, self.providers = threads, _providers(str(device), providers)
        self.session = open_session(self.path, threads=threads, providers=self.providers)
        first = self.session.get_providers()[0]
        self.device = next((name for name, value in PROVIDERS.items() if value == first), first)
        if first == PROVIDERS["cuda"] and ":" in str(device):
            self.device = str(device)
        self.facts = _read_facts(self.session, self.path)
        size = self.facts["size"]
        self.size = None if size == "any" else (int(size.split("x")[0]), int(size.split("x")[1]))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the session, which cannot be pickled."""
        return {**vars(self), "path": self.path.resolve(), "session": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.session = open_session(self.path, threads=self.threads, providers=self.providers)

    @property
    def architecture(self) -> str:
        return f"FeatherFace{self.facts['architecture'].upper()}"

    def _facts(self) -> str:
        form, size = self.facts["form"], self.facts["size"]
        return f"{self.architecture}, {self.path.name}, {form}, size={size}"

    def _fit(self, image: np.ndarray) -> np.ndarray:
        image = super()._fit(image)
        return image if self.size is None else fit_inside(image, *self.size)

    def _run(self, pictures: list[np.ndarray], size: tuple[int, int]) -> list[Arrays]:
        run = self._end_to_end if self.facts["form"] == "end_to_end" else self._raw
        return [run(picture, self.size or size) for picture in pictures]

    def _end_to_end(self, picture: np.ndarray, size: tuple[int, int]) -> Arrays:
        """Run a model that includes normalisation, decoding and NMS."""
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        if self.size is not None:
            rows, columns = size[0] - picture.shape[0], size[1] - picture.shape[1]
            picture = cv2.copyMakeBorder(
                picture, 0, rows, 0, columns, cv2.BORDER_CONSTANT, value=MEAN_BGR
            )
        feed = {
            "image": picture,
            "score_threshold": np.array(self.score_threshold, np.float32),
            "iou_threshold": np.array(self.iou_threshold, np.float32),
        }
        return tuple(self.session.run(("boxes", "scores", "landmarks"), feed))

    def _raw(self, picture: np.ndarray, size: tuple[int, int]) -> Arrays:
        """Run a model that outputs all anchors, decoded."""
        feed = {"image": network_input([picture], *size)}
        boxes, scores, points = self.session.run(("boxes", "scores", "landmarks"), feed)
        return self._choose(boxes[0], scores[0], points[0])


def open_session(
    model: str | os.PathLike | bytes,
    *,
    threads: int | None = None,
    providers: Sequence[Provider] = (),
    sides: Mapping[str, int] | None = None,
) -> "InferenceSession":
    """Open an ONNX Runtime session whose threads do not spin. CheckpointError for a bad model.

    model: a file, or a serialised model. threads: of one run on the CPU; None: one per core.
    sides: {name of a free dimension: its size}, for dimensions that never change.
    """
    import onnxruntime

    check_threads(threads)
    if not isinstance(model, bytes):
        model = os.fspath(model)
        if not os.path.isfile(model):
            raise CheckpointError(f"{model}: no such file; scripts/export.py makes ONNX files")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, and need not be printed too
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # threads that spin between runs make the times of two sessions jump between two values
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, size in (sides or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    wanted = list(providers) or [PROVIDERS["cpu"]]
    try:
        return onnxruntime.InferenceSession(model, options, providers=wanted)
    except Exception as error:  # ONNX Runtime's errors share no class of their own
        raise CheckpointError(
            f"{'model' if isinstance(model, bytes) else model}: not loaded: not an ONNX model, "
            f"damaged or cut short, or not supported by ONNX Runtime {onnxruntime.__version__}"
        ) from error


def check_threads(threads: int | None) -> None:
    """Raise ConfigError unless `threads` is None or a whole number of at least 1."""
    if threads is not None and not (isinstance(threads, int) and threads >= 1):
        raise ConfigError(f"threads must be a whole number of at least 1, or None; got {threads!r}")


def _providers(device: str, providers: Sequence[str] | None) -> list[Provider]:
    """The execution providers to use; ConfigError if one is not available."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    chosen: list[Provider] = [providers] if isinstance(providers, str) else list(providers or ())
    if providers is None:
        if not re.fullmatch(r"auto|(cpu|cuda)(:\d+)?", device):
            raise ConfigError(
                f"device must be auto, cpu, cuda or cuda:1 for an ONNX file; got {device!r}"
            )
        kind, _, index = device.partition(":")
        chosen = [PROVIDERS["cpu"]]
        if kind == "cuda" or (kind == "auto" and PROVIDERS["cuda"] in available):
            chosen.insert(0, (PROVIDERS["cuda"], {"device_id": int(index or 0)}))
    missing = [name for name in map(_name, chosen) if name not in available]
    if missing:
        raise ConfigError(
            f"ONNX Runtime has no {', '.join(missing)} here; it has {', '.join(available)}"
        )
    return chosen


def _name(provider: Provider) -> str:
    return provider if isinstance(provider, str) else provider[0]


def _read_facts(session: "InferenceSession", path: Path) -> dict[str, str]:
    """The description that scripts/export.py wrote into the file; CheckpointError without one."""
    facts = session.get_modelmeta().custom_metadata_map
    if not facts.get("format", "").startswith("featherface/"):
        raise CheckpointError(
            f"{path}: an ONNX model, but not one that scripts/export.py of this project wrote"
        )
    return facts


def fit_inside(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Shrink a picture (h, w, 3) uint8, keeping its aspect, until it fits; never enlarge."""
    h, w = picture.shape[:2]
    longest = max(h, w)
    return fit_long_side(picture, max(1, min(longest * height // h, longest * width // w)))
