"""Training samples: photographs with their teacher's faces, and crops of them.

A face is a box, five points, a quality 0..1 (how sure the teacher is), or doubtful: neither positive nor negative.
"""
import json
import lzma  # noqa: F401
from pathlib import Path

import cv2
import numpy as np
from label import iou
from photos import HERE, SHARED, Cache, is_dev

SURE, DOUBT, FULL = 0.42, 0.15, 0.65  # teacher's scores: a face from SURE on, of quality 1 from FULL on
SMALLEST = 4.0  # pixels in the crop; smaller faces are doubtful
MEAN = (123, 117, 104)
SWAP = np.array([1, 0, 2, 4, 3])


def official():
    """{wider/event/name: (F, 5) x1 y1 x2 y2 invalid} of the 661 photographs."""
    lines = (SHARED / "widerface/wider_face_split/wider_face_train_bbx_gt.txt").read_text().splitlines()
    found, i = {}, 0
    while i < len(lines):
        name, count = lines[i].strip(), int(lines[i + 1])
        rows = np.array([list(map(float, r.split())) for r in lines[i + 2 : i + 2 + max(count, 1)]]).reshape(-1, 10)
        i += 2 + max(count, 1)
        found["wider/" + name] = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4], rows[:, 7:8]], 1)[: count]
    return found


def fuse(answers, truth):
    """Official boxes are the truth; points come from the answer that overlaps; further answers are doubtful."""
    rows, used = [], np.zeros(len(answers), bool)
    o = iou(truth[:, :4], answers[:, :4]) if len(truth) and len(answers) else np.zeros((len(truth), len(answers)))
    for k, t in enumerate(truth):
        near = o[k] >= 0.35
        used |= near
        row = np.full(15, np.nan)
        row[:4], row[4] = t[:4], 0.3 if t[4] or min(t[2:4] - t[:2]) < 2 else 1.0
        if near.any():
            row[5:] = answers[o[k].argmax(), 5:]
        rows.append(row)
    for a in answers[~used]:
        if a[4] >= 0.3:
            a = a.copy()
            a[4] = 0.3
            rows.append(a)
    return np.array(rows).reshape(-1, 15)


def faces_of(cache):
    """{key: (N, 15)} in the cache's pixels."""
    given = np.load(SHARED / "photos/labels/scrfd_2.5g.npz")
    rows = {k: given[k].astype(np.float32) for k in given.files if k in cache.index}
    truth = official()
    for part in ("rest", "faces", "wider", "crowds"):
        path = HERE / f"labels/{part}.npz"
        if path.exists():
            answers = np.load(path)
            for key in answers.files:
                rows[key] = fuse(answers[key], truth[key]) if part == "wider" else answers[key]
    out = {}
    for key, r in rows.items():
        if key in cache.index and not is_dev(key):
            r = r[(r[:, 4] >= DOUBT)].astype(np.float32).copy()
            scale = cache.index[key][3]
            r[:, :4] *= scale
            r[:, 5:] *= scale
            out[key] = r
    return out


