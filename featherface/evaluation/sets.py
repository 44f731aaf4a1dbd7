"""Evaluation sets: WIDER FACE with its official ground truth, or any annotated folder."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from featherface.data.widerface import Photo, find_dataset, read_annotations
from featherface.errors import DataError
from featherface.evaluation.consistency import box_sizes
from featherface.evaluation.curves import Evaluation, make_curves, match_detections
from featherface.evaluation.submission import Found, gather, image_key, image_stem
from featherface.evaluation.widerface import GroundTruth, precision_recall, read_ground_truth
from featherface.images import PHOTO_SUFFIXES, files_below

SMALL, LARGE = 32.0, 96.0  # pixels: small < 32 ≤ medium ≤ 96 < large
_MAT_FILES = ("ground_truth/wider_face_val.mat", "wider_face_val.mat")


def precision_recall_boxes(
    predictions: Found,
    truths: Mapping[str, np.ndarray],
    *,
    ignored: Mapping[str, np.ndarray] | None = None,
    min_size: float = 0.0,
) -> Evaluation:
    """Compute average precision against annotated boxes: all, small, medium and large faces.

    predictions: {image: (K, 5) x, y, w, h, score, or Detections}, or a submission folder or zip.
    truths: {image: (F, 4) x1, y1, x2, y2} in pixels, (0, 4) for a photo without faces, on which
    each detection is false. Names are matched by stem if the stems of `truths` are unique, else
    with their folders. ignored: {image: (F,) bool}, faces whose detections are dropped, neither
    true nor false. min_size: ignore smaller faces too (square root of the box area, pixels).

    AP is NaN for a size without faces. Errors and warnings are those of `evaluate_widerface`.
    """
    if not truths:
        raise DataError("there is no annotated image to evaluate on")
    names = list(truths)
    key = image_stem if len({image_stem(name) for name in names}) == len(names) else image_key
    boxes = [_corners(truths[name], name) for name in names]
    rows = gather(predictions, names, known=names, key=key)
    sizes = [box_sizes(box) for box in boxes]
    wanted = [
        (size >= min_size) & ~np.asarray((ignored or {}).get(name, np.zeros(len(size))), bool)
        for name, size in zip(names, sizes, strict=True)
    ]
    size, kept = np.concatenate(sizes), np.concatenate(wanted)
    by_size = {"small": size < SMALL, "medium": (size >= SMALL) & (size <= LARGE)}
    by_size["large"] = size > LARGE
    settings = {"all": kept, **{name: kept & mask for name, mask in by_size.items()}}
    faces = [np.column_stack([box[:, :2], box[:, 2:] - box[:, :2]]) for box in boxes]
    return make_curves(match_detections(rows, faces), settings, images=len(names))


def _corners(boxes: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(boxes, np.float64)
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4 or not np.isfinite(array).all():
        raise DataError(f"image {name}: annotated boxes must be finite (F, 4) x1 y1 x2 y2")
    return array


@dataclass(frozen=True)
class EvaluationSet:
    """The images to evaluate on and what is known about their faces.

    photos: images with their boxes; empty if only the ground truth is available. ground_truth:
    WIDER FACE's (settings easy, medium, hard), or None (settings all, small, medium, large by the
    photos' boxes). total: number of images of the whole set, of which `photos` may be a part.
    """

    split: str
    photos: list[Photo]
    ground_truth: GroundTruth | None
    total: int
    annotated: bool = True

    @property
    def count(self) -> int:
        return len(self.photos) or self.total

    @property
    def description(self) -> str:
        """The images, for tables and titles; a subset always says so."""
        name = "WIDER FACE " if self.ground_truth else ""
        if self.count < self.total:
            return f"{name}{self.split}, SUBSET: {self.count:,} of {self.total:,} images"
        return f"{name}{self.split}, {self.total:,} images"

    def first(self, count: int) -> "EvaluationSet":
        """Select the first photos; 0: all."""
        return replace(self, photos=self.photos[: count or None])

    def sample(self, count: int, seed: int = 0) -> "EvaluationSet":
        """Select a random part of the photos, in their order; the same for the same seed."""
        if count >= len(self.photos):
            return self
        chosen = np.random.default_rng(seed).choice(len(self.photos), count, replace=False)
        return replace(self, photos=[self.photos[index] for index in np.sort(chosen)])

    def evaluate(self, predictions: Found, *, min_size: float = 0.0) -> Evaluation:
        """Compute AP of detections named as the photos are; errors are `evaluate_widerface`'s.

        A detection of a face that is flagged invalid is dropped, neither true nor false.
        min_size: ignore smaller faces too, pixels; then by size even for WIDER FACE.
        """
        if not self.annotated:
            raise DataError(f"the {self.split} split has no annotation here to evaluate against")
        if self.ground_truth and not min_size:
            images = [photo.name for photo in self.photos] or None
            return precision_recall(predictions, self.ground_truth, images)
        faces = {photo.name: photo.with_ignored() for photo in self.photos}
        boxes, ignored = (
            {name: getattr(part, field) for name, part in faces.items()}
            for field in ("boxes", "ignore")
        )
        return precision_recall_boxes(predictions, boxes, ignored=ignored, min_size=min_size)


def find_evaluation_set(
    data: str | os.PathLike,
    split: str = "val",
    *,
    annotation: str | os.PathLike = "",
    need_photos: bool = True,
) -> EvaluationSet:
    """Find the images of a split in `data`, and the official ground truth if it is there.

    data: a folder in any layout that `featherface.data` reads, for WIDER FACE's val split with a
    folder ground_truth/ of the four .mat files (or that folder itself with need_photos=False). The
    test split needs images only. annotation: a file to use instead of the one found.
    Raises DataError if nothing is found.
    """
    root = Path(data)
    truth = None
    if split == "val" and any((root / part).is_file() for part in _MAT_FILES):
        truth = read_ground_truth(root)
    try:
        source = find_dataset(root, split, str(annotation))
    except DataError:
        photos = _without_annotation(root) if split == "test" else []
        if not photos and (annotation or need_photos or not truth):
            raise
        total = len(truth.stems) if truth else len(photos)
        return EvaluationSet(split, photos, truth, total, annotated=truth is not None)
    photos = read_annotations(source.annotation, source.images)
    if truth:
        truth.subset(photo.name for photo in photos)  # fails now, not after hours of detection
    return EvaluationSet(split, photos, truth, len(truth.stems) if truth else len(photos))


def _without_annotation(root: Path) -> list[Photo]:
    """The images of the test split; only the official server knows their faces."""
    folders = [root / "WIDER_test" / "images", root / "test" / "images", root / "images"]
    folder = next((path for path in folders if path.is_dir()), None)
    if folder is None:
        return []
    return [
        Photo.unlabelled(path, path.relative_to(folder).as_posix())
        for path in files_below(folder, PHOTO_SUFFIXES)
    ]
