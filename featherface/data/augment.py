"""What is random in the augmentation of one image: its crop, its colours, whether it is mirrored.

Drawn apart from what is then done to the pixels, so that the loader's processes and the device
(featherface.data.render) give the same images of the same seed. The crop follows SCRFD (arXiv
2105.04714), whose scales up to 2.0 teach small faces; the colour changes are SSD's (arXiv
1512.02325). All randomness is torch's CPU generator.
"""

import math
from typing import NamedTuple, TypedDict

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat, Image, KeyPoints

from featherface.config import MEAN_BGR, TrainConfig
from featherface.data.annotations import Photo
from featherface.images import PhotoFile, Window, open_photo, read_window
from featherface.structures import FLIPPED_LANDMARKS, Target

CROP_TRIES = 50  # draws until a crop holds a face
FLIP_PROB = 0.5
COLOUR_PROB = 0.5  # of each of the four changes
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
    """Photo and its file (the header is enough) → Recipe."""

    def __init__(self, config: TrainConfig) -> None:
        scale = config.crop_scale_min, config.crop_scale_max
        self.draw_window = RandomSquareCrop(scale=scale, size=config.image_size)

    def __call__(self, photo: Photo, file: PhotoFile) -> Recipe:
        window = self.draw_window(photo, file)
        colour = draw_colour(probability=COLOUR_PROB)
        return Recipe(window, colour, torch.rand(1).item() < FLIP_PROB)


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

    Drawn again, up to CROP_TRIES times, while the photo has faces (an unlabelled photo: boxes of
    its focus) and none has its centre inside. `size` is the training size: larger crops are decoded
    shrunk, but never below it.
    """

    def __init__(self, *, scale: tuple[float, float], size: int) -> None:
        self.scale, self.size = scale, size

    def __call__(self, photo: Photo, file: PhotoFile) -> Window:
        frame = np.array([file.width, file.height] * 2, np.float32)
        boxes = photo.boxes if photo.labelled else photo.focus
        boxes = np.clip(boxes, 0, frame)  # annotations may reach beyond the photo
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
        shrink = file.shrink_for(side, self.size)
        pixels = max(1, round(side / shrink))
        width, height = file.shrunk_size(shrink)
        # whole pixels of the shrunk photo, so that boxes map without rounding
        left, top = (
            min(0, free) + math.floor(draw * (abs(free) + 1))
            for free, draw in ((width - pixels, x), (height - pixels, y))
        )
        return Window(left, top, pixels, shrink)


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


FILL_RGB = tuple(MEAN_BGR[::-1])  # outside the photo: zero once the network's mean is subtracted
IGNORE_VISIBLE = 0.1  # a face with its centre outside but this share inside is ignored
SLIVER = 0.01  # pixels: a visible part thinner than this could round to no area at all
LUMA = (0.299, 0.587, 0.114)  # grey of an RGB pixel, ITU-R BT.601


class Sample(TypedDict):
    """One image under augmentation; h × w changes from step to step. F faces."""

    image: Image | None  # (3, h, w) uint8 RGB; None: only the faces are wanted
    boxes: BoundingBoxes  # (F, 4) float32 x1, y1, x2, y2; its canvas_size is (h, w)
    landmarks: KeyPoints  # (F, 5, 2) float32, continuous like the boxes: the image spans 0..w
    landmark_mask: Tensor  # (F, 5) bool
    ignore: Tensor  # (F,) bool
    padding: list[int]  # left, top, right, bottom: pixels of the crop outside the photo
    labelled: bool  # False: the photo's faces are unknown


class Place(NamedTuple):
    """Where the visible part of a photo comes to lie in the training image, whole pixels."""

    left: int
    top: int
    right: int
    bottom: int


class TrainingTransform:
    """The augmentation recipe: Photo → (image (3, S, S) uint8 RGB, Target without padding)."""

    def __init__(self, config: TrainConfig) -> None:
        self.size, self.min_face = config.image_size, config.min_face
        self.draw = RecipeDrawer(config)

    def __call__(self, photo: Photo) -> tuple[Tensor, Target]:
        file = open_photo(photo.path)
        recipe = self.draw(photo, file)
        sample = crop(photo, file, recipe.window)
        sample = change_colour(sample, recipe.colour)
        sample = resize_visible(sample, size=self.size)
        # after the colours, so that the outside is exactly the mean, and cheap
        sample = fill_outside(sample)
        sample = flip_faces(sample) if recipe.flip else sample
        assert sample["image"] is not None
        return sample["image"].as_subclass(Tensor), to_target(sample, min_face=self.min_face)

    def place(self, photo: Photo, file: PhotoFile) -> tuple[Recipe, Place, Target]:
        """The same without the pixels: what is drawn, and what comes of the faces.

        The place is that before the flip.
        """
        recipe = self.draw(photo, file)
        sample = crop(photo, file, recipe.window, pixels=False)
        sample = resize_visible(sample, size=self.size)
        left, top, right, bottom = sample["padding"]
        sample = fill_outside(sample)
        sample = flip_faces(sample) if recipe.flip else sample
        place = Place(left, top, self.size - right, self.size - bottom)
        return recipe, place, to_target(sample, min_face=self.min_face)


def crop(photo: Photo, file: PhotoFile, window: Window, *, pixels: bool = True) -> Sample:
    """The visible part of a window as a Sample, its coordinates relative to that part.

    A face whose centre is inside is kept, clipped. One with its centre outside is ignored if a
    tenth of it is visible: calling it background would be wrong, and so would the face's full box.
    The photo's ignored boxes come last and stay ignored; an unlabelled photo gives no face.
    """
    if not photo.labelled:
        photo = Photo.unlabelled(photo.path, photo.name)
    columns, rows = file.inside(window)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    left, top, right, bottom = visible = visible_part(file, window)
    faces = photo.with_ignored()
    boxes = np.clip(faces.boxes, 0, [file.width, file.height] * 2)
    clipped = np.clip(boxes, visible[[0, 1, 0, 1]], visible[[2, 3, 2, 3]])
    inside = centre_inside(boxes, visible)
    partial = area(clipped) >= IGNORE_VISIBLE * np.maximum(area(boxes), 1e-6)
    large_enough = (clipped[:, 2:] - clipped[:, :2]).min(axis=1, initial=np.inf) > SLIVER
    kept = large_enough & (inside | partial)
    points = faces.landmarks[kept]
    mask = faces.landmark_mask[kept] & (points >= (left, top)).all(-1)
    mask &= (points < (right, bottom)).all(-1)
    origin = np.array([left, top], np.float32)
    boxes = (clipped[kept] - np.tile(origin, 2)) / window.shrink
    points = (points - origin) / window.shrink
    beyond_x = window.side - width - max(-window.left, 0)
    beyond_y = window.side - height - max(-window.top, 0)
    return Sample(
        image=_as_image(read_window(file, window)) if pixels else None,
        boxes=BoundingBoxes(
            torch.from_numpy(boxes.astype(np.float32)),
            format=BoundingBoxFormat.XYXY,
            canvas_size=(height, width),
        ),
        landmarks=KeyPoints(
            torch.from_numpy(points.astype(np.float32)), canvas_size=(height, width)
        ),
        landmark_mask=torch.from_numpy(mask),
        ignore=torch.from_numpy((~inside | faces.ignore)[kept]),
        padding=[max(-window.left, 0), max(-window.top, 0), beyond_x, beyond_y],
        labelled=photo.labelled,
    )


def _as_image(pixels: np.ndarray) -> Image:
    """(h, w, 3) → (3, h, w), channels last in memory."""
    return Image(torch.from_numpy(pixels).permute(2, 0, 1))


def change_colour(sample: Sample, colour: Colour) -> Sample:
    """Change brightness, contrast, saturation and hue of the pixels.

    All four are affine in RGB, so they are one 3 × 4 matrix and one pass over the pixels: hue turns
    the colours about the grey axis in YIQ, in place of the HSV round trip, which costs 100 times
    the rest. None but brightness and contrast changes the grey value, so their order is free.
    """
    if colour == Colour() or sample["image"] is None:
        return sample
    pixels = sample["image"].permute(1, 2, 0).numpy()
    mean = float(np.array(LUMA) @ np.array(cv2.mean(pixels)[:3]))
    matrix = np.concatenate(
        (colour_matrix(colour), np.full((3, 1), colour_offset(colour) * mean)), axis=1
    )
    return {**sample, "image": _as_image(cv2.transform(pixels, matrix))}


def colour_matrix(colour: Colour) -> np.ndarray:
    """(3, 3) matrix on (r, g, b); the offset is apart, because it needs the picture's mean."""
    luma = np.array(LUMA)
    basis = np.stack((luma, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)))  # RGB → YIQ
    angle = -2 * np.pi * colour.hue  # I and Q turn against the colour circle
    cosine, sine = colour.saturation * np.cos(angle), colour.saturation * np.sin(angle)
    turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])  # grey stays
    return colour.brightness * colour.contrast * (np.linalg.inv(basis) @ turn @ basis)


