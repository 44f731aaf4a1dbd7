"""The geometry of a synthetic head: a signed distance field, ray-marched into a depth map.

Head units: the face is 1 high from the hairline (y = -0.5) to the chin (y = 0.5); x points right
and y down as in the image, z towards the viewer. Smooth unions of ellipsoids after Inigo Quilez,
"distance functions", https://iquilezles.org/articles/distfunctions.
"""

from dataclasses import dataclass

import numpy as np

SKIN, HAIR, CLOTH = 0, 1, 2  # materials
EYE_Y, EYE_HALF_WIDTH = -0.055, 0.078
MOUTH_Y, MOUTH_OPENING = 0.285, 0.095  # line of a closed mouth; gap of a wide open one
SHADOW_STEPS = 6
FAR = -0.95  # rays end here
COVERED = ("beanie", "cap", "brim")  # hats


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """The form of one head, in head units; everything around 1 is a factor."""

    width: float = 1.0
    jaw: float = 1.0
    cheeks: float = 1.0
    chin: float = 1.0
    nose_length: float = 1.0
    nose_width: float = 1.0
    brow: float = 1.0
    lips: float = 1.0
    eye_x: float = 0.158
    mouth_half_width: float = 0.125
    smile: float = 0.0  # -1 sad, 1 happy
    mouth_open: float = 0.0  # 0..1
    hair: str = "short"
    hair_volume: float = 1.0
    hairline: float = 0.0  # how far the hairline lies above (-) or below (+) its usual place
    parting: float = 0.0
    hat: str = "none"
    mask: bool = False

    @property
    def nose_tip(self) -> tuple[float, float, float]:
        return 0.0, 0.055 + 0.075 * self.nose_length, 0.435 + 0.03 * self.nose_length

    def frontal_landmarks(self) -> np.ndarray:
        """(5, 3) float32 in head units: eyes, nose tip, mouth corners, left to right."""
        corner_y = MOUTH_Y - 0.028 * self.smile + 0.25 * MOUTH_OPENING * self.mouth_open
        mouth = self.mouth_half_width
        points = [
            (-self.eye_x, EYE_Y, 0.335),
            (self.eye_x, EYE_Y, 0.335),
            self.nose_tip,
            (-mouth, corner_y, 0.335),
            (mouth, corner_y, 0.335),
        ]
        return np.array(points, np.float32)


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """(3, 3) float32, head to camera, angles in degrees: yaw > 0 looks to the image's right, pitch
    > 0 looks down, roll > 0 tilts clockwise."""
    y, p, r = np.deg2rad([yaw, pitch, roll])
    cy, sy, cp, sp, cr, sr = np.cos(y), np.sin(y), np.cos(p), np.sin(p), np.cos(r), np.sin(r)
    around_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    around_x = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    around_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return (around_z @ around_x @ around_y).astype(np.float32)


def _ellipsoid(p: np.ndarray, centre: tuple, radii: tuple) -> np.ndarray:
    """Distance (approximate) of points p (3, N) to an ellipsoid."""
    scale = 1 / np.array(radii, np.float32)[:, None]
    scaled = (p - np.array(centre, np.float32)[:, None]) * scale
    inner = np.sqrt(np.einsum("ij,ij->j", scaled, scaled))
    scaled *= scale
    slope = np.einsum("ij,ij->j", scaled, scaled)
    return inner * (inner - 1) / np.sqrt(slope + 1e-8)


def _union(a: np.ndarray, b: np.ndarray, k: float) -> np.ndarray:
    """Smooth minimum: the seam between two bodies is rounded over k."""
    h = np.maximum(k - np.abs(a - b), 0) / k
    return np.minimum(a, b) - h * h * (k / 4)


def _cut(a: np.ndarray, b: np.ndarray, k: float) -> np.ndarray:
    """a without b, the edge rounded over k."""
    return -_union(-a, b, k)


