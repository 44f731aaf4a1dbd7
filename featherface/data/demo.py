"""A synthetic face data set in the layout of WIDER FACE, so that everything runs without downloads.

`make_demo` renders people with shaded heads, in places full of face-like things, and writes both
annotation formats: WIDER FACE's (bbx_gt.txt) and RetinaFace's with five landmarks (label.txt). It
is for trying and testing the pipeline, not for training a detector that is to be used.

    python -m featherface.data.demo --data data/demo --train 400 --val 40 --seed 0
"""

import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
from tqdm.auto import tqdm

from featherface.cli import parser, run
from featherface.data.demo_scene import Face, Photo, make_photo
from featherface.errors import DataError

VERSION = 1  # of the renderer: a set of another version is made anew
MANIFEST = "demo.json"
SPLITS = ("train", "val")
EVENTS = {
    "portrait": "0--Portrait",
    "group": "1--Group",
    "street": "2--Street",
    "crowd": "3--Crowd",
    "empty": "4--Places",
}
POOL_FROM = 24  # fewer photographs are quicker without starting processes


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
    """Render the set into `root` and return it; a finished set with the same settings is kept.

    train, val: photographs of each split; size: about their long side, pixels. A photograph depends
    on seed, split, index and size only, so a smaller set is the beginning of a larger one. The
    folder appears when everything is done. A demo set made with other settings is replaced only
    with force=True. Raises DataError for that, for a folder that is no demo set (force does not
    help: nothing of yours is ever deleted), and for settings out of range.
    """
    root = Path(root)
    wanted = {"version": VERSION, "seed": seed, "train": train, "val": val, "size": size}
    _check_settings(wanted)
    if _is_ready(root, wanted, force):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        with _interrupted_by_sigterm():
            for split, count in zip(SPLITS, (train, val), strict=True):
                _write_split(work, split, count, seed=seed, size=size, progress=progress)
        (work / MANIFEST).write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        os.chmod(work, 0o755)  # mkdtemp makes folders that only their owner can enter
        _put_in_place(work, root)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return root


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM as Ctrl-C, so that the unfinished folder goes then too (in the main thread)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_settings(wanted: dict[str, int]) -> None:
    for name in ("train", "val", "seed"):
        if wanted[name] < 0:
            raise DataError(f"demo set: {name} must be 0 or more; got {wanted[name]}")
    if not 96 <= wanted["size"] <= 2048:
        raise DataError(f"demo set: size must lie in 96..2048 pixels; got {wanted['size']}")


def _is_ready(root: Path, wanted: dict[str, int], force: bool) -> bool:
    """Whether `root` holds the wanted set already; DataError where it must not be replaced."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    found = _read_manifest(root)
    if found is None:
        raise DataError(f"{root} exists and is no demo set; choose another folder")
    if found == wanted and not force:
        return True
    if not force:
        raise DataError(
            f"{root} holds a demo set with other settings ({_listed(found)}); pass force=True or "
            "--force to replace it, or choose another folder"
        )
    return False


def _read_manifest(root: Path) -> dict[str, Any] | None:
    """The settings of the demo set in `root`, None where there is none."""
    try:
        found = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    keys = {"version", "seed", "train", "val", "size"}
    return found if isinstance(found, dict) and keys <= set(found) else None


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _put_in_place(work: Path, root: Path) -> None:
    """Rename the finished folder to `root`; an older set goes only after that worked."""
    if not root.exists():
        os.rename(work, root)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{root.name}.old.", dir=root.parent))
    os.rename(root, old / "set")
    try:
        os.rename(work, root)
    except BaseException:
        os.rename(old / "set", root)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _write_split(
    root: Path, split: str, count: int, *, seed: int, size: int, progress: bool
) -> None:
    images = root / f"WIDER_{split}" / "images"
    images.mkdir(parents=True)
    boxes, labels = [], []
    for index, photo in enumerate(_photos(split, count, seed=seed, size=size, progress=progress)):
        event = EVENTS[photo.kind]
        name = f"{event}/{event.replace('--', '_')}_demo_{index}.jpg"
        (images / event).mkdir(exist_ok=True)
        (images / name).write_bytes(photo.jpeg)
        boxes += [name, *box_rows(photo.faces)]
        labels += [f"# {name}", *(label_row(face) for face in photo.faces)]
    folder = root / "wider_face_split"
    folder.mkdir(exist_ok=True)
    _write_lines(folder / f"wider_face_{split}_bbx_gt.txt", boxes)
    _write_lines(root / f"WIDER_{split}" / "label.txt", labels)


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def box_rows(faces: list[Face]) -> list[str]:
    """Count and rows of one photograph in bbx_gt.txt; without a face, one row of zeros follows."""
    rows = [
        " ".join(
            str(value)
            for value in (
                *face.box,
                face.blur,
                face.expression,
                face.illumination,
                0,  # invalid: never
                face.occlusion,
                face.pose,
            )
        )
        for face in faces
    ]
    return [str(len(rows)), *(rows or ["0 0 0 0 0 0 0 0 0 0"])]


def label_row(face: Face) -> str:
    """One row of label.txt: box, five x y flag (0.0 visible, 1.0 hidden, -1.0 none), clearness."""
    box = " ".join(str(value) for value in face.box)
    if face.landmarks is None:
        points = " ".join(["-1.0 -1.0 -1.0"] * 5)
    else:
        points = " ".join(
            f"{x:.3f} {y:.3f} {float(hidden):.1f}"
            for (x, y), hidden in zip(face.landmarks, face.hidden, strict=True)
        )
    return f"{box} {points} {1 - 0.4 * face.blur:.2f}"


def _photos(split: str, count: int, *, seed: int, size: int, progress: bool) -> Iterator[Photo]:
    """The photographs of a split in order, rendered on all cores where there are many."""
    draw = partial(_draw, seed=seed, split=SPLITS.index(split), size=size)
    bar = tqdm(total=count, desc=f"demo {split}", unit="photo", disable=not progress)
    done = 0
    with bar:
        workers = min(_cores(), count)
        if workers > 1 and count >= POOL_FROM:
            try:
                for photo in _in_processes(draw, count, workers):
                    done += 1
                    bar.update()
                    yield photo
            except BrokenProcessPool:  # a script without a main guard, or no memory: go on alone
                pass
        for index in range(done, count):
            photo = draw(index)
            bar.update()
            yield photo


def _in_processes(draw: partial, count: int, workers: int) -> Iterator[Photo]:
    # spawn: forking a process in which torch has started threads can hang
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        yield from pool.map(draw, range(count))
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asked
    cv2.setNumThreads(1)


def _draw(index: int, *, seed: int, split: int, size: int) -> Photo:
    return make_photo(seed=seed, split=split, index=index, size=size)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main() -> None:
    options = parser("Render a synthetic face data set in the layout of WIDER FACE.")
    options.add_argument("--data", default="data/demo", help="folder to make")
    options.add_argument("--train", type=int, default=400, help="photographs to train on")
    options.add_argument("--val", type=int, default=40, help="photographs to evaluate on")
    options.add_argument("--size", type=int, default=640, help="about the long side, pixels")
    options.add_argument("--seed", type=int, default=0, help="seed of everything random")
    options.add_argument("--force", action="store_true", help="replace another demo set")
    given = options.parse_args()
    root = make_demo(
        given.data,
        train=given.train,
        val=given.val,
        size=given.size,
        seed=given.seed,
        force=given.force,
    )
    print(f"{root}: {given.train} photographs to train on, {given.val} to evaluate on")


if __name__ == "__main__":
    run(main)