def colour_offset(colour: Colour) -> float:
    """What is added to each channel, as a multiple of the picture's mean luma."""
    return (1 - colour.contrast) * colour.brightness


def resize_visible(sample: Sample, *, size: int) -> Sample:
    """Resize the visible part of a crop, and its padding, so that the square gets side `size`.

    The part is fitted to whole pixels; the coordinates follow its own two scales exactly.
    """
    left, top, right, bottom = sample["padding"]
    height, width = sample["boxes"].canvas_size
    x1, x2 = _fit(left, width, right, size)
    y1, y2 = _fit(top, height, bottom, size)
    shape, image = [y2 - y1, x2 - x1], sample["image"]
    return {
        **sample,
        "image": None if image is None else F.resize(image, shape, antialias=True),
        "boxes": F.resize(sample["boxes"], shape),
        "landmarks": F.resize(sample["landmarks"], shape),
        "padding": [x1, y1, size - x2, size - y2],
    }


def _fit(before: int, length: int, after: int, size: int) -> tuple[int, int]:
    """Start and end of the visible part along one side of `size`, at least one pixel."""
    scale = size / (before + length + after)
    start = min(round(before * scale), size - 1)
    return start, max(round((before + length) * scale), start + 1)


def fill_outside(sample: Sample) -> Sample:
    """Pad the visible part of a crop to its square with the mean colour."""
    padding, image = sample["padding"], sample["image"]
    if not any(padding):
        return sample
    if image is not None:
        left, top, right, bottom = padding
        pixels = image.permute(1, 2, 0).numpy()
        filled = cv2.copyMakeBorder(
            pixels, top, bottom, left, right, cv2.BORDER_CONSTANT, value=FILL_RGB
        )
        image = _as_image(filled)
    return {
        **sample,
        "image": image,
        "boxes": F.pad(sample["boxes"], padding),
        "landmarks": F.pad(sample["landmarks"], padding),
        "padding": [0, 0, 0, 0],
    }


