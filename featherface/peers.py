"""Other face detectors, given as ONNX files, with the interface of Detector.

The outputs of a file tell its kind. RetinaFace (arXiv 1905.00641) gives deltas and scores of all
anchors; SCRFD (arXiv 2105.04714), for each level, scores and distances to the four sides; YuNet
(Machine Intelligence Research 2023), for each level, classes, objectness and boxes. The landmarks
come last. Any other file can be timed but not detect. Files are only read, never part of this
project.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from featherface.anchors import decode_boxes, decode_landmarks, make_anchors
from featherface.config import DISPLAY_SCORE, MEAN_BGR, NMS_IOU, STRIDES
from featherface.errors import CheckpointError
from featherface.face_detector import suppress
from featherface.images import ImageSource, padded_size, read_image
from featherface.onnx_detector import open_session
from featherface.structures import Detections

Outputs = Sequence[np.ndarray]
Faces = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes (N, 4), scores (N,), landmarks (N, 5, 2)
Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Kind:
    """How a kind of detector wants its pixels: (x − mean) / scale, BGR or RGB."""

    name: str
    mean: tuple[float, ...]
    scale: float
    rgb: bool


RETINAFACE = Kind("retinaface", MEAN_BGR, 1.0, False)
SCRFD = Kind("scrfd", (127.5,) * 3, 128.0, True)
YUNET = Kind("yunet", (0.0,) * 3, 1.0, False)
UNKNOWN = Kind("unknown", (0.0,) * 3, 1.0, False)


class OnnxPeer:
    """One file. A model of one size sees the picture shrunk to fit and padded on the right and
    below; a dynamic one sees it as it is, padded to multiples of 32. threads: None: one per core.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        threads: int | None = 1,
        score_threshold: float = DISPLAY_SCORE,
        iou_threshold: float = NMS_IOU,
    ) -> None:
        self.path = Path(path)
        self.session = open_session(path, threads=threads)
        self.score_threshold, self.iou_threshold = score_threshold, iou_threshold
        image = self.session.get_inputs()[0]
        if len(image.shape) != 4:
            raise CheckpointError(f"{self.path}: its input {image.shape} is not (1, 3, H, W)")
        self.input = image.name
        fixed = all(isinstance(side, int) for side in image.shape[2:])
        self.size: Size | None = (image.shape[2], image.shape[3]) if fixed else None
        self.kind = _kind([output.shape for output in self.session.get_outputs()])
        self.device = "cpu"

    def forward(self, image: np.ndarray) -> Outputs:
        """(1, 3, H, W) float32 → the model's outputs."""
        return self.session.run(None, {self.input: image})

    def detect(self, image: ImageSource, *, bgr: bool = False) -> Detections:
        """Faces of one image. The landmarks are NaN if the model has none.

        Raises CheckpointError for an unknown kind.
        """
        if self.kind is UNKNOWN:
            raise CheckpointError(f"{self.path}: unknown kind of model; it can only be timed")
        picture = read_image(image, bgr=bgr)
        tensor, scale = self.prepare(picture)
        boxes, scores, landmarks = _DECODE[self.kind.name](
            self.forward(tensor), tensor.shape[2:], self.score_threshold
        )
        kept = suppress(
            boxes, scores, score_threshold=self.score_threshold, iou_threshold=self.iou_threshold
        )
        limits = np.tile(picture.shape[1::-1], 2)
        faces = (boxes[kept] / scale).clip(0, limits).astype(np.float32)
        return Detections(faces, scores[kept], (landmarks[kept] / scale).astype(np.float32))

    def detect_batch(self, images: Iterable[ImageSource], *, bgr: bool = False) -> list[Detections]:
        """Faces of each image, in order."""
        return [self.detect(image, bgr=bgr) for image in images]

    def prepare(self, picture: np.ndarray) -> tuple[np.ndarray, float]:
        """Return (1, 3, height, width) float32 of an RGB picture, and what it was scaled by."""
        height, width = self.size or padded_size(*picture.shape[:2])
        scale = min(1.0, height / picture.shape[0], width / picture.shape[1])
        if scale < 1:
            size = tuple(max(1, int(scale * side)) for side in picture.shape[1::-1])
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        tensor = np.zeros((1, 3, height, width), np.float32)
        rows, columns = picture.shape[:2]
        for channel, mean in enumerate(self.kind.mean):
            plane = picture[..., channel if self.kind.rgb else 2 - channel]
            np.subtract(plane, mean, out=tensor[0, channel, :rows, :columns])
        return np.divide(tensor, self.kind.scale, out=tensor), scale


