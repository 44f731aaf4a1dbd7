"""Faces of many photos, folders and videos at once: drawn pictures, detections.json and .csv."""

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

from featherface.detector import AnyDetector
from featherface.drawing import draw
from featherface.errors import ConfigError, DataError
from featherface.files import atomic_path, write_text
from featherface.images import read_image
from featherface.structures import LANDMARK_NAMES, Detections

PHOTO_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .dib .gif .tif .tiff .avif .jp2 .ppm .pgm .pbm".split()
)
VIDEO_SUFFIXES = frozenset(".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .flv .3gp".split())
DEFAULT_FPS = 25.0  # of a video that does not say
COLUMNS = (
    *("file", "frame", "score", "x1", "y1", "x2", "y2"),
    *(f"{name}_{axis}" for name in LANDMARK_NAMES for axis in "xy"),
)


@dataclass(frozen=True)
class Source:
    """A file to look at; `name` is its path below the folder that was given, or its own name."""

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES


@dataclass
class Report:
    """What was found: one JSON record a file, one CSV row a face, one line a file not read."""

    files: list[dict[str, Any]] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def faces(self) -> int:
        return len(self.rows)


def detect_paths(
    detector: AnyDetector,
    paths: Iterable[str | os.PathLike],
    out: str | os.PathLike,
    *,
    draw_pictures: bool = True,
) -> Report:
    """Detect in photos, folders (with all below) and videos; write the results into `out`.

    Writes detections.json, detections.csv and, unless told otherwise, each picture or video (as
    mp4, without sound) with its faces drawn. A file that cannot be read is reported in one line and
    the run goes on. Raises DataError if nothing could be read; Ctrl-C writes what is done first.
    """
    folder = Path(out)
    report = Report()
    sources = _find(paths, report, out=folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the output folder {folder}: {error.strerror}") from error
    taken = {source.path.resolve() for source in sources}  # never draw over what was given
    try:
        for source in tqdm(sources, desc="detect", unit="file", disable=len(sources) < 2):
            target = _free_path(folder, source, taken) if draw_pictures else None
            try:
                _detect_source(detector, source, target, report)
            except DataError as error:
                _skip(report, str(error))
    finally:  # Ctrl-C too
        if report.files:
            _write(report, detector, folder)
    if not report.files:
        raise DataError("nothing could be read: see the lines above, and give photos or videos")
    return report


def _find(paths: Iterable[str | os.PathLike], report: Report, *, out: Path) -> list[Source]:
    """The files named, and the photos and videos below the folders named, sorted, less `out`'s."""
    sources = []
    for path in map(Path, paths):
        if not path.is_dir():
            sources.append(Source(path, path.name))
            continue
        if path.resolve() == out.resolve():
            raise ConfigError(f"the output folder {out} is also an input: choose another")
        found = [
            Source(file, file.relative_to(path).as_posix())
            for file in sorted(path.rglob("*"))
            if file.suffix.lower() in PHOTO_SUFFIXES | VIDEO_SUFFIXES
            and not file.is_dir()
            and out.resolve() not in file.resolve().parents
        ]
        if not found:
            _skip(report, f"{path} holds no photo or video")
        sources += found
    return sources


def _skip(report: Report, line: str) -> None:
    report.problems.append(line)
    tqdm.write(f"skipped: {line}", file=sys.stderr)


def _free_path(folder: Path, source: Source, taken: set[Path]) -> Path:
    """A path for the drawn picture that no input and no other picture of this run has."""
    name = Path(source.name)
    suffixes = (".mp4",) if source.is_video else (".jpg", ".jpeg", ".png")
    kept = name.suffix.lower() in suffixes
    stem = name.with_suffix("").as_posix() if kept else source.name
    suffix = name.suffix if kept else suffixes[0]
    path, number = folder / f"{stem}{suffix}", 2
    while path.resolve() in taken:
        path, number = folder / f"{stem}_{number}{suffix}", number + 1
    taken.add(path.resolve())
    return path


def _detect_source(
    detector: AnyDetector, source: Source, target: Path | None, report: Report
) -> None:
    if source.is_video:
        _detect_video(detector, source, target, report)
        return
    image = read_image(source.path)
    faces = detector.detect(image)
    report.files.append({**_described(source, image), "faces": _records(faces)})
    report.rows += _rows(source, None, faces)
    if target is not None:
        with atomic_path(target) as temporary:
            Image.fromarray(draw(image, faces)).save(temporary, quality=92)


def _detect_video(
    detector: AnyDetector, source: Source, target: Path | None, report: Report
) -> None:
    with contextlib.ExitStack() as stack:
        capture = cv2.VideoCapture(str(source.path))
        stack.callback(capture.release)
        frames = _frames(capture)
        first = next(frames, None)
        if first is None:
            raise DataError(f"{source.path} is not a video that OpenCV can read")
        fps = capture.get(cv2.CAP_PROP_FPS)
        fps = fps if math.isfinite(fps) and fps > 0 else DEFAULT_FPS
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        total = count if count > 0 else None
        bar = stack.enter_context(tqdm(total=total, desc=source.name, unit="frame", leave=False))
        writer = target and stack.enter_context(_video_writer(target, fps, first))
        seen: list[dict[str, Any]] = []
        report.files.append({**_described(source, first), "fps": fps, "frames": seen})
        for index, frame in enumerate(itertools.chain([first], frames)):
            faces = detector.detect(frame, bgr=True)
            seen.append({"frame": index, "faces": _records(faces)})
            report.rows += _rows(source, index, faces)
            if writer:
                writer.write(cv2.cvtColor(draw(frame, faces, bgr=True), cv2.COLOR_RGB2BGR))
            bar.update()


def _frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """BGR frames (H, W, 3) until the video ends; none if it could not be opened."""
    while capture.isOpened():
        ok, frame = capture.read()
        if not ok:
            return
        yield frame


@contextlib.contextmanager
def _video_writer(target: Path, fps: float, frame: np.ndarray) -> Iterator[cv2.VideoWriter]:
    """Writes BGR frames of the size of `frame` to an mp4 that appears when it is complete."""
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


def _described(source: Source, image: np.ndarray) -> dict[str, Any]:
    return {"file": str(source.path), "width": image.shape[1], "height": image.shape[0]}


def _records(faces: Detections) -> list[dict[str, Any]]:
    return [
        {
            "score": _number(score, 4),
            "box": [_number(value) for value in box],
            "landmarks": {
                name: [_number(value) for value in point]
                for name, point in zip(LANDMARK_NAMES, points, strict=True)
            },
        }
        for box, score, points in zip(faces.boxes, faces.scores, faces.landmarks, strict=True)
    ]


def _rows(source: Source, frame: int | None, faces: Detections) -> list[list[Any]]:
    """One row a face, as COLUMNS; the frame of a photo is empty."""
    place = [str(source.path), "" if frame is None else frame]
    return [
        [*place, _number(score, 4), *(_number(value) for value in (*box, *points.ravel()))]
        for box, score, points in zip(faces.boxes, faces.scores, faces.landmarks, strict=True)
    ]


def _number(value: float, digits: int = 2) -> float:
    return round(float(value), digits)


def _write(report: Report, detector: AnyDetector, folder: Path) -> None:
    summary = {
        "detector": repr(detector),
        "landmarks": LANDMARK_NAMES,
        "files": report.files,
        "skipped": report.problems,
    }
    text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(folder / "detections.json", text + "\n")
    with (
        atomic_path(folder / "detections.csv") as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as handle,
    ):
        table = csv.writer(handle)
        table.writerow(COLUMNS)
        table.writerows(report.rows)
