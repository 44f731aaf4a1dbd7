"""WIDER FACE on disk: where the photos and the annotation of a split lie, in any known layout."""

from dataclasses import dataclass
from pathlib import Path

from featherface.data.annotations import (
    Photo,
    annotation_kind,
    first_names,
    holds_landmarks,
    read_annotations,
)
from featherface.errors import DataError

__all__ = ["Photo", "Source", "find_dataset", "read_annotations", "read_split"]

SPLITS = ("train", "val", "test")
HOW_TO_GET = "get the data with: python scripts/prepare_data.py --download --data"


@dataclass(frozen=True)
class Source:
    """Where one split lies."""

    images: Path
    annotation: Path
    kind: str  # "official" or "landmarks": the format of the annotation


def find_dataset(root: str | Path, split: str = "train", annotation: str | Path = "") -> Source:
    """Find the photos and the annotation of a split under `root`.

    Known layouts: `WIDER_<split>/images` + `wider_face_split/wider_face_<split>_bbx_gt.txt`;
    `<split>/images` + `<split>/label.txt`; `images` + `bbx_gt.txt` or `label.txt` (one set without
    splits, given for any split). They may be mixed. Of several annotations the one that holds
    landmarks is taken. `annotation` names a file to use instead. Raises DataError.
    """
    root = Path(root)
    if split not in SPLITS:
        raise DataError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    if annotation:
        return _source_of(Path(annotation), root, split)
    if root.is_file():
        raise DataError(f"{root} is a file; give the folder of the data set")
    if not root.is_dir():
        raise DataError(f"data folder {root} does not exist; {HOW_TO_GET} {root}")
    images = next((folder for folder in _image_folders(root, split) if folder.is_dir()), None)
    if images is None:
        raise DataError(
            f"no {split} photos under {root}: none of WIDER_{split}/images, {split}/images, "
            f"images is there; {HOW_TO_GET} {root}"
        )
    files = [path for path in _annotation_files(root, split, images) if path.is_file()]
    if not files:
        raise DataError(
            f"photos are in {images}, but no {split} annotation under {root}: expected "
            + (
                "bbx_gt.txt or label.txt beside the folder images"
                if images == root / "images"
                else f"wider_face_split/wider_face_{split}_bbx_gt.txt or {split}/label.txt"
            )
        )
    chosen = next((path for path in files if holds_landmarks(path)), files[0])
    return Source(images, chosen, annotation_kind(chosen))


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


def _source_of(annotation: Path, root: Path, split: str) -> Source:
    """The photos that belong to a given annotation: the folder that holds one it names first."""
    kind = annotation_kind(annotation)
    others = [name for name in SPLITS if name != split]
    folders = [annotation.parent / "images", *_image_folders(root, split)]
    folders += [path for name in others for path in _image_folders(root, name)]
    folders += [
        path for name in (split, *others) for path in _image_folders(annotation.parent.parent, name)
    ]
    names = first_names(annotation, kind)
    for folder in folders:
        if any((folder / name).is_file() for name in names):
            return Source(folder, annotation, kind)
    raise DataError(
        f"the photos that {annotation} names (first: {names[0] if names else 'none'}) are neither "
        f"in {annotation.parent / 'images'} nor under {root}; {HOW_TO_GET} {root}"
    )


def read_split(
    root: str | Path, split: str = "train", annotation: str | Path = "", limit: int = 0
) -> list[Photo]:
    """The photos of a split under `root` (see find_dataset), the first `limit` of them if > 0."""
    source = find_dataset(root, split, annotation)
    photos = read_annotations(source.annotation, source.images)
    return photos[:limit] if limit > 0 else photos
