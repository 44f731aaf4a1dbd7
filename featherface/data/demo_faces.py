"""One person of a synthetic photograph: head and shoulders as a patch with box and landmarks."""

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np

from featherface.data.demo_head import (
    CLOTH,
    HAIR,
    SKIN,
    Surface,
    face_box,
    reach,
    rotation,
    shadow,
    trace,
)
from featherface.data.demo_paint import blob_shading, capsules, grid_noise, inside
from featherface.data.demo_skin import add_glasses, cloth_colours, hair_colours, skin_colours
from featherface.data.demo_style import Light, Style

GEOMETRY = 72  # most pixels a head unit at which the head is marched
DETAIL = 420  # and at which it is painted
SMALLEST = 28  # small faces are drawn at this and averaged down


@dataclass(frozen=True)
class Patch:
    """Pixels to blend into the photograph with the corner at x0, y0."""

    x0: int
    y0: int
    colours: np.ndarray  # (h, w, 3) float32 RGB in 0..1
    alpha: np.ndarray  # (h, w) float32


@dataclass(frozen=True)
class Head:
    """A drawn head, in pixels of the photograph."""

    patch: Patch
    box: np.ndarray  # (4,) float32 x1, y1, x2, y2, not clipped
    landmarks: np.ndarray  # (5, 2) float32
    hidden: np.ndarray  # (5,) bool: behind the head's own parts, mask or sunglasses
    neck: np.ndarray  # (2,) float32, where the shoulders begin
    size: float  # pixels a head unit


def draw_head(style: Style, light: Light, centre: tuple[float, float], size: float) -> Head:
    """Draw a head of `size` pixels from hairline to chin around `centre`, pixels."""
    rotate = rotation(style.yaw, style.pitch, style.roll)
    around = reach(style.shape, rotate) * size + np.tile(centre, 2)
    x0, y0 = (math.floor(value) - 1 for value in around[:2])
    x1, y1 = (math.ceil(value) + 1 for value in around[2:])
    scale = max(SMALLEST / size, float(np.clip(150 / size, 1, 2)))  # drawn pixels a pixel
    scale = min(scale, max(DETAIL, SMALLEST) / size)
    surface, x, y = _surface(
        style, rotate, (x0, y0, x1, y1), centre, size, min(scale, GEOMETRY / size)
    )
    detail = (round((x1 - x0) * scale), round((y1 - y0) * scale))
    lit = np.ones(x.shape, np.float32)
    if size >= 18:
        lit = shadow(style.shape, surface, rotate.T @ light.direction)
    surface, x, y, lit = _enlarge(surface, x, y, lit, detail)
    pixel = 1 / (size * scale)
    colours, alpha = _shade(style, light, surface, lit, pixel)
    if style.glasses != "none" and abs(style.yaw) < 60:
        opacity = add_glasses(colours, style, rotate, x, y, 2 * pixel)
        alpha = np.maximum(alpha, opacity)
    patch = _downscale(colours, alpha, x0, y0, x1 - x0, y1 - y0)
    landmarks, hidden = _landmarks(style, rotate, surface, x, y)
    where = np.array(centre, np.float32)
    return Head(
        patch=patch,
        box=face_box(style.shape, rotate) * np.float32(size) + np.tile(where, 2),
        landmarks=landmarks * np.float32(size) + where,
        hidden=hidden,
        neck=(rotate @ np.array([0, 0.62, -0.14], np.float32))[:2] * np.float32(size) + where,
        size=size,
    )


def _surface(
    style: Style,
    rotate: np.ndarray,
    window: tuple[int, int, int, int],
    centre: tuple[float, float],
    size: float,
    scale: float,
) -> tuple[Surface, np.ndarray, np.ndarray]:
    """March the head over a window of pixels; also the camera coordinates of the grid."""
    x0, y0, x1, y1 = window
    across = (np.linspace(x0, x1, round((x1 - x0) * scale) * 2 + 1)[1::2] - centre[0]) / size
    down = (np.linspace(y0, y1, round((y1 - y0) * scale) * 2 + 1)[1::2] - centre[1]) / size
    x, y = (grid.astype(np.float32) for grid in np.meshgrid(across, down))
    steps = 14 if size < 26 else 24
    return trace(style.shape, rotate, x, y, steps=steps), x, y


