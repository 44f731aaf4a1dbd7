"""One synthetic photograph: where people stand, what covers them, what the camera makes of it."""

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np

from featherface.data.demo_background import background, ball, block, hand
from featherface.data.demo_faces import Head, draw_body, draw_head, from_behind
from featherface.data.demo_paint import blend, grid_noise, inside
from featherface.data.demo_style import Light, Style, random_light, random_style

SMALLEST_FACE = 8.0  # pixels high
ASPECTS = (1.0, 0.75, 1.333, 0.667, 1.5)  # width / height
KINDS = ("portrait", "group", "street", "crowd", "empty")
NOBODY = -1  # owner of a pixel that belongs to no face
LEAST_SEEN = 0.3  # a face of which less is visible is not annotated


@dataclass(frozen=True)
class Face:
    """One annotated face, in pixels of the photograph."""

    box: tuple[int, int, int, int]  # x, y, width, height
    landmarks: np.ndarray | None  # (5, 2) float, or None: not usable
    hidden: np.ndarray  # (5,) bool
    blur: int  # 0 clear, 1 normal, 2 heavy
    expression: int  # 1: exaggerated
    illumination: int  # 1: extreme
    occlusion: int  # 0 none, 1 partial, 2 heavy
    pose: int  # 1: atypical


@dataclass(frozen=True)
class Photo:
    kind: str  # one of KINDS
    jpeg: bytes
    faces: list[Face]
    width: int
    height: int


def kind_of(index: int, rng: np.random.Generator) -> str:
    """What photograph `index` shows: empty places and crowds at fixed turns, the rest by chance."""
    if index % 12 == 5:
        return "empty"
    if index % 10 == 3:
        return "crowd"
    return str(rng.choice(["portrait", "group", "street"], p=[0.36, 0.4, 0.24]))


def make_photo(*, seed: int, split: int, index: int, size: int) -> Photo:
    """Photograph `index` of a split; the same arguments give the same bytes."""
    rng = np.random.default_rng([seed, split, index])
    kind = kind_of(index, rng)
    aspect = ASPECTS[rng.integers(0, len(ASPECTS))]
    long = size * rng.uniform(0.8, 1.15)
    width = round(long * min(aspect, 1.0))
    height = round(long / max(aspect, 1.0))
    light = random_light(rng)
    image = background(width, height, rng, light)
    owner = np.full((height, width), NOBODY, np.int32)
    people: list[tuple[Style, Head]] = []
    areas: list[int] = []
    for x, y, face in _places(kind, width, height, rng):
        _add_person(image, owner, people, areas, (x, y), face, rng, light)
        if rng.random() < (0.12 if face > 20 else 0.02) and people:
            _cover(image, owner, people[-1][1], rng, light)
    image, softness = _camera(image, rng, steady=kind in ("street", "crowd"))
    faces = _annotate(people, areas, owner, softness, light)
    quality = int(rng.integers(55, 96))
    pixels = (image[..., ::-1] * 255 + 0.5).astype(np.uint8)
    _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return Photo(kind, jpeg.tobytes(), faces, width, height)


def _places(
    kind: str, width: int, height: int, rng: np.random.Generator
) -> list[tuple[float, float, float]]:
    """x, y and height of each face, those behind first."""
    short = min(width, height)
    low, high, count = {
        "portrait": (0.19, 0.47, int(rng.integers(1, 3))),
        "group": (0.07, 0.2, int(rng.integers(3, 9))),
        "street": (0.016, 0.14, int(rng.integers(4, 15))),
        "crowd": (0.0125, 0.05, int(rng.integers(26, 66))),
        "empty": (0.02, 0.1, 0),
    }[kind]
    middle = math.exp(rng.uniform(math.log(low), math.log(high)))  # of a group
    horizon, steep = rng.uniform(0.12, 0.4) * height, rng.uniform(0.15, 0.5)
    chosen: list[tuple[float, float, float]] = []
    for _ in range(count * 6):
        if len(chosen) >= count:
            break
        share = math.exp(rng.uniform(math.log(low), math.log(high)))
        if kind == "group":
            share = float(np.clip(middle * math.exp(rng.normal(0, 0.22)), low, high * 1.2))
        face = max(SMALLEST_FACE * 1.25, share * short)
        edge = -0.1 if rng.random() < 0.15 else 0.55  # some are cut by the border
        x = rng.uniform(edge * face, width - edge * face)
        y = rng.uniform(max(edge * face, 0), max(height - edge * face, face))
        if kind == "crowd":  # rows that spread and rise with the distance
            x = width * (0.5 + np.clip(rng.normal(0, 0.25), -0.49, 0.49))
        if kind in ("street", "crowd"):  # the nearer, the larger and the lower
            y = horizon + (share / high) * (steep + rng.uniform(0, 0.15)) * height
        if all(math.hypot(x - a, y - b) > 0.78 * max(face, f) for a, b, f in chosen):
            chosen.append((float(x), float(y), face))
    return sorted(chosen, key=lambda place: place[1 if kind == "group" else 2])


