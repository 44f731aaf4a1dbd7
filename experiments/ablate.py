"""Compare recipes by short runs of equal budget that differ in one thing.

A quarter of the labelled photos is held out of training and measured on. Every run adds a row to
the table; runs that the table holds already are skipped, so an interrupted comparison continues.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featherface.cli import flag, parser, run
from featherface.config import EVALUATION_SCORE, PRESETS, TrainConfig
from featherface.data.annotations import Photo
from featherface.data.widerface import read_split
from featherface.detector import Detector
from featherface.errors import ConfigError
from featherface.evaluation.run import detect_photos
from featherface.evaluation.sets import EvaluationSet
from featherface.files import write_text
from featherface.losses import Distillation
from featherface.training import train

HOLD_OUT, SPLIT_SEED = 0.25, 0  # the same photos are held out for every seed of a run
# the recipe that short runs did best with; every variant changes it
BASE: dict[str, Any] = {
    "mixup_prob": 0.0,
    "cutmix_prob": 0.0,
    "dropblock_prob": 0.0,
    "landmark_weight": 0.25,
    "bn_batches": 25,
    "lr": 4e-3,
}


class Disagreement(Distillation):
    """Weigh anchors in the class KL by |p_t − p_s| alone."""

    def anchor_weight(self, student, teacher, selected):
        return (teacher - student).abs() + selected.clamp(0.0, 1.0)


# settings, or a criterion, in which a variant differs from BASE
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "disagreement": {"criterion": Disagreement},
    "published": PRESETS["published"].changes() | {"landmark_weight": 1.0},
    "labels only": {"alpha": 0.0, "feature_weight": 0.0},
    "alpha 0.5": {"alpha": 0.5},
    "alpha 0.9": {"alpha": 0.9},
    "T 4": {"temperature": 4.0},
    "box weight 0.5": {"box_weight": 0.5},
    "landmark weight 1": {"landmark_weight": 1.0},
    "feature 0": {"feature_weight": 0.0},
    "feature 1": {"feature_weight": 1.0},
    "mixed": {"mixup_prob": 0.5, "cutmix_prob": 0.5},
    "mixed, clean end": {"mixup_prob": 0.5, "cutmix_prob": 0.5, "clean_share": 0.3},
    "dropblock 0.1": {"dropblock_prob": 0.1},
    "no ema": {"ema_decay": 0.0},
    "init scratch": {"init": "scratch"},
    "lr 0.002": {"lr": 2e-3},
}


def divide(photos: list[Photo]) -> tuple[list[Photo], list[Photo]]:
    """Divide photos into those to train on and those held out."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(photos))
    count = round(HOLD_OUT * len(photos))
    held_out, kept = np.sort(order[:count]), np.sort(order[count:])
    return [photos[index] for index in kept], [photos[index] for index in held_out]


def run_variant(config: TrainConfig, name: str, photos: list[Photo], images: int) -> Path:
    """Train one variant for about `images` images; return its weights."""
    changes = dict(VARIANTS[name])
    criterion = changes.pop("criterion", None)
    epochs = max(1, round(images / len(photos)))
    config = config.replace(**changes, epochs=epochs)
    return train(config, photos=photos, criterion=criterion, overwrite=True, progress=False)


def measure(weights: Path, photos: list[Photo]) -> dict[str, float]:
    """Return the exact AP in percent on the held-out photos, by size of the faces."""
    detector = Detector(weights, score_threshold=EVALUATION_SCORE)
    found = detect_photos(detector, photos, protocol="vga", progress=False)
    result = EvaluationSet("held out", photos, None, len(photos)).evaluate(found).as_dict()
    return {f"ap_{n}": 100 * result[n]["ap_exact"] for n in ("all", "small", "medium", "large")}


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over seeds, half the spread between seeds, and the difference from base."""
    groups = table.groupby("variant")
    summary = groups[["ap_all", "ap_small", "ap_medium", "ap_large"]].mean()
    summary["spread"] = (groups["ap_all"].max() - groups["ap_all"].min()) / 2
    if "base" in summary.index:
        summary["difference"] = summary["ap_all"] - summary.loc["base", "ap_all"]
    return summary.sort_values("ap_all", ascending=False)


def main() -> None:
    commands = parser(__doc__ or "")
    add = commands.add_argument
    add(*flag("data"), default="data/widerface", help="data folder; only its train split is used")
    add(*flag("teacher_model"), default=PRESETS["v2"].teacher_model, help="weights of V1")
    add(*flag("variants"), nargs="*", default=list(VARIANTS), help="only these")
    add(*flag("seeds"), nargs="*", type=int, default=[0, 1], help="one run of each per seed")
    add(*flag("images"), type=int, default=4000, help="images that every run sees, about")
    add(*flag("image_size"), type=int, default=256, help="side of the training image, pixels")
    add(*flag("batch_size"), type=int, default=16, help="images per step")
    add(*flag("num_workers"), type=int, default=1, help="loader processes")
    add(*flag("save_folder"), default="runs/ablation", help="folder of the runs")
    add(*flag("out"), type=Path, default=Path("results/ablations.csv"), help="table to add to")
    options = vars(commands.parse_args())
    out, names, seeds, images = (options.pop(n) for n in ("out", "variants", "seeds", "images"))
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise ConfigError(f"no variant {unknown[0]!r}; there are: {', '.join(VARIANTS)}")
    config = PRESETS["v2"].replace(**BASE).replace(**options)
    photos, held_out = divide(read_split(config.data))
    rows = pd.read_csv(out).to_dict("records") if out.is_file() else []
    done = {(row["variant"], row["seed"]) for row in rows}
    for seed in seeds:
        for name in (name for name in names if (name, seed) not in done):
            started = time.monotonic()
            weights = run_variant(config.replace(seed=seed), name, photos, images)
            row = {"variant": name, "seed": seed, "images": images} | measure(weights, held_out)
            rows.append(row | {"seconds": round(time.monotonic() - started, 1)})
            write_text(out, pd.DataFrame(rows).to_csv(index=False, float_format="%.6g"))
    print(summarise(pd.DataFrame(rows)).round(2).to_string())


if __name__ == "__main__":
    run(main)