def _enlarge(
    surface: Surface, x: np.ndarray, y: np.ndarray, lit: np.ndarray, size: tuple[int, int]
) -> tuple[Surface, np.ndarray, np.ndarray, np.ndarray]:
    """The same maps at the size (width, height) at which colours are painted."""
    stack = [*surface.points, surface.depth, surface.gap, *surface.parts, x, y, lit]
    if size != (x.shape[1], x.shape[0]):
        stack = [cv2.resize(part, size, interpolation=cv2.INTER_LINEAR) for part in stack]
    larger = Surface(np.stack(stack[:3]), stack[3], stack[4], np.stack(stack[5:8]))
    return larger, stack[8], stack[9], stack[10]


def _shade(
    style: Style, light: Light, surface: Surface, lit: np.ndarray, pixel: float
) -> tuple[np.ndarray, np.ndarray]:
    """Colours (H, W, 3) in 0..1 and opacity (H, W) of the lit head."""
    soft = 2 * pixel
    parts = surface.parts
    colours = skin_colours(style, surface, soft)
    cover = np.clip(0.5 + (parts[SKIN] - parts[HAIR]) / max(soft, 0.02), 0, 1)
    if style.shape.hair not in ("bald", "veil"):
        colours += cover[..., None] * (hair_colours(style, surface) - colours)
    cloth = np.clip(
        0.5 + (np.minimum(parts[SKIN], parts[HAIR]) - parts[CLOTH]) / max(soft, 0.008), 0, 1
    )
    if style.shape.mask or style.shape.hair == "veil" or style.shape.hat != "none":
        colours += cloth[..., None] * (cloth_colours(style, surface) - colours)
    depth = cv2.GaussianBlur(surface.depth, (0, 0), max(0.008 / pixel, 0.6))
    zy, zx = np.gradient(depth, pixel)
    facing = 1 / np.sqrt(zx * zx + zy * zy + 1)
    nx, ny = -zx * facing, -zy * facing
    dx, dy, dz = (float(part) for part in light.direction)
    wrap = 0.22  # light that goes through skin past the edge of the shade
    diffuse = np.clip((nx * dx + ny * dy + facing * dz + wrap) / (1 + wrap), 0, 1)
    hollow = cv2.GaussianBlur(depth, (0, 0), 0.07 / pixel) - depth
    open_sky = np.clip(1 - 5 * np.maximum(hollow, 0), 0.35, 1) * (0.72 + 0.28 * facing - 0.12 * ny)
    key = (diffuse * (0.25 + 0.75 * lit))[..., None] * light.colour * np.float32(light.key)
    ambient = open_sky[..., None] * light.sky * np.float32(light.ambient)
    linear = np.clip(colours, 0, 1) ** 2.2 * (key + ambient)
    half = np.array([dx, dy, dz + 1]) / math.sqrt(dx * dx + dy * dy + (dz + 1) ** 2)
    shine = np.clip(nx * half[0] + ny * half[1] + facing * half[2], 0, 1) ** 24
    linear += (shine * lit * (0.05 + 0.04 * cover)).astype(np.float32)[..., None] * light.colour
    edge = max(1.2 * pixel, 0.012)
    alpha = inside(surface.gap - 0.004 - edge / 2, edge)  # opaque up to the surface itself
    below = np.clip((surface.points[1] - 0.68) / 0.14, 0, 1)  # the neck goes over into the body
    alpha *= 1 - below * (parts[SKIN] <= np.minimum(parts[HAIR], parts[CLOTH]))
    linear /= 1 + 0.22 * linear * linear  # highlights roll off instead of clipping
    return np.clip(linear, 0, 1) ** np.float32(1 / 2.2), alpha


def _downscale(
    colours: np.ndarray, alpha: np.ndarray, x0: int, y0: int, width: int, height: int
) -> Patch:
    """Average to photograph pixels, colours weighted by their opacity."""
    size = (width, height)
    way = cv2.INTER_AREA if alpha.shape[0] >= height else cv2.INTER_LINEAR
    weighted = cv2.resize(colours * alpha[..., None], size, interpolation=way)
    small = cv2.resize(alpha, size, interpolation=way)
    return Patch(x0, y0, weighted / np.maximum(small, 1e-3)[..., None], small)


