"""From a picture to its faces by ONNX Runtime: what Detector does, without torch.

Needs onnxruntime, numpy and OpenCV; Pillow only to read files as Detector does. Reads what
scripts/export.py writes, which carries its own description.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from featherface.config import (
    DISPLAY_SCORE,
    KEEP_TOP_K,
    MEAN_BGR,
    NMS_IOU,
    PRE_NMS_TOP_K,
    check_detection,
)
from featherface.errors import CheckpointError, ConfigError
from featherface.images import (
    ImageSource,
    check_several,
    fit_long_side,
    network_input,
    padded_size,
    read_image,
    to_original,
)
from featherface.structures import Detections

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

SHIPPED_GRAPH = Path(__file__).resolve().parents[1] / "results/v2/featherface_v2_deployment.onnx"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes (K, 4), scores (K,), points (K, 5, 2)


class OnnxDetector:
    """Finds faces with an exported V1 or V2, in either form; interface and results of Detector.

    weights: an .onnx file of scripts/export.py, or None for the shipped V2.
    device: auto (CUDA where ONNX Runtime has it, else CPU), cpu, cuda.
    score_threshold: faces must score more, 0..1.  iou_threshold: of NMS, 0..1.
    max_side: larger images are shrunk to this long side first, pixels; None: never. A model of one
        fixed size shrinks what is larger than it in any case.
    threads: of one run on the CPU; None: one a core. They do not spin while they wait.
    providers: ONNX Runtime's execution providers, in order, instead of those of `device`.
    Raises CheckpointError for the file and ConfigError for settings that cannot work.
    """

    def __init__(
        self,
        weights: str | os.PathLike | None = None,
        device: str = "auto",
        score_threshold: float = DISPLAY_SCORE,
        iou_threshold: float = NMS_IOU,
        max_side: int | None = None,
        *,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        check_detection(score_threshold, iou_threshold, max_side)
        self.score_threshold = float(score_threshold)
        self.iou_threshold = float(iou_threshold)
        self.max_side = max_side
        self.path = SHIPPED_GRAPH if weights is None else Path(weights)
        self.session = open_session(
            self.path, threads=threads, providers=_providers(device, providers)
        )
        self.facts = _facts(self.session, self.path)
        size = self.facts["size"]
        self.size = None if size == "any" else (int(size.split("x")[0]), int(size.split("x")[1]))

    @property
    def architecture(self) -> str:
        """The network's class name: FeatherFaceV1 or FeatherFaceV2."""
        return f"FeatherFace{self.facts['architecture'].upper()}"

    @property
    def device(self) -> str:
        """Where most of the work is done: cpu, cuda, or a provider's name."""
        first = self.session.get_providers()[0]
        return next((name for name, provider in PROVIDERS.items() if provider == first), first)

    def __repr__(self) -> str:
        return (
            f"OnnxDetector({self.architecture}, {self.path.name}, {self.facts['form']}, "
            f"size={self.facts['size']}, device={self.device}, "
            f"score_threshold={self.score_threshold:g}, iou_threshold={self.iou_threshold:g}, "
            f"max_side={self.max_side})"
        )

    def detect(self, image: ImageSource, *, bgr: bool = False) -> Detections:
        """Faces of one image (whatever images.read_image takes), best first, in its pixels.

        Boxes are clipped to the image; landmarks may lie outside. bgr: an array is OpenCV's BGR.
        Raises DataError if the image cannot be read.
        """
        picture = read_image(image, bgr=bgr)
        shown = fit_long_side(picture, self.max_side)
        if self.size is not None:
            shown = _fit(shown, *self.size)
        run = self._end_to_end if self.facts["form"] == "end_to_end" else self._raw
        return to_original(*run(shown), shown=shown.shape[:2], original=picture.shape[:2])

    def detect_batch(self, images: Iterable[ImageSource], *, bgr: bool = False) -> list[Detections]:
        """Faces of each image, in order: `detect` of each, read when its turn comes."""
        check_several(images)
        return [self.detect(image, bgr=bgr) for image in images]

    def _end_to_end(self, picture: np.ndarray) -> Arrays:
        """RGB (h, w, 3) uint8 → its faces, by a model that does everything itself."""
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        if self.size is not None:
            rows, columns = self.size[0] - picture.shape[0], self.size[1] - picture.shape[1]
            picture = cv2.copyMakeBorder(
                picture, 0, rows, 0, columns, cv2.BORDER_CONSTANT, value=MEAN_BGR
            )
        feed = {
            "image": picture,
            "score_threshold": np.array(self.score_threshold, np.float32),
            "iou_threshold": np.array(self.iou_threshold, np.float32),
        }
        return tuple(self.session.run(("boxes", "scores", "landmarks"), feed))

    def _raw(self, picture: np.ndarray) -> Arrays:
        """RGB (h, w, 3) uint8 → its faces, by a model that gives all anchors, decoded."""
        size = padded_size(*picture.shape[:2]) if self.size is None else self.size
        feed = {"image": network_input([picture], *size)}
        boxes, scores, points = self.session.run(("boxes", "scores", "landmarks"), feed)
        kept = suppress(
            boxes[0],
            scores[0],
            score_threshold=self.score_threshold,
            iou_threshold=self.iou_threshold,
        )
        return boxes[0, kept], scores[0, kept], points[0, kept]


