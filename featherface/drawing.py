"""Drawing: detections on a photo, blurred faces, targets on a batch of training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from featherface.images import ImageSource, read_image
from featherface.structures import Detections, Target

if TYPE_CHECKING:
    from torch import Tensor

# Okabe and Ito's palette for colour-blind readers; each on black, to be visible on any photo.
_BOX = (240, 228, 66)  # yellow
_POINTS = ((86, 180, 233), (0, 114, 178), (255, 255, 255), (230, 159, 0), (213, 94, 0))
_IGNORED = (204, 121, 167)  # magenta
_BLACK = (0, 0, 0)
BLUR_CELLS = 6  # colours per side that remain of a blurred face
SMALLEST_WITH_POINTS = 12  # pixels; on a smaller face five points would hide it
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw(
    image: ImageSource,
    faces: Detections,
    *,
    scores: bool = True,
    landmarks: bool = True,
    bgr: bool = False,
    labels: Sequence[str] | None = None,
) -> np.ndarray:
    """Draw boxes, scores and landmarks on a copy of the image; returns (H, W, 3) uint8 RGB.

    image: a path, a PIL image or a uint8 array, see `images.read_image`. bgr: an array is in
    OpenCV's channel order. labels: a text for each face instead of its score. Lines and text grow
    with the picture. Better faces are drawn over worse ones; a text that would cover a better
    face's text is left out. Eyes are blue, mouth corners orange, the nose white; faces under
    SMALLEST_WITH_POINTS show no points.
    Raises DataError if the image cannot be read.
    """
    canvas = np.array(read_image(image, bgr=bgr))
    line = _line_width(canvas)
    order = np.argsort(-faces.scores, kind="stable")
    texts = [f"{score:.2f}" for score in faces.scores] if labels is None else labels
    faces, texts = faces[order], [texts[index] for index in order]
    for index in reversed(range(len(faces))):
        _draw_box(canvas, faces.boxes[index], line)
        if landmarks:
            _draw_points(canvas, faces.landmarks[index], faces.boxes[index], line)
    if scores:
        _draw_texts(canvas, faces, texts, line)
    return canvas


def blur(
    image: ImageSource, faces: Detections, *, margin: float = 0.15, bgr: bool = False
) -> np.ndarray:
    """Make faces unrecognisable on a copy of the image; returns (H, W, 3) uint8 RGB.

    Each box, grown by `margin` of its width and height on each side, keeps BLUR_CELLS × BLUR_CELLS
    mean colours with smooth transitions: details are removed, whatever the size of the face.
    image, bgr: as in `draw`. Faces that were not detected stay visible.
    Raises DataError if the image cannot be read.
    """
    canvas = np.array(read_image(image, bgr=bgr))
    for region in faces.regions(canvas.shape, margin):
        height, width = canvas[region].shape[:2]
        if height and width:
            cells = min(BLUR_CELLS, width), min(BLUR_CELLS, height)
            means = cv2.resize(canvas[region], cells, interpolation=cv2.INTER_AREA)
            canvas[region] = cv2.resize(means, (width, height), interpolation=cv2.INTER_LINEAR)
    return canvas


def draw_targets(images: Tensor, targets: Target, *, columns: int = 4) -> np.ndarray:
    """A sheet (H, W, 3) uint8 of training images (B, 3, S, S) RGB, 0..255, with their faces.

    Faces are yellow with their weight, ignored faces magenta; dropped ones are not drawn.
    """
    import torch
    from torchvision.utils import make_grid

    pictures = images.detach().cpu().round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    drawn = [
        _draw_target(picture, Target(*(part[index].cpu() for part in targets)))
        for index, picture in enumerate(pictures)
    ]
    stacked = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)  # (B, S, S, 3) → (B, 3, S, S)
    return make_grid(stacked, nrow=columns, padding=4).permute(1, 2, 0).numpy()


def _draw_target(picture: np.ndarray, faces: Target) -> np.ndarray:
    points = faces.landmarks.masked_fill(~faces.landmark_mask[..., None], float("nan"))
    order = faces.weight.argsort(descending=True)
    kept = order[((faces.weight > 0) & ~faces.ignore)[order]]
    parts = (faces.boxes[kept], faces.weight[kept], points[kept])
    sheet = draw(picture, Detections(*(part.float().numpy() for part in parts)))
    for box in faces.boxes[(faces.weight > 0) & faces.ignore].round().int().tolist():
        cv2.rectangle(sheet, box[:2], box[2:], _IGNORED, 2)
    return sheet


def _line_width(canvas: np.ndarray) -> int:
    """2 pixels for a 640-pixel picture, in proportion to its size, at least 1."""
    return max(1, round(np.sqrt(canvas.shape[0] * canvas.shape[1]) / 320))


def _corners(box: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last pixel of a box, whose edge x2 is where the next pixel begins."""
    left, top, right, bottom = (round(float(value)) for value in box)
    return (left, top), (max(left, right - 1), max(top, bottom - 1))


