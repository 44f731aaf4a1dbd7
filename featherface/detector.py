"""From a picture to its faces: the one inference path of notebook, scripts and evaluation."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import nms

from featherface.anchors import decode_boxes, decode_landmarks, make_anchors
from featherface.config import (
    DISPLAY_SCORE,
    KEEP_TOP_K,
    MEAN_BGR,
    NMS_IOU,
    PRE_NMS_TOP_K,
    check_detection,
)
from featherface.distributed import pick_device
from featherface.errors import CheckpointError
from featherface.images import (
    ImageSource,
    check_several,
    fit_long_side,
    network_input,
    padded_size,
    read_image,
    to_original,
)
from featherface.onnx_detector import OnnxDetector
from featherface.structures import Detections, Predictions


def normalise(images: Tensor) -> Tensor:
    """RGB uint8 (B, 3, H, W) → BGR float32 minus the mean, on the same device."""
    return images.flip(1) - _mean(images.device)  # one pass: no float copy in between


@lru_cache
@torch.inference_mode(False)  # a cached inference tensor could not be used in training later
def _mean(device: torch.device) -> Tensor:
    """(3, 1, 1). Made once: to copy it to a GPU for each batch makes the host wait."""
    return torch.tensor(MEAN_BGR, device=device).view(3, 1, 1)


def postprocess(
    predictions: Predictions,
    height: int,
    width: int,
    *,
    score_threshold: float,
    iou_threshold: float,
    pre_nms: int = PRE_NMS_TOP_K,
    keep: int = KEEP_TOP_K,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Faces of each image: boxes (K, 4) xyxy, scores (K,) descending, landmarks (K, 5, 2).

    height, width: the network input's, padding included; coordinates are its pixels, not clipped.
    A face's score is its softmax probability and must exceed `score_threshold`; of the `pre_nms`
    best, those overlapping a better one by IoU > `iou_threshold` go; at most `keep` stay.
    Results are float32 on the predictions' device.
    """
    anchors = make_anchors(height, width, predictions.class_logits.device)
    scores = predictions.class_logits.float().softmax(dim=-1)[..., 1]  # (B, A, 2) → (B, A)
    faces = []
    for index, image_scores in enumerate(scores):
        candidates = (image_scores > score_threshold).nonzero().squeeze(1)  # (N, 1) → (N,)
        best, order = image_scores[candidates].topk(min(pre_nms, len(candidates)))
        chosen = candidates[order]
        boxes = decode_boxes(predictions.box_deltas[index, chosen].float(), anchors[chosen])
        kept = nms(boxes, best, iou_threshold)[:keep]
        landmarks = decode_landmarks(
            predictions.landmark_deltas[index, chosen[kept]].float(), anchors[chosen[kept]]
        )
        faces.append((boxes[kept], best[kept], landmarks))
    return faces


SHIPPED_WEIGHTS = Path(__file__).resolve().parents[1] / "weights/v2/FeatherFaceV2_final.pth"
MAX_BATCH_PIXELS = 16 * 640 * 640  # of one forward; a larger image runs alone


@dataclass(frozen=True)
class _Prepared:
    """One image on its way: `pixels` (h, w, 3) uint8 RGB, and the size it had when it came in."""

    index: int
    pixels: np.ndarray
    height: int
    width: int


