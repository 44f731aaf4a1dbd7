"""From a picture to its faces: the one inference path of notebook, scripts and evaluation."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from featherface.config import DISPLAY_SCORE, NMS_IOU, check_detection
from featherface.devices import pick_device
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
from featherface.postprocess import postprocess
from featherface.structures import Detections

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
