"""Section 8: photographs to try a detector on, also where no data set is, and faces drawn on
them."""

import os
from collections.abc import Mapping, Sized
from pathlib import Path

import numpy as np
import torch

from featherface.data.demo import make_demo
from featherface.data.widerface import read_split
from featherface.detector import Detector
from featherface.drawing import draw
from featherface.errors import DataError
from featherface.images import PHOTO_SUFFIXES, ImageSource, read_image
from featherface.notebook.display import explained, note, show_pictures
from featherface.notebook.sessions import RESULTS, Session, shipped
from featherface.structures import Detections

SAMPLES = Path("photos")  # in the results: drawn here when there is no data set
SHOWN = 8  # photographs of a folder
LONGEST = 15  # letters of a name that fit over a small picture


def sample_folder(current: Session) -> Path:
    """A folder of a few photographs: of the val split, or drawn where there is none."""
    try:
        photos = [photo for photo in read_split(current.data, "val") if photo.path.is_file()]
        return _linked(current.results / SAMPLES / "val", [p.path for p in photos[:SHOWN]])
    except DataError:
        root = make_demo(current.results / SAMPLES / "drawn", train=0, val=SHOWN, progress=False)
        return root / "WIDER_val/images"


def _linked(folder: Path, photos: list[Path]) -> Path:
    """A folder that holds exactly these photographs, as copies."""
    if not photos:
        raise DataError("no photographs")
    folder.mkdir(parents=True, exist_ok=True)
    names = {photo.name for photo in photos}
    for old in folder.iterdir():
        if old.name not in names:
            old.unlink()
    for photo in photos:
        (folder / photo.name).write_bytes(photo.read_bytes())
    return folder


def real_photograph(current: Session) -> Path:
    """NASA's portrait of Eileen Collins, in the public domain, as scikit-image carries it.

    Where scikit-image is not installed: the first photograph of `sample_folder`.
    """
    try:  # a dependency of the tests, not of the package
        from skimage import data, io
    except ImportError:
        note("scikit-image is not installed, so this is no real photograph but a sample.")
        return sorted(sample_folder(current).rglob("*.jpg"))[0]
    path = current.results / SAMPLES / "astronaut.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    io.imsave(path, data.astronaut(), check_contrast=False)
    return path


def detectors(current: Session, *, score_threshold: float = 0.5) -> dict[str, Detector]:
    """Every detector that is there, the teacher first: V1, V2 of this run, shipped V2."""
    paths = {"V1": current.teacher, "V2, this run": _trained(current)}
    if current.mode == "quick" or not current.final.is_file():
        paths["V2, shipped"] = shipped()
    return {
        name: Detector(path, score_threshold=score_threshold)
        for name, path in paths.items()
        if path.is_file()
    }


def _trained(current: Session) -> Path:
    """This run's final weights, or while it trains the last ones saved."""
    last = current.run / "FeatherFaceV2_last.pth"
    if current.mode == "full" and last.is_file():  # the final file there may be the shipped one
        newer = current.final.is_file() and current.final.stat().st_mtime >= last.stat().st_mtime
        return current.final if newer else last
    return current.final if current.final.is_file() else last


@explained("drawing the faces")
def show_faces(
    photos: ImageSource | Mapping[str, ImageSource],
    faces: Detections | Mapping[str, Detections],
    *,
    name: str = "faces",
    columns: int = 3,
) -> None:
    """One photograph, or several by title, with the faces drawn; also as results/v2/<name>.png."""
    several = isinstance(photos, Mapping)
    given: Mapping[str, ImageSource] = photos if isinstance(photos, Mapping) else {"": photos}
    found: Mapping[str, Detections] = faces if isinstance(faces, Mapping) else {"": faces}
    pictures = [
        (f"{title}{': ' if title else ''}{counted(found[title])}", draw(photo, found[title]))
        for title, photo in given.items()
    ]
    show_pictures(pictures, RESULTS / f"{name}.png", columns=columns if several else 1)


def counted(faces: Sized) -> str:
    """ "1 face", "2 faces"."""
    return f"{len(faces)} face" + ("" if len(faces) == 1 else "s")


@explained("detection in a folder")
def show_folder(current: Session, folder: str | os.PathLike, detector: Detector) -> None:
    """Every photograph of a folder at once, the first SHOWN drawn."""
    files = Path(folder).rglob("*")
    paths = sorted(path for path in files if path.suffix.lower() in PHOTO_SUFFIXES)
    if not paths:
        raise DataError(f"{folder}: no photograph in it")
    found = detector.detect_batch(paths[:SHOWN])
    pictures = [
        (f"{_short(path.stem)}: {counted(faces)}", draw(path, faces))
        for path, faces in zip(paths, found, strict=False)
    ]
    show_pictures(pictures, RESULTS / "detections.png", columns=4)


def _short(name: str) -> str:
    """The end of a long name, which tells photographs apart."""
    return name if len(name) <= LONGEST else f"…{name[-LONGEST:]}"


@explained("V1 and V2 side by side")
def show_side_by_side(current: Session, photo: ImageSource) -> None:
    """The same photograph through every detector that is there."""
    available = detectors(current)
    picture: np.ndarray = read_image(photo)
    with torch.inference_mode():
        found = {name: detector.detect(picture) for name, detector in available.items()}
    if "V1" not in available:
        note("No V1 here to compare with: put its weights as section 2 says.")
    show_faces(dict.fromkeys(found, picture), found, name="side_by_side")