def _skin(shape: HeadShape, p: np.ndarray) -> np.ndarray:
    w = shape.width
    mirrored = np.stack([np.abs(p[0]), p[1], p[2]])  # left and right half alike
    d = _ellipsoid(p, (0, -0.17, -0.12), (0.385 * w, 0.49, 0.5))
    jaw = _ellipsoid(p, (0, 0.1, 0.05), (0.325 * w * shape.jaw, 0.405, 0.315))
    d = _union(d, jaw, 0.12)
    chin = _ellipsoid(p, (0, 0.405, 0.23), (0.12 * w * shape.chin, 0.085, 0.085))
    d = _union(d, chin, 0.1)
    d = _union(d, _ellipsoid(mirrored, (0.2 * w, 0.09, 0.22), (0.1, 0.1, 0.11 * shape.cheeks)), 0.1)
    brow = _ellipsoid(mirrored, (0.13, -0.15, 0.32), (0.15, 0.04, 0.055 * shape.brow))
    d = _union(d, brow, 0.08)
    d = _cut(d, _ellipsoid(mirrored, (shape.eye_x, EYE_Y, 0.44), (0.105, 0.075, 0.1)), 0.07)
    eyeball = _ellipsoid(mirrored, (shape.eye_x, EYE_Y, 0.27), (0.075, 0.07, 0.075))
    d = _union(d, eyeball, 0.012)
    d = _union(d, _nose(shape, p, mirrored), 0.05)
    opened = 0.5 * MOUTH_OPENING * shape.mouth_open
    lips = (0.115, 0.042 + opened, 0.05 * shape.lips)
    d = _union(d, _ellipsoid(p, (0, MOUTH_Y + opened, 0.345), lips), 0.035)
    ears = _ellipsoid(mirrored, (0.395 * w, 0.0, -0.1), (0.035, 0.115, 0.075))
    d = _union(d, ears, 0.03)
    neck = np.sqrt(p[0] ** 2 + (p[2] + 0.14) ** 2) - 0.215 * w
    return _union(d, np.maximum(neck, 0.1 - p[1]), 0.05)