def flip_faces(sample: Sample) -> Sample:
    """The mirror image of a sample without padding left to do: x → w − x, left becomes right.

    torchvision's flip of KeyPoints maps x to w − 1 − x and does not swap them.
    """
    order, image = list(FLIPPED_LANDMARKS), sample["image"]
    width = sample["boxes"].canvas_size[1]
    points = sample["landmarks"].as_subclass(Tensor)[:, order].clone()
    points[..., 0] = width - points[..., 0]
    return {
        **sample,
        "image": None if image is None else F.horizontal_flip(image),
        "boxes": F.horizontal_flip(sample["boxes"]),
        "landmarks": KeyPoints(points, canvas_size=sample["landmarks"].canvas_size),
        "landmark_mask": sample["landmark_mask"][:, order],
    }


def to_target(sample: Sample, *, min_face: float) -> Target:
    """The faces of a finished sample. Those whose shorter side is under `min_face` are ignored."""
    boxes = sample["boxes"].as_subclass(Tensor)
    small = (boxes[:, 2:] - boxes[:, :2]).amin(dim=1) < min_face
    return Target(
        boxes=boxes,
        landmarks=sample["landmarks"].as_subclass(Tensor),
        landmark_mask=sample["landmark_mask"],
        ignore=sample["ignore"] | small,
        weight=torch.ones(len(boxes)),
        labelled=torch.tensor(sample["labelled"]),
    )
