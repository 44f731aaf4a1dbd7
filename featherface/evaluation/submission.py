"""Detections as the evaluation takes them: in memory by image name, or in submission files.

A WIDER FACE submission file, `<event>/<image>.txt`, has the image's name, the number of boxes, and
one row `x y w h score` per box. The official server takes a folder of them or a zip of it.
Coordinates keep three decimals: whole pixels would cost up to 0.7 AP points.
"""

import os
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np

from featherface.errors import DataError
from featherface.images import PHOTO_SUFFIXES
from featherface.structures import Detections

# {image name: (K, 5) x, y, w, h, score, or Detections}
InMemory: TypeAlias = Mapping[str, np.ndarray | Detections]
# detections in memory, or a submission folder or zip
Found: TypeAlias = InMemory | str | os.PathLike


class EvaluationWarning(UserWarning):
    """Detections and annotation do not cover the same images, or a prediction file is empty."""


def warn(message: str) -> None:
    warnings.warn(message, EvaluationWarning, stacklevel=3)


def image_key(name: str) -> str:
    """A name without its image suffix: "a/b.jpg" and "a/b" are the same image."""
    root, suffix = os.path.splitext(name)
    return root if suffix.lower() in PHOTO_SUFFIXES else name


def image_stem(name: str) -> str:
    """A name without folders and image suffix, which is unique in WIDER FACE."""
    return image_key(name.rsplit("/", 1)[-1])


def name_some(names: Iterable[str], most: int = 3) -> str:
    """ "a, b, c and 4 more"."""
    listed = list(names)
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + rest


def as_rows(value: np.ndarray | Detections, where: str) -> np.ndarray:
    """(K, 5) float64 x, y, w, h, score, finite. DataError otherwise, naming `where`."""
    if isinstance(value, Detections):
        boxes = value.boxes.astype(np.float64)
        return np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2], value.scores])
    try:
        rows = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: detections must be numbers: {error}") from error
    if rows.size == 0:
        return np.zeros((0, 5))
    if rows.ndim != 2 or rows.shape[1] != 5:
        raise DataError(f"{where}: detections need 5 columns, x y w h score; shape is {rows.shape}")
    if not np.isfinite(rows).all():
        row = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise DataError(f"{where}: detection {row + 1} has a NaN or infinite value: {rows[row]}")
    return rows


def gather(
    predictions: Found, names: list[str], known: Iterable[str], key: Callable[[str], str]
) -> list[np.ndarray]:
    """Return the detections of the images `names`, in that order: (K, 5) x, y, w, h, score each.

    known: all annotated images, also outside a subset; key makes names comparable. An image without
    prediction counts as one without detections, and a prediction for an unknown image is left out;
    an EvaluationWarning names them. DataError for two predictions of one image, for malformed ones,
    and if no prediction belongs to an annotated image.
    """
    if not isinstance(predictions, Mapping):
        predictions = read_submission(predictions)
    found: dict[str, np.ndarray] = {}
    for name, value in predictions.items():
        if key(name) in found:
            raise DataError(f"two predictions for the image {key(name)}, one of them {name}")
        found[key(name)] = as_rows(value, f"image {name}")
    unknown = sorted(found.keys() - {key(name) for name in known})
    if found and len(unknown) == len(found):
        hint = "no prediction is for an annotated image (another split or data set?)"
        raise DataError(f"{hint}: {name_some(unknown)}")
    if unknown:
        warn(f"{len(unknown)} predictions for unknown images left out: {name_some(unknown)}")
    missing = [name for name in names if key(name) not in found]
    if missing:
        warn(
            f"{len(missing)} of {len(names)} images have no prediction and count as images "
            f"without detections: {_name_missing(missing, names)}"
        )
    nothing = np.zeros((0, 5))
    return [found.get(key(name), nothing) for name in names]


def _name_missing(missing: list[str], names: list[str]) -> str:
    """The first few names; a folder (event) that is missing as a whole is named once."""
    present = Counter(os.path.dirname(name) for name in names)
    present.subtract(os.path.dirname(name) for name in missing)
    gone = [folder for folder, count in present.items() if folder and not count]
    single = [name for name in missing if os.path.dirname(name) not in gone]
    return name_some([f"all of {folder}" for folder in gone] + single)


