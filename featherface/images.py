"""Reading pictures as upright RGB arrays, reading annotated photos as stored, and converting pixels
to and from the network's.

Works without torch, for the ONNX detector; without Pillow, OpenCV reads the files.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple, Union

import cv2
import numpy as np

from featherface.config import MEAN_BGR, PAD_MULTIPLE
from featherface.errors import DataError

try:
    from PIL import Image, ImageOps
except ImportError:
    Image = None  # type: ignore[assignment]

PHOTO_SUFFIXES = frozenset(  # lower case: compare with path.suffix.lower()
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .dib .gif .tif .tiff .avif .jp2 .ppm .pgm .pbm".split()
)
ImageSource = Union[str, os.PathLike, "Image.Image", np.ndarray]
_EXIF_ORIENTATION = 0x0112
_CV2_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION  # Pillow alone judges rotation
_ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")


def read_image(source: ImageSource, *, bgr: bool = False) -> np.ndarray:
    """Read any picture as (H, W, 3) uint8 RGB, upright. May share memory with an array `source`.

    source: a path, a PIL image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
    bgr: an array's first three channels are blue, green, red, as in OpenCV.
    Grey becomes three equal channels; 16 bits are scaled to 8; transparent pixels become white;
    CMYK and palettes are converted; EXIF rotation is applied; of an animation the first frame of a
    file (the current frame of a PIL image) is used.
    Raises DataError with one line for anything else, or for an incomplete picture.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, bgr=bgr)
    if Image is not None and isinstance(source, Image.Image):
        return _from_pil(source, name="PIL image")
    if isinstance(source, str) and "://" in source and not os.path.exists(source):
        raise DataError(f"{source} is an address, not a file: download the picture first")
    if isinstance(source, (str, os.PathLike)):
        return _from_file(Path(source))
    raise DataError(
        f"cannot read a picture from {type(source).__name__}: "
        "give a path, a PIL image or a uint8 array"
    )


