"""What to evaluate on: WIDER FACE with its official ground truth, or any annotated folder."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from featherface.data.widerface import Photo, find_dataset, read_annotations
from featherface.errors import DataError
from featherface.evaluation.curves import Evaluation, evaluate, match
from featherface.evaluation.submission import Found, gather, image_key, image_stem
from featherface.evaluation.widerface import GroundTruth, precision_recall, read_ground_truth
from featherface.images import PHOTO_SUFFIXES

SMALL, LARGE = 32.0, 96.0  # pixels: small < 32 ≤ medium ≤ 96 < large


def evaluate_boxes(
    predictions: Found,
    truths: Mapping[str, np.ndarray],
    *,
    ignored: Mapping[str, np.ndarray] | None = None,
    min_size: float = 0.0,
) -> dict[str, Any]:
    """Average precision against annotated boxes.

    predictions: {image: (K, 5) x, y, w, h, score, or Detections}, or a submission folder or zip;
    truths: {image: (F, 4) x1, y1, x2, y2} in pixels, (0, 4) for a photo without faces, on which
    every detection is false. Names are matched by stem where the stems of `truths` differ, else
    with their folders. ignored: {image: (F,) bool}, faces that are neither wanted nor wrong to
    find; min_size: treats faces smaller than this alike (square root of the box area, pixels).

    Returns {"all": {"ap", "ap_exact", "faces"}, "small": …, "medium": …, "large": …, "images": n}:
    AP in 0..1, NaN for a size without faces. Errors and warnings are `evaluate_widerface`'s.
    """
    return precision_recall_boxes(predictions, truths, ignored=ignored, min_size=min_size).as_dict()


def precision_recall_boxes(
    predictions: Found,
    truths: Mapping[str, np.ndarray],
    *,
    ignored: Mapping[str, np.ndarray] | None = None,
    min_size: float = 0.0,
) -> Evaluation:
    """The same evaluation with its curves; arguments and errors are `evaluate_boxes`'s."""
    if not truths:
        raise DataError("there is no annotated image to evaluate on")
    names = list(truths)
    key = image_stem if len({image_stem(name) for name in names}) == len(names) else image_key
    boxes = [_corners(truths[name], name) for name in names]
    rows = gather(predictions, names, known=names, key=key)
    sizes = [np.sqrt((box[:, 2:] - box[:, :2]).clip(min=0).prod(axis=1)) for box in boxes]
    wanted = [
        _wanted(name, size, (ignored or {}).get(name)) & (size >= min_size)
        for name, size in zip(names, sizes, strict=True)
    ]
    size, kept = np.concatenate(sizes), np.concatenate(wanted)
    settings = {
        "all": kept,
        "small": kept & (size < SMALL),
        "medium": kept & (size >= SMALL) & (size <= LARGE),
        "large": kept & (size > LARGE),
    }
    faces = [np.column_stack([box[:, :2], box[:, 2:] - box[:, :2]]) for box in boxes]
    return evaluate(match(rows, faces), settings, images=len(names))


def _corners(boxes: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(boxes, np.float64)
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4 or not np.isfinite(array).all():
        raise DataError(f"image {name}: annotated boxes must be finite (F, 4) x1 y1 x2 y2")
    return array


def _wanted(name: str, size: np.ndarray, ignore: np.ndarray | None) -> np.ndarray:
    if ignore is None:
        return np.ones(len(size), bool)
    if len(ignore) != len(size):
        raise DataError(f"image {name}: {len(size)} boxes but {len(ignore)} ignore marks")
    return ~np.asarray(ignore, bool)


@dataclass(frozen=True)
class EvaluationSet:
    """The images to evaluate on and what is known about their faces.

    photos: images with their boxes; empty where only the ground truth is at hand. ground_truth:
    WIDER FACE's (then settings are easy, medium, hard), or None (then all, small, medium, large by
    the photos' boxes). total: images of the whole set that `photos` is all or a part of.
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
        """Which images, for tables and titles: a subset always says so."""
        name = "WIDER FACE " if self.ground_truth else ""
        if self.count < self.total:
            return f"{name}{self.split}, SUBSET: {self.count:,} of {self.total:,} images"
        return f"{name}{self.split}, {self.total:,} images"

    def first(self, count: int) -> "EvaluationSet":
        """The first photos only."""
        return replace(self, photos=self.photos[:count])

    def sample(self, count: int, seed: int = 0) -> "EvaluationSet":
        """A random part of the photos, the same for the same seed, in their order."""
        if count >= len(self.photos):
            return self
        chosen = np.random.default_rng(seed).choice(len(self.photos), count, replace=False)
        return replace(self, photos=[self.photos[index] for index in np.sort(chosen)])

    def evaluate(self, predictions: Found) -> Evaluation:
        """AP of detections named as the photos are; errors are `evaluate_widerface`'s.

        A detection of a face that is flagged invalid is dropped, neither true nor false.
        """
        if not self.annotated:
            raise DataError(f"the {self.split} split has no annotation here to evaluate against")
        if self.ground_truth:
            images = [photo.name for photo in self.photos] or None
            return precision_recall(predictions, self.ground_truth, images)
        faces = {photo.name: photo.with_ignored() for photo in self.photos}
        return precision_recall_boxes(
            predictions,
            {name: part.boxes for name, part in faces.items()},
            ignored={name: part.ignore for name, part in faces.items()},
        )


def find_evaluation_set(
    data: str | os.PathLike,
    split: str = "val",
    *,
    annotation: str | os.PathLike = "",
    need_photos: bool = True,
) -> EvaluationSet:
    """Find the images of a split under `data`, and the official ground truth if it is there.

    `data` has any layout that `featherface.data` reads, and for WIDER FACE's val split a folder
    ground_truth/ with the four .mat files (or is itself that folder, where no photos are needed).
    Of the test split images alone are enough. `annotation`: a file to use instead of the one found.
    DataError where nothing is found.
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
        return EvaluationSet(split, photos, truth, _total(photos, truth), truth is not None)
    photos = read_annotations(source.annotation, source.images)
    if truth:
        truth.subset(photo.name for photo in photos)  # fails now, not after hours of detection
    return EvaluationSet(split, photos, truth, _total(photos, truth))


def _total(photos: list[Photo], truth: GroundTruth | None) -> int:
    return len(truth.stems) if truth else len(photos)


_MAT_FILES = ("ground_truth/wider_face_val.mat", "wider_face_val.mat")


def _without_annotation(root: Path) -> list[Photo]:
    """The images of the test split, whose faces nobody but the official server knows."""
    folders = [root / "WIDER_test" / "images", root / "test" / "images", root / "images"]
    folder = next((path for path in folders if path.is_dir()), None)
    if folder is None:
        return []
    none = np.zeros((0, 4), np.float32), np.zeros((0, 5, 2), np.float32), np.zeros((0, 5), bool)
    return [
        Photo(path, path.relative_to(folder).as_posix(), *none)
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in PHOTO_SUFFIXES
    ]
