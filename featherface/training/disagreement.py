"""Where student and teacher disagree in photos: hard examples, and no label is needed.

Training again on what a detector gets wrong is bootstrapping (Sung and Poggio, "Example-based
learning for view-based human face detection", PAMI 1998); here the teacher says what is wrong.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from featherface.data.annotations import Photo
from featherface.errors import ConfigError
from featherface.evaluation.consistency import compare
from featherface.evaluation.run import BatchDetector, detect_photos, views
from featherface.images import open_header
from featherface.structures import Detections

BOX = ["x1", "y1", "x2", "y2"]
COLUMNS = ("file", "protocol", "kind", "score", *BOX)


def find_disagreements(
    student: BatchDetector,
    teacher: BatchDetector,
    photos: Sequence[Photo],
    *,
    protocols: Sequence[str] = ("vga", "original"),
    least: float = 0.4,
    min_face: float = 10.0,
    most: int = 0,
) -> pd.DataFrame:
    """A row a place where the scores of the two differ by more than `least`, as `COLUMNS`.

    Both detectors should report low scores, too. kind: missed (the student scores lower) or extra;
    score: the difference, above 0; the box: the teacher's where it has one, pixels of the photo as
    stored. min_face: the least square root of the box's area, in pixels of the photo as the
    detectors see it. most: photos with more places than this in one of the protocols are left out,
    0: none are. The losses weigh anchors, not photos, so that a crowd with hundreds of doubtful
    faces outvotes the rest of its batch. `--unlabelled` reads the table. ConfigError for settings
    that find nothing, else raises as `detect_photos` does.
    """
    if not 0 <= least < 1:
        raise ConfigError(f"least, a difference of scores, must lie in 0..1, below 1; got {least}")
    if not 0 <= min_face < math.inf:
        raise ConfigError(f"min_face must be 0 or more; got {min_face}")
    if most < 0:
        raise ConfigError(f"most, places in a photo, must be 0 or more; got {most}")
    for protocol in protocols:
        views(protocol, 1, 1)  # says so now if there is no such one
    photos = [replace(photo, name=str(photo.path)) for photo in photos]  # folders may look alike
    parts = []
    for protocol in protocols:
        taught, found = (
            detect_photos(detector, photos, protocol=protocol, label=f"{name}, {protocol}")
            for name, detector in (("teacher", teacher), ("student", student))
        )
        scale = {photo.name: _scale(photo, protocol) for photo in photos}
        rows = _differing(taught, found, least=least)
        seen = rows["size"] * rows["image"].map(scale)
        parts.append(rows[seen >= min_face].assign(protocol=protocol))
    table = pd.concat(parts, ignore_index=True)
    if most:
        counts = table.groupby(["image", "protocol"]).size().groupby("image").max()
        table = table[table["image"].isin(counts.index[counts <= most])].reset_index(drop=True)
    return table.rename(columns={"image": "file"})[list(COLUMNS)]


def _scale(photo: Photo, protocol: str) -> float:
    """How much larger the detector sees the photo, at most."""
    file = open_header(photo.path)
    return max(view.width for view in views(protocol, file.width, file.height)) / file.width


def _differing(
    taught: Mapping[str, Detections], found: Mapping[str, Detections], *, least: float
) -> pd.DataFrame:
    """`compare`'s rows whose scores differ enough, with kind, score and the box beside them."""
    rows, _ = compare(taught, found)
    difference = rows["score_a"].fillna(0.0) - rows["score_b"].fillna(0.0)
    rows = rows.assign(
        kind=np.where(difference > 0, "missed", "extra"), score=difference.abs().round(4)
    )[difference.abs() > least]
    places = zip(rows["image"], rows["index_a"], rows["index_b"], strict=True)
    boxes = [
        taught[image].boxes[first] if first >= 0 else found[image].boxes[second]
        for image, first, second in places
    ]
    corners = np.reshape(boxes, (-1, 4)).astype(float).round(2)
    return rows.assign(**{name: corners[:, index] for index, name in enumerate(BOX)})