def _side(box: np.ndarray) -> float:
    return float(min(box[2] - box[0], box[3] - box[1]))


def _draw_box(canvas: np.ndarray, box: np.ndarray, line: int) -> None:
    """Draw a yellow box with black around it, not inside, so that a small face stays visible."""
    width = round(np.clip(_side(box) / 20, 1, line))
    (left, top), (right, bottom) = _corners(box)
    outer = (left - width, top - width), (right + width, bottom + width)
    cv2.rectangle(canvas, *outer, _BLACK, width)
    cv2.rectangle(canvas, (left, top), (right, bottom), _BOX, width)


def _draw_points(canvas: np.ndarray, points: np.ndarray, box: np.ndarray, line: int) -> None:
    side = _side(box)
    if side < SMALLEST_WITH_POINTS:
        return
    radius = round(np.clip(side / 30, 1, 3 * line))
    limit = 4 * max(canvas.shape)  # a wild point far outside must not overflow an integer
    for point, color in zip(points.clip(-limit, limit), _POINTS, strict=True):
        if np.isnan(point).any():
            continue  # not annotated
        center = int(point[0]), int(point[1])
        if side >= 2 * SMALLEST_WITH_POINTS:
            cv2.circle(canvas, center, radius + max(1, line // 2), _BLACK, -1, cv2.LINE_AA)
        cv2.circle(canvas, center, radius, color, -1, cv2.LINE_AA)


def _draw_texts(canvas: np.ndarray, faces: Detections, texts: Sequence[str], line: int) -> None:
    """Write black on yellow above each box (inside it at the top), best faces first."""
    width = canvas.shape[1]
    scale = max(0.35, 0.25 * line)
    thickness = max(1, round(line / 2))
    margin = max(2, line)
    placed = np.zeros((0, 4))
    for box, text in zip(faces.boxes, texts, strict=True):
        (text_width, text_height), _ = cv2.getTextSize(text, _FONT, scale, thickness)
        tag_width, tag_height = text_width + 2 * margin, text_height + 2 * margin
        (left, top), _ = _corners(box)
        left = max(0, min(left, width - tag_width))
        top = top - tag_height if top >= tag_height else top
        tag = np.array((left, top, left + tag_width, top + tag_height))
        if _overlaps(tag, placed):
            continue
        placed = np.vstack((placed, tag))
        cv2.rectangle(canvas, (left, top), (int(tag[2]) - 1, int(tag[3]) - 1), _BOX, -1)
        origin = (left + margin, top + margin + text_height)
        cv2.putText(canvas, text, origin, _FONT, scale, _BLACK, thickness, cv2.LINE_AA)


def _overlaps(tag: np.ndarray, placed: np.ndarray) -> bool:
    inside = (placed[:, :2] < tag[2:]) & (placed[:, 2:] > tag[:2])
    return bool(inside.all(axis=1).any())
