"""Who is in a synthetic photograph: random looks of a person, and the light on the scene."""

from dataclasses import dataclass, field

import numpy as np

from featherface.data.demo_head import HeadShape

SKIN_TONES = np.array(
    [
        (253, 224, 200),
        (243, 205, 176),
        (232, 188, 152),
        (219, 170, 130),
        (200, 148, 108),
        (174, 122, 84),
        (140, 94, 62),
        (108, 70, 47),
        (78, 50, 36),
    ],
    np.float32,
) / np.float32(255)
HAIR_COLOURS = np.array(
    [
        (28, 22, 20),
        (52, 36, 26),
        (88, 58, 36),
        (130, 88, 50),
        (186, 146, 90),
        (120, 54, 28),
        (150, 148, 146),
        (214, 212, 208),
    ],
    np.float32,
) / np.float32(255)
IRIS_COLOURS = np.array(
    [(60, 36, 22), (84, 54, 28), (90, 110, 70), (84, 120, 150), (40, 26, 20)], np.float32
) / np.float32(255)


@dataclass(frozen=True, kw_only=True)
class Light:
    """One key light and the sky, in linear light."""

    direction: np.ndarray  # (3,) unit, camera frame, from the scene towards the light
    key: float
    ambient: float
    colour: np.ndarray  # (3,) of the key light
    sky: np.ndarray  # (3,) of the ambient light


@dataclass(frozen=True, kw_only=True)
class Style:
    """The look of one person: form, colours, wear. Colours are (3,) RGB in 0..1."""

    shape: HeadShape
    yaw: float  # degrees, see demo_head.rotation
    pitch: float
    roll: float
    skin: np.ndarray
    lips: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    cloth: np.ndarray  # hat, mask or veil
    shirt: np.ndarray
    trousers: np.ndarray
    beard: str = "none"  # none, stubble, full, moustache, goatee
    glasses: str = "none"  # none, clear, sun
    eye_open: float = 1.0
    gaze: tuple[float, float] = (0.0, 0.0)
    brow_lift: float = 0.0
    makeup: float = 0.0
    texture: tuple[float, float] = (0.0, 0.0)  # place in the noise tile
    shirt_pattern: str = "plain"
    wide: float = field(default=1.0)  # of the shoulders


def random_light(rng: np.random.Generator) -> Light:
    direction = np.array([rng.normal(0, 0.55), -abs(rng.normal(0.45, 0.3)), 0.8], np.float32)
    if rng.random() < 0.12:  # hard light from the side or from above
        direction[2] = 0.25
    warm = float(rng.normal(0, 0.09))
    colour = np.array([1 + warm, 1, 1 - warm], np.float32)
    sky = np.array([1 - warm * 0.7, 1, 1 + warm * 0.9], np.float32)
    hardness = float(rng.uniform(0.35, 0.75))
    return Light(
        direction=direction / np.linalg.norm(direction),
        key=1.25 * hardness,
        ambient=0.95 * (1 - hardness) + 0.1,
        colour=colour,
        sky=sky,
    )


def random_style(rng: np.random.Generator, *, covered: float = 1.0) -> Style:
    """A random person; covered scales the chances of mask, sunglasses and hat."""
    feminine = rng.random() < 0.5
    yaw, pitch, roll = _random_pose(rng)
    tone = rng.uniform(0, len(SKIN_TONES) - 1)
    skin = _between(SKIN_TONES, tone) * rng.normal(1, 0.03, 3).astype(np.float32)
    hair = HAIR_COLOURS[
        rng.integers(0, 2 if tone > 5 and rng.random() < 0.8 else len(HAIR_COLOURS))
    ]
    redder = np.array([0.92, 0.62, 0.6], np.float32) if feminine else (0.9, 0.74, 0.7)
    shape = _random_shape(rng, feminine, covered)
    beards = ("none", "none", "none", "stubble", "full", "moustache", "goatee")
    glasses = rng.choice(("none", "clear", "sun"), p=_odds(0.16, 0.08 * covered))
    return Style(
        shape=shape,
        yaw=yaw,
        pitch=pitch,
        roll=roll,
        skin=skin,
        lips=np.asarray(skin * redder, np.float32),
        hair=hair * np.float32(rng.uniform(0.75, 1.2)),
        iris=IRIS_COLOURS[rng.integers(0, len(IRIS_COLOURS))],
        cloth=_wear_colour(rng, pale=shape.mask),
        shirt=_wear_colour(rng, pale=False),
        trousers=_wear_colour(rng, pale=False) * np.float32(0.6),
        beard="none" if feminine else str(rng.choice(beards)),
        glasses=str(glasses),
        eye_open=float(np.clip(rng.normal(0.95, 0.2), 0.12, 1.25)),
        gaze=(float(rng.normal(0, 0.25)), float(rng.normal(0, 0.1))),
        brow_lift=float(rng.normal(0, 0.012)),
        makeup=float(rng.uniform(0, 1)) if feminine else 0.0,
        texture=(float(rng.uniform(0, 256)), float(rng.uniform(0, 256))),
        shirt_pattern=str(rng.choice(("plain", "plain", "stripes", "checks", "jacket"))),
        wide=float(rng.normal(0.93 if feminine else 1.08, 0.06)),
    )


