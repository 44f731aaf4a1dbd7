"""The two annotation formats of WIDER FACE, told apart by content.

The official one (WIDER FACE, arXiv 1511.06523): a name line, a count line, rows `x y w h blur
expression illumination invalid occlusion pose`. The RetinaFace one (arXiv 1905.00641), label.txt:
`# name`, then rows `x y w h`, five landmarks `x y visibility` and a blur value; its val file has
`x y w h` only. −1 means no landmark. A column after the blur value, which only this project writes
and reads, is 1 for a face to ignore; other programs take such a row for a face.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple

import numpy as np

from featherface.errors import DataError, printable
from featherface.files import write_text

OFFICIAL, LANDMARKS = "official", "landmarks"  # the two annotation formats
WIDTHS = {  # columns of a row, the full one first; x y w h alone is accepted
    OFFICIAL: (10, 4),
    LANDMARKS: (21, 20, 19, 4),  # with the ignore flag, with and without the blur value
}
FILLER = {OFFICIAL: 0, LANDMARKS: -1}  # value of columns that a row does not have
IGNORE_COLUMN = {OFFICIAL: 7, LANDMARKS: 20}
MOST = 1_000_000  # the largest number that a row may have; no photo is that wide
HEAD_LINES = 2000  # read to recognise a file


class Faces(NamedTuple):
    """N faces of a photo, in its pixels as stored."""

    boxes: np.ndarray  # (N, 4) x1, y1, x2, y2
    landmarks: np.ndarray  # (N, 5, 2); anything where masked
    landmark_mask: np.ndarray  # (N, 5) bool
    ignore: np.ndarray  # (N,) bool: a detection of it is neither right nor wrong


def _no_boxes() -> np.ndarray:
    return np.zeros((0, 4), np.float32)


@dataclass(frozen=True, eq=False)
class Photo:
    """One photo and its F faces, in pixels of the photo as stored (EXIF orientation not applied).

    Boxes without a size are left out. Boxes flagged invalid (too poor to be judged) or to ignore
    are kept apart: a detection of one is neither right nor wrong. A photo may have no face.
    """

    path: Path
    name: str  # "<event>/<file>", as the annotation gives it
    boxes: np.ndarray  # (F, 4) float32 x1, y1, x2, y2
    landmarks: np.ndarray  # (F, 5, 2) float32; anything where masked
    landmark_mask: np.ndarray  # (F, 5) bool: this point is annotated
    ignored_boxes: np.ndarray = field(default_factory=_no_boxes)  # (G, 4) float32, flagged
    labelled: bool = True  # False: its faces are unknown, and `boxes` is empty
    focus: np.ndarray = field(default_factory=_no_boxes)  # (K, 4) float32, see `unlabelled`
    # (F, 6) blur, expression, illumination, invalid, occlusion, pose; None: not annotated
    attributes: np.ndarray | None = None

    @classmethod
    def unlabelled(cls, path: Path, name: str, focus: np.ndarray | None = None) -> "Photo":
        """A photo without annotation.

        focus: boxes where crops should look, such as detected faces; they are not labels.
        """
        points, mask = np.zeros((0, 5, 2), np.float32), np.zeros((0, 5), bool)
        focus = _no_boxes() if focus is None else focus
        return cls(path, name, _no_boxes(), points, mask, labelled=False, focus=focus)

    def with_ignored(self) -> Faces:
        """All F + G faces; the ignored ones come last and have no landmarks."""
        count, extra = len(self.boxes), len(self.ignored_boxes)
        return Faces(
            np.concatenate((self.boxes, self.ignored_boxes)),
            np.pad(self.landmarks, ((0, extra), (0, 0), (0, 0))),
            np.pad(self.landmark_mask, ((0, extra), (0, 0))),
            np.arange(count + extra) >= count,
        )


def read_annotations(path: str | Path, images: str | Path) -> list[Photo]:
    """All photos of an annotation file of either format, in its order; `images` holds the photos.

    Raises DataError with file and line number for a line that does not fit the format.
    """
    path, images = Path(path), Path(images)
    lines = _lines(path)
    kind = _kind(lines)
    blocks = list((_landmark_blocks if kind == LANDMARKS else _official_blocks)(path, lines))
    _check_names(path, blocks, kind)
    numbers = [
        _parse_row(f"{path}:{line}", row, kind)
        for block in blocks
        for line, row in enumerate(block.rows, block.line)
    ]
    table = np.array(numbers, np.float32).reshape(-1, WIDTHS[kind][0])
    sized = (table[:, 2] > 0) & (table[:, 3] > 0)
    shares = sized & (table[:, :2] >= 0).all(1) & (table[:, :2] <= 1).all(1)
    shares &= (table[:, 2:4] < 1).all(1)
    if shares.any():
        raise DataError(_not_pixels(path, blocks, int(shares.argmax())))
    flagged = sized & (table[:, IGNORE_COLUMN[kind]] == 1)
    keep = sized & ~flagged
    boxes = np.concatenate((table[:, :2], table[:, :2] + table[:, 2:4]), axis=1)
    landmarks, mask = _landmarks(table, kind)
    photos = []
    stop = 0
    for name, rows, _ in blocks:
        start, stop = stop, stop + len(rows)
        kept = np.flatnonzero(keep[start:stop]) + start
        ignored = boxes[start:stop][flagged[start:stop]]
        attributes = table[kept, 4:] if kind == OFFICIAL else None
        faces = boxes[kept], landmarks[kept], mask[kept], ignored
        photos.append(Photo(images / name, name, *faces, attributes=attributes))
    return photos


def write_annotations(path: str | Path, photos: Iterable[Photo]) -> None:
    """Write photos in the format with landmarks, which `read_annotations` reads back, atomically.

    Coordinates have two decimals; attributes are not written. Raises DataError for a name that the
    format cannot hold.
    """
    lines = []
    for photo in photos:
        check_name(photo.name)
        lines.append(f"# {photo.name}")
        for box, points, mask, ignore in zip(*photo.with_ignored(), strict=True):
            triples = np.column_stack((points, np.zeros(5)))
            triples[~mask] = -1
            numbers = [*box[:2], *(box[2:] - box[:2]), *triples.flat]
            lines.append(" ".join(f"{value:.2f}" for value in numbers) + f" -1 {int(ignore)}")
    write_text(path, "\n".join([*lines, ""]))


def check_name(name: str) -> None:
    """Raise DataError for a photo's name that an annotation cannot hold."""
    plain = name.strip() == name and len(name.splitlines()) == 1
    if not plain or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise DataError(
            f"{printable(name)}: an annotation cannot hold this name: rename the file, without "
            "line breaks, spaces at the ends and bytes that are not UTF-8"
        )