def _nose(shape: HeadShape, p: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    _, tip_y, tip_z = shape.nose_tip
    wide = shape.nose_width
    ridge_y = (tip_y - 0.1) / 2
    tilt = (p[1] - ridge_y) * (-0.42)  # the ridge leans forward towards the tip
    leaning = np.stack([p[0], p[1], p[2] + tilt])
    d = _ellipsoid(leaning, (0, ridge_y, tip_z - 0.075), (0.038 * wide, 0.135, 0.05))
    tip = _ellipsoid(p, (0, tip_y, tip_z - 0.045), (0.052 * wide, 0.045, 0.05))
    d = _union(d, tip, 0.04)
    wings = _ellipsoid(mirrored, (0.055 * wide, tip_y + 0.015, tip_z - 0.08), (0.035, 0.034, 0.045))
    return _union(d, wings, 0.03)


def _hair(shape: HeadShape, p: np.ndarray) -> np.ndarray:
    volume = shape.hair_volume
    thick = {"bald": -0.02, "crop": 0.012, "afro": 0.18}.get(shape.hair, 0.05) * volume
    w = shape.width
    wave = 0.007 * np.sin(31 * p[0] + 9 * p[1]) * np.sin(23 * p[2] - 7 * p[1])
    d = _ellipsoid(p, (0, -0.19, -0.14), (0.385 * w + thick, 0.48 + thick, 0.5 + thick)) + wave
    if shape.hair in ("long", "veil"):
        drape = _ellipsoid(p, (0, 0.3, -0.2), (0.43 * w + thick, 0.62 * volume + 0.1, 0.33))
        d = _union(d, drape, 0.15)
        if shape.hair == "veil":  # goes on below the chin
            d = _union(d, _ellipsoid(p, (0, 0.72, 0.0), (0.42, 0.28, 0.34)), 0.1)
    elif shape.hair == "bun":
        d = _union(d, _ellipsoid(p, (0.0, -0.72, -0.25), (0.17, 0.15, 0.17)), 0.05)
    low = {"short": 0.08, "crop": 0.02, "bun": 0.1, "fringe": 0.3}.get(shape.hair)
    if low is not None:
        d = np.maximum(d, p[1] - low - 0.3 * np.maximum(-p[2] - 0.1, 0))
    lift = shape.hairline + (0.13 if shape.hair == "fringe" else 0.0)
    face = _ellipsoid(
        p, (shape.parting, 0.14 + lift, 0.42), (0.36 * w, 0.6, 0.55 if thick < 0.1 else 0.62)
    )
    return _cut(d, face, 0.03)


def _hat(shape: HeadShape, p: np.ndarray) -> np.ndarray:
    w = shape.width
    rim = -0.36 + 0.12 * (p[2] < -0.2) - 0.12 * p[2]  # lower at the back
    d = _ellipsoid(p, (0, -0.2, -0.14), (0.46 * w, 0.58, 0.58))
    d = np.maximum(d, p[1] - rim)
    if shape.hat == "cap":
        d = _union(d, _ellipsoid(p, (0, -0.4, 0.4), (0.31, 0.025, 0.34)), 0.03)
    elif shape.hat == "brim":
        d = _union(d, _ellipsoid(p, (0, -0.36, -0.1), (0.72, 0.03, 0.78)), 0.05)
    return d


def _mask(shape: HeadShape, p: np.ndarray) -> np.ndarray:
    d = _ellipsoid(p, (0, 0.24, 0.12), (0.325 * shape.width, 0.26, 0.335))
    return np.maximum(d, np.maximum(0.055 - p[1], 0.05 - p[2]))


def distances(shape: HeadShape, p: np.ndarray) -> list[np.ndarray]:
    """Distance of points p (3, N) to each material of the head, in the order SKIN, HAIR, CLOTH."""
    parts = [_skin(shape, p), np.full_like(p[0], 9.0), np.full_like(p[0], 9.0)]
    if shape.hair == "veil":
        parts[CLOTH] = _hair(shape, p)
    elif shape.hair != "bald":
        parts[HAIR] = _hair(shape, p)
    if shape.hat in COVERED:
        parts[CLOTH] = np.minimum(parts[CLOTH], _hat(shape, p))
        # what sticks out above the rim lies under the hat
        parts[HAIR] = np.where(
            p[1] < -0.4, np.maximum(parts[HAIR], parts[CLOTH] + 0.02), parts[HAIR]
        )
    if shape.mask:
        parts[CLOTH] = np.minimum(parts[CLOTH], _mask(shape, p))
    return parts


@dataclass(frozen=True)
class Surface:
    """What the camera sees of a head, on an (H, W) grid; where it misses, the nearest approach."""

    points: np.ndarray  # (3, H, W) float32, head units, head frame
    depth: np.ndarray  # (H, W) float32, camera z
    gap: np.ndarray  # (H, W) float32, closest distance of the ray; about 0 on the head
    parts: np.ndarray  # (3, H, W) float32, distance to each material there


def trace(
    shape: HeadShape, rotate: np.ndarray, x: np.ndarray, y: np.ndarray, *, steps: int = 24
) -> Surface:
    """March one ray a pixel; x, y (H, W) are camera coordinates in head units, roll included."""
    flat = np.stack([x.ravel(), y.ravel(), np.zeros(x.size, np.float32)]).astype(np.float32)
    base = rotate.T @ flat
    away = rotate.T @ np.array([0, 0, 1], np.float32)
    z = np.full(x.size, 0.85, np.float32)
    best_z, gap = z.copy(), np.full(x.size, 9.0, np.float32)
    active = np.arange(x.size)
    for _ in range(steps):
        p = base[:, active] + away[:, None] * z[active]
        d = np.minimum.reduce(distances(shape, p))
        closer = d < gap[active]
        gap[active[closer]] = d[closer]
        best_z[active[closer]] = z[active[closer]] - np.minimum(d[closer], 0.001)
        z[active] -= np.maximum(d, 0.0015) * 0.9
        active = active[(d > 0.001) & (z[active] > FAR)]
        if not len(active):
            break
    points = base + away[:, None] * best_z
    parts = np.stack(distances(shape, points))
    size = x.shape
    return Surface(
        points.reshape(3, *size), best_z.reshape(size), gap.reshape(size), parts.reshape(3, *size)
    )


def shadow(shape: HeadShape, surface: Surface, light: np.ndarray) -> np.ndarray:
    """(H, W) float32, 1 where the light (3,) in the head frame arrives, towards 0 in the shade."""
    lit = np.ones(surface.depth.shape, np.float32)
    hit = surface.gap < 0.02
    start = surface.points[:, hit]
    open_sky, travelled = np.ones(start.shape[1], np.float32), 0.05
    for _ in range(SHADOW_STEPS):
        p = start + light[:, None] * travelled
        d = np.minimum.reduce(distances(shape, p))
        open_sky = np.minimum(open_sky, 0.5 + 3.5 * d / travelled)
        travelled *= 1.45
    lit[hit] = np.clip(open_sky, 0, 1)
    return lit


def reach(shape: HeadShape, rotate: np.ndarray) -> np.ndarray:
    """(4,) x1, y1, x2, y2 that hold the whole head, hair and hat, in camera head units."""
    around = 0.24 if shape.hair == "afro" else 0.1
    bodies = [((0, -0.18, -0.13), (0.43 + around, 0.5 + around, 0.5 + around))]
    bodies += [((0, 0.2, 0.12), (0.38, 0.42, 0.4)), ((0, 0.6, -0.14), (0.3, 0.25, 0.25))]
    if shape.hair in ("long", "veil"):
        bodies += [((0, 0.35, -0.1), (0.52, 0.85, 0.5))]
    if shape.hair == "bun":
        bodies += [((0, -0.72, -0.25), (0.18, 0.16, 0.18))]
    if shape.hat in ("cap", "brim"):
        bodies += [((0, -0.37, 0.0), (0.8 if shape.hat == "brim" else 0.45, 0.1, 0.82))]
    centres = np.array([centre for centre, _ in bodies]) @ rotate.T
    radii = np.stack([np.sqrt(((rotate * np.array(r)) ** 2).sum(axis=1)) for _, r in bodies])
    low, high = (centres - radii).min(axis=0), (centres + radii).max(axis=0)
    return np.array([low[0], low[1], high[0], min(high[1], 1.2)])


def face_box(shape: HeadShape, rotate: np.ndarray) -> np.ndarray:
    """(4,) float32 x1, y1, x2, y2 in camera head units: hairline to chin, ear to ear, no hair."""
    v, u = np.meshgrid(np.linspace(-1, 1, 25), np.linspace(-1.2, 1.2, 25))
    ring = np.sqrt(1 - v * v)
    sphere = np.stack([ring * np.sin(u), v, ring * np.cos(u)]).reshape(3, -1)
    w = shape.width
    skull = sphere * np.array([[0.385 * w], [0.49], [0.5]]) + np.array([[0], [-0.17], [-0.12]])
    skull = skull[:, (skull[1] > -0.41) & (skull[2] > -0.05)]
    jaw_x = 0.325 * w * shape.jaw
    jaw = sphere * np.array([[jaw_x], [0.405], [0.315]]) + np.array([[0], [0.1], [0.05]])
    sides = [(0.23 * w, -0.15, 0.32), (0.22 * w, EYE_Y, 0.29), (0.27 * w, 0.1, 0.24)]
    edges = [(side * px, py, pz) for side in (-1, 1) for px, py, pz in sides]
    front = np.array([*edges, shape.nose_tip]).T  # what stands out when the head is turned
    points = rotate @ np.concatenate([skull, jaw, front], axis=1).astype(np.float32)
    return np.concatenate([points[:2].min(1), points[:2].max(1)]).astype(np.float32)