def read_submission(source: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read a folder of prediction files, or a zip of one.

    Returns {"<event>/<image stem>": (K, 5) float64 x, y, w, h, score}. Empty files count as no
    detections, with an EvaluationWarning. DataError if the source is missing or has no .txt file,
    and for a file that is truncated, malformed, not finite or named unlike its first line.
    """
    path = Path(source)
    if not path.exists():
        raise DataError(f"{path} does not exist: give a folder of <event>/<image>.txt files")
    found, empty = {}, []
    for name, text in _texts(path):
        found[name] = _parse(text, name, f"{path}: {name}.txt")
        if not text.strip():
            empty.append(name)
    if not found:
        raise DataError(f"{path} has no prediction file: expected <event>/<image>.txt in it")
    if empty:
        warn(f"{len(empty)} prediction files are empty (no detections): {name_some(sorted(empty))}")
    return found


def write_submission(folder: str | os.PathLike, predictions: InMemory) -> None:
    """Write {"<event>/<image>": (K, 5) x, y, w, h, score, or Detections} into `folder`.

    Rows are sorted by score; scores have nine digits, which distinguish any two float32 values.
    Files are replaced only after all are written. DataError for malformed detections (before
    anything is written) and for names outside the folder.
    """
    texts: dict[Path, str] = {}
    for name, value in predictions.items():
        target = Path(f"{image_key(name)}.txt")
        if target.is_absolute() or ".." in target.parts:
            raise DataError(f"{name!r} cannot name a prediction file: use <event>/<image>")
        rows = as_rows(value, f"image {name}")
        rows = rows[np.argsort(-rows[:, 4], kind="stable")]
        lines = ["{:.3f} {:.3f} {:.3f} {:.3f} {:.9g}".format(*row) for row in rows.tolist()]
        shown = name.rsplit("/", 1)[-1]
        shown = f"{shown}.jpg" if image_key(shown) == shown else shown
        texts[target] = "\n".join([shown, str(len(lines)), *lines, ""])
    _write_together(Path(folder), texts)


def _write_together(folder: Path, texts: Mapping[Path, str]) -> None:
    """Write {path relative to `folder`: text}: to temporary files, one sync, then rename all.

    One sync for 3,226 files is many times faster than one per file and as safe: no name points to
    content that is not on the disk. An error or Ctrl-C before the renaming leaves the folder
    unchanged; one during it leaves whole files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # inside the folder, so that moving is a rename; without .txt, so that no reader takes them
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as aside:
        written = []
        for number, (target, text) in enumerate(texts.items()):
            temporary = Path(aside, str(number))
            temporary.write_text(text, encoding="utf-8", newline="\n")
            written.append((temporary, folder / target))
        if hasattr(os, "sync"):  # not on Windows
            os.sync()
        for parent in {target.parent for _, target in written}:
            parent.mkdir(parents=True, exist_ok=True)
        for temporary, target in written:
            os.replace(temporary, target)


def _texts(path: Path) -> Iterator[tuple[str, bytes]]:
    """("<event>/<stem>", content) of each .txt file in a folder or zip."""
    if path.is_dir():
        for file in sorted(path.rglob("*.txt")):
            yield file.relative_to(path).as_posix()[:-4], file.read_bytes()
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".txt") and not name.startswith("__MACOSX/"):
                    yield name[:-4], archive.read(name)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} is neither a folder nor a readable zip: {error}") from error


def _parse(text: bytes, name: str, where: str) -> np.ndarray:
    """Read and check the rows of one file; none if it is empty."""
    if not text.strip():
        return np.zeros((0, 5))
    lines = text.split(b"\n")
    title = lines[0].decode("utf-8", "replace").strip()
    if image_stem(title) != image_stem(name):
        raise DataError(f"{where}: the first line must be the image's name; it is {title[:80]!r}")
    rows = [row for row in map(bytes.split, lines[2:]) if row]
    count = lines[1].strip().decode("utf-8", "replace") if len(lines) > 1 else ""
    if not count.isdecimal():
        raise DataError(f"{where}: the second line must be the number of boxes; it is {count!r}")
    if int(count) != len(rows):
        raise DataError(f"{where}: {count} boxes announced but {len(rows)} rows: truncated?")
    for number, row in enumerate(rows, start=3):
        if len(row) != 5:
            raise DataError(f"{where}: line {number} has {len(row)} columns, not x y w h score")
    try:
        values = np.fromiter(map(float, chain.from_iterable(rows)), np.float64, 5 * len(rows))
    except ValueError as error:
        raise DataError(f"{where}: a value is not a number: {error}") from error
    return as_rows(values.reshape(-1, 5), where)
