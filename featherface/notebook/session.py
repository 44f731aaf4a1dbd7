"""One run through the notebook: its mode, paths and settings; found again after a kernel restart.

Quick mode takes minutes on two cores: synthetic photos (or the real ones in data/widerface), the
preset "quick", and a separate folder for what it trains. Full mode trains 400 epochs on WIDER FACE
on a GPU.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from featherface.config import PRESETS, QUICK, TrainConfig, teacher_changes
from featherface.data.widerface import FULL_COUNTS, read_split
from featherface.detector import SHIPPED_WEIGHTS
from featherface.errors import ConfigError, DataError
from featherface.files import CHECKOUT
from featherface.notebook.display import continue_after_errors, install

MODES = ("auto", "quick", "full")
REAL_DATA = Path("data/widerface")
RESULTS, QUICK_RESULTS = Path("results/v2"), Path("results/v2/quick_run")  # by mode
RECORD = "notebook_config.json"
TEACHERS = (Path("weights/featherface_v1.pth"), Path("weights/v1/FeatherFaceV1_final.pth"))
QUICK_PHOTOS = 800  # of real photos, to train on in quick mode
MEASURED_PHOTOS = 160  # of real photos, to evaluate on in quick mode
TEACHER_EPOCHS = 0.6  # of a quick run's epochs


@dataclass(frozen=True)
class Session:
    """The paths and settings of this run; paths are relative to the project's root.

    mode: "quick" or "full", for `reason`. drawn: the numbers of synthetic photos to train and
    evaluate on, or None for real ones. config: V2's settings; teacher_config: V1's, used where no
    V1 weights exist. settings: what the user changed. fresh: train again even if a finished run
    exists. data: the data folder; run: the save folder of V2's training; teacher: the V1 weights
    that V2 learns from, which may have to be trained first; final: the weights that the training
    writes; results: the folder of everything else that the notebook writes, which is one that git
    ignores in quick mode.
    """

    mode: str
    reason: str
    drawn: tuple[int, int] | None
    config: TrainConfig
    teacher_config: TrainConfig
    settings: Mapping[str, Any]
    fresh: bool = False

    @property
    def results(self) -> Path:
        return QUICK_RESULTS if self.mode == "quick" else RESULTS

    @property
    def data(self) -> Path:
        return Path(self.config.data)

    @property
    def run(self) -> Path:
        return Path(self.config.save_folder)

    @property
    def teacher(self) -> Path:
        return Path(self.config.teacher_model)

    @property
    def final(self) -> Path:
        return self.run / "FeatherFaceV2_final.pth"

    @property
    def trains_teacher(self) -> bool:
        """True if the notebook itself trains V1: quick mode without V1 weights."""
        return self.teacher.parent == Path(self.teacher_config.save_folder) and self.mode == "quick"

    @property
    def deployed(self) -> Path:
        """The V2 to use and to export: this run's in full mode, the shipped one in quick mode."""
        return self.final if self.mode == "full" and self.final.is_file() else shipped_weights()

    @property
    def weights(self) -> dict[str, Path]:
        """The weights that exist, by name: V1, V2 of this run, the shipped V2."""
        last = self.run / "FeatherFaceV2_last.pth"
        saved = [path for path in (self.final, last) if path.is_file()]
        # an older final file is of another run
        trained = max(saved, key=lambda path: path.stat().st_mtime, default=self.final)
        named = {"V1": self.teacher, "V2, this run": trained}
        if self.mode == "quick" or not self.final.is_file():
            named["V2, shipped"] = shipped_weights()
        return {name: path for name, path in named.items() if path.is_file()}

    @property
    def protocol(self) -> str:
        """The protocol of `evaluate`: "vga" for real photos in quick mode, else "original"."""
        return "vga" if self.mode == "quick" and not self.drawn else "original"

    @property
    def measured_photos(self) -> int:
        """How many photos to evaluate on at most."""
        return MEASURED_PHOTOS if self.mode == "quick" else FULL_COUNTS["val"]


_current: Session | None = None


