"""Named data of the modules: network outputs, training targets, detections, curves.

Coordinates are pixels with x to the right and y down; a pixel covers [x, x+1), so an image of width
W spans 0..W. Boxes are x1, y1, x2, y2. The five landmarks are left eye, right eye, nose, left
mouth corner, right mouth corner, left and right as seen in the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import Tensor

LANDMARK_NAMES = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
FLIPPED_LANDMARKS = (1, 0, 2, 4, 3)  # in a mirrored face, eyes and mouth corners change sides


class Predictions(NamedTuple):
    """Raw outputs of V1 and V2 alike, for A anchors (16,800 at 640×640)."""

    box_deltas: Tensor  # (B, A, 4): see anchors.encode_boxes
    class_logits: Tensor  # (B, A, 2): background, face
    landmark_deltas: Tensor  # (B, A, 10): five x, y pairs, see anchors.encode_landmarks


class _Target(NamedTuple):
    boxes: Tensor  # (..., F, 4) float32, pixels of the training image
    landmarks: Tensor  # (..., F, 5, 2) float32, pixels; arbitrary where masked
    landmark_mask: Tensor  # (..., F, 5) bool: this point is annotated and visible
    ignore: Tensor  # (..., F) bool
    weight: Tensor  # (..., F) float32: 1, a MixUp share, or 0 for padding
    labelled: Tensor  # (...) bool per image: its faces are known; else only the teacher teaches


class Target(_Target):
    """The faces of one training image (leading shape (F,)) or of a padded batch ((B, F)).

    A padding row has a box of zero area and weight 0. An ignored face is neither positive nor
    negative: the anchors that match it are left out of the loss. Images are labelled by default; an
    unlabelled image is left out of the task loss altogether, whatever its faces.
    """

    face_count: int | None = None  # faces of the batch, padding not counted; None: unknown

    def __new__(
        cls,
        boxes: Tensor,
        landmarks: Tensor,
        landmark_mask: Tensor,
        ignore: Tensor,
        weight: Tensor,
        labelled: Tensor | None = None,
    ) -> Target:
        if labelled is None:
            labelled = ignore.new_ones(ignore.shape[:-1])  # bool, as ignore is
        return super().__new__(cls, boxes, landmarks, landmark_mask, ignore, weight, labelled)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Target:
        """Move to a device. Leaving the CPU counts the faces: a GPU would have to be waited for."""
        moved = Target(*(part.to(device, non_blocking=non_blocking) for part in self))
        if self.face_count is None and self.weight.device.type == "cpu":
            return moved.with_count(int((self.weight > 0).sum()))
        return moved.with_count(self.face_count)

    def with_count(self, count: int | None) -> Target:
        """Return a copy that knows how many faces it holds at most, padding not counted."""
        target = Target(*self)
        target.face_count = count
        return target


class Batch(NamedTuple):
    """Images and faces of one training step, as the loader yields them."""

    images: Tensor  # (B, 3, S, S) uint8, RGB
    targets: Target  # padded to the largest number of faces in the batch


@dataclass(frozen=True)
class Detections:
    """Faces of one image, best first, in pixels of that image."""

    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))  # (K, 4)
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # (K,) descending
    landmarks: np.ndarray = field(
        default_factory=lambda: np.zeros((0, 5, 2), np.float32)
    )  # (K, 5, 2)

    def __post_init__(self) -> None:
        count = len(self.scores)
        shapes = (self.boxes.shape, self.scores.shape, self.landmarks.shape)
        if shapes != ((count, 4), (count,), (count, 5, 2)):
            raise ValueError(
                "Detections need boxes (K, 4), scores (K,) and landmarks (K, 5, 2); "
                f"got {shapes[0]}, {shapes[1]}, {shapes[2]}"
            )
        if count > 1 and np.any(np.diff(self.scores) > 0):
            raise ValueError("Detections must be sorted by score, highest first")

    def __repr__(self) -> str:
        best = f", best {self.scores[0]:.2f}" if len(self) else ""
        return f"Detections({len(self)} face{'' if len(self) == 1 else 's'}{best})"

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detections]:
        """Yield each face as a Detections of length 1."""
        for index in range(len(self)):
            yield self[index : index + 1]

    def __getitem__(self, index: slice | np.ndarray | Sequence[bool] | Sequence[int]) -> Detections:
        """Select faces by slice, mask or ascending indices."""
        if isinstance(index, (int, np.integer)):
            raise TypeError("index Detections with a slice or an array: faces[0:1], not faces[0]")
        return Detections(self.boxes[index], self.scores[index], self.landmarks[index])

    def to_dataframe(self) -> pd.DataFrame:
        """One row per face: score, x1, y1, x2, y2, then left_eye_x, left_eye_y, …"""
        import pandas as pd

        columns = ["score", "x1", "y1", "x2", "y2"]
        columns += [f"{name}_{axis}" for name in LANDMARK_NAMES for axis in "xy"]
        rows = [self.scores[:, None], self.boxes, self.landmarks.reshape(len(self), 10)]
        return pd.DataFrame(np.concatenate(rows, axis=1), columns=columns)


@dataclass(frozen=True)
class Curve:
    """Precision and recall of a detector on one set of faces (easy, small, …).

    scores (M,) descending and true (M,) bool: the detections that count; thresholds, recall,
    precision (T,): the exact curve, one point per distinct score, highest first; ap: the official
    average precision, ap_exact: the exact one, in 0..1, NaN without faces; faces: how many there
    are to find.
    """

    scores: np.ndarray
    true: np.ndarray
    thresholds: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    ap: float
    ap_exact: float
    faces: int
