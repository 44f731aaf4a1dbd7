"""Detection in photos, folders and videos: writes pictures, detections.json and .csv."""

import contextlib
import csv
import json
import os
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from featherface.drawing import blur, draw
from featherface.errors import ConfigError, DataError, FeatherFaceError, printable
from featherface.face_detector import FaceDetector
from featherface.files import atomic_path
from featherface.images import PHOTO_SUFFIXES, read_image
from featherface.structures import LANDMARK_NAMES, Detections
from featherface.video import (
    VIDEO_SUFFIXES,
    Tracker,
    VideoReader,
    Window,
    WriteFrame,
    video_writer,
)

COLUMNS = (
    *("file", "frame", "score", "x1", "y1", "x2", "y2"),
    *(f"{name}_{axis}" for name in LANDMARK_NAMES for axis in "xy"),
    "track",
)
WRITE_EVERY = 5.0  # seconds between two writes of the tables, or 20 times what a write takes
LONGEST_NAME = 200  # bytes of the name of a drawn picture, without its number and suffix


@dataclass(frozen=True)
class Input:
    """A photo or video file, a camera's number or an address.

    label: how the tables call it; name: the path of its drawn picture in the output folder.
    """

    source: Path | str | int
    label: str
    name: str

    @property
    def is_video(self) -> bool:
        path = self.source
        return not isinstance(path, Path) or path.suffix.lower() in VIDEO_SUFFIXES


@dataclass
class FileDetections:
    """Detections of a run: a JSON record per file, a CSV row per face, a line per problem."""

    folder: Path
    detector: str
    files: list[dict[str, Any]] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)
    drawn: list[Path] = field(default_factory=list)  # the pictures and videos that were written
    _next_write: float = 0.0

    @property
    def faces(self) -> int:
        return len(self.rows)

    @property
    def problems(self) -> list[str]:
        return self.skipped + self.incomplete

    def skip(self, line: str) -> None:
        self.skipped.append(printable(line))
        tqdm.write(f"skipped: {self.skipped[-1]}", file=sys.stderr)

    def cut(self, line: str) -> None:
        self.incomplete.append(printable(line))
        tqdm.write(f"incomplete: {self.incomplete[-1]}", file=sys.stderr)

    def add(
        self,
        label: str,
        frame: int | None,
        faces: Detections,
        tracks: list[int | None] | None = None,
    ) -> list[dict[str, Any]]:
        """Add a row for each face and return their JSON records; `frame` is None for a photo."""
        records = faces.to_dicts(decimals=2)
        for index, record in enumerate(records):
            track = tracks[index] if tracks else None
            points = [value for point in record["landmarks"].values() for value in point]
            values = [label, frame, record["score"], *record["box"], *points, track]
            self.rows.append(["" if value is None else value for value in values])
            if tracks:
                record["track"] = track
        return records

    def write(self) -> None:
        """Write detections.json and detections.csv, atomically, if anything was read.

        Bytes of a file name that are not UTF-8 appear as \\udce9, which JSON reads back.
        """
        if not self.files:
            return
        summary = {
            "detector": self.detector,
            "landmarks": LANDMARK_NAMES,
            "files": self.files,
            "skipped": self.skipped,
        }
        options: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}
        with atomic_path(self.folder / "detections.json") as temporary:
            text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
            temporary.write_text(text + "\n", newline="\n", **options)
        with (
            atomic_path(self.folder / "detections.csv") as temporary,
            open(temporary, "w", newline="", **options) as handle,
        ):
            csv.writer(handle).writerows([COLUMNS, *self.rows])

    def write_when_due(self) -> None:
        """Write, unless that was a moment ago: a run that is killed loses its last seconds only."""
        start = time.monotonic()
        if start >= self._next_write:
            self.write()
            end = time.monotonic()
            self._next_write = end + max(WRITE_EVERY, 20 * (end - start))


@dataclass(frozen=True)
class _Job:
    """What to do with each input."""

    detector: FaceDetector
    report: FileDetections
    draw_pictures: bool
    blur_faces: bool
    track: bool
    window: Window | None
    save_faces: str

    def picture(self, image: np.ndarray, faces: Detections, labels: list[str] | None) -> np.ndarray:
        """The image (H, W, 3) RGB with its faces drawn or blurred."""
        return blur(image, faces) if self.blur_faces else draw(image, faces, labels=labels)


