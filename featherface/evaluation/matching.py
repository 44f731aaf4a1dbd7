"""Which face each detection finds: the part of the WIDER FACE protocol that all settings share.

The rules are those of the benchmark's eval_tools (Yang et al., "WIDER FACE: A Face Detection
Benchmark", CVPR 2016): overlaps are measured with a pixel added to every width and height, each
detection belongs to the face that it overlaps best, and of the detections of one face only the
highest-scored is true. A setting then only says which faces it keeps (`Matches.judge`), so one pass
over the images serves easy, medium, hard and any range of sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MATCH_IOU = 0.5
_MOST_OVERLAPS = 1 << 20  # entries of one IoU matrix: bounds the memory at crowds and 5,000 boxes


@dataclass(frozen=True)
class Matches:
    """All N detections of a set of images, highest score first, and the face that each one finds.

    scores (N,) float64, descending; face (N,) int: index among all the faces of the set, −1 where
    no face overlaps by an IoU of 0.5; first (N,) bool: no higher-scored detection finds this face.
    """

    scores: np.ndarray
    face: np.ndarray
    first: np.ndarray

    def judge(self, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The detections that count where only the faces in `kept` (G,) bool are looked for.

        Returns scores (M,), descending, and true (M,) bool. A detection whose best face is not
        kept is dropped, even if it overlaps a kept one too. A second detection of a face is false.
        """
        counts = np.append(kept, True)[self.face]  # face −1, none, reads the appended True
        return self.scores[counts], self.first[counts]


def match(detections: Sequence[np.ndarray], faces: Sequence[np.ndarray]) -> Matches:
    """Match image by image.

    detections: an array (K, 5) x, y, w, h, score an image, in any order; faces: an array (F, 4)
    x, y, w, h an image, pixels. The faces of the set are numbered in the order given.
    """
    found = [np.zeros(0, np.int64)]
    total = 0
    for rows, boxes in zip(detections, faces, strict=True):
        found.append(_best_face(rows[:, :4], boxes, total))
        total += len(boxes)
    scores = np.concatenate([np.zeros(0), *(rows[:, 4] for rows in detections)])
    order = np.argsort(-scores, kind="stable")
    face = np.concatenate(found)[order]
    first = np.zeros(len(face), bool)
    first[np.unique(face, return_index=True)[1]] = True
    return Matches(scores[order], face, first & (face >= 0))


def _best_face(boxes: np.ndarray, faces: np.ndarray, offset: int) -> np.ndarray:
    """(K,) int: offset + the index of the first face of highest IoU, or −1 below `MATCH_IOU`."""
    best = np.full(len(boxes), -1)
    if not len(faces):
        return best
    step = max(1, _MOST_OVERLAPS // len(faces))
    for start in range(0, len(boxes), step):
        overlaps = _iou(boxes[start : start + step], faces)
        nearest = overlaps.argmax(axis=1)
        enough = overlaps[np.arange(len(nearest)), nearest] >= MATCH_IOU
        best[start : start + step] = np.where(enough, nearest + offset, -1)
    return best


def _iou(boxes: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(K, F) IoU of x, y, w, h boxes in the benchmark's convention: x2 = x + w, then sizes + 1.

    The order of the operations is that of the usual evaluator, so that ties and values next to 0.5
    fall the same way to the last bit.
    """
    low, high = boxes[:, None, :2], boxes[:, None, :2] + boxes[:, None, 2:]
    face_low, face_high = faces[None, :, :2], faces[None, :, :2] + faces[None, :, 2:]
    sides = np.minimum(high, face_high) - np.maximum(low, face_low) + 1  # (K, F, 2)
    np.maximum(sides, 0, out=sides)
    inside = sides[..., 0] * sides[..., 1]
    area, face_area = (high - low + 1).prod(axis=2), (face_high - face_low + 1).prod(axis=2)
    union = area + face_area - inside
    # boxes of negative size (the annotation has a few) overlap nothing, whatever their "union"
    return np.divide(inside, union, out=np.zeros_like(inside), where=inside > 0)
