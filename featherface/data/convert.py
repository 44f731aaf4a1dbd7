"""Annotations of other tools, converted to a data folder that training and evaluation read.

YOLO: a text file per photo with rows `class cx cy w h` in shares of the photo's sides, in YOLO-face
also five landmarks `x y` or `x y visibility`. COCO: one JSON file with boxes and keypoints in
pixels. Pascal VOC: an XML file per photo with boxes. The result holds the photos in images/ and
label.txt, in RetinaFace's format with landmarks (see annotations.py).
"""

import json
import math
import os
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from featherface.cli import flag, parser, run
from featherface.data.annotations import Photo, check_name, write_annotations
from featherface.errors import DataError
from featherface.files import check_writable
from featherface.images import PHOTO_SUFFIXES, exif_orientation, files_below, open_photo

NO_POINTS = np.zeros((5, 3))
CLASS_FILES = ("data.yaml", "classes.txt", "obj.names", "_darknet.labels")
SLACK = 1.5  # pixels: tools disagree by one on where a box begins, and round


class Row(NamedTuple):
    """One annotated object, in pixels of the photo; in YOLO, in shares of its sides."""

    where: str  # file and line, for errors
    label: str  # its class
    box: np.ndarray  # (4,) x1, y1, x2, y2
    points: np.ndarray = NO_POINTS  # (5, 3) x, y, visibility; 0: not annotated
    ignore: bool = False  # a detection of it is neither right nor wrong


class Entry(NamedTuple):
    """One annotated photo. `size`: width and height as annotated; None: rows are shares."""

    path: Path
    name: str
    size: tuple[int, int] | None
    rows: list[Row]


class Conversion(NamedTuple):
    """The photos written and how often something happened, by its name."""

    photos: list[Photo]
    counts: Counter


def convert(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    images: str | os.PathLike = "",
    form: str = "",
    label: str = "",
    link: bool = False,
    drop_bad: bool = False,
    progress: bool = True,
) -> Conversion:
    """Write the photos and annotation of another tool as a data folder of this project.

    source: a COCO file, or a folder with YOLO's text files or Pascal VOC's XML files. out: a new
    folder; it appears when everything is done. images: the folder of the photos, if they are not
    where the format has them. form: "yolo", "coco" or "voc"; "": by the source. label: the class of
    the faces; "": the only one. link: link to the photos instead of copying them. drop_bad: leave
    out boxes that are empty or outside their photo, instead of an error; boxes that reach outside
    are clipped. Objects of COCO's `iscrowd` and VOC's `difficult` are ignored in training.

    A photo with an EXIF orientation is written upright, as the tools show it, unless the annotation
    has its size as stored. Raises DataError with the file and line of what cannot be used.
    """
    source, out = Path(source), Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out} exists and is not empty: choose another folder")
    check_writable(out.parent)
    entries = read_entries(source, images=images, form=form)
    label = _class_of(entries, label, source)
    counts: Counter = Counter()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        work = Path(folder) / "new"
        photos = []
        for entry in tqdm(entries, "convert", unit="photo", disable=not progress):
            size = _write_photo(entry, work / "images" / entry.name, link=link)
            photo = _photo(entry, size, label, drop_bad, counts)
            photos.append(replace(photo, path=out / "images" / entry.name))
        if not any(len(photo.boxes) for photo in photos):
            raise DataError(f"{source}: no face is left to train on")
        write_annotations(work / "label.txt", photos)
        if out.exists():
            out.rmdir()
        os.rename(work, out)
    return Conversion(photos, counts)