class Samples:
    """Random crops of `size` pixels. A photograph's chance grows with the root of its faces."""

    def __init__(self, seed, mix=(0.44, 0.32, 0.24)):
        self.cache, self.rng, self.mix = Cache(), np.random.default_rng(seed), mix
        self.faces = faces_of(self.cache)
        self.keys = sorted(self.faces)
        count = np.array([(self.faces[k][:, 4] >= SURE).sum() for k in self.keys])
        source = [k.split("/")[0] for k in self.keys]
        bonus = np.array([{"wider": 5.0, "princenarula": 2.0, "ccp": 0.5}.get(s, 1.0) for s in source])
        weight = bonus * np.where(count == 0, 0.25, np.sqrt(np.clip(count, 1, 16)))
        self.chance = np.cumsum(weight / weight.sum())
        big = [(i, j) for i, k in enumerate(self.keys) for j in self.big(k)]
        self.close = np.array(big)
        self.share = {s: round(float(weight[[t == s for t in source]].sum() / weight.sum()), 3) for s in sorted(set(source))}

    def big(self, key):
        r = self.faces[key]
        side = np.sqrt(np.clip(r[:, 2] - r[:, 0], 0, None) * np.clip(r[:, 3] - r[:, 1], 0, None))
        return np.flatnonzero((side >= 56) & (r[:, 4] >= 0.6))

    def window(self, size):
        """Key and square (x, y, side) in pixels of the cached photograph."""
        rng, kind = self.rng, self.rng.random()
        if kind < self.mix[2]:
            i, j = self.close[rng.integers(len(self.close))]
            key = self.keys[i]
            x1, y1, x2, y2 = self.faces[key][j, :4]
            side = max(x2 - x1, y2 - y1) / rng.uniform(0.3, 1.3)
            cx, cy = (x1 + x2) / 2 + rng.normal(0, 0.12) * (x2 - x1), (y1 + y2) / 2 + rng.normal(0, 0.12) * (y2 - y1)
            return key, cx - side / 2, cy - side / 2, side
        key = self.keys[min(np.searchsorted(self.chance, rng.random()), len(self.keys) - 1)]
        _, h, w, _ = self.cache.index[key]
        if kind < self.mix[2] + self.mix[1]:  # as large as at long side 640, by 0.8 to 1.25
            side = size * max(h, w) / 640 * np.exp(rng.uniform(-0.3, 0.3))
        else:
            side = min(h, w) * rng.choice((0.3, 0.45, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0)) * np.exp(rng.uniform(-0.12, 0.12))
        sure = np.flatnonzero(self.faces[key][:, 4] >= SURE)
        if len(sure) and rng.random() < 0.85:  # a face lies inside
            x1, y1, x2, y2 = self.faces[key][rng.choice(sure), :4]
            x, y = (x1 + x2) / 2 - side * rng.uniform(0.05, 0.95), (y1 + y2) / 2 - side * rng.uniform(0.05, 0.95)
            x = self.inside(x, side, w)
            y = self.inside(y, side, h)
        else:
            x, y = rng.uniform(min(0, w - side), max(0, w - side)), rng.uniform(min(0, h - side), max(0, h - side))
        return key, x, y, side

    @staticmethod
    def inside(at, side, length):
        """Moved so that the window holds as much of the photograph as it can."""
        low, high = min(0, length - side), max(0, length - side)
        return min(max(at, low), high)

    def __call__(self, size):
        """(size, size, 3) uint8 RGB; (N, 15) faces in its pixels with quality at [4], 0 where doubtful."""
        rng = self.rng
        key, x, y, side = self.window(size)
        photo, _ = self.cache[key]
        h, w = photo.shape[:2]
        scale = size / side
        image = np.empty((size, size, 3), np.uint8)
        image[:] = MEAN
        x1, y1, x2, y2 = max(0, int(np.floor(x))), max(0, int(np.floor(y))), min(w, int(np.ceil(x + side))), min(h, int(np.ceil(y + side)))
        rows = self.faces[key].copy()
        if x2 - x1 > 1 and y2 - y1 > 1:
            px1, py1 = round((x1 - x) * scale), round((y1 - y) * scale)
            px2, py2 = round((x2 - x) * scale), round((y2 - y) * scale)
            method = cv2.INTER_AREA if scale < 0.8 else (cv2.INTER_LINEAR if rng.random() < 0.7 else cv2.INTER_CUBIC)
            part = cv2.resize(photo[y1:y2, x1:x2], (max(1, px2 - px1), max(1, py2 - py1)), interpolation=method)
            cx1, cy1, cx2, cy2 = max(0, px1), max(0, py1), min(size, px2), min(size, py2)
            image[cy1:cy2, cx1:cx2] = part[cy1 - py1 : cy2 - py1, cx1 - px1 : cx2 - px1]
        rows[:, :4] = (rows[:, :4] - (x, y, x, y)) * scale
        points = (rows[:, 5:].reshape(-1, 5, 2) - (x, y)) * scale
        if rng.random() < 0.5:
            image = np.ascontiguousarray(image[:, ::-1])
            rows[:, [0, 2]] = size - rows[:, [2, 0]]
            points = points[:, SWAP] * (-1, 1) + (size, 0)
        rows[:, 5:] = points.reshape(-1, 10)
        return self.colours(image), self.judge(rows, size)

    def judge(self, rows, size):
        area = np.prod(np.clip(rows[:, 2:4] - rows[:, :2], 1e-3, None), axis=1)
        clipped = rows[:, :4].clip(0, size)
        seen = np.prod(clipped[:, 2:] - clipped[:, :2], axis=1) / area
        rows[:, :4] = clipped
        keep = seen > 0.05
        rows, seen = rows[keep], seen[keep]
        small = np.sqrt(np.prod(rows[:, 2:4] - rows[:, :2], axis=1)) < SMALLEST
        sure = (rows[:, 4] >= SURE) & (seen >= 0.4) & ~small
        quality = np.clip(0.5 + 0.5 * (rows[:, 4] - SURE) / (FULL - SURE), 0.5, 1.0)
        rows[:, 4] = np.where(sure, quality, 0.0)
        return rows[np.argsort(-rows[:, 4], kind="stable")][:120]

    def colours(self, image):
        rng = self.rng
        if rng.random() < 0.7:
            gain = np.exp(rng.uniform(-0.35, 0.35) + rng.normal(0, 0.05, 3))
            shift = rng.uniform(-25, 25)
            gamma = np.exp(rng.uniform(-0.25, 0.25))
            ramp = 255 * (np.arange(256) / 255.0) ** gamma
            lut = np.stack([ramp * g + shift for g in gain], 1).clip(0, 255).astype(np.uint8)[None]
            image = cv2.LUT(image, lut)
        if rng.random() < 0.25:
            grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            image = cv2.addWeighted(image, a := rng.uniform(0, 1), grey, 1 - a, 0)
        return image


if __name__ == "__main__":
    import time

    s = Samples(0)
    print(len(s.keys), s.share, len(s.close))
    for size in (384, 640):
        t = time.time()
        got = [s(size) for _ in range(24)]
        print(size, (time.time() - t) / 24 * 1e3, "ms a crop", sum((r[:, 4] > 0).sum() for _, r in got) / 24, "faces")
        sheet = []
        for image, rows in got:
            image = image[:, :, ::-1].copy()
            for r in rows:
                cv2.rectangle(image, tuple(int(v) for v in r[:2]), tuple(int(v) for v in r[2:4]), (0, 255, 0) if r[4] else (0, 0, 255), 1)
                if r[4] and np.isfinite(r[5]):
                    for p in r[5:].reshape(5, 2):
                        cv2.circle(image, tuple(int(v) for v in p), 1, (255, 255, 0))
            sheet.append(cv2.resize(image, (320, 320), interpolation=cv2.INTER_AREA))
        cv2.imwrite(f"sheet{size}.jpg", np.concatenate([np.concatenate(sheet[i : i + 6], 1) for i in range(0, 24, 6)]))