def _check_names(path: Path, blocks: list["_Block"], kind: str) -> None:
    """Raise DataError for a photo that is listed twice or outside the folder of photos."""
    first: dict[PurePosixPath, int] = {}
    for name, _, row in blocks:
        line = row - (2 if kind == OFFICIAL else 1)
        where, shown, plain = f"{path}:{line}", printable(name[:80]), PurePosixPath(name)
        if "\0" in name or ".." in plain.parts or PurePath(name).is_absolute():
            raise DataError(f"{where}: {shown} cannot name a photo: use a path below the images")
        before = first.setdefault(plain, line)
        if before != line:
            raise DataError(
                f"{where}: photo {shown} is listed again (before: line {before}); put all its "
                "faces under one name"
            )


def _not_pixels(path: Path, blocks: list["_Block"], face: int) -> str:
    """The error for row `face` of all rows."""
    lines = [(at, row) for block in blocks for at, row in enumerate(block.rows, block.line)]
    line, row = lines[face]
    return (
        f"{path}:{line}: a box smaller than a pixel in {row[:80]!r}: boxes are pixels, not shares "
        "of the photo's size; multiply them by its width and height"
    )


def _landmarks(table: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 5, 2) and their mask (N, 5) from the rows; zeros where nothing is annotated."""
    if kind == OFFICIAL:
        return np.zeros((len(table), 5, 2), np.float32), np.zeros((len(table), 5), bool)
    triples = table[:, 4:19].reshape(-1, 5, 3)
    mask = (triples[..., 2] >= 0) & ~(triples[..., :2] == -1).all(axis=-1)
    return np.where(mask[..., None], triples[..., :2], np.float32(0)), mask


class _Block(NamedTuple):
    """The lines of one photo."""

    name: str
    rows: list[str]
    line: int  # number of the first row in the file


def _official_blocks(path: Path, lines: list[str]) -> Iterator[_Block]:
    at = 0
    while at < len(lines):
        name = lines[at].strip()
        if not name or _is_row(name):
            raise DataError(f"{path}:{at + 1}: expected the name of a photo, got {name[:80]!r}")
        text = lines[at + 1].strip() if at + 1 < len(lines) else ""
        if not text.isdecimal():
            raise DataError(f"{path}:{at + 2}: expected the number of faces, got {text[:80]!r}")
        if len(text) > len(str(MOST)):  # int() refuses more than 4,300 digits
            raise DataError(f"{path}:{at + 2}: no photo has {text[:80]} faces")
        count, at = int(text), at + 2
        rows = lines[at : at + count]
        if len(rows) < count:
            raise DataError(f"{path}:{len(lines)}: {name} has {len(rows)} of its {count} rows")
        yield _Block(name, rows, at + 1)
        at += count
        if count == 0 and at < len(lines) and _is_row(lines[at]):
            if any(float(value) for value in lines[at].split()):
                raise DataError(f"{path}:{at + 1}: a face of {name}, but its count says 0")
            at += 1  # the official files put one row of zeros where the count is 0


def _landmark_blocks(path: Path, lines: list[str]) -> Iterator[_Block]:
    heads = [at for at, line in enumerate(lines) if line.startswith("#")]
    for head, stop in zip(heads, [*heads[1:], len(lines)], strict=True):
        name = lines[head][1:].strip()
        if not name:
            raise DataError(f"{path}:{head + 1}: expected the name of a photo after '#'")
        while stop > head + 1 and not lines[stop - 1]:
            stop -= 1
        yield _Block(name, lines[head + 1 : stop], head + 2)


def _parse_row(where: str, row: str, kind: str) -> list[float]:
    """The numbers of a row, filled to the full width. where: file and line, for errors."""
    widths = WIDTHS[kind]
    try:
        values = [float(cell) for cell in row.split()]
    except ValueError:
        raise DataError(f"{where}: not a number in {row[:80]!r}") from None
    if len(values) not in widths:
        allowed = " or ".join(str(width) for width in sorted(widths))
        raise DataError(f"{where}: a face needs {allowed} numbers, got {row[:80]!r}")
    if not all(-MOST <= value <= MOST for value in values):
        raise DataError(f"{where}: nan, infinity or more than {MOST:,} in {row[:80]!r}")
    return values + [FILLER[kind]] * (widths[0] - len(values))


def first_names(path: Path) -> list[str]:
    """Names of photos near the start of an annotation, without a check of its rows."""
    lines = _lines(path, HEAD_LINES)
    if _kind(lines) == LANDMARKS:
        return [line[1:].strip() for line in lines if line.startswith("#")]
    return [line.strip() for line in lines if line and not _is_row(line) and not line.isdecimal()]


def holds_landmarks(path: Path) -> bool:
    """True if the first row has landmarks: RetinaFace's val file has their format without them."""
    lines = [line for line in _lines(path, HEAD_LINES) if line]
    row = next((line for line in lines if not line.startswith("#")), "")
    return _kind(lines) == LANDMARKS and len(row.split()) > 4


def _kind(lines: list[str]) -> str:
    """OFFICIAL or LANDMARKS, by the first line that is not blank."""
    return LANDMARKS if next(filter(None, lines)).startswith("#") else OFFICIAL


def _is_row(line: str) -> bool:
    """True for four or more numbers."""
    try:
        return len([float(value) for value in line.split()]) >= 4
    except ValueError:
        return False


def _lines(path: Path, limit: int | None = None) -> list[str]:
    """The first `limit` lines; blank ones at the end are left out. Raises DataError for none."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.rstrip() for line in islice(file, limit)]
    except FileNotFoundError:
        raise DataError(f"annotation {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"annotation {path} cannot be read as text: {error}") from None
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(f"annotation {path} is empty")
    return lines
