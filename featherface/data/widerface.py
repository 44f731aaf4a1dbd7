"""WIDER FACE on disk: find and read a split in any known layout, verify it, download it."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

from featherface.data.annotations import (
    Photo,
    annotation_kind,
    first_names,
    holds_landmarks,
    read_annotations,
)
from featherface.errors import DataError
from featherface.images import PHOTO_SUFFIXES, decode, open_photo

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "val", "test")
FULL_COUNTS = {"train": 12_880, "val": 3_226, "test": 16_097}
HOW_TO_GET = "get the data with: python scripts/prepare_data.py --download --data"
WEBSITE = "http://shuoyang1213.me/WIDERFACE"
LANDMARK_HELP = (
    "no landmarks here: training works without (the landmark loss is masked, or the teacher "
    "supplies them); for real ones get RetinaFace's annotation package, linked from "
    "https://github.com/deepinsight/insightface/tree/master/detection/retinaface, and put its "
    "train/label.txt under {root}/train/"
)


@dataclass(frozen=True)
class SplitFiles:
    """The paths of one split."""

    images: Path
    annotation: Path
    kind: str  # "official" or "landmarks": the format of the annotation


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
    if root.is_file():
        raise DataError(f"{root} is a file; give the folder of the data set")
    if not root.is_dir():
        raise DataError(f"data folder {root} does not exist; {HOW_TO_GET} {root}")
    images = next((folder for folder in _image_folders(root, split) if folder.is_dir()), None)
    if images is None:
        raise DataError(
            f"no {split} photos under {root}: expected WIDER_{split}/images, {split}/images or "
            f"images; {HOW_TO_GET} {root}"
        )
    files = [path for path in _annotation_files(root, split, images) if path.is_file()]
    if not files:
        expected = f"wider_face_split/wider_face_{split}_bbx_gt.txt or {split}/label.txt"
        if images == root / "images":
            expected = "bbx_gt.txt or label.txt next to images"
        raise DataError(
            f"photos are in {images}, but no {split} annotation under {root}: expected {expected}"
        )
    chosen = next((path for path in files if holds_landmarks(path)), files[0])
    return SplitFiles(images, chosen, annotation_kind(chosen))


def _image_folders(root: Path, split: str) -> list[Path]:
    return [root / f"WIDER_{split}" / "images", root / split / "images", root / "images"]


def _annotation_files(root: Path, split: str, images: Path) -> list[Path]:
    official = f"wider_face_{split}_bbx_gt.txt"
    folders = {
        root / "wider_face_split": (official,),
        root / split: (official, "label.txt"),
        root / f"WIDER_{split}": (official, "label.txt"),
    }
    if images == root / "images":  # a set without splits; else its files could belong to another
        folders[root] = (official, "bbx_gt.txt", "label.txt")
    return [folder / name for folder, names in folders.items() for name in names]


def _files_of(annotation: Path, root: Path, split: str) -> SplitFiles:
    """A given annotation with the folder that holds one of its first photos."""
    splits = sorted(SPLITS, key=lambda name: name != split)  # the split first
    folders = [annotation.parent / "images"]
    for base in (root, annotation.parent.parent):
        folders += [folder for name in splits for folder in _image_folders(base, name)]
    kind = annotation_kind(annotation)
    names = first_names(annotation, kind)
    for folder in folders:
        if any((folder / name).is_file() for name in names):
            return SplitFiles(folder, annotation, kind)
    raise DataError(
        f"the photos that {annotation} names (first: {names[0] if names else 'none'}) are neither "
        f"in {annotation.parent / 'images'} nor under {root}; {HOW_TO_GET} {root}"
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
    if folder.is_file():
        raise DataError(f"{flag}: {folder} is a file; give the folder that holds the photos")
    if not folder.is_dir():
        raise DataError(f"{flag}: folder {folder} does not exist; check the path or leave it out")
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in PHOTO_SUFFIXES
        and not path.name.startswith(".")  # previews that other systems leave next to photos
        and path.is_file()
    ]
    if not paths:
        suffixes = " ".join(sorted(PHOTO_SUFFIXES))
        raise DataError(
            f"{flag}: no photo in {folder} or below it ({suffixes}); put some there or leave the "
            "folder out"
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


@dataclass(frozen=True)
class SplitReport:
    """The content of one split."""

    split: str
    files: SplitFiles
    photos: int
    faces: int
    faces_with_landmarks: int
    missing: tuple[str, ...]  # names of photos that do not exist
    unreadable: tuple[str, ...]  # one line each: which photo and why
    fingerprint: str  # SHA-256 of the sorted names and boxes

    @property
    def is_full(self) -> bool:
        """True for WIDER FACE's whole split, False for a subset or another set."""
        return self.photos == FULL_COUNTS[self.split]

    @property
    def problems(self) -> list[str]:
        """One phrase for each thing that makes the split unusable."""
        found = [] if self.photos else [f"{self.split}: the annotation names no photo"]
        if self.missing:
            example = self.files.images / self.missing[0]
            found.append(f"{self.split}: {len(self.missing):,} photos missing, first {example}")
        if self.unreadable:
            count = len(self.unreadable)
            found.append(f"{self.split}: {count:,} photos unreadable, first: {self.unreadable[0]}")
        return found

    def __str__(self) -> str:
        share = "complete" if self.is_full else "a subset or another set"
        return (
            f"{self.split}: {self.photos:,} of {FULL_COUNTS[self.split]:,} photos ({share}), "
            f"{self.faces:,} faces, {self.faces_with_landmarks:,} with landmarks\n"
            f"  photos      {self.files.images}\n"
            f"  annotation  {self.files.annotation} ({self.files.kind} format)\n"
            f"  fingerprint {self.fingerprint}"
        )