def _random_pose(rng: np.random.Generator) -> tuple[float, float, float]:
    yaw = rng.normal(0, 22) if rng.random() < 0.85 else rng.uniform(-80, 80)
    roll = rng.normal(0, 9) if rng.random() < 0.92 else rng.uniform(-60, 60)
    return float(np.clip(yaw, -85, 85)), float(np.clip(rng.normal(2, 9), -28, 32)), float(roll)


def _random_shape(rng: np.random.Generator, feminine: bool, covered: float) -> HeadShape:
    styles = ("long", "long", "fringe", "bun", "short", "veil", "afro", "crop")
    if not feminine:
        styles = ("short", "short", "short", "crop", "crop", "bald", "long", "afro")
    hats = ("none", "cap", "beanie", "brim")
    happy = float(np.clip(rng.normal(0.35, 0.45), -0.8, 1.1))
    wide_open = rng.random() < 0.12
    return HeadShape(
        width=float(rng.normal(0.95 if feminine else 0.99, 0.035)),
        jaw=float(rng.normal(0.93 if feminine else 1.02, 0.05)),
        cheeks=float(rng.normal(1, 0.1)),
        chin=float(rng.normal(0.95 if feminine else 1.1, 0.1)),
        nose_length=float(rng.normal(1, 0.13)),
        nose_width=float(rng.normal(0.95 if feminine else 1.1, 0.13)),
        brow=float(rng.normal(0.85 if feminine else 1.15, 0.1)),
        lips=float(rng.normal(1.05 if feminine else 0.95, 0.1)),
        eye_x=float(rng.normal(0.158, 0.006)),
        mouth_half_width=float(np.clip(rng.normal(0.122, 0.008) * (1 + 0.14 * happy), 0.095, 0.16)),
        smile=happy,
        mouth_open=float(rng.uniform(0.5, 1) if wide_open else max(0, rng.normal(0.02, 0.15))),
        hair=str(rng.choice(styles)),
        hair_volume=float(rng.uniform(0.75, 1.3)),
        hairline=float(rng.normal(0, 0.025)),
        parting=float(rng.normal(0, 0.05)),
        hat=str(rng.choice(hats, p=_odds(*(0.05 * covered,) * 3))),
        mask=bool(rng.random() < 0.07 * covered),
    )


def _odds(*rare: float) -> list[float]:
    return [1 - sum(rare), *rare]


def _between(table: np.ndarray, place: float) -> np.ndarray:
    low = min(int(place), len(table) - 2)
    return (table[low] + (table[low + 1] - table[low]) * np.float32(place - low)).astype(np.float32)


def _wear_colour(rng: np.random.Generator, *, pale: bool) -> np.ndarray:
    if pale:  # a medical mask, mostly
        choices = np.array([(0.86, 0.9, 0.94), (0.55, 0.75, 0.85), (0.1, 0.1, 0.11)], np.float32)
        return choices[rng.integers(0, 3)]
    grey = rng.uniform(0.06, 0.9)
    return np.clip(grey + rng.normal(0, 0.16, 3), 0.03, 0.95).astype(np.float32)
