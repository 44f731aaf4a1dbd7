"""One synthetic photograph: a place, the people in it, what covers them, what the camera does."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np

from featherface.data.demo_person import (
    Head,
    Light,
    Patch,
    Person,
    Rng,
    draw_body,
    draw_head,
    paint,
    random_colour,
)

SMALLEST_FACE = 8.0  # pixels high
ASPECTS = (1.0, 0.75, 1.333, 0.667, 1.5)  # width / height
KINDS = {  # by event: smallest and largest face, shares of the short side; fewest and most people
    "0--Portrait": (0.19, 0.47, 1, 2),
    "1--Group": (0.07, 0.2, 3, 8),
    "2--Street": (0.016, 0.14, 4, 14),
    "3--Crowd": (0.0125, 0.05, 26, 65),
    "4--Places": (0.02, 0.1, 0, 0),
}
PORTRAIT, GROUP, STREET, CROWD, EMPTY = KINDS
NOBODY = -1  # owner of a pixel that belongs to no face
LEAST_SEEN = 0.3  # a face of which less is visible is not annotated


@dataclass(frozen=True)
class Face:
    """One annotated face, in pixels of the photograph."""

    box: tuple[int, int, int, int]  # x, y, width, height
    landmarks: np.ndarray | None  # (5, 2) float, or None: not usable
    hidden: np.ndarray  # (5,) bool
    attributes: tuple[int, ...]  # blur, expression, illumination, invalid, occlusion, pose


@dataclass(frozen=True)
class Photo:
    event: str  # one of KINDS
    jpeg: bytes
    faces: list[Face]


@dataclass
class _Scene:
    """A photograph in the making."""

    image: np.ndarray  # (H, W, 3) float32 RGB, 0..1, changed in place
    owner: np.ndarray  # (H, W) int32, index of the person whose face shows there, or NOBODY
    light: Light
    people: list[tuple[Person, Head]] = field(default_factory=list)

    def add(self, patch: Patch) -> None:
        """Blend a patch over the photograph, and over the faces there."""
        there, here = self._overlap(patch)
        paint(self.image[there], patch.alpha[here], patch.colours[here])
        self.owner[there][patch.alpha[here] > 0.5] = NOBODY

    def claim(self, person: Person, head: Head) -> None:
        there, here = self._overlap(head)
        self.owner[there][head.face[here]] = len(self.people)
        self.people.append((person, head))

    def _overlap(self, patch: Patch) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Rows and columns of the photograph that a patch covers, and of the patch."""
        left, right = np.clip((patch.x, patch.x + patch.alpha.shape[1]), 0, self.owner.shape[1])
        top, bottom = np.clip((patch.y, patch.y + patch.alpha.shape[0]), 0, self.owner.shape[0])
        here = np.s_[top - patch.y : bottom - patch.y, left - patch.x : right - patch.x]
        return np.s_[top:bottom, left:right], here


def make_photo(index: int, *, seed: int, split: int, size: int) -> Photo:
    """Draw photograph `index` of a split; the same arguments give the same bytes.

    size: about its long side, pixels.
    """
    rng = np.random.default_rng([seed, split, index])
    event = str(rng.choice([PORTRAIT, GROUP, STREET], p=[0.36, 0.4, 0.24]))
    event = EMPTY if index % 12 == 5 else CROWD if index % 10 == 3 else event
    aspect, long = ASPECTS[rng.integers(0, len(ASPECTS))], size * rng.uniform(0.8, 1.15)
    width, height = round(long * min(aspect, 1.0)), round(long / max(aspect, 1.0))
    light = Light(rng)
    owner = np.full((height, width), NOBODY, np.int32)
    scene = _Scene(_background(width, height, rng, light), owner, light)
    for x, y, face in _positions(event, width, height, rng):
        _add_person(scene, (x, y), face, rng)
    image, softness = _camera(scene.image, rng)
    pixels = np.uint8(np.clip(image[..., ::-1], 0, 1) * 255 + 0.5)
    quality = int(rng.integers(55, 96))
    _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return Photo(event, jpeg.tobytes(), list(_annotate(scene, softness)))


def _positions(event: str, width: int, height: int, rng: Rng) -> list[tuple[float, ...]]:
    """x, y and height of each face, the smallest first."""
    low, high, fewest, most = KINDS[event]
    count = int(rng.integers(fewest, most + 1))
    horizon, steep = rng.uniform(0.12, 0.4) * height, rng.uniform(0.15, 0.5)
    chosen: list[tuple[float, ...]] = []
    for _ in range(count * 6):
        share = math.exp(rng.uniform(math.log(low), math.log(high)))
        face = max(SMALLEST_FACE * 1.25, share * min(width, height))
        edge = -0.1 if rng.random() < 0.15 else 0.55  # some are cut by the border
        x = rng.uniform(edge * face, width - edge * face)
        y = rng.uniform(max(edge * face, 0), max(height - edge * face, face))
        if event in (STREET, CROWD):  # the nearer, the larger and the lower
            y = horizon + (share / high) * (steep + rng.uniform(0, 0.15)) * height
        apart = all(math.hypot(x - a, y - b) > 0.78 * max(face, f) for a, b, f in chosen)
        if apart and len(chosen) < count:
            chosen.append((float(x), float(y), face))
    return sorted(chosen, key=lambda place: place[2])