def read_entries(source: Path, *, images: str | os.PathLike = "", form: str = "") -> list[Entry]:
    """Read every photo of a COCO file, or of a folder of YOLO or Pascal VOC, with its objects.

    The arguments are those of `convert`. Raises DataError if there is none.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist")
    if images and not Path(images).is_dir():
        raise DataError(f"folder of photos {images} does not exist or is a file")
    form = form or _form_of(source)
    if (form == "coco") != source.is_file():
        raise DataError(f"{source}: {form} needs a {'file' if form == 'coco' else 'folder'}")
    entries = list(READERS[form](source, Path(images) if images else None))
    if not entries:
        raise DataError(f"{source}: no photo is annotated")
    name, times = Counter(entry.name for entry in entries).most_common(1)[0]
    if times > 1:
        raise DataError(f"{source}: {times} annotations are for the photo {name}")
    return entries


def _form_of(source: Path) -> str:
    if source.is_file():
        if source.suffix.lower() == ".json":
            return "coco"
        raise DataError(f"{source}: give a COCO file (.json), or a folder of YOLO or Pascal VOC")
    found = [form for form, suffix in (("yolo", ".txt"), ("voc", ".xml"))
             if files_below(source, (suffix,))]  # fmt: skip
    if len(found) != 1:
        what = "both .txt and .xml files" if found else "neither .txt nor .xml files"
        raise DataError(f"{source} holds {what}: give the format (yolo, voc) or another folder")
    return found[0]


def _class_of(entries: Iterable[Entry], label: str, source: Path) -> str:
    names = sorted({row.label for entry in entries for row in entry.rows})
    if label and label not in names:
        raise DataError(f"{source}: no object of class {label}; it has: {', '.join(names)}")
    if not label and len(names) != 1:
        listed = ", ".join(names) or "no object at all"
        raise DataError(f"{source}: which class is the faces? It has: {listed}")
    return label or names[0]


def _yolo(folder: Path, images: Path | None) -> Iterator[Entry]:
    """Entries of labels/ or a folder like it; a photo without a text file has no face."""
    labels = folder / "labels" if (folder / "labels").is_dir() else folder
    if images is None:
        parts = list(labels.parts)
        if "labels" in parts:  # the last one, as in images/train and labels/train
            parts[len(parts) - 1 - parts[::-1].index("labels")] = "images"
        images = Path(*parts)
    names = _yolo_names(folder, labels)
    texts = {
        path.relative_to(labels).with_suffix(""): path
        for path in files_below(labels, (".txt",))
        if path.name not in CLASS_FILES
    }
    photos = files_below(images, PHOTO_SUFFIXES) if images.is_dir() else []
    for photo in photos:
        name = photo.relative_to(images)
        text = texts.pop(name.with_suffix(""), None)
        rows = [] if text is None else list(_yolo_rows(text, names))
        yield Entry(photo, name.as_posix(), None, rows)
    if texts:
        raise DataError(f"{next(iter(texts.values()))}: its photo is not in {images}; name the "
                        "folder of the photos")  # fmt: skip


def _yolo_names(folder: Path, labels: Path) -> dict[int, str]:
    """Names of the classes, from a file with a name per line or Ultralytics' data.yaml, if any."""
    places = (folder, labels, labels.parent, labels.parent.parent)
    files = (place / name for place in places for name in CLASS_FILES)
    found = next((path for path in files if path.is_file()), None)
    if found is None:
        return {}
    names: Any = [line.strip() for line in _text(found).splitlines()]
    if found.suffix == ".yaml":
        import yaml

        try:
            names = yaml.safe_load(_text(found))["names"]
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise DataError(f"{found}: holds no names of classes: {error!r}") from None
    pairs = names.items() if isinstance(names, dict) else enumerate(names)
    return {int(number): str(name) for number, name in pairs}


def _yolo_rows(path: Path, names: dict[int, str]) -> Iterator[Row]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        where, cells = f"{path}:{number}", line.split()
        if not cells:
            continue
        if len(cells) not in (5, 15, 20) or not cells[0].isdecimal():
            raise DataError(
                f"{where}: expected a class number and 4 numbers (a box), 14 or 19 (with five "
                f"landmarks), got {line.strip()[:80]!r}"
            )
        centre_x, centre_y, width, height, *points = _floats(cells[1:], where)
        box = np.array((centre_x, centre_y, centre_x, centre_y))
        box += np.array((-width, -height, width, height)) / 2
        yield Row(where, names.get(int(cells[0]), cells[0]), box, _points(points))


def _points(values: Sequence[float]) -> np.ndarray:
    """(5, 3) x, y, visibility from 0, 10 or 15 numbers; visibility 0 where there is no landmark."""
    if not values:
        return NO_POINTS
    points = np.array(values).reshape(5, -1)
    given = (points[:, :2] >= 0).all(1) & (points[:, :2] != 0).any(1)
    if points.shape[1] == 3:
        given &= points[:, 2] > 0
    return np.column_stack((points[:, :2], given))