def suppress(
    boxes: np.ndarray,
    scores: np.ndarray,
    *,
    score_threshold: float,
    iou_threshold: float,
    pre_nms: int = PRE_NMS_TOP_K,
    keep: int = KEEP_TOP_K,
) -> np.ndarray:
    """The faces among decoded boxes (A, 4) with scores (A,): indices, best first, as `postprocess`
    chooses them."""
    candidates = np.flatnonzero(scores > np.float32(score_threshold))
    if len(candidates) > pre_nms:
        candidates = candidates[np.argpartition(-scores[candidates], pre_nms)[:pre_nms]]
    candidates = candidates[np.argsort(-scores[candidates], kind="stable")]
    chosen = boxes[candidates].astype(np.float64)
    chosen[:, 2:] -= chosen[:, :2]  # x, y, width, height
    best = scores[candidates]
    kept = cv2.dnn.NMSBoxes(chosen, best, 0.0, iou_threshold)  # type: ignore[arg-type]
    return candidates[np.asarray(kept, np.intp).ravel()[:keep]]


def open_session(
    path: str | os.PathLike,
    *,
    threads: int | None = None,
    providers: Sequence[str] = (),
    sides: Mapping[str, int] | None = None,
) -> "InferenceSession":
    """An ONNX Runtime session whose threads do not spin. CheckpointError for a bad file.

    sides: {name of a free dimension: its size}, where it will always be the same.
    """
    import onnxruntime

    file = Path(path)
    if threads is not None and not (isinstance(threads, int) and threads >= 1):
        raise ConfigError(f"threads must be at least 1 and whole, or None; got {threads!r}")
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; scripts/export.py makes ONNX files")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its notes are not for users
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # threads that spin between runs make the times of two of them jump between two values
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, size in (sides or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    wanted = list(providers) or [PROVIDERS["cpu"]]
    try:
        return onnxruntime.InferenceSession(os.fspath(file), options, providers=wanted)
    except Exception as error:  # ONNX Runtime's errors have no common class of their own
        raise CheckpointError(
            f"{file}: not loaded ({file.stat().st_size:,} bytes): it is no ONNX model, is damaged "
            f"or cut short, or this ONNX Runtime ({onnxruntime.__version__}) cannot run it"
        ) from error


def _providers(device: str, providers: Sequence[str] | None) -> list[str]:
    """The execution providers to use; ConfigError where one is not there."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if providers is None:
        if device not in ("auto", *PROVIDERS):
            raise ConfigError(f"device must be auto, cpu or cuda; got {device!r}")
        both = [PROVIDERS["cuda"], PROVIDERS["cpu"]]
        if device == "auto":
            return [name for name in both if name in available]
        providers = both if device == "cuda" else [PROVIDERS["cpu"]]
    providers = [providers] if isinstance(providers, str) else list(providers)
    missing = [name for name in providers if name not in available]
    if missing:
        raise ConfigError(
            f"ONNX Runtime has no {', '.join(missing)} here; it has {', '.join(available)}"
        )
    return providers


def _facts(session: "InferenceSession", path: Path) -> dict[str, str]:
    """What scripts/export.py wrote into the file; CheckpointError where it did not."""
    facts = session.get_modelmeta().custom_metadata_map
    if not facts.get("format", "").startswith("featherface/"):
        raise CheckpointError(
            f"{path}: an ONNX model, but not one that scripts/export.py of this project wrote"
        )
    return facts


def _fit(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w, 3) uint8 shrunk, keeping its aspect, until it fits; never enlarged."""
    h, w = picture.shape[:2]
    longest = max(h, w)
    return fit_long_side(picture, max(1, min(longest * height // h, longest * width // w)))
