"""Places of the synthetic photographs, and the things in them that a detector may take for faces.

Images are float32 RGB (H, W, 3) in 0..1, changed in place; every choice comes from the given rng.
"""

import string
from collections.abc import Callable

import cv2
import numpy as np

from featherface.data.demo_paint import (
    blend,
    blob_shading,
    capsules,
    grid_noise,
    inside,
    paint,
)
from featherface.data.demo_style import SKIN_TONES, Light

Rng = np.random.Generator


def background(width: int, height: int, rng: Rng, light: Light) -> np.ndarray:
    """A place without people: sky, ground, walls, foliage, lights, with some clutter."""
    place: Callable = [_street, _room, _foliage, _lights, _studio][
        rng.choice(5, p=[0.27, 0.27, 0.2, 0.16, 0.1])
    ]
    image = place(width, height, rng)
    for _ in range(rng.integers(2, 9)):
        thing: Callable = THINGS[rng.integers(0, len(THINGS))]
        size = float(np.exp(rng.uniform(np.log(14), np.log(0.3 * height + 15))))
        thing(image, rng.uniform(0, width), rng.uniform(0, height), size, rng, light)
    if rng.random() < 0.5:  # out of focus behind the people
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.6, 5)))
    level = (light.key * 0.75 + light.ambient) * (light.colour + light.sky) / 2
    return np.clip(image * np.clip(level, 0.35, 1.15).astype(np.float32), 0, 1)


def _colour(rng: Rng, low: float = 0.1, high: float = 0.9, spread: float = 0.12) -> np.ndarray:
    return np.clip(rng.uniform(low, high) + rng.normal(0, spread, 3), 0.02, 0.98).astype(np.float32)


