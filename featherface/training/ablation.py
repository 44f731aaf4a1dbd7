"""Which part of the recipe helps: short runs that differ in one thing, at an equal budget.

Every run starts alike, sees the same number of images and is measured on the same photos, held out
of training. Differences smaller than the spread between seeds say nothing.
"""

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from featherface.config import DISPLAY_SCORE, EVALUATION_SCORE, PUBLISHED, TrainConfig
from featherface.data.annotations import Photo
from featherface.data.widerface import fingerprint
from featherface.detector import Detector
from featherface.errors import ConfigError, DataError
from featherface.evaluation.consistency import compare_with_first
from featherface.evaluation.run import detect_photos
from featherface.evaluation.sets import precision_recall_boxes
from featherface.files import atomic_path, commit, sha256
from featherface.structures import Detections
from featherface.training.engine import held_out_photos, train, training_photos

PUBLISHED_SETTINGS = (
    "temperature distill_form distill_box feature_form feature_attention mixup_prob cutmix_prob "
    "dropblock_prob landmark_weight lr"
).split()
# Each differs from BASE by these settings alone. BASE is what short runs did best with so far.
BASE: dict[str, Any] = {
    "temperature": 1.0,
    "alpha": 0.7,
    "distill_form": "weighted",
    "mixup_prob": 0.0,
    "cutmix_prob": 0.0,
    "dropblock_prob": 0.0,
    "landmark_weight": 0.25,
    "bn_batches": 25,
    "lr": 4e-3,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "form naive": {"distill_form": "naive", "distill_box": "smooth_l1"},  # as published
    "form naive, GIoU": {"distill_form": "naive"},
    "form disagreement": {"distill_form": "disagreement"},
    "form saturating": {"distill_form": "saturating"},
    "crowds by root": {"crowd_power": 0.5},
    "disagreement, light places": {
        "distill_form": "disagreement",
        "box_weight": 0.5,
        "landmark_weight": 0.05,
    },
    "form band": {"distill_form": "band"},
    "labels only": {"alpha": 0.0, "feature_weight": 0.0},
    "alpha 0.5": {"alpha": 0.5},
    "alpha 0.9": {"alpha": 0.9},
    "alpha 1": {"alpha": 1.0},
    "T 2": {"temperature": 2.0},
    "T 4": {"temperature": 4.0},
    "box smooth-L1": {"distill_box": "smooth_l1"},
    "box weight 0.5": {"box_weight": 0.5},
    "box weight 6": {"box_weight": 6.0},
    "landmark weight 0.05": {"landmark_weight": 0.05},
    "landmark weight 1": {"landmark_weight": 1.0},
    "landmark weight 4": {"landmark_weight": 4.0},
    "feature 0": {"feature_weight": 0.0},
    "feature 1": {"feature_weight": 1.0},
    "feature L2": {"feature_form": "l2"},
    "no attention": {"feature_attention": "none"},
    "mixup": {"mixup_prob": 0.5},
    "cutmix": {"cutmix_prob": 0.5},
    "mixed": {"mixup_prob": 0.5, "cutmix_prob": 0.5},
    "mixed, clean end": {"mixup_prob": 0.5, "cutmix_prob": 0.5, "clean_share": 0.3},
    "dropblock 0.1": {"dropblock_prob": 0.1},
    "no ema": {"ema_decay": 0.0},
    "crop 0.3-1": {"crop_scale_max": 1.0},
    "ignore under 2": {"min_face": 2.0},
    "ignore under 8": {"min_face": 8.0},
    "init imagenet": {"init": "imagenet"},
    "init scratch": {"init": "scratch"},
    "lr 0.002": {"lr": 2e-3},
    "lr 0.008": {"lr": 8e-3},
    "batch 8": {"batch_size": 8},
    "published": {name: getattr(PUBLISHED, name) for name in PUBLISHED_SETTINGS},
}
SLOWER = (
    "form naive",
    "form disagreement",
    "disagreement, light places",
    "labels only",
    "T 4",
    "landmark weight 1",
    "anchor sampling",
)
VARIANTS |= {f"lr 0.002, {name}": VARIANTS[name] | {"lr": 2e-3} for name in SLOWER}
MEASURES = ["ap_all", "ap_small", "ap_medium", "ap_large"]


def run_ablation(
    base: TrainConfig,
    *,
    out: Path,
    variants: Sequence[str],
    seeds: Sequence[int],
    images: int,
    unlabelled: str = "",
    protocol: str = "vga",
) -> pd.DataFrame:
    """Train and measure each variant with each seed; a row a run is added to the CSV file `out`.

    base: data, teacher, image size and the like; BASE and the variant are laid over it. images:
    that every run sees (rounded to epochs). unlabelled: folders for one variant more. Runs that
    the file holds are not run again. Raises ConfigError for an unknown variant, for an `out` that
    is no .csv, or where the file's runs saw another number of images or were measured otherwise.
    """
    known = VARIANTS | ({"unlabelled": {"unlabelled": unlabelled}} if unlabelled else {})
    strange = [name for name in variants if name not in known]
    if strange:
        raise ConfigError(f"no variant {strange[0]!r}; there are: {', '.join(known)}")
    if images < 1:
        raise ConfigError(f"--images must be 1 or more; got {images}")
    if out.suffix != ".csv":
        raise ConfigError(f"--out must be a .csv file; got {out}")
    base = base.replace(**BASE)
    setup = _setup(base, protocol)
    _refuse_other_setup(out, setup, known)
    _refuse_other_budget(out, base, images)
    held_out = held_out_photos(base)
    if not held_out:
        raise ConfigError("nothing to measure on: hold_out must be above 0")
    for name in variants:
        training_photos(base.replace(**known[name]))  # a wrong folder: now, not hours later
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out.parent):  # likewise one that nothing can be written to
        pass
    teacher = _detect(base.teacher_model, held_out, protocol)
    for seed in seeds:
        for name in tqdm(variants, desc=f"seed {seed}", unit="run"):
            if _is_done(out, name, seed):
                continue
            config = base.replace(**known[name], seed=seed)
            photos = len(training_photos(config))
            config = _budgeted(config, images, photos)
            started = time.monotonic()
            final = train(config, progress=False, overwrite=True)
            row = {"variant": name, "seed": seed, "images": _images(config, photos)}
            row |= _measure(final, held_out, protocol, teacher)
            row |= {"seconds": round(time.monotonic() - started, 1), "commit": commit()}
            row |= {"settings": _settings(known[name]), "setup": setup}
            _add_row(out, row)
    return read_table(out)


