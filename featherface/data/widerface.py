"""WIDER FACE on disk: find and read a split in any known layout, verify it, download it."""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from featherface.data.annotations import Photo, first_names, holds_landmarks, read_annotations
from featherface.errors import DataError
from featherface.images import PHOTO_SUFFIXES, decode, files_below, open_photo

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "val", "test")
FULL_COUNTS = {"train": 12_880, "val": 3_226, "test": 16_097}
HOW_TO_GET = "get the data with: featherface data prepare --download --data"
WEBSITE = "http://shuoyang1213.me/WIDERFACE"


class SplitFiles(NamedTuple):
    """The paths of one split."""

    images: Path
    annotation: Path


def find_dataset(root: str | Path, split: str = "train", annotation: str | Path = "") -> SplitFiles:
    """Find the photos and the annotation of a split under `root`.

    Known layouts: `WIDER_<split>/images` + `wider_face_split/wider_face_<split>_bbx_gt.txt`;
    `<split>/images` + `<split>/label.txt`; `images` + `bbx_gt.txt` or `label.txt` (one set without
    splits, returned for any split). They may be mixed. An annotation with landmarks wins over
    others. `annotation` names a file to use instead. Raises DataError.
    """
    root = Path(root)
    if split not in SPLITS:
        raise DataError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    if annotation:
        return _files_of(Path(annotation), root, split)
    if not root.is_dir():
        raise DataError(f"data folder {root} does not exist or is a file; {HOW_TO_GET} {root}")
    images = next((folder for folder in _image_folders(root, split) if folder.is_dir()), None)
    if images is None:
        raise DataError(
            f"no {split} photos under {root}: expected WIDER_{split}/images, {split}/images or "
            f"images; {HOW_TO_GET} {root}"
        )
    official = f"wider_face_{split}_bbx_gt.txt"
    names = [f"wider_face_split/{official}", f"{split}/{official}", f"{split}/label.txt",
             f"WIDER_{split}/{official}", f"WIDER_{split}/label.txt"]  # fmt: skip
    if images == root / "images":  # a set without splits; else these could belong to another
        names = [*names, official, "bbx_gt.txt", "label.txt"]
    files = [root / name for name in names if (root / name).is_file()]
    if not files:
        raise DataError(
            f"photos are in {images}, but no {split} annotation under {root}: expected "
            + " or ".join(names)
        )
    return SplitFiles(images, next(filter(holds_landmarks, files), files[0]))


def _image_folders(root: Path, split: str) -> list[Path]:
    return [root / f"WIDER_{split}" / "images", root / split / "images", root / "images"]


def _files_of(annotation: Path, root: Path, split: str) -> SplitFiles:
    """A given annotation with the folder that holds one of its first photos."""
    splits = sorted(SPLITS, key=lambda name: name != split)  # the split first
    folders = [annotation.parent / "images", annotation.parent, root]
    for base in (root, annotation.parent.parent):
        folders += [folder for name in splits for folder in _image_folders(base, name)]
    names = first_names(annotation)
    for folder in folders:
        if any((folder / name).is_file() for name in names):
            return SplitFiles(folder, annotation)
    raise DataError(
        f"the photos that {annotation} names (first: {names[0] if names else 'none'}) are neither "
        f"in {annotation.parent}, its folder images nor {root}; {HOW_TO_GET} {root}"
    )


def read_split(
    root: str | Path, split: str = "train", annotation: str | Path = "", limit: int = 0
) -> list[Photo]:
    """The photos of a split under `root` (see find_dataset), the first `limit` of them if > 0."""
    files = find_dataset(root, split, annotation)
    photos = read_annotations(files.annotation, files.images)
    return photos[:limit] if limit > 0 else photos


def read_unlabelled(folders: str) -> list[Photo]:
    """Photos of comma-separated folders and their subfolders, sorted, without labels.

    Each is named "<folder>/<path in it>". "" gives no photo. Raises DataError for a folder that is
    missing, a file, or without photos. An EXIF orientation is not applied, as for labelled photos.
    """
    if not folders.strip():
        return []
    names = [name.strip() for name in folders.split(",")]
    if not all(names):
        raise DataError(f"--unlabelled {folders!r} has a comma without a folder: remove it")
    return [photo for name in names for photo in photos_in(name, "--unlabelled")]


def photos_in(folder: str | os.PathLike, flag: str) -> list[Photo]:
    """Photos of one folder and its subfolders, as in `read_unlabelled`. flag: named in errors."""
    folder = Path(folder).expanduser()  # the shell expands only the first of several
    if not folder.is_dir():
        raise DataError(
            f"{flag}: folder {folder} does not exist or is a file; correct the path or leave it out"
        )
    paths = files_below(folder, PHOTO_SUFFIXES)
    if not paths:
        raise DataError(
            f"{flag}: no photo in {folder} or below it ({' '.join(sorted(PHOTO_SUFFIXES))}); put "
            "some there or leave the folder out"
        )
    root = folder.resolve().name  # also where the folder is given as "."
    return [
        Photo.unlabelled(path, f"{root}/{path.relative_to(folder).as_posix()}") for path in paths
    ]


