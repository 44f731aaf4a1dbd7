"""Detection over many photos under four protocols, and the evaluation of a detector on a data set.

Photos of like size share a batch, and files are decoded while the network works.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar

import cv2
import numpy as np
from tqdm.auto import tqdm

from featherface.config import EVALUATION_SCORE, KEEP_TOP_K, NMS_IOU
from featherface.data.widerface import Photo
from featherface.errors import ConfigError
from featherface.evaluation.consistency import pairwise_iou
from featherface.evaluation.curves import Evaluation
from featherface.evaluation.sets import EvaluationSet, find_evaluation_set
from featherface.face_detector import FaceDetector
from featherface.images import decode, open_header, open_photo, padded_size
from featherface.structures import FLIPPED_LANDMARKS, Detections

PROTOCOLS = {
    "original": "photos as stored",
    "vga": "long side 640",
    "mxnet": "short side 1600, long side at most 2150",
    "multiscale": "five sizes, mirrored too, merged by box voting",
}
_VGA = 640
_MXNET = (1600, 2150)  # short side, longest side
_BASE = (800, 1200)  # multiscale: short side, longest side at scale 800
_SHORT_SIDES = (500, 800, 1100, 1400, 1700)
BATCH_PIXELS = 16 * 640 * 640  # of network input per forward on an accelerator
CPU_BATCH_PIXELS = 640 * 640  # larger batches leave a CPU's cache and gain nothing
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def evaluate(
    detector: FaceDetector | str | os.PathLike | None,
    data: EvaluationSet | str | os.PathLike,
    *,
    split: str = "val",
    protocol: str = "vga",
    limit: int = 0,
    progress: bool = True,
    label: str = "detect",
) -> Evaluation:
    """Run a detector on the photos of a data set and compute its average precision.

    detector: a Detector or OnnxDetector, opened with a score threshold of 0.02 or less because AP
    needs low scores too; or weights to open like that (None: the shipped V2), without the second
    look that a Detector takes by default.
    data: a folder as `find_evaluation_set` reads it, or its result. protocol: the size of the
    photos, see PROTOCOLS. limit: use the first photos only; 0: all.

    Returns an Evaluation: easy, medium and hard on WIDER FACE with its ground truth, else all,
    small, medium and large; its `detections` hold the faces of each photo.
    Raises CheckpointError, ConfigError or DataError for invalid weights, settings or data.
    """
    if not isinstance(data, EvaluationSet):
        data = find_evaluation_set(data, split)
    data = data.first(limit)
    if detector is None or isinstance(detector, (str, os.PathLike)):
        from featherface.detector import open_detector  # importing torch takes seconds

        detector = open_detector(detector, score_threshold=EVALUATION_SCORE, second_look=False)
    found = detect_photos(detector, data.photos, protocol=protocol, progress=progress, label=label)
    return replace(data.evaluate(found), detections=found)


@dataclass(frozen=True)
class View:
    """One size of a photo as the detector sees it, optionally mirrored."""

    width: int
    height: int
    mirrored: bool = False

    def draw(self, photo: np.ndarray) -> np.ndarray:
        """Resize a photo (H, W, 3) uint8 to (height, width, 3)."""
        height, width = photo.shape[:2]
        if (width, height) != (self.width, self.height):
            # area averaging when shrinking (no aliasing), as the Detector itself does
            method = cv2.INTER_AREA if self.width < width else cv2.INTER_LINEAR
            photo = cv2.resize(photo, (self.width, self.height), interpolation=method)
        return np.ascontiguousarray(photo[:, ::-1]) if self.mirrored else photo

    def restore(self, faces: Detections, width: int, height: int) -> Detections:
        """Convert faces of this view to pixels of the photo, which is width × height."""
        boxes, landmarks = faces.boxes.reshape(-1, 2, 2), faces.landmarks
        if self.mirrored:
            x1, x2 = self.width - boxes[:, 1, 0], self.width - boxes[:, 0, 0]
            boxes = np.stack([x1, boxes[:, 0, 1], x2, boxes[:, 1, 1]], axis=1).reshape(-1, 2, 2)
            landmarks = landmarks[:, FLIPPED_LANDMARKS] * (-1, 1) + (self.width, 0)
        scale = np.array([width / self.width, height / self.height], np.float32)
        corners = (boxes * scale).reshape(-1, 4).astype(np.float32)
        return Detections(corners, faces.scores, (landmarks * scale).astype(np.float32))


def views(protocol: str, width: int, height: int) -> list[View]:
    """The views of a photo of width × height pixels. ConfigError for an unknown protocol."""
    short, long = sorted((width, height))
    base = min(_BASE[0] / short, _BASE[1] / long)
    scales = {
        "original": [1.0],
        "vga": [_VGA / long],
        "mxnet": [min(_MXNET[0] / short, _MXNET[1] / long)],
        "multiscale": [base * side / _BASE[0] for side in _SHORT_SIDES],
    }
    if protocol not in scales:
        raise ConfigError(f"protocol must be one of {', '.join(PROTOCOLS)}; got {protocol!r}")
    return [
        View(max(1, round(width * scale)), max(1, round(height * scale)), mirrored)
        for scale in scales[protocol]
        for mirrored in ((False, True) if protocol == "multiscale" else (False,))
    ]


def vote(
    found: Sequence[Detections], *, iou_threshold: float = NMS_IOU, keep: int = KEEP_TOP_K
) -> Detections:
    """Merge the faces of several views of one photo, in its pixels, by box voting.

    The best face becomes the score-weighted mean of all faces that overlap it by at least
    `iou_threshold` and keeps its score; then the best of the rest, and so on; at most `keep`.
    """
    order = np.argsort(-np.concatenate([faces.scores for faces in found]), kind="stable")
    boxes, scores, landmarks = (
        np.concatenate([getattr(faces, name) for faces in found])[order]
        for name in ("boxes", "scores", "landmarks")
    )
    left = np.arange(len(scores))
    merged: list[tuple] = []
    while len(left) and len(merged) < keep:
        together = pairwise_iou(boxes[left[:1]], boxes[left])[0] >= iou_threshold
        together[0] = True  # also where its own area is 0
        members = left[together]
        weights = scores[members] / scores[members].sum()
        points = np.tensordot(weights, landmarks[members], axes=1)
        merged.append((weights @ boxes[members], scores[left[0]], points))
        left = left[~together]
    return Detections(*map(np.stack, zip(*merged, strict=True))) if merged else Detections()


def detect_photos(
    detector: FaceDetector,
    photos: Sequence[Photo],
    *,
    protocol: str = "original",
    batch_pixels: int | None = None,
    progress: bool = True,
    label: str = "detect",
) -> dict[str, Detections]:
    """Detect the faces of each photo: {photo name: Detections} in pixels of the photo as stored.

    protocol: see PROTOCOLS; batch_pixels: most pixels per forward (a larger photo runs alone), by
    default chosen for the detector's device. Photos are read without EXIF rotation, as annotations
    are. Raises DataError for a file that cannot be read; for damaged headers before any detection.
    """
    headers = [open_header(photo.path) for photo in photos]
    plans = [views(protocol, header.width, header.height) for header in headers]
    found: dict[str, Detections] = {}
    if batch_pixels is None:
        on_cpu = str(getattr(detector, "device", "cpu")) == "cpu"
        batch_pixels = CPU_BATCH_PIXELS if on_cpu else BATCH_PIXELS
    batches = _batches(plans, batch_pixels)
    with tqdm(total=len(photos), desc=label, unit="image", disable=not progress) as bar:
        pictures = _ahead(batches, lambda batch: _draw(batch, photos, plans))
        for batch, drawn in zip(batches, pictures, strict=True):
            faces = iter(detector.detect_batch((image for image, _ in drawn), bgr=True))
            sizes = iter(size for _, size in drawn)
            for index in batch:
                parts = [view.restore(next(faces), *next(sizes)) for view in plans[index]]
                found[photos[index].name] = parts[0] if len(parts) == 1 else vote(parts)
            bar.update(len(batch))
    return {photo.name: found[photo.name] for photo in photos}


def _batches(plans: Sequence[list[View]], batch_pixels: int) -> list[list[int]]:
    """Photo indices in batches of one padded input size.

    The largest come first: if memory does not suffice, that shows at once, not after an hour.
    """
    pixels = [sum(np.prod(padded_size(v.height, v.width)) for v in plan) for plan in plans]
    keys = [(-n, padded_size(p[0].height, p[0].width)) for n, p in zip(pixels, plans, strict=True)]
    batches: list[list[int]] = []
    for key, group in groupby(sorted(range(len(plans)), key=keys.__getitem__), keys.__getitem__):
        indices, most = list(group), max(1, batch_pixels // -key[0])
        batches += [indices[start : start + most] for start in range(0, len(indices), most)]
    return batches


def _draw(
    batch: list[int], photos: Sequence[Photo], plans: Sequence[list[View]]
) -> list[tuple[np.ndarray, tuple[int, int]]]:
    """All views of the photos of a batch, BGR, each with the width and height of its photo."""
    drawn = []
    for index in batch:
        pixels = decode(open_photo(photos[index].path))
        size = pixels.shape[1], pixels.shape[0]
        drawn += [(view.draw(pixels), size) for view in plans[index]]
    return drawn


def _ahead(items: Iterable[_Item], work: Callable[[_Item], _Result]) -> Iterator[_Result]:
    """Yield work(item) in order; threads work a few items ahead."""
    workers = min(4, os.cpu_count() or 1)
    pool, pending = ThreadPoolExecutor(workers), deque[Future[_Result]]()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # after an error or Ctrl-C, do not wait for unused work
        pool.shutdown(wait=False, cancel_futures=True)
