"""Photos without labels, in folders or tables, from which V2 learns by its teacher alone."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import ExifTags, Image

from featherface.data.annotations import Photo
from featherface.errors import DataError

BOX = ["x1", "y1", "x2", "y2"]
AS_STORED = "kind"  # a column of tables whose boxes are in pixels of the photo as stored
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def read_unlabelled(places: str, detections: str = "") -> list[Photo]:
    """The photos in folders and tables (comma-separated), none of them labelled.

    Of a folder all photos, also below it, sorted, named "<folder>/<path in it>". A table (.csv)
    names photos and the faces or other places in them that their crops are to hold, as
    scripts/detect.py and scripts/find_disagreements.py write it; its relative paths are seen from
    the working folder. detections: such a table for the photos of the folders. Photos with an EXIF
    orientation go without the boxes of scripts/detect.py, which turns them first.

    Nothing at all ("") gives no photo. Raises DataError for a folder that is missing, a file, or
    without photos, and for a table that cannot be read or names no photo of the folders. Like
    labelled photos these are used as stored: an EXIF orientation is not applied.
    """
    if not places.strip():
        return []
    names = [name.strip() for name in places.split(",")]
    if not all(names):
        raise DataError(f"--unlabelled {places!r} has a comma with no folder beside it: remove it")
    tables = [name for name in names if name.lower().endswith(".csv")]
    wanted = "folders of photos, separated by commas,"
    photos = [
        photo
        for name in names
        if name not in tables
        for photo in photos_in(name, "--unlabelled", wanted=wanted)
    ]
    if detections:
        photos = _with_likely(photos, Path(detections).expanduser())
    return photos + [photo for name in tables for photo in _of_table(Path(name).expanduser())]


def _read_boxes(table: Path, flag: str) -> dict[Path, list[np.ndarray]]:
    """The boxes of each file that a table names, pixels of the file as stored.

    None where the table has them in the photo as shown, and it is shown turned.
    """
    try:
        rows = pd.read_csv(table)
        boxes = rows[BOX].to_numpy(np.float32)
        if not np.isfinite(boxes).all():
            raise ValueError("boxes with empty cells")
        files = [Path(file).resolve() for file in rows["file"]]
        as_stored = AS_STORED in rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it has no boxes of files"
        raise DataError(
            f"{flag}: {table} cannot be used ({reason}); give the detections.csv that "
            "scripts/detect.py wrote for the photos, or a table of scripts/find_disagreements.py"
        ) from error
    found: dict[Path, list[np.ndarray]] = {}
    for file, box in zip(files, boxes, strict=True):
        found.setdefault(file, []).append(box)
    return {
        file: [] if not as_stored and _is_turned(file) else boxes for file, boxes in found.items()
    }


def _with_likely(photos: list[Photo], table: Path) -> list[Photo]:
    """The photos with the boxes that the table has for their files."""
    flag = "--unlabelled-faces"
    found = _read_boxes(table, flag)
    likely = [found.get(photo.path.resolve(), []) for photo in photos]
    if not any(likely):
        raise DataError(f"{flag}: {table} names none of the unlabelled photos; detect faces in them"
                        " with scripts/detect.py")  # fmt: skip
    return [
        _likely(photo.path, photo.name, boxes) for photo, boxes in zip(photos, likely, strict=True)
    ]


def _of_table(table: Path) -> list[Photo]:
    """The photos that the table names, sorted."""
    found = _read_boxes(table, "--unlabelled")
    found = {path: boxes for path, boxes in found.items() if path.suffix.lower() in PHOTO_SUFFIXES}
    missing = [path for path in sorted(found) if not path.is_file()]
    if missing:
        raise DataError(
            f"--unlabelled: {len(missing)} photos that {table} names are not there, the first is "
            f"{missing[0]}; make the table anew"
        )
    if not found:
        raise DataError(f"--unlabelled: {table} names no photo; leave it out")
    try:
        root = os.path.commonpath([path.parent for path in found])  # the same where all is moved
    except ValueError:  # on several drives of Windows
        return [_likely(path, f"{table.stem}/{path}", found[path]) for path in sorted(found)]
    return [
        _likely(path, f"{table.stem}/{path.relative_to(root).as_posix()}", found[path])
        for path in sorted(found)
    ]


def _likely(path: Path, name: str, boxes: list[np.ndarray]) -> Photo:
    return Photo.unlabelled(path, name, np.reshape(boxes, (-1, 4)).astype(np.float32))


def _is_turned(path: Path) -> bool:
    """Whether the photo is shown turned or mirrored: detected so, but trained on as stored."""
    try:
        with Image.open(path) as photo:
            return photo.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except (OSError, ValueError, SyntaxError):
        return False  # the loader says what is wrong with it


def photos_in(
    folder: str | os.PathLike, flag: str, *, wanted: str = "a folder of photos"
) -> list[Photo]:
    """The photos in one folder and below it, as of `read_unlabelled`.

    flag: what its errors name. wanted: what to give instead of a folder that does not exist.
    """
    folder = Path(folder).expanduser()  # the shell expands only the first of several
    if folder.is_file():
        raise DataError(f"{flag}: {folder} is a file; give the folder that holds the photos")
    if not folder.is_dir():
        raise DataError(f"{flag}: folder {folder} does not exist; give {wanted} or leave it out")
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in PHOTO_SUFFIXES
        and not path.name.startswith(".")  # previews that other systems leave beside photos
        and path.is_file()
    ]
    if not paths:
        raise DataError(
            f"{flag}: no photo in {folder} or below it ({' '.join(PHOTO_SUFFIXES)}); put "
            "some there or leave the folder out"
        )
    root = folder.resolve().name  # also where the folder is given as "."
    return [
        Photo.unlabelled(path, f"{root}/{path.relative_to(folder).as_posix()}") for path in paths
    ]
