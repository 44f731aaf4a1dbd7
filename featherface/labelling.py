"""Annotation of photographs by an ensemble of detectors, to train on photographs without labels.

Each detector sees each photograph at several sizes, mirrored too, and box voting merges what it
finds (Gidaris and Komodakis, ICCV 2015, arXiv 1505.01749). The faces of several detectors are
merged in the same way. A face's score is the mean over the detectors of their best scores for it,
0 where a detector does not find it: a face that one of three detectors sees is doubtful.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from featherface.config import EVALUATION_SCORE, NMS_IOU
from featherface.data.annotations import Photo, check_name, write_annotations
from featherface.detector import Detector
from featherface.errors import CheckpointError, ConfigError, DataError, printable
from featherface.evaluation.consistency import pairwise_iou
from featherface.evaluation.run import View, vote
from featherface.evaluation.submission import write_submission
from featherface.face_detector import FaceDetector
from featherface.files import check_writable, sha256, write_text
from featherface.images import PHOTO_SUFFIXES, decode, exif_orientation, files_below, open_photo
from featherface.onnx_detector import OnnxDetector
from featherface.peers import UNKNOWN, OnnxPeer
from featherface.structures import FLIPPED_LANDMARKS, Detections

SIDES = (640, 1024)  # long sides of the views, pixels
SURE, DOUBT = 0.42, 0.15  # faces score SURE or more; from DOUBT to SURE they are ignored
_FLIPPED_X, _FLIPPED_Y, _TURNED = (2, 3, 7, 8), (3, 4, 6, 7), (5, 6, 7, 8)  # EXIF orientations


@dataclass
class Labels:
    """A finished annotation: its file, its photos, and a line for each file that has none."""

    path: Path
    photos: list[Photo] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def faces(self) -> int:
        return sum(len(photo.boxes) for photo in self.photos)

    @property
    def ignored(self) -> int:
        return sum(len(photo.ignored_boxes) for photo in self.photos)

    def skip(self, line: str) -> None:
        self.skipped.append(printable(line))
        tqdm.write(f"skipped: {self.skipped[-1]}", file=sys.stderr)


def label_photos(
    folder: str | os.PathLike,
    detectors: Sequence[str | os.PathLike],
    out: str | os.PathLike = "",
    *,
    sides: Sequence[int] = SIDES,
    score: float = SURE,
    doubt: float = DOUBT,
    predictions: str | os.PathLike = "",
    device: str = "auto",
    progress: bool = True,
) -> Labels:
    """Write an annotation of the photos of a folder and its subfolders, for training.

    detectors: files as `open_for_labelling` takes. out: the annotation, in the format with
    landmarks; "": label.txt in the folder. sides: long sides of the views, pixels. Faces of at
    least `score` are labels; those of at least `doubt` are ignored in training; others are
    background. predictions: a folder for all faces with their scores, as submission files.

    Detections are added to the file `out`.jsonl photo by photo. A later call with the same
    detectors and sides reads them from there: it continues after Ctrl-C, adds new photos, or
    applies other scores without detection. Coordinates are pixels of the photos as stored. Raises
    CheckpointError, ConfigError or DataError for wrong detectors, settings or photos; a file that
    cannot be read is reported in one line and skipped.
    """
    _check(sides, score, doubt, detectors)
    paths = files_below(Path(folder), PHOTO_SUFFIXES)
    if not paths:
        raise DataError(f"{folder} does not exist, or holds no photo")
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    labels = Labels(Path(out or Path(folder) / "label.txt"))
    check_writable(labels.path.parent)
    lowest = EVALUATION_SCORE if predictions else doubt
    opened = [open_for_labelling(path, score_threshold=lowest, device=device) for path in detectors]
    files = {f"{number} {Path(path).name}": sha256(path) for number, path in enumerate(detectors)}
    settings = {"detectors": files, "sides": list(sides), "lowest": lowest}
    journal = Journal(labels.path.with_name(f"{labels.path.name}.jsonl"), settings)
    for detector in opened:
        detector.score_threshold = journal.lowest
    try:
        _label_all(opened, sides, named, labels, journal, progress=progress)
    finally:  # after Ctrl-C too
        journal.close()
        found = {name: journal.found[name] for name in named if name in journal.found}
        for name, faces in found.items():
            labels.photos.append(as_photo(named[name], name, faces, score=score, doubt=doubt))
        write_annotations(labels.path, labels.photos)
        if predictions:
            write_submission(predictions, found)
    if not labels.photos:
        raise DataError(f"no photo of {folder} could be read: see the lines above")
    return labels


def _check(sides: Sequence[int], score: float, doubt: float, detectors: Sequence) -> None:
    if not detectors:
        raise ConfigError("give at least one detector")
    if not sides or min(sides) < 32:
        raise ConfigError(f"sides must be 32 pixels or more; got {list(sides)}")
    if not 0 < doubt <= score <= 1:
        raise ConfigError(f"scores must be 0 < doubt ≤ score ≤ 1; got {doubt:g} and {score:g}")


def open_for_labelling(
    path: str | os.PathLike, *, score_threshold: float, device: str = "auto"
) -> FaceDetector | OnnxPeer:
    """Open weights of V1 or V2, an exported file, or an ONNX file that `peers` knows.

    It runs with torch's number of threads and looks once at an image. Raises CheckpointError.
    """
    if Path(path).suffix.lower() != ".onnx":
        return Detector(path, device, score_threshold, second_look=False)
    threads = torch.get_num_threads()
    try:
        return OnnxDetector(path, device, score_threshold, second_look=False, threads=threads)
    except CheckpointError:
        peer = OnnxPeer(path, threads=threads, score_threshold=score_threshold)
    if peer.kind is UNKNOWN:
        raise CheckpointError(f"{path}: not a detector whose outputs are known: see peers.py")
    return peer


def find_faces(
    detectors: Sequence[Any], image: np.ndarray, sides: Sequence[int] = SIDES
) -> Detections:
    """The faces of an upright image (H, W, 3) uint8 BGR, in its pixels, best first.

    detectors: with `detect` and, for a model of one size, `size` (height, width): larger sides
    would show it the same again.
    """
    voted = [vote(_look(detector, image, sides)) for detector in detectors]
    merged = vote(voted) if len(voted) > 1 else voted[0]
    scores = np.zeros(len(merged), np.float32)
    for faces in voted:
        iou = pairwise_iou(merged.boxes, faces.boxes)  # (K, faces)
        # each face counts for one merged face only: a neighbour must not gain its score
        same = (iou >= NMS_IOU) & (iou == iou.max(axis=0, initial=0))
        scores += np.where(same, faces.scores, 0).max(axis=1, initial=0) / len(voted)
    return Detections(merged.boxes, scores, merged.landmarks).sort_by("score")


def _look(detector: Any, image: np.ndarray, sides: Sequence[int]) -> list[Detections]:
    """What a detector finds in each view, in pixels of the image."""
    height, width = image.shape[:2]
    size = getattr(detector, "size", None)
    if size is not None:
        sides = [side for side in sides if side <= max(size)] or [max(size)]
    found = []
    for side in sides:
        scale = side / max(height, width)
        shown = max(1, round(width * scale)), max(1, round(height * scale))
        for view in (View(*shown), View(*shown, mirrored=True)):
            faces = detector.detect(view.draw(image), bgr=True)
            found.append(view.restore(faces, width, height))
    return found


def as_photo(path: Path, name: str, faces: Detections, *, score: float, doubt: float) -> Photo:
    """Detections as annotation: sure faces, and boxes to ignore for the doubtful ones."""
    sure, doubtful = faces.scores >= score, (doubt <= faces.scores) & (faces.scores < score)
    landmarks = faces.landmarks[sure]
    mask = np.isfinite(landmarks).all(axis=-1)
    return Photo(path, name, faces.boxes[sure], landmarks, mask, faces.boxes[doubtful])


def _label_all(
    detectors: Sequence[Any],
    sides: Sequence[int],
    photos: dict[str, Path],
    labels: Labels,
    journal: "Journal",
    *,
    progress: bool,
) -> None:
    """Add the faces of the photos that the journal does not have; the bar shows rate and ETA."""
    todo = [name for name in photos if name not in journal.found]
    done = len(photos) - len(todo)
    bar = tqdm(todo, "label", total=len(photos), initial=done, unit="photo", disable=not progress)
    for name in bar:
        try:
            journal.add(name, _label(detectors, sides, name, photos[name]))
        except DataError as error:
            labels.skip(str(error))


def _label(detectors: Sequence[Any], sides: Sequence[int], name: str, path: Path) -> Detections:
    """The faces of a photo in pixels as stored, which training reads. DataError for an odd file."""
    check_name(name)
    file = open_photo(path)
    orientation = exif_orientation(file)
    faces = find_faces(detectors, upright(decode(file), orientation), sides)
    return as_stored(faces, orientation, width=file.width, height=file.height)


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels (H, W, 3) as stored upright by their EXIF orientation, 1 to 8."""
    if orientation in _FLIPPED_X:
        stored = stored[:, ::-1]
    if orientation in _FLIPPED_Y:
        stored = stored[::-1]
    turned = stored.transpose(1, 0, 2) if orientation in _TURNED else stored
    return np.ascontiguousarray(turned)


