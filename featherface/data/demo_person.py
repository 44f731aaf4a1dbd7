"""One person of a synthetic photograph: a head of ellipsoids with a painted face, and a body.

Head units: the face is 1 high, from the hairline (y = -0.5) to the chin (y = 0.5); x points right
and y down as in the image, z towards the viewer. Rays are parallel, so each pixel meets an
ellipsoid in closed form. Images are float32 RGB (H, W, 3) in 0..1, gamma-encoded.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

DETAIL, SMALLEST = 170, 36  # most and fewest pixels per head unit at which a head is drawn
MISS = -9.0  # depth of a ray that hits nothing
EYE_X, EYE_Y, EYE_HALF_WIDTH = 0.158, -0.055, 0.078
NOSE = 0.0, 0.13, 0.465  # its tip
MOUTH_Y, MOUTH_OPENING = 0.285, 0.095  # line of a closed mouth; gap of a wide open one
SKIN, HAIR, IRIS = (
    np.array([list(bytes.fromhex(tone)) for tone in tones.split()], np.float32) / 255  # RGB
    for tones in (
        "fde0c8 f3cdb0 e8bc98 dbaa82 c8946c ae7a54 8c5e3e 6c462f 4e3224",
        "1c1614 34241a 583a24 825832 ba925a 78361c 969492 d6d4d0",
        "3c2416 54361c 5a6e46 547896 281a14",
    )
)
# rows: centre x, y, z, radii x, y, z, and the width over which the seam is rounded; head units
HEAD = (
    (0, -0.17, -0.12, 0.385, 0.49, 0.5, 0.1),  # skull
    (0, 0.1, 0.05, 0.325, 0.405, 0.315, 0.12),  # jaw
    (0, 0.405, 0.23, 0.12, 0.085, 0.085, 0.1),  # chin
    (0.2, 0.09, 0.22, 0.1, 0.1, 0.11, 0.1),  # cheeks
    (0.13, -0.15, 0.32, 0.15, 0.04, 0.055, 0.08),  # brows
    (0, 0.05, 0.38, 0.042, 0.14, 0.06, 0.05),  # nose
    (0, 0.13, 0.415, 0.065, 0.045, 0.05, 0.05),
)
EYES_EARS_NECK = (
    (EYE_X, EYE_Y, 0.25, 0.07, 0.06, 0.075, 0.012),
    (0.395, 0, -0.1, 0.035, 0.115, 0.075, 0.03),
    (0, 0.65, -0.14, 0.2, 0.7, 0.2, 0.03),
)
HAIRCUT = (
    (0, -0.19, -0.14, 0.435, 0.53, 0.55, 0.1),  # short
    (0, 0.3, -0.2, 0.48, 0.7, 0.33, 0.1),  # what long hair has in addition
)
BODY = (
    (0, 0.1, -0.05, 0.21, 0.45, 0.22, 0.1),  # neck
    (0, 0.62, 0, 1.0, 0.36, 0.28, 0.15),  # shoulders
    (0, 2.5, 0, 0.95, 2.3, 0.32, 0.15),  # a long coat
)

Rng = np.random.Generator
Vector = np.ndarray | Sequence[float]  # a colour, a point
Solids = Sequence[Sequence[float]]  # rows as in HEAD


def random_colour(rng: Rng, low: float = 0.06, high: float = 0.9) -> np.ndarray:
    """(3,) float32 of a thing."""
    return np.float32(np.clip(rng.uniform(low, high) + rng.normal(0, 0.14, 3), 0.03, 0.96))


class Light:
    """A random light from above, one in eight from the side, and the sky; (3,) RGB in linear light.

    direction: unit, camera frame, from the scene towards the light.
    """

    def __init__(self, rng: Rng) -> None:
        depth = 0.25 if rng.random() < 1 / 8 else 0.8
        towards = np.array([rng.normal(0, 0.55), -abs(rng.normal(0.45, 0.3)), depth], np.float32)
        self.direction = towards / np.linalg.norm(towards)
        warm = np.array([1, 0, -1], np.float32) * np.float32(rng.normal(0, 0.09))
        hardness = np.float32(rng.uniform(0.35, 0.75))
        self.key = 1.25 * hardness * (1 + warm)
        self.ambient = (1.05 - 0.95 * hardness) * (1 - warm)


class Person:
    """A random look and pose. Lengths are head units, colours (3,) RGB in 0..1."""

    def __init__(self, rng: Rng) -> None:
        self.yaw = float(np.clip(rng.normal(0, 22 if rng.random() < 0.85 else 50), -85, 85))
        self.pitch = float(np.clip(rng.normal(2, 9), -28, 32))  # degrees, see rotation
        self.roll = float(np.clip(rng.normal(0, 9 if rng.random() < 0.92 else 35), -60, 60))
        tone = rng.integers(0, len(SKIN))
        self.skin = SKIN[tone] * np.float32(rng.uniform(0.94, 1.04))
        self.hair = HAIR[rng.integers(0, 2 if tone > 5 else len(HAIR))]
        self.iris = IRIS[rng.integers(0, len(IRIS))]
        self.shirt = random_colour(rng)
        self.eye_open = float(np.clip(rng.normal(0.95, 0.2), 0.12, 1.25))  # a factor
        self.smile = float(np.clip(rng.normal(0.35, 0.45), -0.8, 1.1))  # -1 sad, 1 happy
        self.mouth = 0.12 + 0.014 * self.smile  # half its width
        shouts = rng.random() < 0.12
        self.mouth_open = float(rng.uniform(0.5, 1) if shouts else abs(rng.normal(0, 0.1)))  # 0..1
        self.hair_parts = int(rng.choice(3, p=[0.1, 0.5, 0.4]))  # rows of HAIRCUT; 0 bald
        self.glasses = str(rng.choice(["none", "clear", "sun"], p=[0.77, 0.16, 0.07]))

    def landmarks(self) -> np.ndarray:
        """(5, 3) float32, head frame: eyes, nose tip, mouth corners, left to right."""
        corner = MOUTH_Y - 0.028 * self.smile + 0.25 * MOUTH_OPENING * self.mouth_open
        eyes = [(side * EYE_X, EYE_Y, 0.325) for side in (-1, 1)]
        corners = [(side * self.mouth, corner, 0.302) for side in (-1, 1)]
        return np.array([*eyes, NOSE, *corners], np.float32)


@dataclass(frozen=True)
class Patch:
    """Pixels to blend into the photograph with the corner at x, y."""

    x: int
    y: int
    colours: np.ndarray  # (h, w, 3)
    alpha: np.ndarray  # (h, w) float32


@dataclass(frozen=True)
class Head(Patch):
    """A drawn head; lengths and positions are pixels of the photograph."""

    face: np.ndarray  # (h, w) bool: hairline to chin, ear to ear
    box: np.ndarray  # (4,) x1, y1, x2, y2 of the face, not clipped
    landmarks: np.ndarray  # (5, 2) float32
    hidden: np.ndarray  # (5,) bool: behind the head's own parts or sunglasses
    size: float  # from hairline to chin


def paint(image: np.ndarray, mask: np.ndarray, colour: Vector) -> None:
    """Blend a colour (3,) or an image into `image` (H, W, 3) in place by mask (H, W)."""
    image += mask[..., None] * (np.asarray(colour, np.float32) - image)


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """(3, 3) float32, head to camera, angles in degrees: yaw > 0 looks to the image's right, pitch
    > 0 looks down, roll > 0 tilts clockwise."""
    turns = np.deg2rad([(0, 0, roll), (-pitch, 0, 0), (0, yaw, 0)])
    around_z, around_x, around_y = (cv2.Rodrigues(turn)[0] for turn in turns)
    return np.float32(around_z @ around_x @ around_y)


class View:
    """Parallel rays through a window of the photograph, in head units around `centre`."""

    def __init__(self, window: Sequence[float], centre: Vector, size: float, scale: float) -> None:
        """window: x1, y1, x2, y2, pixels; size: pixels per head unit; scale: rays per pixel."""
        self.window = x1, y1, x2, y2 = [math.floor(edge) for edge in window]
        columns, rows = round((x2 - x1) * scale), round((y2 - y1) * scale)
        across = (np.linspace(x1, x2, columns * 2 + 1)[1::2] - centre[0]) / size
        down = (np.linspace(y1, y2, rows * 2 + 1)[1::2] - centre[1]) / size
        self.x, self.y = np.meshgrid(np.float32(across), np.float32(down))  # (H, W)
        self.pixel = 1 / (size * scale)
        self.rotate = np.eye(3, dtype=np.float32)  # head to camera

    def points(self, depth: np.ndarray) -> np.ndarray:
        """(3, H, W) in the head frame, of camera depths (H, W)."""
        return np.tensordot(self.rotate.T, np.stack([self.x, self.y, depth]), 1)

    def surface(self, solids: Solids, depth: np.ndarray | None = None) -> np.ndarray:
        """Depth (H, W) at which the rays enter ellipsoids, joined to a surface if there is one.

        MISS where they do not. An ellipsoid off the middle has its mirror image on the other side.
        """
        depth = np.full_like(self.x, MISS) if depth is None else depth
        for x, *centre, rx, ry, rz, seam in solids:
            for side in (-1, 1) if x else (1,):
                near = self._hit((side * x, *centre), (rx, ry, rz))
                h = np.maximum(seam - np.abs(depth - near), 0) / np.float32(seam)
                depth = np.maximum(depth, near) + h * h * np.float32(seam / 4)
        return depth

    def _hit(self, centre: Vector, radii: Vector) -> np.ndarray:
        turned = self.rotate / np.array(radii, np.float32)
        form = turned @ turned.T
        cx, cy, cz = self.rotate @ np.array(centre, np.float32)
        dx, dy = self.x - cx, self.y - cy
        b = form[0, 2] * dx + form[1, 2] * dy
        c = form[0, 0] * dx * dx + 2 * form[0, 1] * dx * dy + form[1, 1] * dy * dy - 1
        square = b * b - form[2, 2] * c
        near = cz + (np.sqrt(np.maximum(square, 0)) - b) / form[2, 2]
        return np.where(square > 0, near, MISS)

    def patch(self, depth: np.ndarray, colours: np.ndarray, alpha: np.ndarray) -> Patch:
        """Average to photograph pixels, colours weighted by their opacity."""
        x1, y1, x2, y2 = self.window
        way = cv2.INTER_AREA if alpha.shape[0] >= y2 - y1 else cv2.INTER_LINEAR
        alpha = cv2.GaussianBlur(np.float32(alpha * (depth > MISS / 2)), (0, 0), 0.6)
        weighted = cv2.resize(colours * alpha[..., None], (x2 - x1, y2 - y1), interpolation=way)
        alpha = cv2.resize(alpha, (x2 - x1, y2 - y1), interpolation=way)
        return Patch(x1, y1, weighted / np.maximum(alpha, 1e-3)[..., None], alpha)


def _shade(view: View, depth: np.ndarray, colours: np.ndarray, light: Light) -> np.ndarray:
    """The colours of a surface under the light; hollows get less of the sky."""
    depth = np.maximum(depth, -0.6)
    smooth = cv2.GaussianBlur(depth, (0, 0), max(0.01 / view.pixel, 0.6))
    zy, zx = np.gradient(smooth, view.pixel)
    facing = 1 / np.sqrt(zx * zx + zy * zy + 1)
    dx, dy, dz = light.direction
    # 0.22: light that goes through skin past the edge of the shade
    diffuse = np.clip((facing * (dz - zx * dx - zy * dy) + 0.22) / 1.22, 0, 1)
    hollow = cv2.GaussianBlur(depth, (0, 0), 0.07 / view.pixel) - depth
    sky = np.clip(1 - 5 * np.maximum(hollow, 0), 0.35, 1) * (0.72 + 0.28 * facing)
    linear = diffuse[..., None] * light.key + sky[..., None] * light.ambient
    linear *= np.clip(colours, 0, 1) ** np.float32(2.2)
    return np.clip(linear, 0, 1) ** np.float32(1 / 2.2)


def draw_head(person: Person, light: Light, centre: Vector, size: float) -> Head:
    """Draw a head of `size` pixels from hairline to chin around `centre`, pixels."""
    scale = max(SMALLEST / size, min(2, DETAIL / size))
    window = [at + side * 1.1 * size for side in (-1, 1) for at in centre]
    view = View(window, centre, size, scale)
    view.rotate = rotation(person.yaw, person.pitch, person.roll)
    outline, skin = _skin(person, view)
    hair = _hair(person, view)
    on_skin, surface = view.points(skin), np.maximum(skin, hair)
    colours = _Painter(person, on_skin, 2 * view.pixel).face()
    strands = 1 + 0.2 * np.sin(np.arctan2(view.x, 1 - view.y) * 70)
    paint(colours, np.float32(hair > skin), person.hair * strands[..., None])
    below = np.clip((on_skin[1] - 0.68) / 0.14, 0, 1)  # the neck goes into the body
    shaded = _shade(view, surface, colours, light)
    patch = view.patch(surface, shaded, 1 - below * (skin >= hair))
    points = person.landmarks() @ view.rotate.T
    column = np.clip(np.searchsorted(view.x[0], points[:, 0]), 0, view.x.shape[1] - 1)
    row = np.clip(np.searchsorted(view.y[:, 0], points[:, 1]), 0, view.x.shape[0] - 1)
    before = np.maximum(hair, skin - 0.09)[row, column]
    hidden = before > np.minimum(points[:, 2], skin[row, column])
    hidden[:2] |= person.glasses == "sun"
    x, y, width, height = cv2.boundingRect(np.uint8(outline))
    face = cv2.resize(np.uint8(outline), patch.alpha.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return Head(
        **vars(patch),
        face=face > 0,
        box=np.array([x, y, x + width, y + height]) / scale + np.tile(view.window[:2], 2),
        landmarks=points[:, :2] * np.float32(size) + np.array(centre, np.float32),
        hidden=hidden,
        size=size,
    )


def _skin(person: Person, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Where the face is (H, W) bool, under the hair too, and the depth (H, W) of the bare head."""
    opened = 0.5 * MOUTH_OPENING * person.mouth_open
    mouth = (0, MOUTH_Y + opened, 0.345, 0.115, 0.042 + opened, 0.05, 0.035)
    depth = view.surface((*HEAD, mouth))
    x, y, z = view.points(depth)
    outline = (depth > MISS / 2) & (y > -0.42) & (z > -0.05)
    depth -= 0.035 * _bump(np.abs(x) - EYE_X, y - EYE_Y, 0.085, 0.05) * (z > 0)  # sockets
    return outline, view.surface(EYES_EARS_NECK, depth)


