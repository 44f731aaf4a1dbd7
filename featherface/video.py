"""Videos in and out: frames of files, cameras and streams, H.264 with sound, a window, tracks.

OpenCV reads. PyAV (the extra `video`) writes what browsers play, with the sound of the file;
without it OpenCV writes MPEG-4 without sound. ByteTrack (the extra `track`) numbers faces.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from featherface.errors import ConfigError, DataError
from featherface.files import atomic_path
from featherface.structures import Detections

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]

VIDEO_SUFFIXES = frozenset(".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .flv .3gp".split())
DEFAULT_FPS = 25.0  # for a video without a frame rate
STREAM_TIMEOUT = 10_000  # milliseconds to wait for an address
_TICKS = 90_000  # of an H.264 video's clock, per second
WriteFrame = Callable[[np.ndarray, float], None]  # (H, W, 3) RGB and its time in seconds


class VideoReader:
    """Frames of a video file (a path), an address (with ://) or a camera (its number).

    fps: frames per second; promised: the number of frames that the file announces, None if unknown
    or live; live: a camera or an endless stream. Raises DataError if no frame can be read.
    """

    def __init__(self, source: str | int, name: str) -> None:
        self.name = name
        address = isinstance(source, str) and "://" in source
        self._capture = _open(source, name, address=address)
        ok, frame = self._capture.read() if self._capture.isOpened() else (False, None)
        if not ok or frame is None:
            self.close()
            raise DataError(_why_not(name, camera=isinstance(source, int), address=address))
        self.first = frame
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and fps > 0 else DEFAULT_FPS
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.promised = int(count) if math.isfinite(count) and count > 0 else None
        self.live = isinstance(source, int) or (address and self.promised is None)

    def frames(self) -> Iterator[tuple[np.ndarray, float]]:
        """Yield BGR frames (H, W, 3) uint8 and their times in seconds until the video ends."""
        start, index, before = time.monotonic(), 0, -1.0
        ok, frame = True, self.first
        while ok and frame is not None:
            if self.live:
                seconds = time.monotonic() - start
            else:
                seconds = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                if not before < seconds < math.inf:
                    seconds = max(index / self.fps, before + 1 / self.fps)
            yield frame, seconds
            index, before = index + 1, seconds
            ok, frame = self._capture.read()

    def ended_early(self, frames: int) -> bool:
        """True if clearly fewer frames came than were promised, which may be an estimate."""
        return self.promised is not None and frames < 0.98 * self.promised - 1

    def close(self) -> None:
        self._capture.release()


def _open(source: str | int, name: str, *, address: bool) -> cv2.VideoCapture:
    try:
        if address:
            waits = (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, cv2.CAP_PROP_READ_TIMEOUT_MSEC)
            options = [value for wait in waits for value in (wait, STREAM_TIMEOUT)]
            return cv2.VideoCapture(source, cv2.CAP_FFMPEG, options)
        return cv2.VideoCapture(source)
    except (cv2.error, UnicodeEncodeError) as error:
        raise DataError(f"OpenCV cannot open {name}: {type(error).__name__}") from error


def _why_not(name: str, *, camera: bool, address: bool) -> str:
    if camera:
        return f"{name} gives no picture: is it connected, and free of other programs?"
    if address:
        return f"no video at {name}: is the address right, and its server reachable from here?"
    return f"{name} is not a video that OpenCV can read"


@contextlib.contextmanager
def video_writer(
    target: Path, fps: float, size: tuple[int, int], sound: Path | None = None
) -> Iterator[WriteFrame]:
    """Write an mp4 that appears when it is complete; yields a function that adds a frame.

    size: width and height, to which other frames are scaled. With PyAV the video is H.264 (yuv420p,
    index at the front, as browsers want it), each frame at its time, with the sound of the file
    `sound` as AAC. Without PyAV it is MPEG-4 at `fps`, and silent.
    """
    with atomic_path(target) as temporary:
        writer = _H264(temporary, fps, size, sound) if av else _Mpeg4(temporary, fps, size)
        try:
            yield lambda frame, seconds: writer.write(_fit(frame, size), seconds)
            writer.finish()
        finally:
            writer.close()


def _fit(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    same = frame.shape[1::-1] == size
    return frame if same else cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


class _Mpeg4:
    """OpenCV's writer: plays in desktop players, not in browsers."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
        if not self._writer.isOpened():
            raise DataError("OpenCV cannot write videos here: use --no-draw for the tables")

    def write(self, frame: np.ndarray, seconds: float) -> None:
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def finish(self) -> None:
        """Nothing is left to write."""

    def close(self) -> None:
        self._writer.release()


class _H264:
    """PyAV's writer: H.264 frames at their own times, with the sound of a file."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int], sound: Path | None) -> None:
        self._file = av.open(str(path), "w", options={"movflags": "+faststart"})
        rate = Fraction(fps).limit_denominator(1001)
        options = {"crf": "20", "preset": "veryfast"}
        self._video = self._file.add_stream("libx264", rate=rate, options=options)
        self._video.width, self._video.height = (side + side % 2 for side in size)
        self._video.pix_fmt = "yuv420p"
        self._video.codec_context.time_base = Fraction(1, _TICKS)
        self._clock, self._step = -1, 1 / fps
        self._sounds = _sounds(sound) if sound else iter(())
        self._waiting = next(self._sounds, None)
        if self._waiting is not None:
            layout = "mono" if self._waiting.layout.nb_channels == 1 else "stereo"
            self._audio = self._file.add_stream("aac", rate=self._waiting.sample_rate)
            self._audio.layout = layout

    def write(self, frame: np.ndarray, seconds: float) -> None:
        self._add_sound(seconds)
        height, width = frame.shape[:2]
        if height % 2 or width % 2:  # colours of yuv420p are shared by 2×2 pixels
            frame = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        self._clock = max(round(seconds * _TICKS), self._clock + 1)
        picture.pts, picture.time_base = self._clock, Fraction(1, _TICKS)
        self._file.mux(self._video.encode(picture))

    def _add_sound(self, until: float) -> None:
        """Encode the sound up to a time in seconds, so that both streams grow together."""
        while self._waiting is not None and (self._waiting.time or 0.0) < until:
            self._file.mux(self._audio.encode(self._waiting))
            self._waiting = next(self._sounds, None)

    def finish(self) -> None:
        if self._clock < 0:
            raise DataError("the video was stopped before its first frame")
        self._add_sound(self._clock / _TICKS + self._step)
        self._file.mux(self._video.encode(None))
        if hasattr(self, "_audio"):
            self._file.mux(self._audio.encode(None))

    def close(self) -> None:
        self._file.close()


def _sounds(path: Path) -> Iterator[Any]:
    """The sound of a file, frame by frame, as far as it can be read."""
    with contextlib.suppress(av.error.FFmpegError), av.open(str(path)) as file:
        if file.streams.audio:
            yield from file.decode(audio=0)


class Tracker:
    """Numbers of faces that stay the same from frame to frame.

    ByteTrack (Zhang et al., ECCV 2022) of the library trackers. Raises ConfigError without it.
    """

    def __init__(self, fps: float) -> None:
        try:
            from trackers import ByteTrackTracker
        except ImportError as error:
            raise ConfigError("--track needs: pip install 'featherface[track]'") from error
        self._tracker: Any = ByteTrackTracker(frame_rate=fps)

    def number(self, faces: Detections) -> list[int | None]:
        """The track of each face of the next frame; None for a face that is not followed yet."""
        found = faces.to_supervision()
        found.data["index"] = np.arange(len(faces))
        numbers: list[int | None] = [None] * len(faces)
        tracked = self._tracker.update(found)
        for index, number in zip(tracked.data.get("index", ()), tracked.tracker_id, strict=False):
            numbers[int(index)] = int(number) if number >= 0 else None
        return numbers


class Window:
    """A window that shows frames. Raises ConfigError without a display or a windowed OpenCV."""

    title = "FeatherFace (q closes)"

    def __init__(self) -> None:
        if sys.platform == "linux" and not (
            os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        ):
            raise ConfigError("--show needs a display, and this machine has none")
        try:
            cv2.namedWindow(self.title, cv2.WINDOW_NORMAL)
        except cv2.error as error:
            raise ConfigError(
                "--show needs an OpenCV with windows: pip uninstall opencv-python-headless, then "
                "pip install opencv-python"
            ) from error

    def show(self, frame: np.ndarray) -> bool:
        """Show a frame (H, W, 3) RGB. False when q or Esc was pressed or the window was closed."""
        cv2.imshow(self.title, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        pressed = cv2.waitKey(1) & 0xFF in (ord("q"), 27)
        return not pressed and cv2.getWindowProperty(self.title, cv2.WND_PROP_VISIBLE) >= 1

    def close(self) -> None:
        cv2.destroyWindow(self.title)
