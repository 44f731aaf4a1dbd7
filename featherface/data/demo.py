"""A synthetic face data set in the layout of WIDER FACE, so that everything runs without downloads.

`make_demo` draws photographs of people and writes both annotation formats: WIDER FACE's
(bbx_gt.txt) and RetinaFace's with five landmarks (label.txt). Use it to try and to test the
pipeline, not to train a detector for real photographs.

    python -m featherface.data.demo --data data/demo --train 400 --val 40 --seed 0
"""

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
from tqdm.auto import tqdm

from featherface.cli import parser, run
from featherface.data.demo_scene import Face, Photo, make_photo
from featherface.errors import DataError

VERSION = 3  # of the painter: a set of another version is replaced
MANIFEST = "demo.json"
SPLITS = ("train", "val")


def make_demo(
    root: str | os.PathLike,
    *,
    train: int = 400,
    val: int = 40,
    size: int = 640,
    seed: int = 0,
    force: bool = False,
    progress: bool = True,
) -> Path:
    """Draw the set into `root` and return it; a finished set with the same settings is kept.

    train, val: photographs of each split; size: about their long side, pixels. A photograph depends
    on seed, split, index and size only, so a smaller set is the beginning of a larger one. The
    folder appears when everything is done. A demo set made with other settings is replaced only
    with force=True. Raises DataError for that, for a folder that is no demo set (force does not
    help: nothing of yours is ever deleted), and for settings out of range.
    """
    root = Path(root)
    wanted = {"version": VERSION, "seed": seed, "train": train, "val": val, "size": size}
    for name in ("train", "val", "seed"):
        if wanted[name] < 0:
            raise DataError(f"demo set: {name} must be 0 or more; got {wanted[name]}")
    if not 96 <= size <= 2048:
        raise DataError(f"demo set: size must be in 96..2048 pixels; got {size}")
    if _is_ready(root, wanted, force):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as folder:
        work = Path(folder) / "new"
        for split, count in zip(SPLITS, (train, val), strict=True):
            _write_split(work, split, _photos(split, count, seed, size, progress))
        (work / MANIFEST).write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        if root.exists():
            os.rename(root, Path(folder) / "old")
        os.rename(work, root)
    return root


def _is_ready(root: Path, wanted: dict[str, int], force: bool) -> bool:
    """True if `root` holds the wanted set; DataError if it must not be replaced."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not set(wanted) <= set(found):
        raise DataError(f"{root} exists and is no demo set; choose another folder")
    if not force and found | {"version": VERSION} != wanted:
        settings = ", ".join(f"{name} {value}" for name, value in found.items())
        raise DataError(
            f"{root} holds a demo set with other settings ({settings}); pass force=True or "
            "--force to replace it, or choose another folder"
        )
    return found == wanted and not force


def _write_split(root: Path, split: str, photos: Iterator[Photo]) -> None:
    images, folder = root / f"WIDER_{split}" / "images", root / "wider_face_split"
    images.mkdir(parents=True)
    folder.mkdir(exist_ok=True)
    boxes, labels = [], []
    for index, photo in enumerate(photos):
        name = f"{photo.event}/{photo.event.replace('--', '_')}_demo_{index}.jpg"
        (images / photo.event).mkdir(exist_ok=True)
        (images / name).write_bytes(photo.jpeg)
        boxes += [name, *box_rows(photo.faces)]
        labels += [f"# {name}", *(label_row(face) for face in photo.faces)]
    written = {folder / f"wider_face_{split}_bbx_gt.txt": boxes}
    written[root / f"WIDER_{split}" / "label.txt"] = labels
    for path, lines in written.items():
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def box_rows(faces: list[Face]) -> list[str]:
    """Count and rows of one photograph in bbx_gt.txt; without a face, one row of zeros follows."""
    rows = [(*face.box, *face.attributes) for face in faces] or [(0,) * 10]
    return [str(len(faces)), *(" ".join(str(value) for value in row) for row in rows)]


def label_row(face: Face) -> str:
    """One row of label.txt: box, five x y flag (0.0 visible, 1.0 hidden, -1.0 none), clearness."""
    box = " ".join(str(value) for value in face.box)
    points = " ".join(["-1.0 -1.0 -1.0"] * 5)
    if face.landmarks is not None:
        points = " ".join(
            f"{x:.3f} {y:.3f} {float(hidden):.1f}"
            for (x, y), hidden in zip(face.landmarks, face.hidden, strict=True)
        )
    return f"{box} {points} {1 - 0.4 * face.attributes[0]:.2f}"


def _photos(split: str, count: int, seed: int, size: int, progress: bool) -> Iterator[Photo]:
    """The photographs of a split in order, drawn on all cores."""
    draw = partial(make_photo, seed=seed, split=SPLITS.index(split), size=size)
    pool = ThreadPoolExecutor(cv2.getNumberOfCPUs())  # OpenCV and NumPy release the GIL
    try:
        photos = pool.map(draw, range(count))
        yield from tqdm(photos, f"demo {split}", count, unit="photo", disable=not progress)
    finally:
        pool.shutdown(cancel_futures=True)


def main() -> None:
    options = parser("Draw a synthetic face data set in the layout of WIDER FACE.")
    options.add_argument("--data", default="data/demo", help="folder to make")
    options.add_argument("--train", type=int, default=400, help="photographs to train on")
    options.add_argument("--val", type=int, default=40, help="photographs to evaluate on")
    options.add_argument("--size", type=int, default=640, help="about the long side, pixels")
    options.add_argument("--seed", type=int, default=0, help="seed of everything random")
    options.add_argument("--force", action="store_true", help="replace another demo set")
    given = vars(options.parse_args())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave nothing half-written
    root = make_demo(given.pop("data"), **given)
    print(f"{root}: {given['train']} photographs to train on, {given['val']} to evaluate on")


if __name__ == "__main__":
    run(main)
