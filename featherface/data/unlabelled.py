"""Photos without labels: folders of pictures, from which V2 learns by its teacher alone."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import ExifTags, Image

from featherface.data.annotations import Photo
from featherface.errors import DataError

BOX = ["x1", "y1", "x2", "y2"]
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def read_unlabelled(folders: str, detections: str = "") -> list[Photo]:
    """The photos in `folders` (comma-separated) and below them, sorted, none of them labelled.

    detections: a table of scripts/detect.py with the faces that they likely hold, its relative
    paths seen from the working folder; photos with an EXIF orientation go without. DataError where
    it cannot be read or names none of the photos.

    A photo's name is "<folder>/<path in it>". No folder at all ("") gives no photo; raises
    DataError for a folder that is missing, a file, or without photos. Like labelled photos these
    are used as stored: an EXIF orientation is not applied.
    """
    if not folders.strip():
        return []
    names = [name.strip() for name in folders.split(",")]
    if not all(names):
        raise DataError(f"--unlabelled {folders!r} has a comma with no folder beside it: remove it")
    wanted = "folders of photos, separated by commas,"
    photos = [photo for name in names for photo in photos_in(name, "--unlabelled", wanted=wanted)]
    return _with_likely(photos, Path(detections).expanduser()) if detections else photos


def _with_likely(photos: list[Photo], table: Path) -> list[Photo]:
    """The photos with the boxes that the table has for their files."""
    flag = "--unlabelled-faces"
    try:
        rows = pd.read_csv(table)
        boxes = rows[BOX].to_numpy(np.float32)
        if not np.isfinite(boxes).all():
            raise ValueError("boxes with empty cells")
        files = [Path(file).resolve() for file in rows["file"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it has no boxes of files"
        raise DataError(
            f"{flag}: {table} cannot be used ({reason}); give the detections.csv that "
            "scripts/detect.py wrote for the photos"
        ) from error
    found: dict[Path, list[np.ndarray]] = {}
    for file, box in zip(files, boxes, strict=True):
        found.setdefault(file, []).append(box)
    likely = [found.get(photo.path.resolve(), []) for photo in photos]
    likely = [
        [] if boxes and _is_turned(photo.path) else boxes
        for photo, boxes in zip(photos, likely, strict=True)
    ]
    if not any(likely):
        raise DataError(f"{flag}: {table} names none of the unlabelled photos; detect faces in them"
                        " with scripts/detect.py")  # fmt: skip
    return [
        Photo.unlabelled(photo.path, photo.name, np.reshape(boxes, (-1, 4)).astype(np.float32))
        for photo, boxes in zip(photos, likely, strict=True)
    ]


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