def files_below(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The sorted files of these suffixes in a folder and its subfolders.

    Files whose name begins with "." are left out: other systems leave previews next to photos.
    """
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    ]


def check_several(images: object) -> None:
    """Raise DataError if `images` is one picture (a path or an array) instead of several."""
    array = isinstance(images, np.ndarray) and images.ndim <= 3
    if array or isinstance(images, (str, os.PathLike)):
        raise DataError("detect_batch takes a list of images: use detect for one image")


def fit_long_side(image: np.ndarray, max_side: int | None) -> np.ndarray:
    """Shrink (H, W, 3) uint8 so that its long side is at most `max_side`; never enlarge."""
    height, width = image.shape[:2]
    if max_side is None or max(height, width) <= max_side:
        return image
    scale = max_side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def padded_size(height: int, width: int) -> tuple[int, int]:
    """Round height and width up to multiples of PAD_MULTIPLE."""
    return -(-height // PAD_MULTIPLE) * PAD_MULTIPLE, -(-width // PAD_MULTIPLE) * PAD_MULTIPLE


def network_input(images: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Convert RGB images (h, w, 3) uint8, at most height × width, to (B, 3, height, width) float32.

    BGR minus MEAN_BGR; the padding right of and below an image is 0, the mean colour.
    """
    batch = np.zeros((len(images), 3, height, width), np.float32)
    for picture, plane in zip(images, batch, strict=True):
        h, w = picture.shape[:2]
        for channel, mean in enumerate(MEAN_BGR):
            np.subtract(picture[..., 2 - channel], mean, out=plane[channel, :h, :w])
    return batch


def to_original(
    boxes: np.ndarray,
    scores: np.ndarray,
    landmarks: np.ndarray,
    *,
    shown: tuple[int, int],
    original: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Convert faces from pixels of the network's image to pixels of the original image.

    boxes (K, 4), scores (K,), landmarks (K, 5, 2); shown, original: height and width of the image
    for the network, without padding, and of the original. Boxes are clipped to the image; boxes in
    the padding are dropped. Returns boxes, scores and landmarks.
    """
    height, width = original
    scale = np.array((width / shown[1], height / shown[0]), np.float32)
    corners = boxes.reshape(-1, 2, 2) * scale  # (K, 4) → (K, 2 corners, x y)
    corners = corners.clip(0, np.array((width, height), np.float32))
    visible = (corners[:, 1] > corners[:, 0]).all(axis=1)
    return corners[visible].reshape(-1, 4), scores[visible], landmarks[visible] * scale


def _from_array(array: np.ndarray, *, bgr: bool) -> np.ndarray:
    channels = array.shape[-1] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise DataError(
            "an image array must be uint8 of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); got "
            f"{array.dtype} of shape {array.shape}"
        )
    if array.size == 0:
        raise DataError(f"the image array is empty: shape {array.shape}")
    if channels == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    if channels == 4:
        array = _over_white(array)
    plain = np.ascontiguousarray(array)
    return cv2.cvtColor(plain, cv2.COLOR_BGR2RGB) if bgr else plain


def _over_white(pixels: np.ndarray) -> np.ndarray:
    """Blend (H, W, 4) uint8, alpha last, with white: (H, W, 3)."""
    opacity = pixels[..., 3:].astype(np.float32) / 255
    return (pixels[..., :3] * opacity + 255 * (1 - opacity)).round().astype(np.uint8)


def _from_pil(image: Image.Image, *, name: str) -> np.ndarray:
    """Convert a PIL image, loaded or not, to (H, W, 3) uint8. `name` is for errors."""
    if 0 in image.size:
        raise DataError(f"{name} is empty: {image.width}×{image.height} pixels")
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("F", "I") or upright.mode.startswith("I;16"):
            return _from_wide_grey(upright, name=name)
        if upright.mode in _ALPHA_MODES or "transparency" in upright.info:
            return _over_white(np.asarray(upright.convert("RGBA")))
        return np.array(upright.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name} is truncated or corrupt: {_one_line(error)}") from error


def _from_wide_grey(image: Image.Image, *, name: str) -> np.ndarray:
    """Scale 16-bit grey (Pillow's modes I;16 and I) to (H, W, 3) uint8."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise DataError(
            f"{name} has {image.mode}-mode pixels whose range is unknown: convert it to 8 or 16 bit"
        )
    grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _from_file(path: Path) -> np.ndarray:
    data = _bytes_of(path)
    if Image is None:
        return _by_opencv(path, data)
    with _opened(path, data) as image:
        plain = image.format == "JPEG" and image.mode == "RGB" and is_complete(data)
        if plain and image.getexif().get(_EXIF_ORIENTATION, 1) == 1:
            # the same libjpeg pixels as Pillow's, in two thirds of the time
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _CV2_FLAGS)
            if pixels is not None:
                return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        return _from_pil(image, name=str(path))


def _bytes_of(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"photo {path} cannot be read: {error.strerror or error}") from None
    if not data:
        raise DataError(f"photo {path} is empty: 0 bytes")
    return data


def _opened(path: Path, data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():  # large photos are welcome; bombs still raise
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        limit = (Image.MAX_IMAGE_PIXELS or 0) * 2
        raise DataError(f"photo {path} is too large: more than {limit:,} pixels") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"photo {path} is not an image in a format that Pillow reads") from error


def _by_opencv(path: Path, data: bytes) -> np.ndarray:
    """Decode a file without Pillow as (H, W, 3) RGB, upright; alpha is dropped."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise DataError(f"{path} is not an image in a format that OpenCV reads")
    if not is_complete(data):
        raise DataError(f"{path} is truncated or corrupt: the JPEG has no end")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


SHRINKS = (8, 4, 2, 1)  # scales 1/n of libjpeg's decoder, largest first
_READ_FLAGS = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2,
               4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}  # fmt: skip
_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


class Window(NamedTuple):
    """A square of a photo in pixels of the photo decoded at 1/shrink; may extend outside."""

    left: int
    top: int
    side: int
    shrink: int  # 1, 2, 4 or 8


class PhotoFile(NamedTuple):
    """An image file in memory with its header read and its pixels not decoded."""

    path: Path
    data: bytes  # the file, or only its first bytes if it is not to be decoded
    width: int
    height: int

    @property
    def is_jpeg(self) -> bool:
        return self.data.startswith(_JPEG_START)

    def shrink_for(self, side: float, size: int) -> int:
        """The largest shrink at which `side` pixels still give `size`."""
        if not self.is_jpeg:
            return 1
        return next(shrink for shrink in SHRINKS if shrink == 1 or side >= shrink * size)

    def shrunk_size(self, shrink: int) -> tuple[int, int]:
        """Width and height of the photo decoded at 1/shrink: rounded up, as libjpeg does."""
        return -(-self.width // shrink), -(-self.height // shrink)

    def inside(self, window: Window) -> np.ndarray:
        """The part of a window in the shrunk photo: (2, 2) start and stop of x, of y."""
        start = np.array((window.left, window.top))
        stop = np.minimum(start + window.side, self.shrunk_size(window.shrink))
        return np.stack((np.maximum(start, 0), stop), axis=1)


def open_photo(path: str | Path) -> PhotoFile:
    """Read a file and its header. Raises DataError if it is missing, truncated or not an image."""
    path = Path(path)
    data = _bytes_of(path)
    with _opened(path, data) as header:
        width, height = header.size
    if not is_complete(data):
        raise DataError(f"photo {path} is truncated: its end is missing; get the file again")
    return PhotoFile(path, data, width, height)


def exif_orientation(photo: PhotoFile) -> int:
    """The EXIF orientation, 1 to 8, that turns the pixels as stored upright; 1 if not given."""
    with _opened(photo.path, photo.data) as header:
        return header.getexif().get(_EXIF_ORIENTATION, 1)


def open_header(path: str | Path) -> PhotoFile:
    """Read a photo's size and kind without reading the whole file. Raises DataError."""
    path = Path(path)
    try:
        with Image.open(path) as header:
            width, height = header.size
            kind = _JPEG_START if header.format in ("JPEG", "MPO") else b""
    except (OSError, ValueError, Image.DecompressionBombError):
        return open_photo(path)  # raises with the reason
    return PhotoFile(path, kind, width, height)


def is_complete(data: bytes) -> bool:
    """True if a JPEG file has an end-of-image marker after its first scan, and for other files.

    Some decoders return a truncated file half grey, without an error. The search starts after the
    segments, as one may hold a thumbnail with its own marker; other data may follow the marker,
    such as the video of a motion photo.
    """
    if not data.startswith(_JPEG_START) or data.endswith(_JPEG_END):
        return True
    at = len(_JPEG_START)
    while data[at : at + 1] == b"\xff" and data[at : at + 2] != _JPEG_SCAN:
        padding = data[at + 1 : at + 2] == b"\xff"
        at += 1 if padding else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data.find(_JPEG_END, at) >= 0


def decode(photo: PhotoFile, shrink: int = 1) -> np.ndarray:
    """Decode a photo at 1/shrink as (h, w, 3) uint8 BGR. Raises DataError if it is corrupt."""
    flags = _READ_FLAGS[shrink] | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(photo.data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"photo {photo.path} cannot be decoded: {_one_line(error)}") from None
    width, height = photo.shrunk_size(shrink)
    if pixels is None or pixels.shape != (height, width, 3):
        raise DataError(f"photo {photo.path} is corrupt and cannot be decoded; get the file again")
    return pixels