def open_session(
    mode: str = "auto",
    *,
    settings: Mapping[str, Any] | None = None,
    demo_photos: tuple[int, int] = (400, 40),
    fresh: bool = False,
) -> Session:
    """Choose mode, data and settings, and work in the folder of `enter_root` from now on.

    mode: auto, quick or full; for auto FEATHERFACE_MODE in the environment decides. settings:
    training settings that differ from the mode's. demo_photos: how many photos to synthesise.
    fresh: train again even if a finished run exists. Raises ConfigError for an invalid setting.
    """
    global _current
    install()
    enter_root()
    mode = mode if mode != "auto" else os.environ.get("FEATHERFACE_MODE", "auto")
    counts = {split: _count(REAL_DATA, split) for split in ("train", "val")}
    complete = all(count == FULL_COUNTS[split] for split, count in counts.items())
    mode, reason = choose_mode(mode, complete=complete, cuda=torch.cuda.is_available())
    drawn = None if mode == "full" or all(counts.values()) else demo_photos
    data = REAL_DATA
    if drawn is not None:
        train, val = drawn
        data = Path("data/demo" if drawn == (400, 40) else f"data/demo_{train}_{val}")
    config, teacher_config = configs(mode, data, settings or {})
    _current = Session(mode, reason, drawn, config, teacher_config, dict(settings or {}), fresh)
    continue_after_errors()
    return _current


def enter_root() -> None:
    """Change the working folder to the repository, or to FEATHERFACE_ROOT if that is set.

    An installed package has no repository, and a hosted one may be read-only: then the working
    folder stays.
    """
    here = CHECKOUT if (CHECKOUT / "notebooks").is_dir() and os.access(CHECKOUT, os.W_OK) else "."
    os.chdir(os.environ.get("FEATHERFACE_ROOT") or here)


def current_session() -> Session:
    """Return the session of this kernel, or after a restart the one that was recorded last."""
    if _current is not None:
        return _current
    enter_root()
    records = [path / RECORD for path in (RESULTS, QUICK_RESULTS) if (path / RECORD).is_file()]
    try:
        newest = max(records, key=lambda path: path.stat().st_mtime)
        recorded = json.loads(newest.read_text(encoding="utf-8"))["session"]
        mode, settings = recorded["mode"], dict(recorded["settings"])
        train, val = recorded["demo_photos"]
    except (OSError, ValueError, KeyError, TypeError):
        return open_session()
    return open_session(mode, settings=settings, demo_photos=(train, val))


def choose_mode(wanted: str, *, complete: bool, cuda: bool) -> tuple[str, str]:
    """("quick" or "full", why). auto is full if WIDER FACE is complete and CUDA is available."""
    if wanted not in MODES:
        raise ConfigError(f"MODE must be one of {', '.join(MODES)}; got {wanted!r}")
    if wanted != "auto":
        return wanted, "asked for"
    if complete and cuda:
        return "full", "WIDER FACE is complete and CUDA is available"
    missing = [
        "" if complete else f"WIDER FACE is not complete at {REAL_DATA}",
        "" if cuda else "there is no CUDA device",
    ]
    return "quick", " and ".join(filter(None, missing))


def configs(mode: str, data: Path, settings: Mapping[str, Any]) -> tuple[TrainConfig, TrainConfig]:
    """The settings of V2's run, and of a teacher's where one has to be trained first.

    Raises ConfigError for a setting that does not exist, or has the wrong type or range.
    """
    quick = mode == "quick"
    own = QUICK_RESULTS / "teacher" if quick else Path(PRESETS["v1"].save_folder)
    teacher = next((path for path in TEACHERS if path.is_file()), None)
    teacher = teacher or (own / "FeatherFaceV1_final.pth" if quick else TEACHERS[0])
    changes: dict[str, Any] = {"data": data.as_posix(), "teacher_model": teacher.as_posix()}
    if quick:
        changes |= {"limit": QUICK_PHOTOS, "save_folder": QUICK_RESULTS.as_posix()}
        changes |= {**QUICK, "validate_every": 1, "validate_photos": 40}
    else:
        changes |= {"validate_every": 10, "validate_photos": 500}
    changes |= settings
    config = PRESETS["v2"].replace(**changes)
    shared = teacher_changes(changes) if quick else {}
    if quick:  # V1 takes five times as long per image as V2
        shared["epochs"] = max(1, round(TEACHER_EPOCHS * config.epochs))
    shared |= {"save_folder": own.as_posix(), "backbone_weights": shipped_weights().as_posix()}
    return config, PRESETS["v1"].replace(**shared)


def shipped_weights() -> Path:
    """The shipped V2, relative to the working folder if it is below it."""
    here = Path.cwd()
    inside = SHIPPED_WEIGHTS.is_relative_to(here)
    return SHIPPED_WEIGHTS.relative_to(here) if inside else SHIPPED_WEIGHTS


def _count(data: Path, split: str) -> int:
    try:
        return len(read_split(data, split))
    except DataError:
        return 0
