"""What is painted on a synthetic head: skin, eyes, brows, lips, beard, hair, and glasses before it.

Positions are head units (demo_head.py); colours are RGB in 0..1, gamma-encoded.
"""

import numpy as np

from featherface.data.demo_head import (
    EYE_HALF_WIDTH,
    EYE_Y,
    MOUTH_OPENING,
    MOUTH_Y,
    Surface,
)
from featherface.data.demo_paint import inside, noise, paint
from featherface.data.demo_style import Style


def skin_colours(style: Style, surface: Surface, soft: float) -> np.ndarray:
    """(H, W, 3) colours of the bare head with its features; soft: width of an edge."""
    x, y, z = surface.points
    front = np.clip((z - 0.02) / 0.1, 0, 1)
    u, v = x * 90 + style.texture[0], y * 90 + style.texture[1]
    mottle = 1 + 0.035 * noise(u, v) + 0.02 * noise(u * 3, v * 3, power=0.6)
    colours = style.skin * mottle[..., None]
    _blush(colours, style, x, y, front)
    _beard(colours, style, x, y, z, soft)
    part = _near(x, y, 0, style.shape.nose_tip[1], 0.22)
    _nostrils(colours[part], style, x[part], y[part], front[part], soft)
    part = _near(x, y, 0, MOUTH_Y + 0.03, 0.25)
    _mouth(colours[part], style, x[part], y[part], front[part], soft)
    for side in (-1, 1):
        eye_x = side * style.shape.eye_x
        part = _near(x, y, eye_x, EYE_Y - 0.04, 0.2)
        out = (x[part] - eye_x) * side
        _eye(colours[part], style, out, y[part], front[part], soft, side)
        _brow(colours[part], style, out, y[part], front[part], soft)
    return colours