@dataclass(frozen=True)
class DataReport:
    """The state of a data folder; `str(report)` is for people, `to_dataframe` for notebooks."""

    root: Path
    splits: tuple[SplitReport, ...]
    absent: tuple[str, ...]  # one line for each split that was not found

    @property
    def problems(self) -> list[str]:
        found = [problem for split in self.splits for problem in split.problems]
        return found if self.splits else [*found, *self.absent]

    @property
    def ready(self) -> bool:
        """True if a split was found and all photos of the found ones are usable."""
        return not self.problems

    @property
    def verdict(self) -> str:
        """One line: `ready: …` or `not ready: …`."""
        if self.problems:
            return f"not ready: {'; '.join(self.problems)}"
        parts = [
            f"{item.split} {item.photos:,} photos, {item.faces:,} faces" for item in self.splits
        ]
        whole = all(item.is_full for item in self.splits) and not self.absent
        extent = "all of WIDER FACE train and val" if whole else "a subset or another set"
        return f"ready: {'; '.join(parts)} ({extent})"

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per split."""
        import pandas as pd

        rows = [
            {
                "split": item.split,
                "photos": item.photos,
                "of": FULL_COUNTS[item.split],
                "faces": item.faces,
                "with landmarks": item.faces_with_landmarks,
                "annotation": item.files.kind,
                "missing": len(item.missing),
                "unreadable": len(item.unreadable),
                "fingerprint": item.fingerprint[:12],
            }
            for item in self.splits
        ]
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        lines = [f"data folder {self.root}", *map(str, self.splits)]
        lines += [f"not found: {line}" for line in self.absent]
        if self.splits and not any(item.faces_with_landmarks for item in self.splits):
            lines.append(LANDMARK_HELP.format(root=self.root))
        return "\n".join([*lines, self.verdict])


def verify(
    root: str | Path,
    *,
    splits: Sequence[str] = ("train", "val"),
    deep: bool = False,
    progress: bool = True,
) -> DataReport:
    """Check every photo that the annotations under `root` name, and describe the data.

    By default a photo's header and end-of-image marker are checked; `deep` decodes every pixel.
    A missing split is reported as absent. Raises DataError for a malformed annotation.
    """
    root = Path(root)
    reports: list[SplitReport] = []
    absent: dict[str, None] = {}  # ordered, without repeats
    for split in splits:
        try:
            files = find_dataset(root, split)
        except DataError as error:
            absent[str(error)] = None
            continue
        if all(item.files != files for item in reports):  # a set without splits is found twice
            reports.append(_verify_split(split, files, deep=deep, progress=progress))
    return DataReport(root, tuple(reports), tuple(absent))


def _verify_split(split: str, files: SplitFiles, *, deep: bool, progress: bool) -> SplitReport:
    photos = read_annotations(files.annotation, files.images)
    missing, unreadable = [], []
    for photo in tqdm(photos, desc=f"check {split}", unit="photo", disable=not progress):
        if not photo.path.is_file():
            missing.append(photo.name)
            continue
        try:
            file = open_photo(photo.path)
            if deep:
                decode(file)
        except DataError as error:
            unreadable.append(str(error))
    return SplitReport(
        split=split,
        files=files,
        photos=len(photos),
        faces=sum(len(photo.boxes) for photo in photos),
        faces_with_landmarks=sum(int(photo.landmark_mask.any(1).sum()) for photo in photos),
        missing=tuple(missing),
        unreadable=tuple(unreadable),
        fingerprint=fingerprint(photos),
    )


def download(root: str | Path, *, splits: Sequence[str] = ("train", "val")) -> None:
    """Download and unpack the photos of the splits and the annotations into `root`.

    Addresses and checksums are those of torchvision.datasets.WIDERFace. Folders that exist are
    kept; archives placed in `root` by hand are used. Raises DataError if a download fails.
    """
    from torchvision.datasets.widerface import WIDERFace

    root = Path(root)
    for file_id, checksum, name in WIDERFace.FILE_LIST:
        if name in {f"WIDER_{split}.zip" for split in splits}:
            _fetch(root, name, checksum, drive_id=file_id)
    url, checksum, name = WIDERFace.ANNOTATIONS_FILE
    _fetch(root, name, checksum, url=url)


def _fetch(root: Path, name: str, checksum: str, *, drive_id: str = "", url: str = "") -> None:
    from torchvision.datasets import utils

    folder, archive = root / Path(name).stem, root / name
    if folder.is_dir():
        return
    try:
        if not utils.check_integrity(archive, checksum):
            if drive_id:
                utils.download_file_from_google_drive(drive_id, root, name, checksum)
            else:
                utils.download_url(url, root, name, checksum)
        _unpack(archive, folder)
    except Exception as error:  # gdown, urllib and zipfile each raise kinds of their own
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DataError(
            f"could not get {name}: {reason[:200]}; download it from {WEBSITE} into {root} by "
            "hand and run the same command again"
        ) from error


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack elsewhere and rename: an interrupted run leaves no folder that looks complete."""
    from torchvision.datasets.utils import extract_archive

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    extract_archive(archive, partial)
    os.replace(partial / folder.name, folder)
    shutil.rmtree(partial, ignore_errors=True)
