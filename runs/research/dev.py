"""The development set: dev.json (photographs, faces, doubtful faces) and how a detector does on it.

python dev.py make                        dev.json from labels/dev.npz
python dev.py measure NAME:WEIGHTS … [--every 2] [--peer retinaface_mb025_dyn …]
Faces: SCRFD-2.5G at 640 and 1,024 (1,600), mirrored too, voted, score ≥ 0.5. Doubtful, neither right nor wrong: 0.15 to
0.5, or found by YOLOv5n-0.5 or YuNet-n with ≥ 0.5 where there is no face. Sizes are heights at long side 640.
"""
import argparse
import json
import sys
import time

import cv2
import numpy as np
import torch
from label import iou
from photos import HERE, all_photos, is_dev, read


from featherface.evaluation.average_precision import evaluate  # noqa: E402
from featherface.evaluation.matching import match  # noqa: E402

RANGES = {"easy": (32, 1e9), "medium": (16, 1e9), "hard": (6, 1e9), "6-16": (6, 16), "16-32": (16, 32), "32-96": (32, 96), ">96": (96, 1e9)}
SIDE = 640


def make():
    answers = np.load(HERE / "labels/dev.npz")
    photos = {}
    for key in sorted(k for k in answers.files if not k.endswith("|others")):
        rows, others = answers[key], answers[key + "|others"]
        sure = rows[:, 4] >= 0.5
        faces = rows[sure]
        doubt = np.concatenate([rows[~sure, :4], others[others[:, 4] >= 0.5][:, :4]])
        if len(doubt) and len(faces):
            doubt = doubt[iou(doubt, faces).max(1) < 0.4]
        photos[key] = {"faces": faces[:, :4].round(1).tolist(), "points": faces[:, 5:].round(1).tolist(), "doubt": doubt.round(1).tolist()}
    (HERE / "dev.json").write_text(json.dumps(photos))
    print(len(photos), "photos", sum(len(p["faces"]) for p in photos.values()), "faces", sum(len(p["doubt"]) for p in photos.values()), "doubtful")


def truth(photos, sizes):
    boxes, kept = [], {n: [] for n in RANGES}
    for key, p in photos.items():
        scale = SIDE / max(sizes[key])
        b = np.array(p["faces"] + p["doubt"], np.float64).reshape(-1, 4)
        h = (b[:, 3] - b[:, 1]) * scale
        sure = np.arange(len(b)) < len(p["faces"])
        boxes.append(np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], 1))
        for n, (lo, hi) in RANGES.items():
            kept[n].append(sure & (h >= lo) & (h < hi))
    return boxes, {n: np.concatenate(k) for n, k in kept.items()}


def run(detect, photos):
    found, sizes, points = [], {}, []
    for key in photos:
        image = read(FILES[key])
        sizes[key] = image.shape[:2]
        b, s, p = detect(image)
        found.append(np.concatenate([b[:, :2], b[:, 2:] - b[:, :2], s[:, None]], 1).astype(np.float64).reshape(-1, 5))
        points.append((b, s, p))
    return found, sizes, points


def report(name, detect, photos):
    start = time.time()
    found, sizes, points = run(detect, photos)
    boxes, kept = truth(photos, sizes)
    matches = match(found, boxes)
    result = evaluate(matches, kept, len(photos))
    line = {n: round(100 * c.ap_exact, 2) for n, c in result.curves.items()}
    c = result.curves["hard"]
    at = (c.scores > 0.5).sum()
    tp = c.true[:at].sum()
    line.update({"P@.5": round(100 * tp / max(at, 1), 1), "R@.5": round(100 * tp / c.faces, 1)})
    e = result.curves["easy"]
    line["R@.5 easy"] = round(100 * e.true[: (e.scores > 0.5).sum()].sum() / e.faces, 1)
    distance = []
    for (key, p), (b, s, q) in zip(photos.items(), points):
        t = np.array(p["faces"]).reshape(-1, 4)
        if q is None or not len(t) or not len(b):
            continue
        o = iou(t, b)
        for i, j in enumerate(o.argmax(1)):
            if o[i, j] >= 0.5:
                size = np.sqrt((t[i, 2:] - t[i, :2]).prod())
                distance.append(np.linalg.norm(np.array(p["points"][i]).reshape(5, 2) - q[j], axis=1).mean() / size)
    if distance:
        line["points %"] = round(100 * float(np.median(distance)), 2)
    print(name, json.dumps(line), f"{time.time() - start:.0f} s", flush=True)
    return line


def ours(weights):
    from featherface.checkpoint import load_model
    from featherface.detector import Detector

    model = weights if isinstance(weights, torch.nn.Module) else load_model(weights)
    detector = Detector(model, score_threshold=0.02)

    def detect(image):
        h, w = image.shape[:2]
        r = SIDE / max(h, w)
        small = cv2.resize(image, (max(1, round(w * r)), max(1, round(h * r))), interpolation=cv2.INTER_AREA if r < 1 else cv2.INTER_LINEAR)
        d = detector.detect(small, bgr=True)
        s = np.array([w / small.shape[1], h / small.shape[0]])
        return d.boxes * np.tile(s, 2), d.scores, d.landmarks * s

    return detect


def peer(name):
    import detectors as D

    net = D.make(name, (640, 640), torch.get_num_threads())
    return lambda image: (*net.detect(image, 0.02), None)


def load(every=1):
    global FILES
    FILES = {k: p for k, p in all_photos().items() if is_dev(k)}
    photos = json.loads((HERE / "dev.json").read_text())
    return dict(list(photos.items())[::every])


def main():
    p = argparse.ArgumentParser()
    p.add_argument("what")
    p.add_argument("weights", nargs="*")
    p.add_argument("--every", type=int, default=1)
    p.add_argument("--peer", nargs="*", default=[])
    a = p.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if a.what == "make":
        return make()
    photos = load(a.every)
    for item in a.weights:
        name, path = item.split(":", 1)
        report(name, ours(path), photos)
    for name in a.peer:
        report(name, peer(name), photos)


if __name__ == "__main__":
    main()
