"""Large faces of WIDER val photographs (a measurement, nothing is chosen by it): large.py NAME:FILE …

NAME alone is the default, which sees pictures over 640 px twice.

850: as cases/large_faces.py, 25 faces 850 px high with half a face around; fill: 40 faces that fill 1,024 px; cut: 40 portraits at 640 px whose
forehead and chin lie outside. Found: score > 0.5 (Detector's default), IoU > 0.5 with the visible box.
"""
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(os.environ.get("SHARED", "../shared")) / "cases"))

from featherface.detector import Detector  # noqa: E402

torch.set_num_threads(1)
W = Path(os.environ.get("SHARED", "../shared")) / "widerface"


def faces(smallest):
    lines = (W / "wider_face_split/wider_face_val_bbx_gt.txt").read_text().splitlines()
    i = 0
    while i < len(lines):
        name, n = lines[i].strip(), max(int(lines[i + 1]), 1)
        for row in lines[i + 2 : i + 2 + n]:
            x, y, w, h, *flags = map(int, row.split())
            if min(w, h) >= smallest and not any(flags[k] for k in (0, 3, 4, 5)):
                yield W / "WIDER_val/images" / name, np.array([x, y, x + w, y + h], float)
        i += 2 + n


def view(image, box, window, size):
    """Window (x1 y1 x2 y2) cut to the photograph, its height (or long side) `size` px; box in it, clipped."""
    h, w = image.shape[:2]
    x1, y1, x2, y2 = int(max(0, window[0])), int(max(0, window[1])), int(min(w, window[2])), int(min(h, window[3]))
    scale = size / max(x2 - x1, y2 - y1) if size > 0 else -size / (box[3] - box[1])
    part = cv2.resize(image[y1:y2, x1:x2], None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    b = (box - (x1, y1, x1, y1)) * scale
    return part, b.clip(0, np.tile(part.shape[1::-1], 2))


def pictures():
    good = list(faces(140))
    for path, b in good[:25]:
        w, h = b[2:] - b[:2]
        yield "850", *view(cv2.imread(str(path)), b, (b[0] - w / 2, b[1] - h / 2, b[2] + w / 2, b[3] + h / 2), -850)
    for path, b in good[:40]:
        w, h = b[2:] - b[:2]
        yield "fill", *view(cv2.imread(str(path)), b, (b[0] - 0.05 * w, b[1] - 0.05 * h, b[2] + 0.05 * w, b[3] + 0.05 * h), 1024)
        yield "cut", *view(cv2.imread(str(path)), b, (b[0] - 0.2 * w, b[1] + 0.15 * h, b[2] + 0.2 * w, b[3] - 0.1 * h), 640)


def iou(b, box):
    inside = np.clip(np.minimum(b[2:], box[2:]) - np.maximum(b[:2], box[:2]), 0, None).prod()
    return inside / ((b[2:] - b[:2]).prod() + (box[2:] - box[:2]).prod() - inside)


detectors = {}
for item in sys.argv[1:]:
    name, path = item.split(":", 1)
    detectors[name] = Detector(path)
    detectors[f"{name}, second_look=False"] = Detector(path, second_look=False)
    detectors[f"{name}, max_side=640"] = Detector(path, max_side=640)
found, total = {n: {} for n in detectors}, {}
for kind, image, box in pictures():
    total[kind] = total.get(kind, 0) + 1
    for n, d in detectors.items():
        found[n][kind] = found[n].get(kind, 0) + any(iou(b, box) > 0.5 for b in d.detect(image, bgr=True).boxes)
print(total)
for n in found:
    print(n, found[n])
