"""Small painting tools of the synthetic photographs: noise, soft edges, shaded blobs, blending.

Images are float32 RGB (H, W, 3) in 0..1, gamma-encoded unless a name says linear.
"""

from functools import cache

import cv2
import numpy as np

TILE = 256


@cache  # a dozen powers are in use
def _tile(power: float) -> np.ndarray:
    """(TILE, TILE) float32, wraps around, mean 0, deviation 1; a higher power is smoother."""
    white = np.random.default_rng(20240519).standard_normal((TILE, TILE))
    fy, fx = np.fft.fftfreq(TILE)[:, None], np.fft.fftfreq(TILE)[None]
    radius = np.sqrt(fx * fx + fy * fy)
    radius[0, 0] = np.inf
    field = np.fft.ifft2(np.fft.fft2(white) / radius**power).real
    return ((field - field.mean()) / field.std()).astype(np.float32)


def noise(x: np.ndarray, y: np.ndarray, *, power: float = 1.4) -> np.ndarray:
    """Fractal noise at x, y (H, W), in tiles of 256 units: mean 0, deviation 1."""
    return cv2.remap(
        _tile(power),
        np.asarray(x, np.float32),
        np.asarray(y, np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_WRAP,
    )


def grid_noise(
    height: int, width: int, rng: np.random.Generator, *, grain: float, power: float = 1.4
) -> np.ndarray:
    """(height, width) noise at a random place of the tile; grain: tile units a pixel."""
    x0, y0 = rng.uniform(0, TILE, 2)
    x = np.arange(width, dtype=np.float32)[None] * grain + np.float32(x0)
    y = np.arange(height, dtype=np.float32)[:, None] * grain + np.float32(y0)
    return noise(*np.broadcast_arrays(x, y), power=power)


def inside(distance: np.ndarray, softness: float) -> np.ndarray:
    """1 where distance < 0, 0 outside, a ramp of this width between."""
    return np.clip(0.5 - distance / softness, 0, 1)


def paint(image: np.ndarray, mask: np.ndarray, colour: np.ndarray | tuple) -> None:
    """Blend a colour (3,) or image into `image` (H, W, 3) in place by mask (H, W)."""
    rows = np.flatnonzero(mask.max(axis=1) > 0.004)
    columns = np.flatnonzero(mask.max(axis=0) > 0.004)
    if not len(rows):
        return
    part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]  # most marks are small
    colour = np.asarray(colour, np.float32)
    target = image[part]
    target += mask[part][..., None] * ((colour if colour.ndim == 1 else colour[part]) - target)


def blend(image: np.ndarray, patch: np.ndarray, alpha: np.ndarray, x0: int, y0: int) -> None:
    """Blend patch (h, w, 3) into `image` with its corner at x0, y0, clipped to the image."""
    height, width = image.shape[:2]
    left, top = max(x0, 0), max(y0, 0)
    right, bottom = min(x0 + patch.shape[1], width), min(y0 + patch.shape[0], height)
    if right <= left or bottom <= top:
        return
    part = np.s_[top - y0 : bottom - y0, left - x0 : right - x0]
    paint(image[top:bottom, left:right], alpha[part], patch[part])


def capsules(x: np.ndarray, y: np.ndarray, bones: np.ndarray, *, melt: float) -> np.ndarray:
    """Signed distance (H, W) to bones (K, 6): x1, y1, x2, y2, radius1, radius2, melted together."""
    result = None
    for x1, y1, x2, y2, r1, r2 in np.asarray(bones, np.float32):
        dx, dy = x2 - x1, y2 - y1
        t = np.clip(((x - x1) * dx + (y - y1) * dy) / max(float(dx * dx + dy * dy), 1e-6), 0, 1)
        d = np.sqrt((x - x1 - t * dx) ** 2 + (y - y1 - t * dy) ** 2) - (r1 + t * (r2 - r1))
        if result is None:
            result = d
        else:
            h = np.maximum(melt - np.abs(result - d), 0) / melt
            result = np.minimum(result, d) - h * h * melt / 4
    assert result is not None
    return result


def blob_shading(
    distance: np.ndarray, light: np.ndarray, *, bulge: float, ambient: float = 0.45
) -> np.ndarray:
    """(H, W) brightness of a rounded body from its signed distance, in pixels; bulge: its depth."""
    height = np.sqrt(np.maximum(-distance, 0) * bulge)
    zy, zx = np.gradient(cv2.GaussianBlur(height, (0, 0), max(bulge / 12, 0.6)))
    norm = np.sqrt(zx * zx + zy * zy + 1)
    facing = (-zx * light[0] - zy * light[1] + light[2]) / norm
    return ambient + (1 - ambient) * np.clip((facing + 0.25) / 1.25, 0, 1) ** 0.8
