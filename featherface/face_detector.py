"""The interface of all detectors: read images, shrink them, run a network, return faces.

Without torch, so that OnnxDetector needs none.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from featherface.config import check_detection
from featherface.images import (
    ImageSource,
    check_several,
    fit_long_side,
    padded_size,
    read_image,
    to_original,
)
from featherface.structures import Detections

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes (K, 4), scores (K,), points (K, 5, 2)


@dataclass(frozen=True)
class _Prepared:
    """One image for the network: `pixels` (h, w, 3) uint8 RGB, and its original size."""

    index: int
    pixels: np.ndarray
    height: int
    width: int


class FaceDetector(ABC):
    """Base of Detector and OnnxDetector: read an image, shrink it, run the network, map back."""

    batch_pixels = 0  # most padded pixels of one run; a larger image runs alone
    device: Any  # a torch.device; for ONNX Runtime cpu, cuda, or a provider's name

    def __init__(self, score_threshold: float, iou_threshold: float, max_side: int | None) -> None:
        check_detection(score_threshold, iou_threshold, max_side)
        self.score_threshold = float(score_threshold)
        self.iou_threshold = float(iou_threshold)
        self.max_side = max_side

    @property
    @abstractmethod
    def architecture(self) -> str:
        """The network's class name: FeatherFaceV1 or FeatherFaceV2."""

    @abstractmethod
    def _run(self, pictures: list[np.ndarray], size: tuple[int, int]) -> list[Arrays]:
        """Faces of RGB pictures (h, w, 3) uint8 of one padded size, in pixels of the pictures."""

    @abstractmethod
    def _facts(self) -> str:
        """The part of __repr__ that describes the network."""

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self._facts()}, device={self.device}, "
            f"score_threshold={self.score_threshold:g}, iou_threshold={self.iou_threshold:g}, "
            f"max_side={self.max_side})"
        )

    def detect(self, image: ImageSource, *, bgr: bool = False) -> Detections:
        """Find the faces of one image, best first, in its pixels.

        image: a path, a PIL image or a uint8 array, see `images.read_image`. bgr: an array is in
        OpenCV's channel order. Boxes are clipped to the image; landmarks may be outside.
        Raises DataError if the image cannot be read.
        """
        return self.detect_batch([image], bgr=bgr)[0]

    def detect_batch(self, images: Iterable[ImageSource], *, bgr: bool = False) -> list[Detections]:
        """Find the faces of each image, in order: `detect` of each, up to floating-point noise.

        Images of one padded size share a run of at most `batch_pixels`. Images are read one by one,
        so an iterator of paths keeps few of them in memory.
        """
        check_several(images)
        found: dict[int, Detections] = {}
        waiting: dict[tuple[int, int], list[_Prepared]] = {}
        for index, source in enumerate(images):
            image = read_image(source, bgr=bgr)
            item = _Prepared(index, self._fit(image), *image.shape[:2])
            size = padded_size(*item.pixels.shape[:2])
            group = waiting.setdefault(size, [])
            group.append(item)
            if (len(group) + 1) * size[0] * size[1] > self.batch_pixels:
                found.update(self._detect_group(waiting.pop(size), size))
        for size, group in waiting.items():
            found.update(self._detect_group(group, size))
        return [found[index] for index in range(len(found))]

    def _fit(self, image: np.ndarray) -> np.ndarray:
        return fit_long_side(image, self.max_side)

    def _detect_group(self, group: list[_Prepared], size: tuple[int, int]) -> dict[int, Detections]:
        faces = self._run([item.pixels for item in group], size)
        return {
            item.index: Detections(
                *to_original(
                    *arrays, shown=item.pixels.shape[:2], original=(item.height, item.width)
                )
            )
            for item, arrays in zip(group, faces, strict=True)
        }
