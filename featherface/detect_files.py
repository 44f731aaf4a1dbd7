"""Detection in photos, folders and videos: writes drawn pictures, detections.json and .csv."""

import contextlib
import csv
import itertools
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from featherface.drawing import draw
from featherface.errors import ConfigError, DataError
from featherface.face_detector import FaceDetector
from featherface.files import atomic_path, write_text
from featherface.images import PHOTO_SUFFIXES, files_below, read_image
from featherface.structures import LANDMARK_NAMES, Detections

VIDEO_SUFFIXES = frozenset(".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .flv .3gp".split())
DEFAULT_FPS = 25.0  # for a video without a frame rate
COLUMNS = (
    *("file", "frame", "score", "x1", "y1", "x2", "y2"),
    *(f"{name}_{axis}" for name in LANDMARK_NAMES for axis in "xy"),
)


@dataclass(frozen=True)
class InputFile:
    """A photo or video; `name` is its path below the given folder, or its own name."""

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES


@dataclass
class FileDetections:
    """Detections of a run: a JSON record per file, a CSV row per face, a line per skipped file."""

    files: list[dict[str, Any]] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def faces(self) -> int:
        return len(self.rows)

    def skip(self, line: str) -> None:
        self.problems.append(line)
        tqdm.write(f"skipped: {line}", file=sys.stderr)

    def add(self, path: Path, frame: int | None, faces: Detections) -> list[dict[str, Any]]:
        """Add a row for each face and return their JSON records; `frame` is None for a photo."""
        records = []
        for box, score, points in zip(faces.boxes, faces.scores, faces.landmarks, strict=True):
            values = [round(float(value), 2) for value in (*box, *points.ravel())]
            confidence = round(float(score), 4)
            pairs = zip(values[4::2], values[5::2], strict=True)
            named = dict(zip(LANDMARK_NAMES, map(list, pairs), strict=True))
            records.append({"score": confidence, "box": values[:4], "landmarks": named})
            self.rows.append([str(path), "" if frame is None else frame, confidence, *values])
        return records

    def write(self, folder: Path, detector: str) -> None:
        """Write detections.json and detections.csv, atomically."""
        summary = {
            "detector": detector,
            "landmarks": LANDMARK_NAMES,
            "files": self.files,
            "skipped": self.problems,
        }
        text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
        write_text(folder / "detections.json", text + "\n")
        with (
            atomic_path(folder / "detections.csv") as temporary,
            open(temporary, "w", encoding="utf-8", newline="") as handle,
        ):
            csv.writer(handle).writerows([COLUMNS, *self.rows])


