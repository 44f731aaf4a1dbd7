"""SCRFD-2.5G's answers once per photograph: label.py PART NICE_NAME → labels/PART.npz, (N, 15) float32 in file pixels.

Views at several long sides, each with its mirror image, merged by box voting (library's protocols.vote rule).
Parts: dev, wider, faces, rest, crowds. Written every 200 photos, continues where it stopped.
"""
import os
from pathlib import Path
import sys
import time

import cv2
import numpy as np

sys.path.insert(0, str(Path(os.environ.get("SHARED", "../shared")) / "peers"))
import detectors as D
from photos import HERE, SHARED, all_photos, is_dev, read

LOW = 0.15
SWAP = [1, 0, 2, 4, 3]
threads = int(os.environ.get("THREADS", "1"))


class SCRFD:
    def __init__(self):
        self.net = D.session(str(SHARED / "peers/scrfd_2.5g_kps_dyn.onnx"), threads)
        self.name = self.net.get_inputs()[0].name

    def __call__(self, image, side, mirror=True):
        """(N, 15) of all views at this long side, in pixels of image."""
        h, w = image.shape[:2]
        r = side / max(h, w)
        nh, nw = max(1, round(h * r)), max(1, round(w * r))
        small = cv2.resize(image, (nw, nh), interpolation=cv2.INTER_LINEAR if r > 0.5 else cv2.INTER_AREA)
        H, W = -(-nh // 32) * 32, -(-nw // 32) * 32
        views = [small, small[:, ::-1]] if mirror else [small]
        x = np.zeros((len(views), H, W, 3), np.float32)
        for k, view in enumerate(views):
            x[k, :nh, :nw] = view[:, :, ::-1]
        x = np.ascontiguousarray(((x - 127.5) / 128).transpose(0, 3, 1, 2))
        out = self.net.run(None, {self.name: x})
        found = []
        for k in range(len(views)):
            rows = []
            for level, st in enumerate((8, 16, 32)):
                score = out[level][k, :, 0]
                i = np.flatnonzero(score > LOW)
                cells = W // st
                c = np.stack([(i // 2) % cells, (i // 2) // cells], 1).astype(np.float32) * st
                d = out[3 + level][k][i] * st
                p = out[6 + level][k][i].reshape(-1, 5, 2) * st + c[:, None]
                rows.append(np.concatenate([c - d[:, :2], c + d[:, 2:], score[i, None], p.reshape(-1, 10)], 1))
            rows = np.concatenate(rows)
            rows = rows[D.nms(rows[:, :4], rows[:, 4], 0.4)]
            if k:
                x1 = nw - rows[:, 2].copy()
                rows[:, 2], rows[:, 0] = nw - rows[:, 0], x1
                p = rows[:, 5:].reshape(-1, 5, 2)[:, SWAP]
                p[..., 0] = nw - p[..., 0]
                rows[:, 5:] = p.reshape(-1, 10)
            rows[:, :4] /= r
            rows[:, 5:] /= r
            found.append(rows)
        return found


def iou(a, b):
    lo, hi = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:4], b[None, :, 2:4])
    inside = np.clip(hi - lo, 0, None).prod(2)
    area = lambda t: (t[:, 2] - t[:, 0]) * (t[:, 3] - t[:, 1])
    return inside / np.maximum(area(a)[:, None] + area(b)[None] - inside, 1e-9)


def vote(found, threshold=0.4):
    """Box voting; a face keeps the mean over views of its best scores' upper half: here the mean of best and mean."""
    views = np.concatenate([np.full(len(f), k) for k, f in enumerate(found)])
    rows = np.concatenate(found)
    order = np.argsort(-rows[:, 4], kind="stable")
    rows, views = rows[order], views[order]
    left, out = np.arange(len(rows)), []
    while len(left):
        together = iou(rows[left[:1]], rows[left])[0] >= threshold
        together[0] = True
        members = left[together]
        weight = rows[members, 4] / rows[members, 4].sum()
        row = weight @ rows[members]
        row[4] = rows[left[0], 4]
        out.append(row)
        left = left[~together]
    return np.array(out, np.float32).reshape(-1, 15)


def part_of(name):
    photos = all_photos()
    given = np.load(SHARED / "photos/labels/scrfd_2.5g.npz")
    have = set(given.files)
    if name == "dev":
        return {k: p for k, p in photos.items() if is_dev(k)}, given
    photos = {k: p for k, p in photos.items() if not is_dev(k)}
    if name in ("wider", "faces"):
        return {k: p for k, p in photos.items() if k.startswith(name + "/")}, given
    if name == "rest":
        order = {"sports": 0, "macwin": 1, "jolignier": 2, "ccp": 3}
        rest = [k for k in photos if k.split("/")[0] in order and k not in have]
        rest.sort(key=lambda k: order[k.split("/")[0]])
        ccp = [k for k in rest if k.startswith("ccp")][::3]
        return {k: photos[k] for k in [k for k in rest if not k.startswith("ccp")] + ccp}, given
    if name == "crowds":  # of those with answers at 640, the ones with many or small faces, most faces first
        count = {}
        for k in have & photos.keys():
            d = given[k].astype(np.float32)
            n = (d[:, 4] > 0.3).sum()
            if n >= 4:
                count[k] = n
        return {k: photos[k] for k in sorted(count, key=count.get, reverse=True)}, given
    raise SystemExit(name)


def main():
    cv2.setNumThreads(1)
    name = sys.argv[1]
    photos, given = part_of(name)
    (HERE / "labels").mkdir(exist_ok=True)
    path = HERE / "labels" / f"{name}.npz"
    done = dict(np.load(path)) if path.exists() else {}
    net, start, count = SCRFD(), time.time(), 0
    others = [D.make(n, (640, 640), threads) for n in ("yolov5n-0.5-face", "yunet_n_ort")] if name == "dev" else []
    for key, file in photos.items():
        if key in done:
            continue
        image = read(file)
        if image is None:
            continue
        long = max(image.shape[:2])
        if name == "dev":
            found = net(image, 640) + net(image, 1024) + (net(image, 1600) if long >= 1200 else [])
            done[key + "|others"] = np.concatenate([np.concatenate([b, s[:, None]], 1) for b, s in (o.detect(image, 0.3) for o in others)]).astype(np.float32)
        elif name == "crowds":
            first = given[key].astype(np.float32)
            found = [first[D.nms(first[:, :4], first[:, 4], 0.4)]] + net(image, 1024, mirror=False)
        else:
            found = net(image, 640, mirror=name != "rest")
            many = max((f[:, 4] > 0.4).sum() for f in found)
            if name == "wider" or many >= 5 or (many >= 1 and long > 900 and name != "rest"):
                found += net(image, 1024, mirror=False)
        done[key] = vote(found)
        count += 1
        if count % 200 == 0:
            np.savez(path, **done)
            print(name, count, len(photos), f"{(time.time() - start) / count * 1e3:.0f} ms/photo", flush=True)
    np.savez(path, **done)
    print(name, "done", count, time.time() - start, flush=True)


if __name__ == "__main__":
    main()