def _landmarks(
    style: Style, rotate: np.ndarray, surface: Surface, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks (5, 2) in camera head units, and which of them the camera cannot see."""
    points = style.shape.frontal_landmarks() @ rotate.T
    column = np.clip(np.searchsorted(x[0], points[:, 0]), 0, x.shape[1] - 1)
    row = np.clip(np.searchsorted(y[:, 0], points[:, 1]), 0, x.shape[0] - 1)
    parts = surface.parts[:, row, column]
    covered = np.minimum(parts[HAIR], parts[CLOTH]) < parts[SKIN]
    behind = surface.depth[row, column] > points[:, 2] + 0.09
    hidden = covered | behind
    if style.glasses == "sun":
        hidden[:2] = True
    return points[:, :2], hidden


def draw_body(style: Style, light: Light, head: Head, frame: tuple[int, int]) -> Patch | None:
    """Neck and shoulders under a head, as far as they lie in a photograph of (width, height)."""
    size = head.size
    x0 = max(math.floor(head.neck[0] - 1.9 * size), -8)
    y0 = max(math.floor(head.neck[1] - 0.55 * size), -8)
    width = min(math.ceil(head.neck[0] + 1.9 * size), frame[0] + 8) - x0
    height = min(math.ceil(head.neck[1] + 6.4 * size), frame[1] + 8) - y0
    if width < 3 or height < 3:
        return None
    x, y = np.meshgrid(
        np.arange(width, dtype=np.float32) + x0 + 0.5 - float(head.neck[0]),
        np.arange(height, dtype=np.float32) + y0 + 0.5 - float(head.neck[1]),
    )
    x, y = x / np.float32(size), y / np.float32(size)
    wide = style.wide
    bones = [
        (-0.62 * wide, 0.36, 0.62 * wide, 0.36, 0.27, 0.27),
        (-0.3, 0.7, -0.25, 2.6, 0.5 * wide, 0.45 * wide),
        (0.3, 0.7, 0.25, 2.6, 0.5 * wide, 0.45 * wide),
        (-0.3, 2.7, -0.36, 6.2, 0.4, 0.24),  # legs
        (0.3, 2.7, 0.36, 6.2, 0.4, 0.24),
        (-0.72 * wide, 0.45, -0.95 * wide, 2.2, 0.2, 0.17),
        (0.72 * wide, 0.45, 0.95 * wide, 2.2, 0.2, 0.17),
        (0.0, 0.05, 0.0, 0.4, 0.2, 0.32),
    ]
    distance = capsules(x, y, np.array(bones), melt=0.22)
    neckline = np.sqrt((x / 0.27) ** 2 + ((y - 0.02) / 0.3) ** 2) - 1
    colours = np.broadcast_to(_shirt(style, x, y), (*x.shape, 3)).astype(np.float32).copy()
    colours += inside(2.9 - y, 0.04)[..., None] * (style.trousers - colours)
    bare = inside(neckline * 0.2, 0.03)[..., None]
    colours = colours + bare * (style.skin - colours)
    shade = blob_shading(distance * size, light.direction, bulge=0.5 * size)
    rng = np.random.default_rng(int(style.texture[0] * 1000))
    folds = 1 + 0.1 * grid_noise(height, width, rng, grain=36 / size, power=1.7)
    chin = 1 - 0.5 * np.exp(-((x / 0.3) ** 2) - ((y + 0.12) / 0.22) ** 2)  # shade of the chin
    amount = (shade * folds * chin)[..., None] * np.float32(light.key * 0.7 + light.ambient * 0.9)
    linear = np.clip(colours, 0, 1) ** 2.2 * amount * (light.colour + light.sky) / 2
    alpha = inside(distance, max(1.5 / size, 0.012))
    return Patch(x0, y0, np.clip(linear, 0, 1) ** np.float32(1 / 2.2), alpha)


def _shirt(style: Style, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    shirt = style.shirt
    other = np.clip(shirt * np.float32(0.45) + np.float32(0.3), 0, 1)
    stripe = (np.sin(y * 28) > 0.2).astype(np.float32)
    if style.shirt_pattern == "stripes":
        return shirt + stripe[..., None] * (other - shirt)
    if style.shirt_pattern == "checks":
        check = 0.5 * stripe + 0.5 * (np.sin(x * 28) > 0.2)
        return shirt + check[..., None] * (other - shirt)
    if style.shirt_pattern == "jacket":
        front = inside(np.abs(x) - np.maximum(0.3 - 0.18 * y, 0.02), 0.02)
        return shirt + front[..., None] * (np.float32(0.85) - shirt)
    return shirt


def from_behind(style: Style, rng: np.random.Generator) -> Style:
    """The same person turned away: a head that has no face."""
    shape = replace(style.shape, mask=False, mouth_open=0.0)
    turned = float(rng.uniform(150, 210))
    return replace(style, shape=shape, yaw=turned, glasses="none")