class Detector:
    """Finds faces with V1 or V2.

    weights: a checkpoint's path; a network already built, such as one in training; or None for
        the shipped V2. A network given is run in eval mode and left in the modes it had.
    device: auto (CUDA where there is one, else CPU; a given network stays where it is), cpu, cuda,
        cuda:1, mps.
    score_threshold: faces must score more, 0..1.  iou_threshold: of NMS, 0..1.
    max_side: larger images are shrunk to this long side first, pixels; None: never.
    Raises CheckpointError for weights and ConfigError for settings that cannot work.
    """

    def __init__(
        self,
        weights: str | os.PathLike | nn.Module | None = None,
        device: str | torch.device = "auto",
        score_threshold: float = DISPLAY_SCORE,
        iou_threshold: float = NMS_IOU,
        max_side: int | None = None,
    ) -> None:
        check_detection(score_threshold, iou_threshold, max_side)
        self.score_threshold = float(score_threshold)
        self.iou_threshold = float(iou_threshold)
        self.max_side = max_side
        self.model: nn.Module
        if isinstance(weights, nn.Module):
            self.model = weights if device == "auto" else weights.to(pick_device(str(device)))
        else:
            self.model = _load(weights).to(pick_device(str(device)))
        first = next(self.model.parameters(), None)
        self.device = pick_device(str(device)) if first is None else first.device

    @property
    def architecture(self) -> str:
        """The network's class name: FeatherFaceV1 or FeatherFaceV2."""
        return type(self.model).__name__

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.model.parameters())
        return (
            f"Detector({self.architecture}, {parameters:,} parameters, device={self.device}, "
            f"score_threshold={self.score_threshold:g}, iou_threshold={self.iou_threshold:g}, "
            f"max_side={self.max_side})"
        )

    def detect(self, image: ImageSource, *, bgr: bool = False) -> Detections:
        """Faces of one image (whatever images.read_image takes), best first, in its pixels.

        Boxes are clipped to the image; landmarks may lie outside. bgr: an array is OpenCV's BGR.
        Raises DataError if the image cannot be read.
        """
        return self.detect_batch([image], bgr=bgr)[0]

    def detect_batch(self, images: Iterable[ImageSource], *, bgr: bool = False) -> list[Detections]:
        """Faces of each image, in order; the same as `detect` of each, float noise apart.

        Images whose padded sizes agree share a forward of at most MAX_BATCH_PIXELS. Each image is
        read when its turn comes, so an iterator of paths holds few of them in memory at once.
        """
        check_several(images)
        found: dict[int, Detections] = {}
        waiting: dict[tuple[int, int], list[_Prepared]] = {}
        for index, source in enumerate(images):
            item = self._prepare(index, source, bgr=bgr)
            size = padded_size(*item.pixels.shape[:2])
            group = waiting.setdefault(size, [])
            group.append(item)
            if (len(group) + 1) * size[0] * size[1] > MAX_BATCH_PIXELS:
                found.update(self._run(waiting.pop(size), size))
        for size, group in waiting.items():
            found.update(self._run(group, size))
        return [found[index] for index in range(len(found))]

    def _prepare(self, index: int, source: ImageSource, *, bgr: bool) -> _Prepared:
        image = read_image(source, bgr=bgr)
        return _Prepared(index, fit_long_side(image, self.max_side), *image.shape[:2])

    def _run(self, group: list[_Prepared], size: tuple[int, int]) -> dict[int, Detections]:
        """One forward over images of one padded size (height, width)."""
        batch = torch.from_numpy(network_input([item.pixels for item in group], *size))
        with torch.inference_mode(), _eval_mode(self.model):
            predictions = self.model(batch.to(self.device))
            faces = postprocess(
                predictions,
                *size,
                score_threshold=self.score_threshold,
                iou_threshold=self.iou_threshold,
            )
        pairs = zip(group, faces, strict=True)
        return {item.index: _restored(item, parts) for item, parts in pairs}


def _load(weights: str | os.PathLike | None) -> nn.Module:
    from featherface.checkpoint import load_model

    if weights is None and not SHIPPED_WEIGHTS.is_file():
        raise CheckpointError(
            f"the shipped weights are not at {SHIPPED_WEIGHTS}: name others (weights=… in Python, "
            "--weights in a script), or train them with scripts/train_v2.py"
        )
    return load_model(SHIPPED_WEIGHTS if weights is None else weights)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for the block; afterwards every submodule trains that did so before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _restored(item: _Prepared, faces: tuple[Tensor, Tensor, Tensor]) -> Detections:
    """Boxes, scores and landmarks in pixels of the network input → of the image as it came in."""
    return to_original(
        *(part.cpu().numpy() for part in faces),
        shown=item.pixels.shape[:2],
        original=(item.height, item.width),
    )


AnyDetector = Detector | OnnxDetector


def open_detector(
    weights: str | os.PathLike | None, device: str, *settings: float | int | None
) -> AnyDetector:
    """OnnxDetector for an .onnx file, Detector for anything else; settings are theirs, in order."""
    kind = OnnxDetector if str(weights).lower().endswith(".onnx") else Detector
    return kind(weights, device, *settings)  # type: ignore[arg-type]