def _add_person(
    image: np.ndarray,
    owner: np.ndarray,
    people: list[tuple[Style, Head]],
    areas: list[int],
    centre: tuple[float, float],
    face: float,
    rng: np.random.Generator,
    light: Light,
) -> None:
    style = random_style(rng)
    away = rng.random() < 0.06
    if away:
        style = from_behind(style, rng)
    shade = float(rng.uniform(0.25, 0.6)) if rng.random() < 0.08 else 1.0  # stands in the shadow
    local = replace(light, key=light.key * shade, ambient=light.ambient * (0.5 + shade / 2))
    head = draw_head(style, local, centre, face)
    body = draw_body(style, local, head, (image.shape[1], image.shape[0]))
    for patch in (body, head.patch):
        if patch is not None:
            blend(image, patch.colours, patch.alpha, patch.x0, patch.y0)
            _claim(owner, patch.alpha > 0.5, patch.x0, patch.y0, NOBODY)
    if away:
        return
    x1, y1, x2, y2 = head.box
    left, top = math.floor(x1), math.floor(y1)
    grid = np.mgrid[top : math.ceil(y2), left : math.ceil(x2)].astype(np.float32) + 0.5
    oval = ((grid[1] - (x1 + x2) / 2) / (x2 - x1)) ** 2 + (
        (grid[0] - (y1 + y2) / 2) / (y2 - y1)
    ) ** 2
    _claim(owner, oval < 0.25, left, top, len(people))
    people.append((style, head))
    areas.append(int((oval < 0.25).sum()))


def _claim(owner: np.ndarray, mask: np.ndarray, x0: int, y0: int, who: int) -> None:
    left, top = max(x0, 0), max(y0, 0)
    right = min(x0 + mask.shape[1], owner.shape[1])
    bottom = min(y0 + mask.shape[0], owner.shape[0])
    if right > left and bottom > top:
        part = mask[top - y0 : bottom - y0, left - x0 : right - x0]
        owner[top:bottom, left:right][part] = who


def _cover(
    image: np.ndarray, owner: np.ndarray, head: Head, rng: np.random.Generator, light: Light
) -> None:
    """Put a hand or a thing before a part of the face."""
    x1, y1, x2, y2 = head.box
    wide, high = x2 - x1, y2 - y1
    thing = (hand, hand, ball, block)[rng.integers(0, 4)]
    side = (-1, 1)[rng.integers(0, 2)]
    x = (x1 + x2) / 2 + side * wide * rng.uniform(0.2, 0.6)
    y = (y1 + y2) / 2 + high * rng.uniform(0.0, 0.7)
    before = image.copy()
    thing(image, float(x), float(y), float(high * rng.uniform(0.35, 0.8)), rng, light)
    owner[np.abs(image - before).max(axis=2) > 0.02] = NOBODY


