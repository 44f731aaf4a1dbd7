"""At which sizes a detector sees a photo: the four protocols of the field, never to be mixed.

original: the photo as stored. vga: long side 640. mxnet: short side 1600, long side at most 2150
(RetinaFace, arXiv 1905.00641, single scale). multiscale: its test-time augmentation, short sides
500, 800, 1100, 1400 and 1700 (on a base of 800 by at most 1200), each also mirrored, merged by box
voting at IoU 0.4 (Gidaris and Komodakis, ICCV 2015). The hard AP of one model moves from 47 to 81
between them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from featherface.config import KEEP_TOP_K, NMS_IOU
from featherface.errors import ConfigError
from featherface.evaluation.consistency import pairwise_iou
from featherface.structures import FLIPPED_LANDMARKS, Detections

PROTOCOLS = ("original", "vga", "mxnet", "multiscale")
_VGA = 640
_MXNET = (1600, 2150)  # short side, longest side
_BASE = (800, 1200)  # multiscale: short side, longest side at scale 800
_SHORT_SIDES = (500, 800, 1100, 1400, 1700)


@dataclass(frozen=True)
class View:
    """One size of a photo as the detector sees it, perhaps mirrored."""

    width: int
    height: int
    mirrored: bool = False

    def draw(self, photo: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 → (height, width, 3) uint8."""
        height, width = photo.shape[:2]
        if (width, height) != (self.width, self.height):
            # area averaging when shrinking (no aliasing), as the Detector itself does
            method = cv2.INTER_AREA if self.width < width else cv2.INTER_LINEAR
            photo = cv2.resize(photo, (self.width, self.height), interpolation=method)
        return np.ascontiguousarray(photo[:, ::-1]) if self.mirrored else photo

    def restore(self, faces: Detections, width: int, height: int) -> Detections:
        """Faces found in this view → in pixels of the photo of that width and height."""
        boxes, landmarks = faces.boxes.reshape(-1, 2, 2), faces.landmarks
        if self.mirrored:
            x1, x2 = self.width - boxes[:, 1, 0], self.width - boxes[:, 0, 0]
            boxes = np.stack([x1, boxes[:, 0, 1], x2, boxes[:, 1, 1]], axis=1).reshape(-1, 2, 2)
            landmarks = landmarks[:, FLIPPED_LANDMARKS] * (-1, 1) + (self.width, 0)
        scale = np.array([width / self.width, height / self.height], np.float32)
        corners = (boxes * scale).reshape(-1, 4).astype(np.float32)
        return Detections(corners, faces.scores, (landmarks * scale).astype(np.float32))


def views(protocol: str, width: int, height: int) -> list[View]:
    """The views of a photo of this size, pixels. ConfigError for an unknown protocol."""
    short, long = min(width, height), max(width, height)
    if protocol == "original":
        return [View(width, height)]
    if protocol == "vga":
        return [_scaled(width, height, _VGA / long)]
    if protocol == "mxnet":
        return [_scaled(width, height, min(_MXNET[0] / short, _MXNET[1] / long))]
    if protocol == "multiscale":
        base = min(_BASE[0] / short, _BASE[1] / long)
        sizes = [_scaled(width, height, base * side / _BASE[0]) for side in _SHORT_SIDES]
        return [
            View(view.width, view.height, mirrored=mirrored)
            for view in sizes
            for mirrored in (False, True)
        ]
    raise ConfigError(f"protocol must be one of {', '.join(PROTOCOLS)}; got {protocol!r}")


def _scaled(width: int, height: int, scale: float) -> View:
    return View(max(1, round(width * scale)), max(1, round(height * scale)))


def vote(
    found: Sequence[Detections], *, iou_threshold: float = NMS_IOU, keep: int = KEEP_TOP_K
) -> Detections:
    """Merge what several views found in one photo (all in its pixels) by box voting.

    The best face takes every face that overlaps it by at least `iou_threshold` into its mean,
    weighted by score, and keeps its own score; then the next best of the rest; at most `keep`.
    """
    scores = np.concatenate([faces.scores for faces in found])
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    boxes = np.concatenate([faces.boxes for faces in found])[order]
    landmarks = np.concatenate([faces.landmarks for faces in found])[order]
    left = np.arange(len(scores))
    best: list[int] = []
    mean_boxes, mean_landmarks = [], []
    while len(left) and len(best) < keep:
        overlaps = pairwise_iou(boxes[left[:1]], boxes[left])[0]
        together = overlaps >= iou_threshold
        together[0] = True  # also where its own area is 0
        members = left[together]
        weights = scores[members] / scores[members].sum()
        best.append(left[0])
        mean_boxes.append(weights @ boxes[members])
        mean_landmarks.append(np.tensordot(weights, landmarks[members], axes=1))
        left = left[~together]
    if not best:
        return Detections()
    return Detections(np.stack(mean_boxes), scores[best], np.stack(mean_landmarks))
