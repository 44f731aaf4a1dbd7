"""The main job in small: render a data set, train V1, distil V2 from it, find faces, measure.

Everything is written to data/demo and results/demo. Minutes on two cores; nothing is downloaded.
"""

import json
import time
from pathlib import Path

import pandas as pd

from featherface.cli import parser, run
from featherface.config import EVALUATION_SCORE, PRESETS
from featherface.data.demo import make_demo
from featherface.detect_files import detect_paths
from featherface.detector import SHIPPED_WEIGHTS, Detector
from featherface.evaluation.run import detect_photos
from featherface.evaluation.sets import find_evaluation_set
from featherface.files import atomic_path, write_text
from featherface.plots import plot_progress, save_figure
from featherface.training.engine import train


def real_photograph(folder: Path) -> Path | None:
    """NASA's portrait of Eileen Collins, in the public domain, as scikit-image carries it."""
    try:
        from skimage import data, io
    except ImportError:
        print("no real photograph: install scikit-image (pip install -e '.[dev]') to add one")
        return None
    path = folder / "astronaut.png"
    with atomic_path(path) as temporary:
        io.imsave(temporary, data.astronaut(), check_contrast=False)
    return path


def main() -> None:
    commands = parser(__doc__)
    commands.add_argument("--data", default="data/demo", help="folder of the data set")
    commands.add_argument("--out", default="results/demo", help="everything made goes here")
    arguments = commands.parse_args()
    started, out = time.monotonic(), Path(arguments.out)

    print("1/4  the data set: drawn photographs of people, with boxes and landmarks")
    data = make_demo(arguments.data, train=400, val=40)
    # small crops, a started backbone and no mixing: minutes have no time for more
    short = {"data": str(data), "image_size": 160, "crop_scale_min": 0.15, "crop_scale_max": 1.0}
    short |= {
        "batch_size": 8,
        "mixup_prob": 0.0,
        "cutmix_prob": 0.0,
        "dropblock_prob": 0.0,
        "bn_batches": 25,
    }
    short |= {"lr": 2e-3, "landmark_weight": 0.1, "temperature": 1.0, "save_every": 50}

    print("2/4  V1, the teacher (592,371 parameters), from the backbone of the shipped V2")
    v1 = PRESETS["v1"].replace(
        **short, epochs=5, backbone_weights=str(SHIPPED_WEIGHTS), save_folder=str(out / "v1")
    )
    teacher = train(v1, overwrite=True)

    print("3/4  V2, the student (256,156 parameters), distilled from it")
    v2 = PRESETS["v2"].replace(
        **short, epochs=5, teacher_model=str(teacher), save_folder=str(out / "v2")
    )
    student = train(v2, overwrite=True)
    log = pd.read_csv(out / "v2/training_log.csv")
    save_figure(
        plot_progress(log, epochs=len(log), title="V2, demo"), out / "training.png", dpi=100
    )

    print("4/4  faces in held-out photos, drawn and real")
    held_out = find_evaluation_set(data, "val")
    scores = {}
    trained = {"V1": teacher, "V2": student, "shipped V2": SHIPPED_WEIGHTS}
    for name, weights in trained.items():
        found = detect_photos(
            Detector(weights, score_threshold=EVALUATION_SCORE), held_out.photos, label=name
        )
        scores[name] = held_out.evaluate(found).as_dict()
    write_text(out / "average_precision.json", json.dumps(scores, indent=1) + "\n")
    photos = [photo.path for photo in held_out.photos[:6]]
    real = real_photograph(out)
    detect_paths(Detector(student), [*photos, *([real] if real else [])], out / "drawn")
    if real:
        detect_paths(Detector(max_side=512), [real], out / "real")

    for name, score in scores.items():
        parts = ", ".join(
            f"{size} {100 * score[size]['ap_exact']:.1f}" for size in ("all", "medium", "large")
        )
        print(f"{name}: AP on {score['images']} held-out demo photos: {parts}")
    print(f"pictures: {out / 'drawn'} (by this V2), {out / 'real'} (by the shipped V2)")
    print(f"curves: {out / 'training.png'}")
    print(f"done in {(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    run(main)
