"""Train V2 again with crops where it and its teacher disagree; no label is needed for these.

Training on what a detector gets wrong is bootstrapping (Sung and Poggio, "Example-based learning
for view-based human face detection", PAMI 1998); here the teacher says what is wrong.
"""

import math
from dataclasses import replace

import numpy as np

from featherface.cli import flag, parser, run
from featherface.config import EVALUATION_SCORE, PRESETS
from featherface.data.annotations import Photo
from featherface.data.widerface import photos_in, read_split
from featherface.detector import SHIPPED_WEIGHTS, FaceDetector, open_detector
from featherface.errors import DataError
from featherface.evaluation.consistency import compare
from featherface.evaluation.run import detect_photos
from featherface.training import train


def find_hard_examples(
    student: FaceDetector,
    teacher: FaceDetector,
    photos: list[Photo],
    *,
    least: float = 0.4,
    min_face: float = 10.0,
    most: int = 0,
) -> list[Photo]:
    """Return the photos on which the scores of both detectors differ, with the faces as focus.

    least: the smallest difference of scores that counts. min_face: the smallest face, pixels (the
    square root of its area). most: leave out photos with more such faces, as crowds; 0: none.
    """
    photos = [replace(photo, name=str(photo.path)) for photo in photos]  # unique names
    taught, found = (
        detect_photos(detector, photos, protocol="vga", label=name)
        for name, detector in (("teacher", teacher), ("student", student))
    )
    rows, _ = compare(taught, found)
    difference = rows["score_a"].fillna(0.0) - rows["score_b"].fillna(0.0)
    rows = rows[(difference.abs() > least) & (rows["size"] >= min_face)]
    hard = []
    for photo in photos:
        mine = rows[rows["image"] == photo.name]
        if len(mine) == 0 or len(mine) > (most or math.inf):
            continue
        boxes = [
            taught[photo.name].boxes[a] if a >= 0 else found[photo.name].boxes[b]
            for a, b in zip(mine["index_a"], mine["index_b"], strict=True)
        ]
        focus = np.asarray(boxes, np.float32)
        hard.append(Photo.unlabelled(photo.path, photo.name, focus=focus))
    return hard


def main() -> None:
    v2 = PRESETS["v2"]
    commands = parser(__doc__ or "")
    add = commands.add_argument
    add("folders", nargs="+", metavar="FOLDER", help="folders of photos, with or without labels")
    add(*flag("data"), default=v2.data, help="data folder of the labelled photos")
    add("--weights", default=str(SHIPPED_WEIGHTS), help="the student to start from")
    add(*flag("teacher_model"), default=v2.teacher_model, help="weights of V1")
    add("--least", type=float, default=0.4, help="smallest difference of scores that counts")
    add(*flag("min_face"), type=float, default=10.0, help="smallest face, pixels")
    add("--most", type=int, default=0, help="leave out photos with more such faces; 0: keep all")
    for name in ("epochs", "image_size", "batch_size", "num_workers", "device"):
        value = getattr(v2, name)
        add(*flag(name), type=type(value), default=value, help="as for train_v2.py")
    add(*flag("save_folder"), default="runs/hard_examples", help="folder of the run")
    options = vars(commands.parse_args())
    folders = options.pop("folders")
    criteria = {name: options.pop(name) for name in ("least", "min_face", "most")}
    config = v2.replace(**options)
    photos = [photo for folder in folders for photo in photos_in(folder, "FOLDER")]
    student, teacher = (
        open_detector(weights, config.device, score_threshold=EVALUATION_SCORE)
        for weights in (config.weights, config.teacher_model)
    )
    hard = find_hard_examples(student, teacher, photos, **criteria)
    if not hard:
        raise DataError(f"the detectors agree on all {len(photos)} photos: nothing to train on")
    print(f"{sum(len(photo.focus) for photo in hard)} faces in {len(hard)} photos to look at again")
    train(config, photos=[*read_split(config.data), *hard])


if __name__ == "__main__":
    run(main)