def detect_paths(
    detector: FaceDetector,
    paths: Iterable[str | os.PathLike],
    out: str | os.PathLike,
    *,
    draw_pictures: bool = True,
    blur_faces: bool = False,
    track: bool = False,
    show: bool = False,
    save_faces: str = "",
) -> FileDetections:
    """Detect faces in photos, folders (with subfolders) and videos; write the results into `out`.

    paths: also camera numbers ("0") and addresses ("rtsp://…"), which run until they end or Ctrl-C.
    Writes detections.json and .csv while it works, and with draw_pictures each picture or video
    (mp4) with its faces drawn, or blurred with blur_faces. track numbers the faces of videos; show
    opens a window for videos; save_faces, "aligned" or "cropped", writes each face of a photo.
    A file that fails in any way is reported in one line and skipped. Raises DataError if nothing
    could be read. After Ctrl-C the results so far are written.
    """
    if save_faces not in ("", "aligned", "cropped"):
        raise ConfigError(f"faces can be saved aligned or cropped, not {save_faces!r}")
    folder = Path(out)
    report = FileDetections(folder, repr(detector))
    inputs = _find(paths, report, out=folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the output folder {folder}: {error.strerror}") from error
    if track:
        Tracker(1.0)  # raises before the work begins
    with contextlib.ExitStack() as stack:
        window = Window() if show else None
        if window:
            stack.callback(window.close)
        job = _Job(detector, report, draw_pictures, blur_faces, track, window, save_faces)
        stack.callback(report.write)  # after Ctrl-C too
        _detect_all(job, inputs)
    if not report.files:
        raise DataError("nothing could be read: see the lines above, and give photos or videos")
    return report


def _detect_all(job: _Job, inputs: list[Input]) -> None:
    taken = {item.source.resolve() for item in inputs if isinstance(item.source, Path)}
    for item in tqdm(inputs, desc="detect", unit="file", disable=len(inputs) < 2):
        try:
            target = _free_path(job.report.folder, item, taken)
            (_detect_video if item.is_video else _detect_photo)(job, item, target)
        except FeatherFaceError as error:
            job.report.skip(str(error))
        except Exception as error:  # one odd file must not cost the results of the others
            reason = f"{type(error).__name__}: {error}"
            job.report.skip(f"{item.label}: {reason[:200]}")
        job.report.write_when_due()


def _find(paths: Iterable[str | os.PathLike], report: FileDetections, *, out: Path) -> list[Input]:
    """The given inputs, and the sorted photos and videos of the given folders, without `out`."""
    inputs = []
    for path in paths:
        try:
            inputs += _inputs(path, out.resolve())
        except DataError as error:
            report.skip(str(error))
        except OSError as error:  # a name too long, no permission
            report.skip(f"{os.fspath(path)}: {error.strerror}")
    return inputs


def _inputs(given: str | os.PathLike, out: Path) -> list[Input]:
    text, path = str(given), Path(given)
    if "://" in text and not path.exists():
        label = re.sub(r"//[^/@]*@", "//", text)  # without user and password
        return [Input(text, label, re.sub(r"[^\w.-]+", "_", label.split("://", 1)[1])[:60])]
    if text.isdigit() and not path.exists():
        return [Input(int(text), f"camera {text}", f"camera_{text}")]
    if path.is_char_device() and re.fullmatch(r"video\d+", path.name):
        return [Input(text, text, path.name)]
    if not path.is_dir():
        return [Input(path, str(path), path.name)]
    if path.resolve() == out:
        raise ConfigError(f"the output folder {out} is also an input: choose another")
    found = [
        Input(file, str(file), file.relative_to(path).as_posix())
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in PHOTO_SUFFIXES | VIDEO_SUFFIXES
        and not file.is_dir()
        and out not in file.resolve().parents
    ]
    if not found:
        raise DataError(f"{path} holds no photo or video")
    return found


def _free_path(folder: Path, item: Input, taken: set[Path]) -> Path:
    """A path for the drawn picture that no input and no other output of this run uses."""
    name = Path(item.name)
    suffixes = (".mp4",) if item.is_video else (".jpg", ".jpeg", ".png")
    kept = name.suffix.lower() in suffixes
    stem, suffix = (name.stem, name.suffix) if kept else (name.name, suffixes[0])
    while len(os.fsencode(stem)) > LONGEST_NAME:
        stem = stem[:-1]
    path, number = folder / name.parent / f"{stem}{suffix}", 2
    while path.resolve() in taken:
        path, number = path.with_name(f"{stem}_{number}{suffix}"), number + 1
    taken.add(path.resolve())
    return path


def _detect_photo(job: _Job, item: Input, target: Path) -> None:
    path = Path(str(item.source))
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is not a regular file: a pipe, socket or device")
    image = read_image(path)
    faces = job.detector.detect(image)
    records = job.report.add(item.label, None, faces)
    job.report.files.append({**_described(item, image), "faces": records})
    if job.draw_pictures:
        _save(job.picture(image, faces, None), target)
        job.report.drawn.append(target)
    if job.save_faces:
        _save_faces(job, image, faces, target)


def _save(picture: np.ndarray, target: Path) -> None:
    with atomic_path(target) as temporary:
        Image.fromarray(picture).save(temporary, quality=92)


def _save_faces(job: _Job, image: np.ndarray, faces: Detections, target: Path) -> None:
    """Write NAME_1.png, NAME_2.png, … into the folder `faces` of the output, best face first."""
    cut = faces.align if job.save_faces == "aligned" else faces.crop
    folder = job.report.folder
    place = folder / "faces" / target.relative_to(folder)
    for number, face in enumerate(cut(image), 1):
        _save(face, place.with_name(f"{place.stem}_{number}.png"))


def _detect_video(job: _Job, item: Input, target: Path) -> None:
    source = item.source if isinstance(item.source, int) else str(item.source)
    sound = item.source if isinstance(item.source, Path) else None
    with contextlib.ExitStack() as stack:
        reader = VideoReader(source, item.label)
        stack.callback(reader.close)
        name, size = printable(item.name), reader.first.shape[1::-1]
        write = None
        if job.draw_pictures:
            write = stack.enter_context(video_writer(target, reader.fps, size, sound))
            job.report.drawn.append(target)
        seen: list[dict[str, Any]] = []
        record = {**_described(item, reader.first), "fps": reader.fps, "frames": seen}
        job.report.files.append(record)
        bar = tqdm(reader.frames(), name, reader.promised, leave=False, unit="frame")
        stack.callback(bar.close)
        if reader.live:
            stack.enter_context(contextlib.suppress(KeyboardInterrupt))  # the way to end it
        if not _detect_frames(job, item, reader, bar, seen, write):
            return
        if reader.ended_early(len(seen)):
            record["promised_frames"] = reader.promised
            line = f"{item.label} ends after {len(seen)} of {reader.promised} promised frames"
            job.report.cut(f"{line}: it may be damaged")


def _detect_frames(
    job: _Job,
    item: Input,
    reader: VideoReader,
    frames: Iterable[tuple[np.ndarray, float]],
    seen: list[dict[str, Any]],
    write: WriteFrame | None,
) -> bool:
    """Detect, record, write and show frame by frame. False if the window was closed."""
    tracker = Tracker(reader.fps) if job.track else None
    for index, (frame, seconds) in enumerate(frames):
        image = np.ascontiguousarray(frame[..., ::-1])  # BGR → RGB
        faces = job.detector.detect(image)
        tracks = tracker.number(faces) if tracker else None
        seen.append({"frame": index, "faces": job.report.add(item.label, index, faces, tracks)})
        job.report.write_when_due()
        if write is None and job.window is None:
            continue
        picture = job.picture(image, faces, _labels(faces, tracks))
        if write:
            write(picture, seconds)
        if job.window and not job.window.show(picture):
            return False
    return True


def _labels(faces: Detections, tracks: list[int | None] | None) -> list[str] | None:
    if tracks is None:
        return None
    return [
        f"{score:.2f}" if track is None else f"#{track} {score:.2f}"
        for score, track in zip(faces.scores, tracks, strict=True)
    ]


def _described(item: Input, image: np.ndarray) -> dict[str, Any]:
    return {"file": item.label, "width": image.shape[1], "height": image.shape[0]}
