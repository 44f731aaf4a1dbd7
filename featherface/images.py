"""Reading pictures of every kind as upright RGB arrays, and preparing arrays for the network.

Without torch, so that the ONNX detector prepares its input by the very same code.
"""

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from featherface.config import MEAN_BGR, PAD_MULTIPLE
from featherface.errors import DataError

ImageSource = str | os.PathLike | Image.Image | np.ndarray
_EXIF_ORIENTATION = 0x0112
_CV2_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION  # Pillow alone judges rotation
_ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")


def read_image(source: ImageSource, *, bgr: bool = False) -> np.ndarray:
    """Any picture → (H, W, 3) uint8 RGB, upright. May share memory with an array `source`.

    source: a path, a PIL image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
    bgr: an array's first three channels are blue, green, red, as OpenCV gives them.
    Grey becomes three equal channels; 16-bit is scaled to 8; what is transparent shows white, as
    in a viewer; CMYK and palettes are converted; EXIF rotation is applied; of an animation the
    first frame of a file (the current frame of a PIL image) counts.
    Raises DataError with one line for anything that is not a complete picture of such a kind.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, bgr=bgr)
    if isinstance(source, Image.Image):
        return _from_pil(source, name="PIL image")
    if isinstance(source, (str, os.PathLike)):
        return _from_file(Path(source))
    raise DataError(
        f"cannot read a picture from {type(source).__name__}: "
        "give a path, a PIL image or a uint8 array"
    )


def fit_long_side(image: np.ndarray, max_side: int | None) -> np.ndarray:
    """(H, W, 3) uint8 shrunk so that its long side is at most `max_side`; never enlarged."""
    height, width = image.shape[:2]
    if max_side is None or max(height, width) <= max_side:
        return image
    scale = max_side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def padded_size(height: int, width: int) -> tuple[int, int]:
    """Height and width rounded up to multiples of PAD_MULTIPLE."""
    return -(-height // PAD_MULTIPLE) * PAD_MULTIPLE, -(-width // PAD_MULTIPLE) * PAD_MULTIPLE


def network_input(images: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """RGB images (h, w, 3) uint8 with h ≤ height and w ≤ width → (B, 3, height, width) float32.

    BGR minus MEAN_BGR; what is right of and below an image is 0, the mean colour.
    """
    batch = np.zeros((len(images), 3, height, width), np.float32)
    for picture, plane in zip(images, batch, strict=True):
        h, w = picture.shape[:2]
        for channel, mean in enumerate(MEAN_BGR):
            np.subtract(picture[..., 2 - channel], mean, out=plane[channel, :h, :w])
    return batch


def _from_array(array: np.ndarray, *, bgr: bool) -> np.ndarray:
    if array.dtype != np.uint8:
        raise DataError(
            f"an image array must be uint8 with values 0..255; got {array.dtype} of shape "
            f"{array.shape}: scale and convert it first"
        )
    channels = 1 if array.ndim == 2 else array.shape[-1]
    if array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise DataError(
            f"an image array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); got {array.shape}"
        )
    if array.size == 0:
        raise DataError(f"the image array is empty: shape {array.shape}")
    if channels == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    color = array[..., 2::-1] if bgr else array[..., :3]
    if channels == 4:
        rgba = np.concatenate((color, array[..., 3:]), axis=2)
        return _over_white(Image.fromarray(rgba))
    return np.ascontiguousarray(color)


def _from_pil(image: Image.Image, *, name: str) -> np.ndarray:
    """A PIL image, not necessarily loaded yet → (H, W, 3) uint8. `name` is for the error."""
    if 0 in image.size:
        raise DataError(f"{name} is empty: {image.width}×{image.height} pixels")
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("F", "I") or upright.mode.startswith("I;16"):
            return _from_wide_grey(upright, name=name)
        if upright.mode in _ALPHA_MODES or "transparency" in upright.info:
            return _over_white(upright)
        return np.array(upright.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name} is truncated or corrupt: {_one_line(error)}") from error


def _from_wide_grey(image: Image.Image, *, name: str) -> np.ndarray:
    """16-bit grey (Pillow's modes I;16 and I) → (H, W, 3) uint8; 0..65535 becomes 0..255."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise DataError(
            f"{name} has {image.mode}-mode pixels whose range is unknown: convert it to 8 or 16 bit"
        )
    grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _over_white(image: Image.Image) -> np.ndarray:
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return np.array(Image.alpha_composite(white, rgba).convert("RGB"))


def _from_file(path: Path) -> np.ndarray:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"no such image: {path}") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder, not an image") from None
    except OSError as error:
        reason = error.strerror or _one_line(error)
        raise DataError(f"cannot read image {path}: {reason}") from error
    if not data:
        raise DataError(f"{path} is empty: 0 bytes")
    try:
        with warnings.catch_warnings():  # large photos are welcome; bombs still raise
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        limit = (Image.MAX_IMAGE_PIXELS or 0) * 2
        raise DataError(f"{path} is too large: more than {limit:,} pixels") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} is not an image in a format that Pillow reads") from error
    with image:
        if _plain_jpeg(image, data):
            # The same libjpeg pixels as Pillow's, a third sooner.
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _CV2_FLAGS)
            if pixels is not None:
                return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        return _from_pil(image, name=str(path))


def _plain_jpeg(image: Image.Image, data: bytes) -> bool:
    """A complete 8-bit RGB JPEG that needs no turning: cv2 would fill a truncated one with grey."""
    return (
        image.format == "JPEG"
        and image.mode == "RGB"
        and data.endswith(b"\xff\xd9")
        and image.getexif().get(_EXIF_ORIENTATION, 1) == 1
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