def _gradient(width: int, height: int, top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    rows = top + ramp * (bottom - top)
    return np.repeat(rows.astype(np.float32), width, axis=1)


def _street(width: int, height: int, rng: Rng) -> np.ndarray:
    horizon = int(height * rng.uniform(0.3, 0.75))
    sky = np.array([0.62, 0.74, 0.9], np.float32) * np.float32(rng.uniform(0.7, 1.1))
    image = _gradient(width, height, sky, np.float32(0.85) * np.ones(3, np.float32))
    clouds = grid_noise(height, width, rng, grain=0.16, power=1.7)
    paint(image, np.clip(clouds * 0.35, 0, 0.7), (0.95, 0.95, 0.96))
    x = -20
    while x < width:  # a row of buildings with windows
        wide, top = int(rng.integers(50, 190)), int(horizon * rng.uniform(0.05, 0.75))
        wall = _colour(rng, 0.25, 0.75, 0.07)
        image[top:horizon, max(x, 0) : x + wide] = wall
        step = int(rng.integers(16, 42))
        pane = _colour(rng, 0.1, 0.6, 0.06)
        for wy in range(top + step // 2, horizon - step // 2, step):
            for wx in range(x + step // 3, x + wide - step // 2, step):
                glow = np.float32(rng.uniform(0.7, 1.5))
                image[wy : wy + int(step * 0.6), max(wx, 0) : max(wx + step // 2, 0)] = pane * glow
        x += wide + int(rng.integers(0, 20))
    image[horizon:] = _gradient(width, height - horizon, _colour(rng, 0.3, 0.6, 0.03), _colour(rng))
    rough = grid_noise(height, width, rng, grain=0.8, power=1.1)
    return np.clip(image * (1 + 0.05 * rough)[..., None], 0, 1)


def _room(width: int, height: int, rng: Rng) -> np.ndarray:
    image = _gradient(width, height, _colour(rng, 0.4, 0.9, 0.06), _colour(rng, 0.3, 0.8, 0.06))
    for _ in range(rng.integers(1, 5)):  # frames, doors, shelves of books
        x, y = int(rng.integers(-40, width)), int(rng.integers(-40, height))
        wide, high = int(rng.integers(30, 220)), int(rng.integers(30, 240))
        corner, end = (x, y), (x + wide, y + high)
        cv2.rectangle(image, corner, end, _colour(rng).tolist(), -1)
        if rng.random() < 0.5:
            left = x
            while left < x + wide:
                book = int(rng.integers(4, 16))
                spine = (min(left + book, x + wide), y + high)
                cv2.rectangle(
                    image, (left, y + int(rng.integers(4, 12))), spine, _colour(rng).tolist(), -1
                )
                left += book + 1
        cv2.rectangle(image, corner, end, _colour(rng, 0.05, 0.5).tolist(), int(rng.integers(2, 8)))
    if rng.random() < 0.4:  # tiles or bricks
        step = int(rng.integers(14, 60))
        line = _colour(rng, 0.3, 0.9, 0.03).tolist()
        for y in range(0, height, step):
            cv2.line(image, (0, y), (width, y), line, 1)
            for x in range((y // step % 2) * step, width, 2 * step):
                cv2.line(image, (x, y), (x, y + step), line, 1)
    shade = grid_noise(height, width, rng, grain=0.1, power=1.8)
    return np.clip(image * (1 + 0.1 * shade)[..., None], 0, 1)


def _foliage(width: int, height: int, rng: Rng) -> np.ndarray:
    green = np.array([0.25, 0.4, 0.16], np.float32) * rng.uniform(0.6, 1.5, 3).astype(np.float32)
    leaves = grid_noise(height, width, rng, grain=float(rng.uniform(0.3, 1.2)), power=0.9)
    masses = grid_noise(height, width, rng, grain=0.2, power=1.6)
    image = green * np.exp(0.3 * leaves + 0.35 * masses)[..., None]
    glimpse = np.clip(masses - 1.0, 0, 1) * np.clip(1 + leaves, 0, 1)
    paint(image, glimpse, (0.8, 0.88, 0.95))
    ground = int(height * rng.uniform(0.55, 1.1))
    if ground < height:
        grass = green * np.float32(1.4) * np.exp(0.25 * leaves[ground:])[..., None]
        image[ground:] = grass
    return np.clip(image, 0, 1)


def _lights(width: int, height: int, rng: Rng) -> np.ndarray:
    """Night or stage: darkness with round lights out of focus."""
    image = _gradient(width, height, _colour(rng, 0.02, 0.3), _colour(rng, 0.02, 0.35))
    for _ in range(rng.integers(12, 60)):
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        layer = image.copy()
        cv2.circle(
            layer, centre, int(rng.integers(3, 34)), _colour(rng, 0.5, 0.95, 0.25).tolist(), -1
        )
        cv2.addWeighted(layer, 0.5, image, 0.5, 0, dst=image)
    return cv2.GaussianBlur(image, (0, 0), 1.2)


def _studio(width: int, height: int, rng: Rng) -> np.ndarray:
    image = _gradient(width, height, _colour(rng, 0.3, 0.95, 0.08), _colour(rng, 0.1, 0.9, 0.08))
    return image * (1 + 0.06 * grid_noise(height, width, rng, grain=0.15, power=1.8))[..., None]


def _local(cx: float, cy: float, half: float) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Pixel grids around cx, cy, relative to it, and the grid's corner."""
    x0, y0, side = int(cx - half), int(cy - half), int(2 * half) + 2
    line = np.arange(side, dtype=np.float32) + 0.5
    x, y = np.meshgrid(line + np.float32(x0 - cx), line + np.float32(y0 - cy))
    return x, y, x0, y0


def _body(
    image: np.ndarray,
    grid: tuple[np.ndarray, np.ndarray, int, int],
    distance: np.ndarray,
    colours: np.ndarray,
    light: Light,
    bulge: float,
) -> None:
    """Blend a rounded, lit body with this signed distance into the image."""
    shade = blob_shading(distance, light.direction, bulge=bulge)[..., None]
    blend(image, np.clip(colours * shade, 0, 1), inside(distance, 1.5), grid[2], grid[3])


def ball(image: np.ndarray, cx: float, cy: float, size: float, rng: Rng, light: Light) -> None:
    """A ball or an egg, of any colour, often that of skin, sometimes with spots."""
    grid = x, y, _, _ = _local(cx, cy, size * 0.75)
    aspect = rng.uniform(0.75, 1.1)
    distance = (np.sqrt((x / aspect) ** 2 + y**2) - size / 2).astype(np.float32)
    colour = SKIN_TONES[rng.integers(0, len(SKIN_TONES))] if rng.random() < 0.5 else _colour(rng)
    colours = np.broadcast_to(colour, (*x.shape, 3)).astype(np.float32).copy()
    for _ in range(rng.integers(0, 7)):
        at = rng.normal(0, size / 5, 2)
        spot = np.hypot(x - at[0], y - at[1]) - size * rng.uniform(0.02, 0.1)
        paint(colours, inside(spot, 2.0).astype(np.float32), _colour(rng, 0.0, 0.4))
    _body(image, grid, distance, colours, light, size / 2)


def clock(image: np.ndarray, cx: float, cy: float, size: float, rng: Rng, light: Light) -> None:
    """A clock or a dial: round, pale, dark marks inside."""
    centre, radius = (int(cx), int(cy)), int(size / 2) + 2
    cv2.circle(image, centre, radius, _colour(rng, 0.6, 0.95).tolist(), -1, cv2.LINE_AA)
    dark = _colour(rng, 0.02, 0.3).tolist()
    thick = max(1, int(size / 18))
    cv2.circle(image, centre, radius, dark, thick, cv2.LINE_AA)
    for hour in range(12):
        way = np.array([np.cos(hour * np.pi / 6), np.sin(hour * np.pi / 6)])
        a, b = way * radius * 0.8 + centre, way * radius * 0.92 + centre
        cv2.line(image, a.astype(int).tolist(), b.astype(int).tolist(), dark, thick)
    for length in (0.5, 0.75):
        angle = rng.uniform(0, 2 * np.pi)
        tip = np.array([np.cos(angle), np.sin(angle)]) * radius * length + centre
        cv2.line(image, centre, tip.astype(int).tolist(), dark, thick, cv2.LINE_AA)


def animal(image: np.ndarray, cx: float, cy: float, size: float, rng: Rng, light: Light) -> None:
    """A furry head with ears, eyes and a snout."""
    grid = x, y, _, _ = _local(cx, cy, size * 0.9)
    u, v = x / np.float32(size), y / np.float32(size)
    ear = rng.uniform(0.25, 0.42)
    bones: list[tuple[float, ...]] = [(0, -0.02, 0, 0.1, 0.34, 0.26), (0, 0.2, 0, 0.3, 0.16, 0.14)]
    bones += [(side * 0.22, -0.2, side * ear, -0.5, 0.12, 0.05) for side in (-1, 1)]
    bones += [(0, 0.5, 0, 0.9, 0.3, 0.4)]
    distance = capsules(u, v, np.array(bones), melt=0.1) * np.float32(size)
    fur = grid_noise(x.shape[0], x.shape[1], rng, grain=120 / size, power=0.8)
    coat = np.array([(0.5, 0.34, 0.2), (0.75, 0.65, 0.5), (0.2, 0.18, 0.17), (0.6, 0.6, 0.6)])
    colours = coat[rng.integers(0, 4)] * (1 + 0.15 * fur)[..., None]
    colours = colours.astype(np.float32)
    for side in (-1, 1):
        eye = np.hypot(u - side * 0.13, v + 0.05) - 0.04
        paint(colours, inside(eye, 0.03).astype(np.float32), (0.05, 0.04, 0.03))
    nose = np.hypot(u / 1.4, v - 0.22) - 0.05
    paint(colours, inside(nose, 0.03).astype(np.float32), (0.05, 0.04, 0.04))
    _body(image, grid, distance, colours, light, size / 3)


def hand(image: np.ndarray, cx: float, cy: float, size: float, rng: Rng, light: Light) -> None:
    """An open hand with its wrist, in a random skin colour and turn."""
    grid = x, y, _, _ = _local(cx, cy, size * 0.95)
    turn = rng.uniform(-1.2, 1.2)
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    u, v = (c * x + s * y) / np.float32(size), (c * y - s * x) / np.float32(size)
    bones: list[tuple[float, ...]] = [(0, 0.1, 0, 0.2, 0.2, 0.17), (0, 0.3, 0.0, 0.9, 0.13, 0.16)]
    for finger in range(4):
        bx = -0.15 + 0.1 * finger
        spread = bx * rng.uniform(1.1, 1.9)
        bones += [(bx, 0.0, spread, -0.42 + 0.5 * abs(bx - 0.02), 0.055, 0.042)]
    bones += [(0.16, 0.18, 0.36, -0.02, 0.06, 0.045)]
    distance = capsules(u, v, np.array(bones), melt=0.035) * np.float32(size)
    tone = SKIN_TONES[rng.integers(0, len(SKIN_TONES))]
    mottle = grid_noise(x.shape[0], x.shape[1], rng, grain=60 / size, power=1.3)
    colours = (tone * (1 + 0.04 * mottle)[..., None]).astype(np.float32)
    _body(image, grid, distance, colours, light, size / 9)


def text(image: np.ndarray, cx: float, cy: float, size: float, rng: Rng, light: Light) -> None:
    """A sign with letters."""
    letters = "".join(rng.choice(list(string.ascii_uppercase + string.digits), rng.integers(2, 8)))
    scale = size / 60
    (wide, high), base = cv2.getTextSize(letters, cv2.FONT_HERSHEY_DUPLEX, scale, 2)
    ink = np.zeros((high + base + 12, wide + 12), np.uint8)  # cv2 writes on bytes only
    at = (6, high + 6)
    cv2.putText(ink, letters, at, cv2.FONT_HERSHEY_DUPLEX, scale, 255, 2, cv2.LINE_AA)
    sign = np.tile(_colour(rng), (*ink.shape, 1))
    paint(sign, ink.astype(np.float32) / 255, _colour(rng))
    x0, y0 = int(cx - wide / 2), int(cy - high / 2)
    blend(image, sign, np.ones(ink.shape, np.float32), x0, y0)


def block(image: np.ndarray, cx: float, cy: float, size: float, rng: Rng, light: Light) -> None:
    """A box, post or striped panel."""
    wide, high = size * rng.uniform(0.3, 2), size * rng.uniform(0.3, 2)
    corner, end = (int(cx - wide / 2), int(cy - high / 2)), (int(cx + wide / 2), int(cy + high / 2))
    cv2.rectangle(image, corner, end, _colour(rng).tolist(), -1)
    if rng.random() < 0.5:
        for x in range(corner[0], end[0], max(4, int(wide / 8))):
            cv2.line(image, (x, corner[1]), (x, end[1]), _colour(rng).tolist(), 2)


THINGS = (ball, ball, clock, animal, hand, text, block)