def detect_paths(
    detector: FaceDetector,
    paths: Iterable[str | os.PathLike],
    out: str | os.PathLike,
    *,
    draw_pictures: bool = True,
) -> FileDetections:
    """Detect faces in photos, folders (with subfolders) and videos; write the results into `out`.

    Writes detections.json, detections.csv and, with draw_pictures, each picture or video (as mp4,
    without sound) with its faces drawn. A file that cannot be read is reported in one line and
    skipped. Raises DataError if nothing could be read. After Ctrl-C the results so far are written.
    """
    folder = Path(out)
    report = FileDetections()
    inputs = _find(paths, report, out=folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the output folder {folder}: {error.strerror}") from error
    taken = {item.path.resolve() for item in inputs}  # never draw over an input
    try:
        for item in tqdm(inputs, desc="detect", unit="file", disable=len(inputs) < 2):
            target = _free_path(folder, item, taken) if draw_pictures else None
            detect = _detect_video if item.is_video else _detect_photo
            try:
                detect(detector, item, target, report)
            except DataError as error:
                report.skip(str(error))
    finally:  # Ctrl-C too
        if report.files:
            report.write(folder, repr(detector))
    if not report.files:
        raise DataError("nothing could be read: see the lines above, and give photos or videos")
    return report


def _find(
    paths: Iterable[str | os.PathLike], report: FileDetections, *, out: Path
) -> list[InputFile]:
    """The given files, and the sorted photos and videos of the given folders, without `out`."""
    inputs = []
    for path in map(Path, paths):
        if not path.is_dir():
            inputs.append(InputFile(path, path.name))
            continue
        if path.resolve() == out.resolve():
            raise ConfigError(f"the output folder {out} is also an input: choose another")
        found = [
            InputFile(file, file.relative_to(path).as_posix())
            for file in files_below(path, PHOTO_SUFFIXES | VIDEO_SUFFIXES)
            if out.resolve() not in file.resolve().parents
        ]
        if not found:
            report.skip(f"{path} holds no photo or video")
        inputs += found
    return inputs


def _free_path(folder: Path, item: InputFile, taken: set[Path]) -> Path:
    """A path for the drawn picture that no input and no other output of this run uses."""
    name = Path(item.name)
    suffixes = (".mp4",) if item.is_video else (".jpg", ".jpeg", ".png")
    kept = name.suffix.lower() in suffixes
    stem = name.with_suffix("").as_posix() if kept else item.name
    suffix = name.suffix if kept else suffixes[0]
    path, number = folder / f"{stem}{suffix}", 2
    while path.resolve() in taken:
        path, number = folder / f"{stem}_{number}{suffix}", number + 1
    taken.add(path.resolve())
    return path


def _detect_photo(
    detector: FaceDetector, item: InputFile, target: Path | None, report: FileDetections
) -> None:
    image = read_image(item.path)
    faces = detector.detect(image)
    report.files.append({**_described(item, image), "faces": report.add(item.path, None, faces)})
    if target is not None:
        with atomic_path(target) as temporary:
            Image.fromarray(draw(image, faces)).save(temporary, quality=92)


def _detect_video(
    detector: FaceDetector, item: InputFile, target: Path | None, report: FileDetections
) -> None:
    with contextlib.ExitStack() as stack:
        capture = cv2.VideoCapture(str(item.path))
        stack.callback(capture.release)
        frames = _frames(capture)
        first = next(frames, None)
        if first is None:
            raise DataError(f"{item.path} is not a video that OpenCV can read")
        fps = capture.get(cv2.CAP_PROP_FPS)
        fps = fps if math.isfinite(fps) and fps > 0 else DEFAULT_FPS
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        total = count if count > 0 else None
        bar = stack.enter_context(tqdm(total=total, desc=item.name, unit="frame", leave=False))
        writer = target and stack.enter_context(_video_writer(target, fps, first))
        seen: list[dict[str, Any]] = []
        report.files.append({**_described(item, first), "fps": fps, "frames": seen})
        for index, frame in enumerate(itertools.chain([first], frames)):
            faces = detector.detect(frame, bgr=True)
            seen.append({"frame": index, "faces": report.add(item.path, index, faces)})
            if writer:
                writer.write(cv2.cvtColor(draw(frame, faces, bgr=True), cv2.COLOR_RGB2BGR))
            bar.update()


def _described(item: InputFile, image: np.ndarray) -> dict[str, Any]:
    return {"file": str(item.path), "width": image.shape[1], "height": image.shape[0]}


def _frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """BGR frames (H, W, 3) until the video ends; none if it could not be opened."""
    while capture.isOpened():
        ok, frame = capture.read()
        if not ok:
            return
        yield frame


@contextlib.contextmanager
def _video_writer(target: Path, fps: float, frame: np.ndarray) -> Iterator[cv2.VideoWriter]:
    """Write BGR frames of the size of `frame` to an mp4 that appears when it is complete."""
    height, width = frame.shape[:2]
    with atomic_path(target) as temporary:
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(temporary), codec, fps, (width, height))
        try:
            if not writer.isOpened():
                raise DataError(f"OpenCV cannot write {target}: use --no-draw for its detections")
            yield writer
        finally:
            writer.release()