def _budgeted(config: TrainConfig, images: int, photos: int) -> TrainConfig:
    return config.replace(epochs=max(1, round(images / photos)))


def _images(config: TrainConfig, photos: int) -> int:
    return config.epochs * (photos - photos % config.batch_size or photos)


def _detect(weights: str | Path, photos: Sequence[Photo], protocol: str) -> dict[str, Detections]:
    detector = Detector(weights, score_threshold=EVALUATION_SCORE)
    return detect_photos(detector, photos, protocol=protocol, progress=False)


def _measure(
    weights: Path, photos: Sequence[Photo], protocol: str, teacher: Mapping[str, Detections]
) -> dict[str, float]:
    """Exact AP in percent on the held-out photos, and the agreement with the teacher's boxes."""
    found = _detect(weights, photos, protocol)
    faces = {photo.name: photo.with_ignored() for photo in photos}
    result = precision_recall_boxes(
        found,
        {name: part.boxes for name, part in faces.items()},
        ignored={name: part.ignore for name, part in faces.items()},
    ).as_dict()
    row = {f"ap_{n}": 100 * result[n]["ap_exact"] for n in ("all", "small", "medium", "large")}
    detected = {"teacher": teacher, "student": found}
    summary = compare_with_first(detected, score_above=DISPLAY_SCORE)[0].summary
    return row | {"landmark_distance": summary["landmark_distance_median"]}


def _is_done(path: Path, variant: str, seed: int) -> bool:
    if not path.exists():
        return False
    table = read_table(path)
    return bool(((table["variant"] == variant) & (table["seed"] == seed)).any())


def _setup(base: TrainConfig, protocol: str) -> str:
    """What all runs of a table share, beside BASE and the number of images."""
    names = ("image_size", "batch_size", "hold_out")
    shared = {name: getattr(base, name) for name in names} | {"protocol": protocol}
    weights = Path(base.teacher_model)
    shared["teacher"] = sha256(weights)[:8] if weights.is_file() else weights.name
    shared["photos"] = fingerprint(training_photos(base))[:8]
    return _settings(shared)


def _settings(changes: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in changes.items())


def _refuse_other_setup(path: Path, setup: str, known: Mapping[str, Mapping[str, Any]]) -> None:
    """ConfigError where a run in the file was made or measured otherwise than new ones would be."""
    if not path.exists():
        return
    table = read_table(path)
    table = table.reindex(columns=["variant", "settings", "setup"]).astype(object).fillna("")
    for run in table.drop_duplicates().itertuples():
        wanted = _settings(known[run.variant]) if run.variant in known else run.settings
        for there, asked in ((run.setup or "an untold kind", setup), (run.settings, wanted)):
            if there != asked:
                raise ConfigError(
                    f"{path}: {run.variant} is of {there or 'BASE'}, and runs of {asked or 'BASE'} "
                    "cannot be compared with it; give another --out"
                )


def _refuse_other_budget(path: Path, base: TrainConfig, images: int) -> None:
    if not path.exists():
        return
    photos = len(training_photos(base))
    table = read_table(path)
    table = table[table["variant"].isin(VARIANTS)]
    for name, other in set(zip(table["variant"], table["images"], strict=True)):
        config = base.replace(**VARIANTS[name])
        expected = _images(_budgeted(config, images, photos), photos)
        if other != expected:
            raise ConfigError(
                f"{path}: {name} saw {other:,} images, and runs with another budget ({expected:,}) "
                "cannot be compared with it; give the same --images, or another --out"
            )


def read_table(path: Path) -> pd.DataFrame:
    """The runs so far, one a row. DataError for a file that is no such table."""
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:  # pandas' own are ValueErrors
        raise DataError(f"{path}: cannot be read as a table of runs: {error}") from error
    missing = sorted({"variant", "seed", "images", *MEASURES} - set(table))
    if missing:
        raise DataError(f"{path}: is no table of runs (no column {', '.join(missing)})")
    return table


def _add_row(path: Path, row: dict[str, Any]) -> None:
    rows = read_table(path).to_dict("records") if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        pd.DataFrame([*rows, row]).to_csv(temporary, index=False, float_format="%.6g")


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread (half of max − min) over the seeds, and the difference from `base`.

    Sorted by ap_all, best first; `difference` is of the means over the seeds that both have.
    """
    grouped = table.groupby("variant")
    means = grouped[[*MEASURES, "landmark_distance"]].mean()
    means.insert(0, "seeds", grouped["seed"].nunique())
    means.insert(2, "spread", (grouped["ap_all"].max() - grouped["ap_all"].min()) / 2)
    by_seed = table.pivot_table(index="seed", columns="variant", values="ap_all")
    if "base" in by_seed:
        gain = by_seed.sub(by_seed["base"], axis=0).mean()
        means.insert(3, "difference", gain.reindex(means.index).astype(float))
    else:
        means.insert(3, "difference", math.nan)
    return means.sort_values("ap_all", ascending=False).replace({np.inf: np.nan})
