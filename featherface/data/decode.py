"""Reading photo files: the size from the header, then only as many pixels as a crop needs.

JPEG can be decoded at 1/2, 1/4 or 1/8 of its size for less work; a window is therefore given in
pixels of the shrunk photo. EXIF orientation is ignored: annotations refer to the stored pixels.
"""

import io
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from featherface.errors import DataError

SHRINKS = (8, 4, 2, 1)  # what libjpeg decodes at, largest first
_READ_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


class Window(NamedTuple):
    """A square part of a photo, in pixels of the photo decoded at 1/shrink; may reach outside."""

    left: int
    top: int
    side: int
    shrink: int  # 1, 2, 4 or 8


class PhotoFile(NamedTuple):
    """An image file in memory, its header read but its pixels not decoded."""

    path: Path
    data: bytes  # the file, or of one that is not to be decoded only its first bytes
    width: int
    height: int

    @property
    def is_jpeg(self) -> bool:
        return self.data.startswith(_JPEG_START)

    def shrink_for(self, side: float, size: int) -> int:
        """The most that the photo may be shrunk so that `side` pixels still give `size`."""
        if not self.is_jpeg:
            return 1
        return next(shrink for shrink in SHRINKS if shrink == 1 or side >= shrink * size)

    def shrunk_size(self, shrink: int) -> tuple[int, int]:
        """Width and height of the photo decoded at 1/shrink: rounded up, as libjpeg does."""
        return -(-self.width // shrink), -(-self.height // shrink)

    def inside(self, window: Window) -> tuple[slice, slice]:
        """The columns and the rows of the shrunk photo that a window shows."""
        width, height = self.shrunk_size(window.shrink)
        return (
            slice(max(window.left, 0), min(window.left + window.side, width)),
            slice(max(window.top, 0), min(window.top + window.side, height)),
        )


def open_photo(path: str | Path) -> PhotoFile:
    """Read a file and its header. Raises DataError if it is missing, cut short or no image."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"photo {path} cannot be read: {error.strerror}") from None
    try:
        with Image.open(io.BytesIO(data)) as header:
            width, height = header.size
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        reason = "it is empty" if not data else _one_line(error)
        raise DataError(f"photo {path} is not a readable image: {reason}") from None
    if not is_complete(data):
        raise DataError(f"photo {path} is truncated: its end is missing; get the file again")
    return PhotoFile(path, data, width, height)


def open_header(path: str | Path) -> PhotoFile:
    """A photo's size and kind, without reading all of the file. Raises DataError."""
    path = Path(path)
    try:
        with Image.open(path) as header:
            width, height = header.size
            kind = _JPEG_START if header.format in ("JPEG", "MPO") else b""
    except (OSError, ValueError, Image.DecompressionBombError):
        return open_photo(path)  # which says what is wrong
    return PhotoFile(path, kind, width, height)


def is_complete(data: bytes) -> bool:
    """Whether a JPEG file has its end-of-image marker after its first scan; true of other files.

    Some decoders return a cut file half grey, without an error. The end is sought behind the
    segments (one may hold a small picture with an end of its own), since other data may follow
    it: the video of a motion photo.
    """
    if not data.startswith(_JPEG_START) or data.endswith(_JPEG_END):
        return True
    at = len(_JPEG_START)
    while data[at : at + 1] == b"\xff" and data[at : at + 2] != _JPEG_SCAN:
        padding = data[at + 1 : at + 2] == b"\xff"
        at += 1 if padding else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data.find(_JPEG_END, at) >= 0


def decode(photo: PhotoFile, shrink: int = 1) -> np.ndarray:
    """The whole photo at 1/shrink as (h, w, 3) uint8 BGR. Raises DataError if it is corrupt."""
    flags = _READ_FLAGS[shrink] | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(photo.data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"photo {photo.path} cannot be decoded: {_one_line(error)}") from None
    width, height = photo.shrunk_size(shrink)
    if pixels is None or pixels.shape != (height, width, 3):
        raise DataError(f"photo {photo.path} is corrupt and cannot be decoded; get the file again")
    return pixels


def read_window(photo: PhotoFile, window: Window) -> np.ndarray:
    """The part of a window that lies inside the photo, (h, w, 3) uint8 RGB."""
    pixels = decode(photo, window.shrink)
    columns, rows = photo.inside(window)
    return cv2.cvtColor(pixels[rows, columns], cv2.COLOR_BGR2RGB)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