def fingerprint(photos: Sequence[Photo]) -> str:
    """SHA-256 over names and boxes, sorted by name: equal for the same data in any layout.

    An unlabelled photo differs from a labelled one without a face.
    """
    digest = hashlib.sha256()
    for photo in sorted(photos, key=lambda item: (item.name, not item.labelled)):
        digest.update(photo.name.encode())
        digest.update(np.ascontiguousarray(photo.boxes, "<f4").tobytes())
        if not photo.labelled:
            digest.update(b"\0unlabelled\0")  # no name holds a zero byte
            digest.update(np.ascontiguousarray(photo.focus, "<f4").tobytes())
    return digest.hexdigest()


class DataReport(NamedTuple):
    """The content of a data folder; without a problem it can be used."""

    table: "pd.DataFrame"  # one row per split that was found
    problems: list[str]  # one line each
    absent: list[str]  # one line for each split that was not found

    @property
    def is_full(self) -> bool:
        """True for the whole of WIDER FACE's splits, False for a subset or another set."""
        return not self.absent and bool((self.table["photos"] == self.table["in WIDER FACE"]).all())


def verify(
    root: str | Path,
    *,
    splits: Sequence[str] = ("train", "val"),
    deep: bool = False,
    progress: bool = True,
) -> DataReport:
    """Check every photo that the annotations under `root` name, and describe the data.

    By default a photo's header and end-of-image marker are checked; `deep` decodes every pixel.
    A set without splits is described once. Raises DataError if no split is found, and for a
    malformed annotation.
    """
    import pandas as pd

    found: dict[SplitFiles, str] = {}
    absent = []
    for split in splits:
        try:
            found.setdefault(find_dataset(root, split), split)
        except DataError as error:
            absent.append(str(error))
    if not found:
        raise DataError(absent[0])
    rows, problems = [], []
    for files, split in found.items():
        photos = read_annotations(files.annotation, files.images)
        bar = tqdm(photos, desc=f"check {split}", unit="photo", disable=not progress)
        unusable = [problem for photo in bar if (problem := _problem(photo, deep=deep))]
        if unusable:
            problems.append(f"{split}: {len(unusable):,} unusable photos, first: {unusable[0]}")
        rows.append({
            "split": split,
            "photos": len(photos),
            "in WIDER FACE": FULL_COUNTS[split],
            "unusable": len(unusable),
            "faces": sum(len(photo.boxes) for photo in photos),
            "with landmarks": sum(int(photo.landmark_mask.any(1).sum()) for photo in photos),
            "images": files.images.relative_to(root).as_posix(),
            "annotation": files.annotation.relative_to(root).as_posix(),
            "fingerprint": fingerprint(photos)[:12],
        })  # fmt: skip
    return DataReport(pd.DataFrame(rows), problems, absent)


def _problem(photo: Photo, *, deep: bool) -> str:
    try:
        file = open_photo(photo.path)
        if deep:
            decode(file)
    except DataError as error:
        return str(error)
    return ""


def download(root: str | Path, *, splits: Sequence[str] = ("train", "val")) -> None:
    """Download and unpack the photos of the splits and the annotations into `root`.

    Addresses and checksums are those of torchvision.datasets.WIDERFace. Folders that exist are
    kept; archives placed in `root` by hand are used. Raises DataError if a download fails.
    """
    from torchvision.datasets import utils
    from torchvision.datasets.widerface import WIDERFace

    root, from_drive = Path(root), utils.download_file_from_google_drive
    for file_id, checksum, name in WIDERFace.FILE_LIST:
        if name in {f"WIDER_{split}.zip" for split in splits}:
            _fetch(root, name, checksum, partial(from_drive, file_id))
    url, checksum, name = WIDERFace.ANNOTATIONS_FILE
    _fetch(root, name, checksum, partial(utils.download_url, url))


def _fetch(root: Path, name: str, checksum: str, get: Callable[[Path, str, str], None]) -> None:
    """Get an archive and unpack it. An interrupted run leaves no folder that looks complete."""
    from torchvision.datasets import utils

    folder, archive = root / Path(name).stem, root / name
    unpacked = folder.with_name(f".{folder.name}.partial")
    if folder.is_dir():
        return
    try:
        if not utils.check_integrity(archive, checksum):
            get(root, name, checksum)
        shutil.rmtree(unpacked, ignore_errors=True)
        utils.extract_archive(archive, unpacked)
        os.replace(unpacked / folder.name, folder)
        shutil.rmtree(unpacked)
    except Exception as error:  # gdown, urllib and zipfile each raise kinds of their own
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DataError(
            f"could not get {name}: {reason[:200]}; download it from {WEBSITE} into {root} by "
            "hand and run the same command again"
        ) from error
