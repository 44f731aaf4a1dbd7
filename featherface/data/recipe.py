"""What is random in the augmentation of one image: its crop, its colours, whether it is mirrored.

Drawn apart from what is then done to the pixels, so that the loader's processes and the device
(featherface.data.render) give the same images of the same seed. The crop follows SCRFD (arXiv
2105.04714), whose scales up to 2.0 teach small faces, or brings a face to an anchor size
(data-anchor sampling, PyramidBox, arXiv 1803.07737); the colour changes are SSD's (arXiv
1512.02325). All randomness is torch's CPU generator.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from featherface.config import ANCHOR_SIZES, TrainConfig
from featherface.data.annotations import Photo
from featherface.data.decode import PhotoFile, Window

CROP_TRIES = 50  # draws until a crop holds a face
# Data-anchor sampling; JITTER spans the half octave either way that separates the anchor sizes.
LARGEST_ZOOM, JITTER = 2.0, (-0.5, 0.5)  # of a face in the photo; powers of two
LARGEST_CROP, SMALLEST_CROP = 4.0, 16.0  # of the photo's longer side; pixels of the photo
# Strengths of torchvision's RandomPhotometricDistort, which are SSD's.
BRIGHTNESS, CONTRAST, SATURATION, HUE = (0.875, 1.125), (0.5, 1.5), (0.5, 1.5), (-0.05, 0.05)


class Colour(NamedTuple):
    """A change of colours; the default is none."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0  # share of a full turn


class Recipe(NamedTuple):
    """All that is random about one augmented image."""

    window: Window  # the crop
    colour: Colour
    flip: bool


