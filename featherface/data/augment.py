"""Augmentation of one image: draw a plan, place its faces, make its pixels.

A `Plan` holds everything random, so that the loader's processes (`make_image`, from the file) and
the device (featherface.data.render, from a cache) make the same image from the same seed. The crop
follows SCRFD (arXiv 2105.04714), whose scales up to 2.0 teach small faces; the colour changes are
SSD's (arXiv 1512.02325). All randomness is torch's CPU generator.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from featherface.config import MEAN_BGR
from featherface.data.annotations import Photo
from featherface.images import PhotoFile, Window, decode
from featherface.structures import FLIPPED_LANDMARKS, Target

CROP_TRIES = 50  # draws until a crop holds a face
FLIP_PROB = 0.5
COLOUR_PROB = 0.5  # of each of the four changes
# Strengths of torchvision's RandomPhotometricDistort, which are SSD's.
BRIGHTNESS, CONTRAST, SATURATION, HUE = (0.875, 1.125), (0.5, 1.5), (0.5, 1.5), (-0.05, 0.05)

FILL_RGB = tuple(MEAN_BGR[::-1])  # outside the photo: zero once the network's mean is subtracted
IGNORE_VISIBLE = 0.1  # a face with its centre outside but this share inside is ignored
SLIVER = 0.01  # pixels: a visible part thinner than this could round to no area at all
LUMA = (0.299, 0.587, 0.114)  # grey of an RGB pixel, ITU-R BT.601


class Colour(NamedTuple):
    """A change of colours; the default is none."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0  # share of a full turn


class Plan(NamedTuple):
    """How one square training image is made from a photo: crop, resize, colour, flip."""

    file: PhotoFile  # its header is enough to place faces
    window: Window  # the crop
    size: int  # side of the training image, pixels
    colour: Colour = Colour()
    flip: bool = False

    @property
    def shown(self) -> np.ndarray:
        """The part of the training image that shows the photo, before the flip.

        (2, 2) start and stop of x, of y: whole pixels, at least one; the rest is FILL_RGB.
        """
        window = self.window
        part = self.file.inside(window) - np.array([[window.left], [window.top]])
        edges = np.rint(part * (self.size / window.side)).astype(int)
        start = np.minimum(edges[:, 0], self.size - 1)
        return np.stack((start, np.maximum(edges[:, 1], start + 1)), axis=1)


def draw(photo: Photo, file: PhotoFile, *, size: int, scale: tuple[float, float]) -> Plan:
    """A random plan for a training image of side `size`.

    scale: smallest and largest side of the crop, as shares of the photo's short side. The crop is
    drawn again, up to CROP_TRIES times, while the photo has faces (an unlabelled photo: boxes of
    its focus) and none has its centre inside.
    """
    frame = np.array([file.width, file.height] * 2, np.float32)
    boxes = photo.boxes if photo.labelled else photo.focus
    boxes = np.clip(boxes, 0, frame)  # annotations may reach beyond the photo
    for _ in range(CROP_TRIES if len(boxes) else 1):
        window = _draw_window(file, size=size, scale=scale)
        if _inside(_centres(boxes), visible_part(file, window)).any():
            break
    return Plan(file, window, size, draw_colour(), torch.rand(1).item() < FLIP_PROB)


def _draw_window(file: PhotoFile, *, size: int, scale: tuple[float, float]) -> Window:
    """A square of random size and position; one larger than the photo contains it."""
    share, x, y = torch.rand(3).tolist()
    low, high = scale
    side = max(1.0, (low + (high - low) * share) * min(file.width, file.height))
    shrink = file.shrink_for(side, size)
    pixels = max(1, round(side / shrink))
    width, height = file.shrunk_size(shrink)
    # whole pixels of the shrunk photo, so that boxes map without rounding
    left, top = (
        min(0, free) + math.floor(draw * (abs(free) + 1))
        for free, draw in ((width - pixels, x), (height - pixels, y))
    )
    return Window(left, top, pixels, shrink)


def draw_colour() -> Colour:
    """Brightness, contrast, saturation and hue, each changed with COLOUR_PROB."""
    draws = torch.rand(8).tolist()
    ranges = (BRIGHTNESS, CONTRAST, SATURATION, HUE)
    return Colour._make(
        low + (high - low) * draw if chance < COLOUR_PROB else idle
        for (low, high), idle, chance, draw in zip(
            ranges, Colour(), draws[:4], draws[4:], strict=True
        )
    )


def visible_part(file: PhotoFile, window: Window) -> np.ndarray:
    """The overlap of window and photo: (4,) x1, y1, x2, y2 in pixels of the photo."""
    part = window.shrink * file.inside(window).T  # start, stop
    return np.minimum(part, (file.width, file.height)).ravel().astype(np.float32)


