"""Named data of the modules: network outputs, training targets, detections, curves.

Coordinates are pixels with x to the right and y down; a pixel covers [x, x+1), so an image of width
W spans 0..W. Boxes are x1, y1, x2, y2. The five landmarks are left eye, right eye, nose, left
mouth corner, right mouth corner, left and right as seen in the image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from featherface.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    import supervision
    import torch
    from torch import Tensor

    from featherface.images import ImageSource

LANDMARK_NAMES = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
FLIPPED_LANDMARKS = (1, 0, 2, 4, 3)  # in a mirrored face, eyes and mouth corners change sides
# Where the landmarks are in an aligned face of 112×112 pixels, x and y: the template of ArcFace
# (Deng et al., CVPR 2019; insightface/utils/face_align.py), which most recognition networks use.
FACE_TEMPLATE = np.array(
    [
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ]
)
COCO_CATEGORY = {"id": 1, "name": "face", "keypoints": list(LANDMARK_NAMES), "skeleton": []}


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


@dataclass(frozen=True, eq=False)
class Detections:
    """Faces of one image, in pixels of that image. Detectors return the best face first."""

    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))  # (K, 4)
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # (K,)
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

    def __repr__(self) -> str:
        if not len(self):
            return "Detections(0 faces)"
        count = "1 face" if len(self) == 1 else f"{len(self)} faces"
        scores = _span(self.scores, ".2f")
        return f"Detections({count}, score {scores}, size {_span(self.sizes, '.0f')} pixels)"

    def __eq__(self, other: object) -> bool:
        """True if all boxes, scores and landmarks are equal, in the same order; NaN equals NaN."""
        if not isinstance(other, Detections):
            return NotImplemented
        pairs = zip(self._arrays(), other._arrays(), strict=True)
        return all(np.array_equal(mine, its, equal_nan=True) for mine, its in pairs)

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detections]:
        """Yield each face as a Detections of length 1."""
        for index in range(len(self)):
            yield self[index]

    def __getitem__(
        self, index: int | slice | np.ndarray | Sequence[bool] | Sequence[int]
    ) -> Detections:
        """Select faces by number (one face, still a Detections), slice, mask or list of numbers."""
        if isinstance(index, (int, np.integer)):
            if not -len(self) <= index < len(self):
                raise IndexError(f"there is no face {index}: {self!r}")
            index = [int(index)]
        elif isinstance(index, (list, tuple)):
            index = np.array(index) if len(index) else np.zeros(0, int)
        return Detections(*(part[index] for part in self._arrays()))

    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.boxes, self.scores, self.landmarks

    @property
    def sizes(self) -> np.ndarray:
        """The size of each face (K,): the square root of the area of its box, in pixels."""
        return np.sqrt((self.boxes[:, 2:] - self.boxes[:, :2]).clip(0).prod(axis=1))

    def filter(
        self, *, min_score: float = 0.0, min_size: float = 0.0, max_size: float = np.inf
    ) -> Detections:
        """Keep the faces of at least this score and of this size in pixels (see `sizes`)."""
        sizes = self.sizes
        return self[(self.scores >= min_score) & (sizes >= min_size) & (sizes <= max_size)]

    def sort_by(self, key: str = "score", *, reverse: bool = False) -> Detections:
        """Sort the faces; those with equal keys keep their order.

        key: "score" (best first), "size" (largest first), "x" (left to right) or "y" (top to
        bottom, both by the centre of the box). Raises ValueError for another key.
        """
        centers = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        keys = {"score": -self.scores, "size": -self.sizes, "x": centers[:, 0], "y": centers[:, 1]}
        if key not in keys:
            raise ValueError(f"cannot sort faces by {key!r}: choose one of {', '.join(keys)}")
        return self[np.argsort(-keys[key] if reverse else keys[key], kind="stable")]

    def transforms(self, size: int = 112) -> np.ndarray:
        """The matrix (2, 3) for each face that moves the image's pixels into its aligned picture.

        It is the similarity transform (rotation, scale, shift) with the least sum of squared
        distances between the moved landmarks and FACE_TEMPLATE, enlarged from 112 to `size`
        pixels (Umeyama, IEEE TPAMI 13(4), 1991). Returns (K, 2, 3) float64. NaN for landmarks that
        are not finite or all in one point.
        """
        # With points as complex numbers, w ≈ a·z + b: a is rotation and scale, b the shift.
        target = FACE_TEMPLATE @ (1, 1j) * (size / 112)
        with np.errstate(invalid="ignore", divide="ignore"):
            points = self.landmarks.astype(np.float64) @ (1, 1j)  # (K, 5, 2) → (K, 5)
            center = points.mean(axis=1, keepdims=True)
            spread = points - center
            turn = (spread.conj() @ (target - target.mean())) / (abs(spread) ** 2).sum(axis=1)
            shift = target.mean() - turn * center[:, 0]
        rows = (turn.real, -turn.imag, shift.real), (turn.imag, turn.real, shift.imag)
        return np.moveaxis(np.array(rows), 2, 0)  # (2, 3, K) → (K, 2, 3)

    def align(self, image: ImageSource, size: int = 112, *, bgr: bool = False) -> np.ndarray:
        """Cut out each face upright, as networks for face recognition expect it.

        image: the image of these faces (a path, a PIL image or a uint8 array, see
        `images.read_image`); bgr: an array is in OpenCV's channel order. Returns
        (K, size, size, 3) uint8 RGB, bilinear, black outside the image, by `transforms`.
        Raises DataError if the image cannot be read or landmarks define no transform.
        """
        import cv2

        from featherface.images import read_image

        if size < 1:
            raise ValueError(f"an aligned face has at least 1 pixel; got size={size}")
        pixels = read_image(image, bgr=bgr)
        matrices = self.transforms(size)
        bad = np.flatnonzero(~np.isfinite(matrices).all(axis=(1, 2)))
        if len(bad):
            raise DataError(
                f"face {bad[0]} cannot be aligned: its landmarks are not finite or all in one "
                "point; leave it out, or use crop"
            )
        faces = [cv2.warpAffine(pixels, matrix, (size, size)) for matrix in matrices]
        return np.array(faces, np.uint8).reshape(-1, size, size, 3)

    def crop(
        self, image: ImageSource, margin: float = 0.2, *, bgr: bool = False
    ) -> list[np.ndarray]:
        """Cut out the box of each face, grown by `margin` of its width and height on each side.

        image, bgr: as in `align`. Returns (h, w, 3) uint8 RGB for each face, of different sizes
        and empty outside the image. Raises DataError if the image cannot be read.
        """
        from featherface.images import read_image

        pixels = read_image(image, bgr=bgr)
        return [pixels[region].copy() for region in self.regions(pixels.shape, margin)]

    def regions(self, shape: Sequence[int], margin: float = 0.0) -> list[tuple[slice, slice]]:
        """Rows and columns of each box, grown by `margin`, inside an image of `shape` (H, W, …)."""
        grown = margin * (self.boxes[:, 2:] - self.boxes[:, :2])
        limit = np.array((shape[1], shape[0]))
        low = np.floor(self.boxes[:, :2] - grown).clip(0, limit).astype(int).tolist()
        high = np.ceil(self.boxes[:, 2:] + grown).clip(0, limit).astype(int).tolist()
        return [
            (slice(top, max(top, bottom)), slice(left, max(left, right)))
            for (left, top), (right, bottom) in zip(low, high, strict=True)
        ]

    def to_dicts(self, *, decimals: int | None = None) -> list[dict[str, Any]]:
        """One dict per face: score, box [x1, y1, x2, y2] and landmarks {name: [x, y]}.

        decimals: of pixels, with two more for the score (None: all digits). A number that is not
        finite becomes None.
        """
        found = []
        for box, score, points in zip(*self._arrays(), strict=True):
            named = zip(LANDMARK_NAMES, points, strict=True)
            found.append(
                {
                    "score": _numbers([score], None if decimals is None else decimals + 2)[0],
                    "box": _numbers(box, decimals),
                    "landmarks": {name: _numbers(point, decimals) for name, point in named},
                }
            )
        return found

    def to_json(self, *, decimals: int | None = None) -> str:
        """The list of `to_dicts` as JSON text."""
        return json.dumps(self.to_dicts(decimals=decimals), allow_nan=False)

    def to_coco(self, image_id: int = 1, *, first_id: int = 1) -> list[dict[str, Any]]:
        """One COCO annotation per face, numbered from `first_id`, of the category COCO_CATEGORY.

        The list is the `annotations` of a COCO file, and has the scores that pycocotools'
        `COCO.loadRes` reads. Boxes are x, y, width, height; keypoints are x, y and 2, or three
        zeros for a landmark that is not finite.
        """
        seen = np.isfinite(self.landmarks).all(axis=2)  # (K, 5)
        points = np.where(seen[..., None], self.landmarks, 0.0)
        keypoints = np.concatenate([points, 2.0 * seen[..., None]], axis=2).reshape(len(self), 15)
        corners = self.boxes.astype(np.float64)
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        return [
            {
                "id": first_id + index,
                "image_id": image_id,
                "category_id": COCO_CATEGORY["id"],
                "bbox": boxes[index].tolist(),
                "area": float(boxes[index, 2:].prod()),
                "iscrowd": 0,
                "score": float(self.scores[index]),
                "keypoints": keypoints[index].tolist(),
                "num_keypoints": int(seen[index].sum()),
            }
            for index in range(len(self))
        ]

    def to_supervision(self) -> supervision.Detections:
        """The faces as supervision.Detections: class 0 "face", and the landmarks in `data`.

        Raises ImportError if supervision is not installed (the extra `supervision`).
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError("to_supervision needs: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes.astype(np.float32),
            confidence=self.scores.astype(np.float32),
            class_id=np.zeros(len(self), int),
            data={"class_name": np.full(len(self), "face"), "landmarks": self.landmarks},
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row per face: score, x1, y1, x2, y2, then left_eye_x, left_eye_y, …"""
        import pandas as pd

        columns = ["score", "x1", "y1", "x2", "y2"]
        columns += [f"{name}_{axis}" for name in LANDMARK_NAMES for axis in "xy"]
        rows = [self.scores[:, None], self.boxes, self.landmarks.reshape(len(self), 10)]
        return pd.DataFrame(np.concatenate(rows, axis=1), columns=columns)


def _span(values: np.ndarray, form: str) -> str:
    """The lowest and the highest value, "0.51 to 0.99", or one number if they look the same."""
    low, high = format(float(values.min()), form), format(float(values.max()), form)
    return low if low == high else f"{low} to {high}"


def _numbers(values: Iterable[float], decimals: int | None) -> list[float | None]:
    """Python floats, rounded to `decimals` if not None; None for what is not finite."""
    plain = [float(value) for value in values]
    if decimals is not None:
        plain = [round(value, decimals) if math.isfinite(value) else value for value in plain]
    return [value if math.isfinite(value) else None for value in plain]


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