class RecipeDrawer:
    """Photo and its file (the header is enough) → Recipe, with the config's probabilities."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.draw_window = RandomSquareCrop(
            scale=(config.crop_scale_min, config.crop_scale_max),
            size=config.image_size,
            anchor_sampling_prob=config.anchor_sampling_prob,
        )

    def __call__(self, photo: Photo, file: PhotoFile) -> Recipe:
        window = self.draw_window(photo, file)
        colour = draw_colour(probability=self.config.photometric_prob)
        return Recipe(window, colour, torch.rand(1).item() < self.config.flip_prob)


def draw_colour(*, probability: float) -> Colour:
    """Brightness, contrast, saturation and hue, each changed with the given probability."""
    draws = torch.rand(8).tolist()
    ranges = (BRIGHTNESS, CONTRAST, SATURATION, HUE)
    return Colour._make(
        low + (high - low) * draw if chance < probability else idle
        for (low, high), idle, chance, draw in zip(
            ranges, Colour(), draws[:4], draws[4:], strict=True
        )
    )


class RandomSquareCrop:
    """Photo and its file → Window: a random square of side scale × the photo's short side.

    Drawn again, up to CROP_TRIES times, while the photo has faces and none has its centre inside.
    `size` is the training size: larger crops are decoded shrunk, but never below it.

    With `anchor_sampling_prob` the square is instead drawn around one of the photo's faces, so that
    the face meets a random anchor size. The faces of an unlabelled photo are its likely ones.
    """

    def __init__(
        self, *, scale: tuple[float, float], size: int, anchor_sampling_prob: float = 0.0
    ) -> None:
        self.scale, self.size = scale, size
        self.anchor_sampling_prob = anchor_sampling_prob

    def __call__(self, photo: Photo, file: PhotoFile) -> Window:
        frame = np.array([file.width, file.height] * 2, np.float32)
        boxes = photo.boxes if photo.labelled else photo.likely
        boxes = np.clip(boxes, 0, frame)  # annotations may reach beyond the photo
        faces = boxes[area(boxes) > 0] if self.anchor_sampling_prob > 0 else boxes[:0]
        if len(faces) and torch.rand(1).item() < self.anchor_sampling_prob:
            return self._draw_around(file, faces)
        for _ in range(CROP_TRIES if len(boxes) else 1):
            window = self._draw(file)
            if centre_inside(boxes, visible_part(file, window)).any():
                break
        return window

    def _draw(self, file: PhotoFile) -> Window:
        """A window of random size and place; where larger than the photo, it contains it."""
        scale, x, y = torch.rand(3).tolist()
        low, high = self.scale
        side = max(1.0, (low + (high - low) * scale) * min(file.width, file.height))
        shrink, pixels = self._grid(file, side)
        width, height = file.shrunk_size(shrink)
        # whole pixels of the shrunk photo, so that boxes map without rounding
        left, top = (
            min(0, free) + math.floor(draw * (abs(free) + 1))
            for free, draw in ((width - pixels, x), (height - pixels, y))
        )
        return Window(left, top, pixels, shrink)

    def _grid(self, file: PhotoFile, side: float) -> tuple[int, int]:
        """For a crop of `side` photo pixels: the shrink to decode at, and its side there."""
        shrink = file.shrink_for(side, self.size)
        return shrink, max(1, round(side / shrink))

    def _draw_around(self, file: PhotoFile, faces: np.ndarray) -> Window:
        """A window that brings one of `faces` (F, 4), each with an area, to a random anchor size.

        A face's size is the root of its area, as its anchors are square.
        """
        which, anchor, jitter, x, y = torch.rand(5).tolist()
        x1, y1, x2, y2 = faces[int(which * len(faces))].tolist()
        face, longer = math.sqrt((x2 - x1) * (y2 - y1)), max(file.width, file.height)
        sizes = anchors_to_meet(face, longer=longer, size=self.size)
        low, high = JITTER
        target = sizes[int(anchor * len(sizes))] * 2 ** (low + (high - low) * jitter)
        side = self.size * face / min(target, self.size)
        shrink, pixels = self._grid(file, max(SMALLEST_CROP, min(side, LARGEST_CROP * longer)))
        width, height = file.shrunk_size(shrink)
        left = _start_around(x1 / shrink, x2 / shrink, pixels=pixels, length=width, draw=x)
        top = _start_around(y1 / shrink, y2 / shrink, pixels=pixels, length=height, draw=y)
        return Window(left, top, pixels, shrink)


def anchors_to_meet(face: float, *, longer: int, size: int) -> list[int]:
    """The anchor sizes that a face of size `face` in a photo may be brought to, ascending.

    Up to the next one above the face itself (PyramidBox; further enlarged it would only be blurred)
    and the training size; from the one that the largest crop still reaches (`longer` is the photo's
    longer side). The smallest anchor where that leaves none. All in pixels.
    """
    largest = min(LARGEST_ZOOM * face, size)
    smallest = size * face / (LARGEST_CROP * longer)
    every = sorted(anchor for level in ANCHOR_SIZES for anchor in level)
    return [anchor for anchor in every if smallest <= anchor <= largest] or every[:1]


def _start_around(low: float, high: float, *, pixels: int, length: int, draw: float) -> int:
    """Where a window of `pixels` starts along a side of the photo so that low..high lies in it.

    If that does not fit its middle does. The window stays in the photo (0..length), or contains it
    where it is larger. `draw` in [0, 1) chooses among the starts that are left.
    """
    first, last = math.ceil(high - pixels), math.floor(low)
    if first > last:
        middle = (low + high) / 2
        first, last = math.floor(middle - pixels) + 1, math.floor(middle)
    free = length - pixels
    first, last = max(first, min(0, free)), min(last, max(0, free))
    return first + math.floor(draw * (last - first + 1))


def visible_part(file: PhotoFile, window: Window) -> np.ndarray:
    """Where window and photo overlap: (4,) x1, y1, x2, y2 in pixels of the photo."""
    corner = np.array([window.left, window.top]) * window.shrink
    far = np.minimum(corner + window.side * window.shrink, [file.width, file.height])
    return np.concatenate((np.maximum(corner, 0), far)).astype(np.float32)


def centre_inside(boxes: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Which boxes (F, 4) have their centre in `part` (4,): (F,) bool."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centres >= part[:2]) & (centres < part[2:])).all(axis=1)


def area(boxes: np.ndarray) -> np.ndarray:
    """(F, 4) → (F,)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
