"""Parity: compare exported files with the trained network, on pictures of many sizes."""

import io
import os
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from onnx import ModelProto
from PIL import Image
from torch import nn

from featherface.anchors import decode_boxes, decode_landmarks, make_anchors
from featherface.config import EVALUATION_SCORE
from featherface.data.demo_scene import make_photo
from featherface.data.widerface import photos_in
from featherface.detector import Detector
from featherface.errors import ExportError
from featherface.evaluation import compare
from featherface.export.graph import Size, open_model
from featherface.face_detector import FaceDetector
from featherface.images import fit_long_side, network_input, padded_size, read_image
from featherface.onnx_detector import OnnxDetector
from featherface.runtimes import RuntimeDetector

# long sides of the pictures that parity is measured on, pixels
SIDES = (
    *(33, 64, 97, 150, 200, 256, 300, 320, 333, 400),
    *(480, 500, 512, 555, 600, 640, 700, 800, 1024, 1280),
)
BOX_LIMIT = 0.01  # pixels: what rounding may move a box of the raw form
SCORE_LIMIT = 1e-4
IOU_LIMIT = 0.999  # of the same face by Detector and by the end-to-end form
V1_SCORE_LIMIT = 2e-4  # deformable sampling rounds differently
_DRAWN = 480  # pixels, about the long side of a drawn picture
_LARGEST_CALIBRATION = 640  # pixels, long side


def pictures(folder: str | os.PathLike = "", *, count: int = len(SIDES)) -> list[np.ndarray]:
    """Read `count` photos of a folder, or draw them: (H, W, 3) uint8 RGB each.

    Raises DataError for a folder without photos.
    """
    if folder:
        photos = photos_in(folder, "--calibration")
        step = max(1, len(photos) // count)
        return [read_image(photo.path) for photo in photos[::step][:count]]
    drawn = (make_photo(seed=0, split=1, index=index, size=_DRAWN) for index in range(count))
    return [read_image(Image.open(io.BytesIO(photo.jpeg))) for photo in drawn]


def of_sizes(photos: Sequence[np.ndarray], size: Size | None) -> list[np.ndarray]:
    """Resize photos to the long sides of SIDES, or all to one size (height, width)."""
    if size is not None:
        return [cv2.resize(photo, size[::-1]) for photo in photos]
    return [_scaled(photos[i % len(photos)], side) for i, side in enumerate(SIDES)]


def _scaled(photo: np.ndarray, side: int) -> np.ndarray:
    scale = side / max(photo.shape[:2])
    size = tuple(max(1, round(scale * n)) for n in photo.shape[1::-1])
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def for_calibration(photos: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the photos as BGR, the larger ones shrunk to a usual size."""
    return [
        cv2.cvtColor(fit_long_side(photo, _LARGEST_CALIBRATION), cv2.COLOR_RGB2BGR)
        for photo in photos
    ]


@torch.no_grad()
def raw_parity(
    model: nn.Module, graph: ModelProto, photos: Sequence[np.ndarray], size: Size | None
) -> dict[str, float]:
    """Measure the largest differences over all anchors: boxes, landmarks (pixels), scores.

    Raises ExportError where they are larger than rounding explains.
    """
    session, worst = open_model(graph), {"boxes": 0.0, "scores": 0.0, "landmarks": 0.0}
    for photo in photos:
        height, width = size or padded_size(*photo.shape[:2])
        image = network_input([photo], height, width)
        predictions = model(torch.from_numpy(image))
        anchors = make_anchors(height, width)
        expected = {
            "boxes": decode_boxes(predictions.box_deltas, anchors),
            "scores": predictions.class_logits.softmax(-1)[..., 1],
            "landmarks": decode_landmarks(predictions.landmark_deltas, anchors),
        }
        for name, found in zip(worst, session.run(list(worst), {"image": image}), strict=True):
            difference = float(np.abs(found - expected[name].numpy()).max())
            worst[name] = float(np.maximum(worst[name], difference))  # NaN stays
    limit, box_limit = _limits(model)
    finite = np.isfinite(worst["landmarks"])
    if not (finite and worst["scores"] <= limit and worst["boxes"] <= box_limit):
        raise ExportError(
            f"the raw form differs from the trained network by {worst['scores']:.1e} in scores "
            f"(allowed: {limit:g}), {worst['boxes']:.1e} pixels in boxes (allowed: {box_limit:g}), "
            f"{worst['landmarks']:.1e} in landmarks; --form end_to_end exports the other form alone"
        )
    return worst


def _limits(model: nn.Module) -> tuple[float, float]:
    """Return the limits of rounding: scores, and boxes in pixels.

    V1's deformable convolutions amplify rounding in boxes that nobody would take for a face.
    """
    v1 = getattr(model, "name", "") == "v1"
    return (V1_SCORE_LIMIT, 50 * BOX_LIMIT) if v1 else (SCORE_LIMIT, BOX_LIMIT)


def face_parity(
    expected: Detector,
    found: OnnxDetector | RuntimeDetector,
    photos: Sequence[np.ndarray],
    *,
    exact: bool,
) -> dict[str, float]:
    """Count the faces that both find, with the smallest IoU and largest difference of scores.

    Where no face scores enough, those over a lower threshold are compared. A face within rounding
    of the threshold need not be in both. exact: raises ExportError where the faces differ by more
    than rounding explains, or where there is nothing to compare.
    """
    before = expected.score_threshold, found.score_threshold
    result = _same_faces(expected, found, photos)
    if not (result["faces"] or result["in_one_only"]):
        expected.score_threshold = found.score_threshold = 0.0
        best = max(max(faces.scores, default=0.0) for faces in expected.detect_batch(photos))
        expected.score_threshold = found.score_threshold = min(EVALUATION_SCORE, float(best) / 2)
        result = _same_faces(expected, found, photos)
        expected.score_threshold, found.score_threshold = before
    agree = result["smallest_iou"] >= IOU_LIMIT or result["box_difference"] <= result["limit"]
    if exact and (result["in_one_only"] or not agree):
        raise ExportError(f"{found.path.name} finds other faces than the trained network: {result}")
    return result


def _same_faces(
    expected: Detector, found: FaceDetector, photos: Sequence[np.ndarray]
) -> dict[str, float]:
    """Compare at the thresholds as they are; NaN where no face is in both."""
    first, second = expected.detect_batch(photos), found.detect_batch(photos)
    table, _ = compare(first, second)
    score_limit, box_limit = _limits(expected.model)
    pairs, others = (table[(table["status"] == "matched") == same] for same in (True, False))
    scores = others["score_a"].fillna(others["score_b"]).astype(float)
    changes = [
        np.abs(first[int(row.image)].boxes[row.index_a] - second[int(row.image)].boxes[row.index_b])
        for row in pairs.itertuples()
    ]
    return {
        "faces": len(pairs),
        "in_one_only": int((scores > expected.score_threshold + score_limit).sum()),
        "smallest_iou": float(pairs["iou"].astype(float).min()),
        "score_difference": float((pairs["score_a"] - pairs["score_b"]).astype(float).abs().max()),
        "box_difference": float(np.max(changes)) if changes else float("nan"),
        "limit": box_limit,
        "score_threshold": expected.score_threshold,
    }