def _kind(shapes: Sequence[Sequence[Any]]) -> Kind:
    """By the number of outputs and their last axes."""
    last = [shape[-1] for shape in shapes]
    if last[:2] == [4, 2]:
        return RETINAFACE
    if len(last) in (6, 9) and last[:6] == [1] * 3 + [4] * 3:
        return SCRFD
    if len(last) == 12 and last[:9] == [1] * 6 + [4] * 3:
        return YUNET
    return UNKNOWN


def _cells(size: Size, stride: int) -> np.ndarray:
    """(N, 2): column and row of every cell of a level, row by row."""
    rows, columns = (-(-side // stride) for side in size)
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return np.stack((x, y), axis=-1).reshape(-1, 2).astype(np.float32)


def _points(outputs: Outputs, index: int, chosen: np.ndarray) -> np.ndarray:
    """Raw landmarks (N, 5, 2) of the chosen anchors; NaN if there is no output of this index."""
    if index >= len(outputs):
        return np.full((len(chosen), 5, 2), np.nan, np.float32)
    return outputs[index].reshape(-1, 5, 2)[chosen]


def _retinaface(outputs: Outputs, size: Size, threshold: float) -> Faces:
    """Decode deltas (1, A, 4), scores (1, A, 2) and landmark deltas (1, A, 10) of V1's anchors."""
    scores = outputs[1][0, :, 1]
    chosen = np.flatnonzero(scores > threshold)
    anchors = make_anchors(*size)[chosen]
    boxes = decode_boxes(torch.from_numpy(outputs[0][0, chosen]), anchors)
    points = torch.from_numpy(_points(outputs, 2, chosen).reshape(-1, 10))
    return boxes.numpy(), scores[chosen], decode_landmarks(points, anchors).numpy()


def _scrfd(outputs: Outputs, size: Size, threshold: float) -> Faces:
    """Decode, per level, scores (1, N, 1), distances (1, N, 4) and points (1, N, 10) in strides.

    Each cell has two anchors, centred on its upper left corner.
    """
    levels = []
    for level, stride in enumerate(STRIDES):
        score = outputs[level].reshape(-1)
        chosen = np.flatnonzero(score > threshold)
        sides = outputs[3 + level].reshape(-1, 4)[chosen] * stride
        place = _cells(size, stride)[chosen // 2] * stride
        boxes = np.concatenate((place - sides[:, :2], place + sides[:, 2:]), axis=1)
        points = _points(outputs, 6 + level, chosen) * stride + place[:, None]
        levels.append((boxes, score[chosen], points))
    return _joined(levels)


def _yunet(outputs: Outputs, size: Size, threshold: float) -> Faces:
    """Decode, per level, classes and objectness (1, N, 1), centre and ln size (1, N, 4) and points
    (1, N, 10), in strides from the cell's upper left corner."""
    levels = []
    for level, stride in enumerate(STRIDES):
        both = outputs[level].reshape(-1).clip(0, 1) * outputs[3 + level].reshape(-1).clip(0, 1)
        score = np.sqrt(both)
        chosen = np.flatnonzero(score > threshold)
        values = outputs[6 + level].reshape(-1, 4)[chosen]
        cells = _cells(size, stride)[chosen]
        centre = (cells + values[:, :2]) * stride
        half = np.exp(values[:, 2:]) * stride / 2
        boxes = np.concatenate((centre - half, centre + half), axis=1)
        points = (_points(outputs, 9 + level, chosen) + cells[:, None]) * stride
        levels.append((boxes, score[chosen], points))
    return _joined(levels)


def _joined(levels: Sequence[Faces]) -> Faces:
    boxes, scores, points = map(np.concatenate, zip(*levels, strict=True))
    return boxes, scores, points


_DECODE = {"retinaface": _retinaface, "scrfd": _scrfd, "yunet": _yunet}