def as_stored(faces: Detections, orientation: int, *, width: int, height: int) -> Detections:
    """Convert faces of an upright image to pixels as stored: the inverse of `upright`.

    width, height: of the image as stored. The left eye is left when the face is upright.
    """
    points = np.concatenate((faces.boxes.reshape(-1, 2, 2), faces.landmarks), axis=1)  # (K, 7, 2)
    flips = orientation in _FLIPPED_X, orientation in _FLIPPED_Y
    if orientation in _TURNED:
        points = points[..., ::-1]
    points = np.where(flips, (width, height) - points, points).astype(np.float32)
    corners, landmarks = points[:, :2], points[:, 2:]
    if sum((*flips, orientation in _TURNED)) % 2:  # the image is mirrored
        landmarks = landmarks[:, list(FLIPPED_LANDMARKS)]
    boxes = np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1)
    return Detections(boxes, faces.scores, landmarks)


class Journal:
    """Detections by photo name, in a file of JSON lines that grows photo by photo.

    settings: must be those of the file's first line, and "lowest" (score) at least the one there.
    A line that was not written to its end is removed. Raises ConfigError for other settings,
    DataError for a damaged file.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.found: dict[str, Detections] = {}
        data = path.read_bytes() if path.exists() else b""
        data = data[: data.rfind(b"\n") + 1]
        try:
            first, *others = [json.loads(line) for line in data.splitlines()] or [settings]
            self.lowest = float(first["lowest"])
            for line in others:
                self.found[line["photo"]] = _faces(line["faces"])
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} is damaged: remove it to begin again ({error})") from error
        if first | {"lowest": 0} != settings | {"lowest": 0} or self.lowest > settings["lowest"]:
            raise ConfigError(
                f"{path} was begun with other detectors or sides, or a higher --doubt: give the "
                "same ones, choose another output, or remove it"
            )
        if data:
            os.truncate(path, len(data))
        else:
            write_text(path, json.dumps(settings) + "\n")
        self._file = open(path, "a", encoding="utf-8")

    def add(self, name: str, faces: Detections) -> None:
        parts = (faces.boxes, faces.scores[:, None], faces.landmarks.reshape(-1, 10))
        rows = np.concatenate(parts, axis=1).astype(float).round(4).tolist()
        self._file.write(json.dumps({"photo": name, "faces": rows}) + "\n")
        self._file.flush()
        self.found[name] = faces

    def close(self) -> None:
        self._file.close()


def _faces(rows: list[list[float]]) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 15)
    return Detections(table[:, :4], table[:, 4], table[:, 5:].reshape(-1, 5, 2))