def _near(x: np.ndarray, y: np.ndarray, cx: float, cy: float, radius: float) -> tuple:
    """The rows and columns that hold every point within `radius` of cx, cy."""
    close = (np.abs(x - cx) < radius) & (np.abs(y - cy) < radius)
    rows, columns = np.flatnonzero(close.any(axis=1)), np.flatnonzero(close.any(axis=0))
    if not len(rows):  # turned away
        return np.s_[:1, :1]
    return np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _bump(x: np.ndarray, y: np.ndarray, cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
    return np.exp(-(((x - cx) / rx) ** 2) - ((y - cy) / ry) ** 2)


def _blush(
    colours: np.ndarray, style: Style, x: np.ndarray, y: np.ndarray, front: np.ndarray
) -> None:
    red = style.skin * np.array([1.0, 0.72, 0.68], np.float32)
    dark = style.skin * np.array([0.72, 0.62, 0.6], np.float32)
    across = np.abs(x)
    cheeks = _bump(across, y, 0.2, 0.12, 0.11, 0.1) * (0.3 + 0.25 * style.makeup)
    nose = _bump(x, y, 0, style.shape.nose_tip[1], 0.08, 0.07) * 0.3
    paint(colours, (cheeks + nose) * front, red)
    sockets = _bump(across, y, style.shape.eye_x, EYE_Y - 0.005, 0.11, 0.065) * 0.42
    inner = _bump(across, y, 0.075, EYE_Y - 0.01, 0.035, 0.06) * 0.3
    below_lips = _bump(x, y, 0, MOUTH_Y + 0.085 + 0.08 * style.shape.mouth_open, 0.1, 0.025) * 0.25
    fold_x = 0.085 + 0.42 * np.maximum(y - 0.12, 0)  # from the nose past the mouth corner
    fold = _bump(across - fold_x, y, 0, 0.2, 0.014, 0.075) * (0.18 + 0.25 * style.shape.smile)
    paint(colours, np.clip(sockets + inner + below_lips + np.maximum(fold, 0), 0, 1) * front, dark)


def _nostrils(
    colours: np.ndarray, style: Style, x: np.ndarray, y: np.ndarray, front: np.ndarray, soft: float
) -> None:
    tip_y = style.shape.nose_tip[1]
    side = (np.abs(x) - 0.034 * style.shape.nose_width) / 0.022
    hole = np.sqrt(side**2 + ((y - tip_y - 0.036) / 0.012) ** 2) - 1
    paint(colours, inside(hole * 0.014, soft + 0.008) * front * 0.85, style.skin * 0.22)
    under = _bump(x, y, 0, tip_y + 0.05, 0.07, 0.02) * 0.45
    paint(colours, under * front, style.skin * 0.5)


def _mouth(
    colours: np.ndarray, style: Style, x: np.ndarray, y: np.ndarray, front: np.ndarray, soft: float
) -> None:
    shape = style.shape
    t = x / shape.mouth_half_width
    arch = np.sqrt(np.maximum(1 - t * t, 0))
    gap = MOUTH_OPENING * shape.mouth_open
    line = MOUTH_Y - 0.028 * shape.smile * t * t + 0.25 * gap * np.minimum(t * t, 1)
    upper = line - 0.1 * gap * arch
    lower = line + gap * arch
    bow = 0.03 * arch * (1 - 0.35 * np.exp(-((x / 0.02) ** 2))) * shape.lips
    lips = np.maximum(upper - bow - y, y - lower - 0.042 * arch * shape.lips)
    outside = np.maximum(np.abs(t) - 1, 0) * shape.mouth_half_width
    lips = np.maximum(lips, outside - 0.001)
    strength = 0.55 + 0.4 * style.makeup
    paint(colours, inside(lips, soft + 0.012) * front * strength, style.lips)
    upper_lip = inside(np.maximum(lips, y - line), soft + 0.012)
    paint(colours, upper_lip * front * 0.35, style.lips * 0.6)  # it faces down, so it is darker
    inner = np.maximum(np.maximum(upper - y, y - lower), outside)
    paint(colours, inside(inner - 0.003, soft + 0.006) * front * 0.85, (0.16, 0.05, 0.05))
    if shape.mouth_open > 0.12:
        teeth = np.maximum(inner + 0.004, y - upper - min(0.035, 0.7 * gap))
        paint(colours, inside(teeth, soft + 0.006) * front * (np.abs(t) < 0.85), (0.9, 0.87, 0.8))
    corners = _bump(np.abs(x), y - line, shape.mouth_half_width, 0, 0.02, 0.014) * 0.5
    paint(colours, corners * front, style.skin * 0.4)


def _eye(
    colours: np.ndarray,
    style: Style,
    out: np.ndarray,
    y: np.ndarray,
    front: np.ndarray,
    soft: float,
    side: int,
) -> None:
    """One eye; `out` is the distance from its centre, towards the ear."""
    t = out / EYE_HALF_WIDTH
    arch = np.maximum(1 - t * t, 0)
    dy = y - EYE_Y + 0.06 * out  # outer corners lie a little higher
    top, bottom = -0.042 * arch * style.eye_open, 0.024 * arch * min(style.eye_open, 1.0)
    shut = np.maximum(np.maximum(top - dy, dy - bottom), (np.abs(t) - 1) * EYE_HALF_WIDTH)
    almond = inside(shut, soft + 0.006) * front
    paint(colours, almond, (0.86, 0.83, 0.8))
    ix, iy = 0.02 * style.gaze[0] * side, -0.007 + 0.02 * style.gaze[1]
    radius = np.sqrt((out - ix) ** 2 + (dy - iy) ** 2)
    paint(colours, almond * inside(radius - 0.036, soft + 0.008), style.iris)
    paint(colours, almond * inside(radius - 0.017, soft + 0.004), (0.02, 0.02, 0.02))
    upper_shade = np.exp(-(np.maximum(dy - top, 0) / 0.012)) * 0.6
    paint(colours, almond * upper_shade, (0.12, 0.08, 0.07))
    glint = np.sqrt((out * side - ix * side + 0.012) ** 2 + (dy - iy + 0.012) ** 2) - 0.007
    paint(colours, almond * inside(glint, soft + 0.003), (1.0, 1.0, 1.0))
    within = inside((np.abs(t) - 1.12) * EYE_HALF_WIDTH, 0.03) * front
    lash = np.abs(dy - top + 0.003) - (0.006 + 0.004 * style.makeup)
    paint(colours, inside(lash, soft + 0.006) * within * 0.9, style.skin * 0.16)
    crease = np.abs(dy - top + 0.026) - 0.003
    paint(colours, inside(crease, soft + 0.01) * within * 0.4, style.skin * 0.45)
    lower = np.abs(dy - bottom - 0.002) - 0.002
    paint(colours, inside(lower, soft + 0.008) * within * 0.4, style.skin * 0.4)


def _brow(
    colours: np.ndarray,
    style: Style,
    out: np.ndarray,
    y: np.ndarray,
    front: np.ndarray,
    soft: float,
) -> None:
    t = (out - 0.005) / 0.105
    middle = EYE_Y - 0.098 + 0.028 * t * t - 0.012 * t - style.brow_lift
    thick = np.clip(0.019 - 0.008 * t, 0.006, 0.024) * (1.15 - 0.4 * style.makeup)
    d = np.maximum(np.abs(y - middle) - thick, (np.abs(t) - 1) * 0.105)
    hairs = 0.8 + 0.15 * noise(out * 900 + style.texture[0], y * 260, power=0.7)
    mask = inside(d, soft + 0.016) * front * np.clip(hairs, 0.3, 1)
    paint(colours, mask, style.hair * np.float32(0.55))


def _beard(
    colours: np.ndarray, style: Style, x: np.ndarray, y: np.ndarray, z: np.ndarray, soft: float
) -> None:
    if style.beard == "none":
        return
    across = np.abs(x)
    cheek_line = 0.12 + 0.3 * np.maximum(0.25 - across, 0)  # lower near the mouth
    full = np.maximum(cheek_line - y, y - 0.56)
    lip_y = MOUTH_Y - 0.062
    moustache = np.maximum(np.abs(y - lip_y - 0.35 * across**2) - 0.026, across - 0.13)
    goatee = np.sqrt((x / 0.12) ** 2 + ((y - 0.42) / 0.1) ** 2) * 0.1 - 0.1
    region = {
        "stubble": np.minimum(full, moustache),
        "full": np.minimum(full, moustache),
        "moustache": moustache,
        "goatee": np.minimum(moustache, goatee),
    }[style.beard]
    strength = 0.35 if style.beard == "stubble" else 0.88
    grain = 0.9 + 0.2 * noise(x * 700 + style.texture[1], y * 400, power=0.5)
    mask = inside(region, soft + 0.07) * (z > -0.05) * strength * np.clip(grain, 0.2, 1.05)
    paint(colours, np.clip(mask, 0, 1), style.hair * np.float32(0.7))


def hair_colours(style: Style, surface: Surface) -> np.ndarray:
    """(H, W, 3) strands that fall from the crown."""
    x, y, z = surface.points
    angle = np.arctan2(x, z + 0.5) * 110 + style.texture[0]
    strands = noise(angle * 2.2, y * 22 + style.texture[1], power=0.8)
    broad = noise(angle * 0.5, y * 14 + style.texture[0], power=1.2)
    if style.shape.hair in ("afro", "crop"):
        strands = noise(x * 420, y * 420 + z * 200, power=0.4)
        strands *= 0.6
    shade = np.clip(1 + 0.3 * strands + 0.15 * broad, 0.3, 1.9)
    return style.hair * shade[..., None]


def cloth_colours(style: Style, surface: Surface) -> np.ndarray:
    """(H, W, 3) of hats, masks and veils: a weave, and the pleats of a mask."""
    x, y, z = surface.points
    weave = 1 + 0.06 * noise(x * 300 + style.texture[0], y * 300 + z * 200, power=0.5)
    folds = 0.07 * noise(x * 60, y * 30 + z * 40, power=1.6)
    if style.shape.mask:
        folds = folds + 0.05 * np.sin(y * 95) * (y > 0.1)
    return style.cloth * (weave + folds)[..., None]


def add_glasses(
    image: np.ndarray, style: Style, rotate: np.ndarray, x: np.ndarray, y: np.ndarray, soft: float
) -> np.ndarray:
    """Draw glasses on a plane before the eyes into `image`; returns their opacity (H, W).

    x, y (H, W) are camera head units, roll included.
    """
    plane = 0.385
    inverse = np.linalg.inv(rotate[:2, :2])
    px, py = x - rotate[0, 2] * plane, y - rotate[1, 2] * plane
    u = inverse[0, 0] * px + inverse[0, 1] * py
    v = inverse[1, 0] * px + inverse[1, 1] * py - EYE_Y - 0.012
    across = np.abs(u)
    corner = 4.0 if style.texture[0] > 128 else 2.2  # square or round lenses
    rx, ry = 0.122, 0.1 if corner < 3 else 0.078
    away = (np.abs((across - style.shape.eye_x) / rx)) ** corner + np.abs(v / ry) ** corner
    lens = (away ** (1 / corner) - 1) * 0.09
    rim = np.abs(lens) - 0.009
    bridge = np.maximum(np.abs(v + 0.015) - 0.009, across - 0.055)
    arms = np.maximum(np.abs(v + 0.02) - 0.008, np.abs(across - 0.32) - 0.05)
    frame = inside(np.minimum(np.minimum(rim, bridge), arms), soft + 0.004)
    glass = inside(lens, soft + 0.004)
    shine = np.clip(0.5 - 3 * v + 1.5 * u, 0, 1)[..., None]
    if style.glasses == "sun":
        paint(image, glass * 0.94, np.float32(0.05) + np.float32(0.22) * shine)
        paint(image, frame, (0.03, 0.03, 0.03))
        return np.maximum(glass * 0.94, frame)
    paint(image, glass * 0.1, np.float32(0.75) + np.float32(0.2) * shine)
    paint(image, frame * 0.9, style.iris * np.float32(0.4))
    return frame