def _add_person(scene: _Scene, centre: tuple[float, float], size: float, rng: Rng) -> None:
    """Draw one person; some are turned away or half hidden by a thing."""
    person = Person(rng)
    away = rng.random() < 0.06
    if away:
        person.yaw = float(rng.uniform(150, 210))
    scene.add(draw_body(person, scene.light, centre, size))
    head = draw_head(person, scene.light, centre, size)
    scene.add(head)
    if not away:
        scene.claim(person, head)
        if rng.random() < (0.12 if size > 20 else 0.02):
            _cover(scene, head.box, rng)


def _cover(scene: _Scene, box: np.ndarray, rng: Rng) -> None:
    """Something flat before one side of a face: a book, a post, a phone."""
    side, size = rng.choice((-1, 1)), box[2:] - box[:2]
    middle = box[:2] + size * (0.5 + side * rng.uniform(0.25, 0.6), rng.uniform(0.4, 1.0))
    half = size * rng.uniform((0.12, 0.15), (0.3, 0.6))
    (x1, y1), (x2, y2) = np.int64(np.maximum((middle - half, middle + half), 0))
    scene.image[y1:y2, x1:x2] = random_colour(rng)
    scene.owner[y1:y2, x1:x2] = NOBODY


def _background(width: int, height: int, rng: Rng, light: Light) -> np.ndarray:
    """A place without people: two colours, rough patches, houses or shelves, out of focus."""
    top, bottom = random_colour(rng), random_colour(rng)
    ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    image = np.repeat(top + ramp * (bottom - top), width, axis=1)
    for cell in (3, 12, 48):
        rough = rng.normal(0, rng.uniform(0, 0.2), (height // cell + 2, width // cell + 2))
        image *= cv2.resize(np.float32(np.exp(rough)), (width, height))[..., None]
    for _ in range(rng.integers(0, 12)):
        _add_panel(image, rng)
    image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 4)))
    level = (light.key * np.float32(0.75) + light.ambient) / 2 + np.float32(0.2)
    return np.clip(image * np.clip(level, 0.35, 1.15), 0, 1)


def _add_panel(image: np.ndarray, rng: Rng) -> None:
    """A wall, door, shelf or house: a rectangle with rows of smaller ones."""
    height, width = image.shape[:2]
    x, y = int(rng.integers(-60, width)), int(rng.integers(-60, height))
    x2, y2 = x + int(rng.integers(30, 220)), y + int(rng.integers(30, 300))
    cv2.rectangle(image, (x, y), (x2, y2), random_colour(rng).tolist(), -1)
    across, down, colour = int(rng.integers(8, 80)), int(rng.integers(12, 120)), random_colour(rng)
    for left in range(x + 4, x2 - across, across):
        for up in range(y + 4, y2 - down, down):
            corner = (left + int(across * 0.7), up + int(down * 0.7))
            cv2.rectangle(image, (left, up), corner, colour.tolist(), -1)


def _camera(image: np.ndarray, rng: Rng) -> tuple[np.ndarray, float]:
    """Blur, contrast, colour and noise; also the blur's radius in pixels."""
    softness = 0.2 + float(rng.exponential(0.35))
    image = (cv2.GaussianBlur(image, (0, 0), softness) - 0.5) * rng.normal(1.05, 0.12) + 0.52
    grey = image.mean(axis=2, keepdims=True)
    saturation = 0.0 if rng.random() < 0.05 else np.clip(rng.normal(0.85, 0.18), 0.2, 1.3)
    image = grey + (image - grey) * saturation * rng.normal(1, 0.04, 3)
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    return image + grain * abs(rng.normal(0, 0.018)), softness


def _annotate(scene: _Scene, softness: float) -> Iterator[Face]:
    """The faces of which enough is visible."""
    height, width = scene.owner.shape
    for index, (person, head) in enumerate(scene.people):
        seen = (scene.owner == index).sum() / max(head.face.sum(), 1)
        x1, y1, x2, y2 = np.int64(np.clip(head.box.round(), 0, (width, height) * 2)).tolist()
        if seen < LEAST_SEEN or min(x2 - x1, y2 - y1) < 3:
            continue
        points = head.landmarks
        column, row = (np.clip(points.astype(int), 0, (width - 1, height - 1))).T
        hidden = head.hidden | (scene.owner[row, column] != index)
        usable = seen > 0.45 and head.size >= 13 and not hidden.all()
        within = ((points >= 0) & (points < (width, height))).all()
        relative = softness / head.size
        blur = 2 if head.size < 16 or relative > 0.05 else int(relative > 0.02)
        shouts, dark = person.mouth_open > 0.5, scene.light.direction[2] < 0.4
        covered = 2 if seen < 0.6 else int(seen < 0.93 or person.glasses == "sun")
        turned = abs(person.yaw) > 45 or abs(person.roll) > 30 or abs(person.pitch) > 25
        yield Face(
            box=(x1, y1, x2 - x1, y2 - y1),
            landmarks=points if usable and within else None,
            hidden=hidden,
            attributes=(blur, int(shouts), int(dark), 0, covered, int(turned)),
        )
