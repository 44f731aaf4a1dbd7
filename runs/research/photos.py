"""The photographs: where they lie, which are the development set, and a uint8 cache of all in one file.

`python photos.py` writes cache.u8 and cache.json: RGB pixels, long side at most SIDE (WIDER: WIDER_SIDE).
"""
import os
import json
import mmap
import sys
from pathlib import Path

import cv2
import numpy as np

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("SHARED", "../shared"))
SIDE, WIDER_SIDE = 640, 1280
# whole scenes that nothing is trained on (nor were the shipped weights): two sports, a mask set, street crowds
DEV_SPORTS = ("basketball", "chess")
DEV_LISTS = ("k0ekje", "princenarula")


def all_photos():
    """{key: path}; keys are list/images/name as in labels/scrfd_2.5g.npz, wider/event/name, faces/…/name."""
    found = {}
    for folder in sorted((HERE / "photos").iterdir()):
        for path in sorted((folder / "images").iterdir()):
            if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
                found[f"{folder.name}/images/{path.name}"] = path
    for path in sorted((SHARED / "widerface/WIDER_train/images").glob("*/*.jpg")):
        found[f"wider/{path.parent.name}/{path.name}"] = path
    for part in ("labelled", "unlabelled"):
        for path in sorted((SHARED / "faces" / part / "images").iterdir()):
            found[f"faces/{part}/{path.name}"] = path
    return found


def is_dev(key):
    source, _, name = key.split("/", 2)
    return source in DEV_LISTS or (source == "sports" and name.split("__")[1] in DEV_SPORTS)


def read(path):
    """(h, w, 3) uint8 BGR or None; EXIF orientation is left alone, as the labels of shared/photos have it."""
    return cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)


class Cache:
    """Photographs by key from the one file, shared between processes by the page cache."""

    def __init__(self, folder=HERE):
        self.index = json.loads((folder / "cache.json").read_text())
        self.file = open(folder / "cache.u8", "rb")
        self.map = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)

    def __getitem__(self, key):
        """(h, w, 3) uint8 RGB, and the scale from the file's pixels to these."""
        offset, h, w, scale = self.index[key]
        return np.frombuffer(self.map, np.uint8, h * w * 3, offset).reshape(h, w, 3), scale


def main():
    cv2.setNumThreads(1)
    index, offset = {}, 0
    with open(HERE / "cache.u8", "wb") as out:
        for key, path in all_photos().items():
            if is_dev(key):
                continue
            image = read(path)
            if image is None:
                print("unreadable", key)
                continue
            h, w = image.shape[:2]
            side = WIDER_SIDE if key.startswith("wider") else SIDE
            scale = min(1.0, side / max(h, w))
            if scale < 1:
                image = cv2.resize(image, (max(1, round(w * scale)), max(1, round(h * scale))), interpolation=cv2.INTER_AREA)
            image = np.ascontiguousarray(image[:, :, ::-1])
            out.write(image.tobytes())
            index[key] = (offset, *image.shape[:2], scale)
            offset += image.size
    (HERE / "cache.json").write_text(json.dumps(index))
    print(len(index), "photos", offset / 1e9, "GB")


if __name__ == "__main__":
    main()