def _centres(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _inside(points: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Points (..., 2) that are in the rectangle `part` (4,): (...) bool."""
    return np.all((points >= part[:2]) & (points < part[2:]), axis=-1)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def place_faces(photo: Photo, plan: Plan, *, min_face: float) -> Target:
    """The photo's faces in the training image of a plan, F of them, without padding.

    A face whose centre is visible is kept, clipped. One with its centre outside is ignored if a
    tenth of it is visible: neither background nor the face's full box would be right. Faces with a
    shorter side under `min_face` pixels and the photo's ignored boxes (which come last) are ignored
    too. An unlabelled photo gives no face.
    """
    known = photo if photo.labelled else Photo.unlabelled(photo.path, photo.name)
    faces, visible = known.with_ignored(), visible_part(plan.file, plan.window)
    boxes = np.clip(faces.boxes, 0, [plan.file.width, plan.file.height] * 2)
    clipped = np.clip(boxes, visible[[0, 1, 0, 1]], visible[[2, 3, 2, 3]])
    centred = _inside(_centres(boxes), visible)
    partial = _area(clipped) >= IGNORE_VISIBLE * np.maximum(_area(boxes), 1e-6)
    thick = (clipped[:, 2:] - clipped[:, :2]).min(axis=1) > SLIVER
    kept = thick & (centred | partial)
    mask = faces.landmark_mask[kept] & _inside(faces.landmarks[kept], visible)
    corners = _to_image(clipped[kept].reshape(-1, 2, 2), visible, plan).clip(0, plan.size)
    points = _to_image(faces.landmarks[kept], visible, plan)
    if plan.flip:
        order = list(FLIPPED_LANDMARKS)
        points, mask = points[:, order], mask[:, order]
        corners = np.stack((corners[:, ::-1, 0], corners[..., 1]), axis=-1)  # x1 ↔ x2
    small = (corners[:, 1] - corners[:, 0]).min(axis=1) < min_face
    return Target(
        boxes=torch.from_numpy(corners.reshape(-1, 4)),
        landmarks=torch.from_numpy(points),
        landmark_mask=torch.from_numpy(mask),
        ignore=torch.from_numpy((~centred | faces.ignore)[kept] | small),
        weight=torch.ones(len(corners)),
        labelled=torch.tensor(photo.labelled),
    )


def _to_image(points: np.ndarray, visible: np.ndarray, plan: Plan) -> np.ndarray:
    """Points (..., 2) of the photo → float32 pixels of the training image, mirrored if it is.

    The visible part is fitted to whole pixels, so each axis has its own exact scale.
    """
    shown = plan.shown
    scale = np.ptp(shown, axis=1) / np.ptp(plan.file.inside(plan.window), axis=1)
    local = ((points - visible[:2]) / plan.window.shrink).astype(np.float32)
    placed = local * scale.astype(np.float32) + shown[:, 0].astype(np.float32)
    if plan.flip:
        placed[..., 0] = plan.size - placed[..., 0]
    return placed


def make_image(plan: Plan) -> Tensor:
    """The pixels of a plan, from the photo's file: (3, S, S) uint8 RGB, channels last in memory.

    Raises DataError if the photo is corrupt.
    """
    (left, right), (top, bottom) = plan.file.inside(plan.window)
    pixels = decode(plan.file, plan.window.shrink)[top:bottom, left:right]
    pixels = change_colour(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), plan.colour)
    (left, right), (top, bottom) = plan.shown.tolist()
    image = F.resize(_as_image(pixels), [bottom - top, right - left], antialias=True)
    # after the colours, so that the outside is exactly the mean, and cheap
    padding = top, plan.size - bottom, left, plan.size - right
    if any(padding):
        pixels = image.permute(1, 2, 0).numpy()
        pixels = cv2.copyMakeBorder(pixels, *padding, cv2.BORDER_CONSTANT, value=FILL_RGB)
        image = _as_image(pixels)
    return image.flip(-1) if plan.flip else image


def _as_image(pixels: np.ndarray) -> Tensor:
    """(h, w, 3) → (3, h, w), channels last in memory."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def change_colour(pixels: np.ndarray, colour: Colour) -> np.ndarray:
    """Change brightness, contrast, saturation and hue of (h, w, 3) uint8 RGB.

    All four are affine in RGB, so they are one 3 × 4 matrix and one pass over the pixels: hue turns
    the colours about the grey axis in YIQ, in place of the HSV round trip, which costs 100 times
    the rest. None but brightness and contrast changes the grey value, so their order is free.
    """
    if colour == Colour():
        return pixels
    mean = float(np.array(LUMA) @ np.array(cv2.mean(pixels)[:3]))
    offset = np.full((3, 1), colour_offset(colour) * mean)
    return cv2.transform(pixels, np.hstack((colour_matrix(colour), offset)))


def colour_matrix(colour: Colour) -> np.ndarray:
    """(3, 3) matrix on (r, g, b), without the offset, which depends on the picture's mean."""
    luma = np.array(LUMA)
    basis = np.stack((luma, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)))  # RGB → YIQ
    angle = -2 * np.pi * colour.hue  # I and Q turn against the colour circle
    cosine, sine = colour.saturation * np.cos(angle), colour.saturation * np.sin(angle)
    turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])  # grey stays
    return colour.brightness * colour.contrast * (np.linalg.inv(basis) @ turn @ basis)


def colour_offset(colour: Colour) -> float:
    """The term added to each channel, as a multiple of the picture's mean luma."""
    return (1 - colour.contrast) * colour.brightness