def _coco(path: Path, images: Path | None) -> Iterator[Entry]:
    content = _json(path)
    try:
        classes = {item["id"]: str(item["name"]) for item in content["categories"]}
        photos = {item["id"]: item for item in content["images"]}
        names = {key: str(item["file_name"]) for key, item in photos.items()}
        sizes = {key: (int(item["width"]), int(item["height"])) for key, item in photos.items()}
        annotations = content["annotations"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a COCO annotation: {error!r}") from None
    rows = defaultdict(list)
    for index, item in enumerate(annotations):
        where = f"{path}: annotations[{index}]"
        try:
            if item["image_id"] not in names:
                raise DataError(f"{where}: no photo has the id {item['image_id']!r}")
            rows[item["image_id"]].append(_coco_row(item, classes, where))
        except (KeyError, TypeError) as error:
            raise DataError(f"{where}: not an object of COCO: {error!r}") from None
    for name in names.values():
        if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DataError(f"{path}: the photo name {name!r} leads out of the folder of photos")
    places = [path.parent / "images", path.parent, path.parent.parent / "images",
              path.parent.parent / path.stem.split("_")[-1]]  # fmt: skip
    folder = _folder_with(images, places, list(names.values()), path)
    for key, name in names.items():
        yield Entry(folder / name, name, sizes[key], rows[key])


def _coco_row(item: dict[str, Any], classes: dict[Any, str], where: str) -> Row:
    values = _floats(item["bbox"], where)
    if len(values) != 4:
        raise DataError(f"{where}: bbox needs 4 numbers: x, y, width, height")
    x, y, width, height = values
    points = _floats(item.get("keypoints") or [], where)  # of bodies, 17: left out
    ignore = bool(item.get("iscrowd") or item.get("ignore"))
    five = points if len(points) == 15 else []
    box = np.array((x, y, x + width, y + height))
    return Row(where, classes[item["category_id"]], box, _points(five), ignore)


def _voc(folder: Path, images: Path | None) -> Iterator[Entry]:
    notes = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
    trees = {path: _xml(path) for path in files_below(notes, (".xml",))}
    names = {}
    for path, tree in trees.items():  # a folder in <filename>, as some tools write, is left out
        name = PurePosixPath(tree.findtext("filename", "").replace("\\", "/")).name
        if not name:
            raise DataError(f"{path}: no <filename>")
        names[path] = (path.relative_to(notes).parent / name).as_posix()
    places = [folder / "JPEGImages", folder.parent / "JPEGImages", folder / "images",
              folder.parent / "images", folder]  # fmt: skip
    photos = _folder_with(images, places, list(names.values()), folder)
    for path, tree in trees.items():
        size = [tree.findtext(f"size/{side}", "0").strip() for side in ("width", "height")]
        width, height = map(int, _floats(size, f"{path}: size"))
        rows = [_voc_row(item, f"{path}: object {number}")
                for number, item in enumerate(tree.iterfind("object"), 1)]  # fmt: skip
        yield Entry(photos / names[path], names[path], (width, height), rows)


def _voc_row(item: ElementTree.Element, where: str) -> Row:
    """An <object>: its pixels are counted from 1, and the last one belongs to the box."""
    texts = [item.findtext(f"bndbox/{side}", "") for side in ("xmin", "ymin", "xmax", "ymax")]
    box = np.array(_floats(texts, where)) - (1, 1, 0, 0)
    label = item.findtext("name", "").strip()
    return Row(where, label, box, ignore=item.findtext("difficult", "").strip() == "1")


READERS: dict[str, Callable[[Path, Path | None], Iterator[Entry]]] = {
    "yolo": _yolo,
    "coco": _coco,
    "voc": _voc,
}


def _folder_with(
    images: Path | None, places: Iterable[Path], names: Sequence[str], source: Path
) -> Path:
    """The given folder of photos, or the first place that holds one of the first photos."""
    if images is not None:
        return images
    for place in places:
        if any((place / name).is_file() for name in names[:50]):
            return place
    first = names[0] if names else "none"
    raise DataError(f"the photos of {source} (first: {first}) are not found; name their folder")


def _write_photo(entry: Entry, target: Path, *, link: bool) -> tuple[int, int]:
    """Copy or link the photo, upright if its rows refer to that; return its width and height."""
    check_name(entry.name)
    photo = open_photo(entry.path)
    stored = photo.width, photo.height
    turned = exif_orientation(photo)
    upright = stored[::-1] if turned > 4 else stored
    wanted = upright if entry.size in (None, (0, 0)) else entry.size
    if wanted not in (stored, upright):
        raise DataError(
            f"{entry.path}: {stored[0]}×{stored[1]} pixels, but annotated as "
            f"{wanted[0]}×{wanted[1]}: this is another photo, or was resized"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    if turned != 1 and wanted == upright:
        with Image.open(entry.path) as image:
            ImageOps.exif_transpose(image).convert("RGB").save(target, quality=95)
    elif link:
        target.symlink_to(entry.path.resolve())
    else:
        shutil.copyfile(entry.path, target)
    return wanted


def _photo(
    entry: Entry, size: tuple[int, int], label: str, drop_bad: bool, counts: Counter
) -> Photo:
    """The faces of an entry in pixels; counts what was clipped, dropped or left out."""
    scale = np.array(size if entry.size is None else (1, 1), float)
    kept: list[tuple[np.ndarray, np.ndarray, bool]] = []
    for row in entry.rows:
        if row.label != label:
            counts["objects of other classes left out"] += 1
            continue
        corners = row.box.reshape(2, 2) * scale
        clipped = corners.clip(0, size)
        if (clipped[0] >= clipped[1]).any():
            if not drop_bad:
                numbers = " ".join(f"{value:.1f}" for value in corners.flat)
                raise DataError(
                    f"{row.where}: the box {numbers} (x1 y1 x2 y2) is empty or outside its photo "
                    f"of {size[0]}×{size[1]} pixels: correct it, or leave such boxes out with "
                    "--drop-bad"
                )
            counts["boxes dropped: empty or outside the photo"] += 1
            continue
        if np.abs(corners - clipped).max() > SLACK:
            counts["boxes clipped to the photo"] += 1
        kept.append((clipped.reshape(4), row.points * (*scale, 1), row.ignore))
    ignore = np.array([row[2] for row in kept], bool)
    boxes = np.array([row[0] for row in kept], np.float32).reshape(-1, 4)
    points = np.array([row[1] for row in kept], np.float32).reshape(-1, 5, 3)[~ignore]
    return Photo(entry.path, entry.name, boxes[~ignore], points[..., :2], points[..., 2] > 0,
                 ignored_boxes=boxes[ignore])  # fmt: skip


def _floats(cells: Iterable[Any], where: str) -> list[float]:
    cells = list(cells)
    try:
        values = [float(cell) for cell in cells]
    except (TypeError, ValueError):
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise DataError(f"{where}: expected numbers, got {str(cells)[:80]}")
    return values


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from None


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from None


def _xml(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: not XML: {error}") from None


def main() -> None:
    """Convert YOLO, COCO or Pascal VOC annotation to a data folder for training and evaluation."""
    options = parser(main.__doc__ or "")
    options.add_argument("source", help="COCO file, or folder of YOLO or Pascal VOC")
    options.add_argument("out", help="new folder, such as data/mine/train")
    options.add_argument("--images", default="", metavar="DIR", help="folder of the photos")
    options.add_argument(
        "--format", default="", choices=tuple(READERS), help="format (default: by the source)"
    )
    options.add_argument(
        "--class", dest="label", default="", metavar="NAME",
        help="class of the faces, if there are several; in YOLO without names, its number",
    )  # fmt: skip
    options.add_argument("--link", action="store_true", help="link to the photos: no copies")
    options.add_argument(
        *flag("drop_bad"),
        action="store_true",
        help="leave out boxes that are empty or outside their photo, instead of an error",
    )
    args = options.parse_args()
    photos, counts = convert(
        args.source,
        args.out,
        images=args.images,
        form=args.format,
        label=args.label,
        link=args.link,
        drop_bad=args.drop_bad,
    )
    totals = {
        "photos": len(photos),
        "photos without a face": sum(not len(photo.boxes) for photo in photos),
        "faces": sum(len(photo.boxes) for photo in photos),
        "faces with landmarks": sum(int(photo.landmark_mask.any(1).sum()) for photo in photos),
        "faces to ignore": sum(len(photo.ignored_boxes) for photo in photos),
    }
    for what, count in {**totals, **counts}.items():
        print(f"{what}: {count:,}")
    print(f"written: {args.out}")


if __name__ == "__main__":
    run(main)