def _camera(
    image: np.ndarray, rng: np.random.Generator, *, steady: bool
) -> tuple[np.ndarray, float]:
    """Blur, exposure, colour, shadows, noise; also the blur's radius in pixels."""
    image, softness = _blur(image, rng, steady=steady)
    image = _develop(image, rng)
    height, width = image.shape[:2]
    if rng.random() < 0.2:  # the shadow of a tree or a window over everything
        edge = grid_noise(height, width, rng, grain=0.2, power=1.8)
        image = image * (1 - float(rng.uniform(0.2, 0.55)) * inside(edge, 0.3))[..., None]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    image = image * (1 - float(rng.uniform(0, 0.16)) * (x * x + y * y))[..., None]
    grain = rng.standard_normal((height, width, 3), dtype=np.float32)
    image = image + grain * np.float32(abs(rng.normal(0, 0.018)))
    return np.clip(image, 0, 1).astype(np.float32), softness


def _blur(image: np.ndarray, rng: np.random.Generator, *, steady: bool) -> tuple[np.ndarray, float]:
    """Out of focus and, unless steady, sometimes moved; small faces would be lost otherwise."""
    softness = float(abs(rng.normal(0.35, 0.35)))
    if rng.random() < 0.1:
        softness = float(rng.uniform(1.2, 3.0))
    softness *= 0.5 if steady else 1.0
    image = cv2.GaussianBlur(image, (0, 0), max(softness, 0.2))
    if rng.random() < 0.14 and not steady:
        length = int(rng.integers(4, 13))
        line = np.zeros((length, length), np.float32)
        end = int(rng.integers(0, length))
        cv2.line(line, (end, 0), (length - 1 - end, length - 1), 1.0, 1)
        image = cv2.filter2D(image, -1, line / line.sum(), borderType=cv2.BORDER_REFLECT)
        softness += length / 4
    return image, softness


def _develop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exposure, contrast, saturation (now and then none) and colour cast."""
    gamma = float(np.exp(rng.normal(0, 0.16)))
    contrast, bright = float(rng.normal(1.05, 0.12)), float(rng.normal(0.02, 0.05))
    image = (np.clip(image, 0, 1) ** gamma - 0.5) * contrast + 0.5 + bright
    cast = rng.normal(1, 0.04, 3).astype(np.float32)
    grey = image.mean(axis=2, keepdims=True)
    colour = 0.0 if rng.random() < 0.05 else float(np.clip(rng.normal(0.85, 0.18), 0.2, 1.3))
    return (grey + (image - grey) * colour) * (cast if colour else np.float32(1))


def _annotate(
    people: list[tuple[Style, Head]],
    areas: list[int],
    owner: np.ndarray,
    softness: float,
    light: Light,
) -> list[Face]:
    height, width = owner.shape
    found = []
    for index, ((style, head), area) in enumerate(zip(people, areas, strict=True)):
        seen = float((owner == index).sum()) / max(area, 1)
        x1, y1 = max(round(float(head.box[0])), 0), max(round(float(head.box[1])), 0)
        x2, y2 = min(round(float(head.box[2])), width), min(round(float(head.box[3])), height)
        if seen < LEAST_SEEN or min(x2 - x1, y2 - y1) < 3:
            continue
        hidden = head.hidden | ~_owned(owner, head.landmarks, index)
        usable = seen > 0.45 and head.size >= 13 and hidden.sum() < 5
        inside_image = ((head.landmarks >= 0) & (head.landmarks < (width, height))).all()
        relative = softness / head.size
        worn = style.shape.mask or style.glasses == "sun"
        found.append(
            Face(
                box=(x1, y1, x2 - x1, y2 - y1),
                landmarks=head.landmarks if usable and inside_image else None,
                hidden=hidden,
                blur=2 if head.size < 16 or relative > 0.05 else int(relative > 0.02),
                expression=int(style.shape.mouth_open > 0.5),
                illumination=int(light.key + light.ambient < 0.75),
                occlusion=2 if seen < 0.6 else int(seen < 0.93 or worn),
                pose=int(abs(style.yaw) > 45 or abs(style.roll) > 30 or abs(style.pitch) > 25),
            )
        )
    return found


def _owned(owner: np.ndarray, points: np.ndarray, index: int) -> np.ndarray:
    """(5,) bool: this face is what the photograph shows at each point (5, 2)."""
    x = np.clip(points[:, 0].astype(int), 0, owner.shape[1] - 1)
    y = np.clip(points[:, 1].astype(int), 0, owner.shape[0] - 1)
    return owner[y, x] == index
