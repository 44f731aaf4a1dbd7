"""The interface of all detectors: read images, shrink them, run a network, return faces.

Without torch, so that OnnxDetector needs none.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from featherface.config import KEEP_TOP_K, PRE_NMS_TOP_K, check_detection
from featherface.errors import DataError
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

# The networks mistake parts of a face over 500 pixels for faces of 350 to 500 pixels, so the first
# look keeps smaller faces only. Faces between the two limits are kept from both looks, then merged.
SECOND_LOOK = 640  # long side of the second look, pixels
FIRST_LOOK_MOST = 320  # largest face of the first look of two, in its pixels: root of the box area
SECOND_LOOK_LEAST = 160  # smallest face of the second look, in pixels of the first

MOST_PIXELS = 100_000_000  # of one look; a run of the network takes about 80 bytes per pixel
_OUT_OF_MEMORY = re.compile(r"out of memory|allocat|bad_alloc|not enough memory", re.IGNORECASE)


@dataclass(frozen=True)
class _Look:
    """One image as the network sees it: `pixels` (h, w, 3) uint8 RGB, and its original size.

    Faces of `smallest` to `largest` original pixels, as the root of the box area, are kept.
    """

    index: int
    pixels: np.ndarray
    height: int
    width: int
    smallest: float = 0.0
    largest: float = math.inf


class FaceDetector(ABC):
    """Base of Detector and OnnxDetector: read an image, shrink it, run the network, map back.

    The second look finds faces that are too large for the network in an image of more than 640
    pixels: the network sees the image again at long side 640, and NMS merges the faces of both
    looks. The first look gives the faces up to 320 pixels (root of the box area), the second those
    over 160. An image of long side n takes (640 / n)² more time: 100 % at 641 pixels, 39 % at
    1,024, 11 % at 1,920; smaller images are seen once.
    """

    batch_pixels = 0  # most padded pixels of one run; a larger image runs alone
    device: Any  # a torch.device; for ONNX Runtime cpu, cuda, or a provider's name

    def __init__(
        self,
        score_threshold: float,
        iou_threshold: float,
        max_side: int | None,
        second_look: bool,
    ) -> None:
        check_detection(score_threshold, iou_threshold, max_side)
        self.score_threshold = float(score_threshold)
        self.iou_threshold = float(iou_threshold)
        self.max_side = max_side
        self.second_look = bool(second_look)

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
            f"max_side={self.max_side}, second_look={self.second_look})"
        )

    def detect(self, image: ImageSource, *, bgr: bool = False) -> Detections:
        """Find the faces of one image, best first, in its pixels.

        image: a path, a PIL image or a uint8 array, see `images.read_image`. bgr: an array is in
        OpenCV's channel order. Boxes are clipped to the image; landmarks may be outside.
        Raises DataError if the image cannot be read or has more than 100 million pixels after
        max_side, or if the memory does not suffice.
        """
        return self.detect_batch([image], bgr=bgr)[0]

    def detect_batch(self, images: Iterable[ImageSource], *, bgr: bool = False) -> list[Detections]:
        """Find the faces of each image, in order: `detect` of each, up to floating-point noise.

        Images of one padded size share a run of at most `batch_pixels`. Images are read one by one,
        so an iterator of paths keeps few of them in memory.
        """
        check_several(images)
        found: dict[int, list[Detections]] = {}
        waiting: dict[tuple[int, int], list[_Look]] = {}
        for index, source in enumerate(images):
            found[index] = []
            for look in self._looks(index, read_image(source, bgr=bgr)):
                size = padded_size(*look.pixels.shape[:2])
                group = waiting.setdefault(size, [])
                group.append(look)
                if (len(group) + 1) * size[0] * size[1] > self.batch_pixels:
                    self._detect_group(waiting.pop(size), size, found)
        for size, group in waiting.items():
            self._detect_group(group, size, found)
        return [self._merge(looks) for looks in found.values()]

    def _fit(self, image: np.ndarray) -> np.ndarray:
        return fit_long_side(image, self.max_side)

    def _looks(self, index: int, image: np.ndarray) -> Iterator[_Look]:
        """The image as the network sees it, once or twice."""
        pixels = self._fit(image)
        (height, width), shown = image.shape[:2], max(pixels.shape[:2])
        if pixels.shape[0] * pixels.shape[1] > MOST_PIXELS:
            raise DataError(
                f"a picture of {width}×{height} pixels is too large to search: the most is "
                f"{MOST_PIXELS:,} pixels; set max_side, for example to 8000, or cut it into parts"
            )
        if not self.second_look or shown <= SECOND_LOOK:
            yield _Look(index, pixels, height, width)
            return
        scale = max(height, width) / shown
        yield _Look(index, pixels, height, width, largest=FIRST_LOOK_MOST * scale)
        pixels = fit_long_side(image, SECOND_LOOK)
        yield _Look(index, pixels, height, width, smallest=SECOND_LOOK_LEAST * scale)

    def _detect_group(
        self, group: list[_Look], size: tuple[int, int], found: dict[int, list[Detections]]
    ) -> None:
        """Run the network on looks of one padded size; add the faces of each to its image's."""
        try:
            faces = self._run([look.pixels for look in group], size)
        except Exception as error:  # NumPy's, torch's and ONNX Runtime's errors share no class
            if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
                raise
            raise DataError(
                f"not enough memory on {self.device} to search {len(group)} × {size[1]}×{size[0]} "
                "pixels: set a smaller max_side, or use another device"
            ) from error
        for look, arrays in zip(group, faces, strict=True):
            shown, original = look.pixels.shape[:2], (look.height, look.width)
            whole = Detections(*to_original(*arrays, shown=shown, original=original))
            sides = np.sqrt((whole.boxes[:, 2:] - whole.boxes[:, :2]).prod(axis=1))
            found[look.index].append(whole[(look.smallest < sides) & (sides <= look.largest)])

    def _choose(self, boxes: np.ndarray, scores: np.ndarray, points: np.ndarray) -> Arrays:
        """The faces among all anchors: boxes (A, 4), scores (A,) and points (A, 5, 2)."""
        kept = suppress(
            boxes,
            scores,
            score_threshold=self.score_threshold,
            iou_threshold=self.iou_threshold,
        )
        return boxes[kept], scores[kept], points[kept]

    def _merge(self, looks: list[Detections]) -> Detections:
        """The faces of all looks at one image, without the doubles."""
        if len(looks) == 1:
            return looks[0]
        boxes, scores, landmarks = (
            np.concatenate([getattr(faces, name) for faces in looks])
            for name in ("boxes", "scores", "landmarks")
        )
        kept = suppress(boxes, scores, score_threshold=0.0, iou_threshold=self.iou_threshold)
        return Detections(boxes[kept], scores[kept], landmarks[kept])


def suppress(
    boxes: np.ndarray,
    scores: np.ndarray,
    *,
    score_threshold: float,
    iou_threshold: float,
    pre_nms: int = PRE_NMS_TOP_K,
    keep: int = KEEP_TOP_K,
) -> np.ndarray:
    """NMS of decoded boxes (A, 4) with scores (A,): indices of the faces, best first.

    The choice is that of `detector.postprocess`.
    """
    candidates = np.flatnonzero(scores > np.float32(score_threshold))
    if len(candidates) > pre_nms:
        candidates = candidates[np.argpartition(-scores[candidates], pre_nms)[:pre_nms]]
    candidates = candidates[np.argsort(-scores[candidates], kind="stable")]
    chosen = boxes[candidates].astype(np.float64)
    chosen[:, 2:] -= chosen[:, :2]  # x, y, width, height
    best = scores[candidates]
    kept = cv2.dnn.NMSBoxes(chosen, best, 0.0, iou_threshold)  # type: ignore[arg-type]
    return candidates[np.asarray(kept, np.intp).ravel()[:keep]]