def _hair(person: Person, view: View) -> np.ndarray:
    """Depth (H, W) of the hair, MISS at the face."""
    depth = view.surface(HAIRCUT[: person.hair_parts])
    x, y, z = view.points(depth)
    front = (np.hypot(x / 0.37, (y - 0.16) / 0.55) < 1) & (z > -0.1)
    return np.where(front | (y > (0.12 if person.hair_parts < 2 else 2.0)), MISS, depth)


def _bump(x: np.ndarray, y: np.ndarray, rx: float, ry: float) -> np.ndarray:
    return np.exp(-((x / rx) ** 2) - (y / ry) ** 2)


class _Painter:
    """Paints a face on the skin of a head, in the head frame."""

    def __init__(self, person: Person, points: np.ndarray, soft: float) -> None:
        """points: (3, H, W) of the skin; soft: width of an edge."""
        self.person, self.soft = person, soft
        self.x, self.y, z = points
        self.across = np.abs(self.x)
        self.front = np.clip((z - 0.02) / 0.1, 0, 1)
        self.colours = np.tile(np.float32(person.skin), (*self.x.shape, 1))

    def tint(self, strength: np.ndarray, colour: Vector) -> None:
        paint(self.colours, strength * self.front, colour)

    def fill(self, distance: np.ndarray, strength: float, colour: Vector) -> None:
        """Paint where distance < 0."""
        self.tint(np.clip(0.5 - distance / (self.soft + 0.008), 0, 1) * strength, colour)

    def face(self) -> np.ndarray:
        """(H, W, 3) colours."""
        skin, y, across = self.person.skin, self.y, self.across
        self.tint(0.35 * _bump(across - 0.2, y - 0.12, 0.11, 0.1), skin * (1.0, 0.72, 0.68))
        self.tint(0.42 * _bump(across - EYE_X, y - EYE_Y, 0.11, 0.065), skin * (0.72, 0.62, 0.6))
        self.tint(0.45 * _bump(self.x, y - NOSE[1] - 0.05, 0.07, 0.02), skin * 0.5)
        self.tint(0.85 * _bump(across - 0.034, y - NOSE[1] - 0.036, 0.02, 0.011), skin * 0.22)
        self.mouth()
        for side in (-1, 1):
            self.eye(side * self.x - EYE_X)
        if self.person.glasses != "none":
            self.glasses()
        return self.colours

    def mouth(self) -> None:
        person, t = self.person, self.x / self.person.mouth
        arch = np.sqrt(np.maximum(1 - t * t, 0))
        gap = MOUTH_OPENING * person.mouth_open
        y = self.y - MOUTH_Y + 0.028 * person.smile * t * t - 0.25 * gap * np.minimum(t * t, 1)
        outside = np.maximum(np.abs(t) - 1, 0) * person.mouth
        upper, lower = -0.1 * gap * arch - y, y - gap * arch  # distances past the opening
        lips = np.maximum(np.maximum(upper - 0.027 * arch, lower - 0.042 * arch), outside - 0.001)
        self.fill(lips, 0.75, person.skin * (0.8, 0.56, 0.54))
        inner = np.maximum(np.maximum(upper, lower), outside)
        self.fill(inner - 0.003, 0.85, (0.16, 0.05, 0.05))
        self.fill(np.maximum(inner + 0.008, y - 0.4 * gap), 1.0, (0.9, 0.87, 0.8))  # teeth

    def eye(self, out: np.ndarray) -> None:
        """One eye with its brow; `out` is the distance from its centre, towards the ear."""
        person, t = self.person, out / EYE_HALF_WIDTH
        y = self.y - EYE_Y + 0.06 * out  # outer corners are a little higher
        arch, radius = np.maximum(1 - t * t, 0), np.hypot(out, y + 0.007)
        top, bottom = -0.042 * arch * person.eye_open, 0.024 * arch * min(person.eye_open, 1.0)
        lids = np.maximum(np.maximum(top - y, y - bottom), (np.abs(t) - 1) * EYE_HALF_WIDTH)
        self.fill(lids, 1.0, (0.86, 0.83, 0.8))
        self.fill(np.maximum(lids, radius - 0.036), 1.0, person.iris)
        self.fill(np.maximum(lids, radius - 0.017), 1.0, (0.02, 0.02, 0.02))
        lashes = np.maximum(np.abs(y - top + 0.003) - 0.007, (np.abs(t) - 1.12) * EYE_HALF_WIDTH)
        self.fill(lashes, 0.9, person.skin * 0.2)
        brow = np.abs(y + 0.1 - 0.025 * t * t) - np.clip(0.018 - 0.006 * t, 0.006, 0.022)
        self.fill(np.maximum(brow, np.abs(out) - 0.105), 0.85, person.hair * 0.55)

    def glasses(self) -> None:
        x, y = self.across - EYE_X, self.y - EYE_Y - 0.012
        lens = (np.hypot(x / 0.122, y / 0.1) - 1) * 0.09
        bars = np.maximum(np.abs(y + 0.015) - 0.009, np.abs(x) - 0.25)
        dark = self.person.glasses == "sun"
        self.fill(lens, 0.94 if dark else 0.1, (0.08,) * 3 if dark else (0.85,) * 3)
        self.fill(np.minimum(np.abs(lens) - 0.009, np.maximum(bars, -lens)), 0.9, (0.1,) * 3)


def draw_body(person: Person, light: Light, centre: Vector, size: float) -> Patch:
    """Draw shoulders and a long coat under the head of the same arguments."""
    neck = rotation(person.yaw, person.pitch, person.roll) @ np.array([0, 0.55, -0.14], np.float32)
    x, y = neck[:2] * size + centre
    window = (x - 1.2 * size, y - 0.5 * size, x + 1.2 * size, y + 5 * size)
    view = View(window, (x, y), size, max(min(1.0, 70 / size), 12 / size))
    depth = view.surface(BODY)
    colours = np.tile(person.shirt, (*depth.shape, 1))
    paint(colours, np.clip(3 - 8 * np.hypot(view.x, view.y * 0.8), 0, 1), person.skin)
    return view.patch(depth, _shade(view, depth, colours, light), np.ones_like(depth))
