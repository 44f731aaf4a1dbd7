"""Tiny data sets on disk for the tests of reading, augmenting, loading and preparing."""

from pathlib import Path

import cv2
import numpy as np

from featherface.data.annotations import Photo

FACE_COLOUR = (30, 200, 60)  # RGB


def write_photo(
    path: Path, *, width: int = 96, height: int = 64, boxes: tuple = (), seed: int = 0
) -> None:
    """A dark, slightly varied picture; each box x1, y1, x2, y2 (whole pixels) filled with green."""
    image = np.random.default_rng(seed).integers(0, 25, (height, width, 3)).astype(np.uint8)
    for x1, y1, x2, y2 in boxes:
        image[y1:y2, x1:x2] = FACE_COLOUR[::-1]  # OpenCV writes BGR
    path.parent.mkdir(parents=True, exist_ok=True)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 98] if path.suffix == ".jpg" else []
    assert cv2.imwrite(str(path), image, quality)


def make_photo(
    path: Path, *, width: int = 96, height: int = 64, boxes: tuple = (), seed: int = 0
) -> Photo:
    """A written picture as a Photo, with landmarks at fixed places of each box."""
    write_photo(path, width=width, height=height, boxes=boxes, seed=seed)
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    places = np.array([(0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8)], np.float32)
    sizes = corners[:, 2:] - corners[:, :2]
    landmarks = corners[:, None, :2] + places * sizes[:, None]
    return Photo(path, path.name, corners, landmarks, np.ones((len(corners), 5), bool))


def official_text(photos: dict[str, list[tuple]]) -> str:
    """bbx_gt.txt: x y w h rows, attributes 0; a row of zeros where a photo has no face."""
    lines = []
    for name, rows in photos.items():
        lines += [name, str(len(rows))]
        lines += [" ".join(map(str, (*row, *[0] * (10 - len(row))))) for row in rows]
        if not rows:
            lines.append(" ".join("0" * 10))
    return "\n".join(lines) + "\n"


def landmark_text(photos: dict[str, list[tuple]], *, annotated: bool = True) -> str:
    """label.txt: each box with five landmarks on its diagonal, or with −1 for all of them."""
    lines = []
    for name, rows in photos.items():
        lines.append(f"# {name}")
        for x, y, w, h in rows:
            points = [(x + w * k / 6, y + h * k / 6, k % 2) for k in range(1, 6)]
            triples = points if annotated else [(-1, -1, -1)] * 5
            values = [x, y, w, h, *(f"{float(v):.3f}" for triple in triples for v in triple), 0.5]
            lines.append(" ".join(map(str, values)))
    return "\n".join(lines) + "\n"


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


PHOTOS = {
    "0--Parade/a.jpg": [(10, 20, 30, 24)],
    "1--Handshaking/b.jpg": [(1, 2, 8, 9), (40, 5, 20, 20)],
}


def official_set(root: Path, split: str = "train", photos: dict | None = None) -> Path:
    """WIDER_<split>/images and wider_face_split/…: WIDER FACE's own layout."""
    photos = PHOTOS if photos is None else photos
    for name in photos:
        write_photo(root / f"WIDER_{split}" / "images" / name)
    return write_text(
        root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt", official_text(photos)
    )


def retinaface_set(root: Path, split: str = "train", photos: dict | None = None) -> Path:
    """<split>/images and <split>/label.txt: RetinaFace's layout."""
    photos = PHOTOS if photos is None else photos
    for name in photos:
        write_photo(root / split / "images" / name)
    return write_text(root / split / "label.txt", landmark_text(photos))


def draw_squares(root: Path, *, train: int, val: int) -> Path:
    """Photos with one or two bright squares as faces, in the official layout: easy to learn."""
    (root / "wider_face_split").mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        folder = root / f"WIDER_{split}/images/0--Squares"
        folder.mkdir(parents=True)
        random, lines = np.random.default_rng(0), []
        for number in range(count):
            image = random.integers(0, 90, (120, 160, 3), np.uint8)
            boxes = [(20 + 4 * number, 30, 40, 48)] + [(100, 20, 24, 30)] * (number % 2)
            for x, y, w, h in boxes:
                image[y : y + h, x : x + w] = 220
                image[y + h // 3 : y + h // 3 + 6, x + 6 : x + w - 6] = 20
            cv2.imwrite(str(folder / f"{number}.jpg"), image)
            lines += [f"0--Squares/{number}.jpg", str(len(boxes))]
            lines += [f"{x} {y} {w} {h} 0 0 0 0 0 0" for x, y, w, h in boxes]
        annotation = root / f"wider_face_split/wider_face_{split}_bbx_gt.txt"
        annotation.write_text("\n".join(lines) + "\n")
    return root
