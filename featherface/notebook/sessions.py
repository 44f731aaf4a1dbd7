"""One run through the notebook: its mode, its folders, its settings; found again after a restart.

Quick mode takes minutes on two cores: drawn photographs (or the real ones that are there), a small
training recipe, a scratch folder for what it trains. Full mode is 400 epochs with the
defaults on all of WIDER FACE on a GPU.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from featherface.config import PRESETS, TrainConfig
from featherface.data.demo import make_demo
from featherface.data.widerface import FULL_COUNTS, read_split
from featherface.detector import SHIPPED_WEIGHTS
from featherface.errors import ConfigError, DataError, FeatherFaceError
from featherface.evaluation.curves import Evaluation
from featherface.evaluation.sets import EvaluationSet
from featherface.files import CHECKOUT
from featherface.structures import Detections

MODES = ("auto", "quick", "full")
REAL_DATA, RESULTS = Path("data/widerface"), Path("results/v2")
RECORD = RESULTS / "notebook_config.json"
TEACHERS = (Path("weights/featherface_v1.pth"), Path("weights/v1/FeatherFaceV1_final.pth"))
MOST_QUICK_PHOTOS = 800  # of real ones, to train on in quick mode
# Minutes have no time for more: small crops, no mixing, batch norms estimated at the end.
SHORT: dict[str, Any] = {
    "epochs": 5,
    "image_size": 160,
    "crop_scale_min": 0.15,
    "crop_scale_max": 1.0,
    "batch_size": 8,
    "mixup_prob": 0.0,
    "cutmix_prob": 0.0,
    "dropblock_prob": 0.0,
    "bn_batches": 25,
    "lr": 2e-3,
    "landmark_weight": 0.1,
    "temperature": 1.0,
    "save_every": 50,
    "validate_every": 1,
    "validate_photos": 40,
}
TEACHER_SHARES = frozenset(
    "data training_dataset image_size crop_scale_min crop_scale_max batch_size epochs lr seed "
    "landmark_weight bn_batches num_workers device limit save_every".split()
)


@dataclass
class Session:
    """Paths are relative to the project's root, which is the working folder from here on."""

    mode: str  # "quick" or "full"
    reason: str  # for the mode
    data: Path
    drawn: tuple[int, int] | None  # photographs of the drawn set to train and measure on, or None
    teacher: Path  # V1 weights; in quick mode they may still have to be trained
    config: TrainConfig  # of V2's run
    teacher_config: TrainConfig  # of V1's, where there is none to be had
    settings: dict[str, Any]  # what the user changed
    fresh: bool = False  # train anew even where a finished run lies
    headless: bool = False  # nobody watches: few updates, no bars
    evaluated: EvaluationSet | None = None
    found: dict[str, dict[str, Detections]] = field(default_factory=dict)  # by detector and photo
    measured: dict[str, Evaluation] = field(default_factory=dict)
    times: Any = None  # a table of featherface.benchmark.speed, once measured
    compared: dict[str, dict[str, float]] = field(default_factory=dict)  # more, by detector

    def add(self, detector: str, figures: Mapping[str, float]) -> None:
        """Remember figures of a detector for performance_comparison.csv."""
        self.compared.setdefault(detector, {}).update(figures)

    @property
    def results(self) -> Path:
        return RESULTS

    @property
    def run(self) -> Path:
        return Path(self.config.save_folder)

    @property
    def final(self) -> Path:
        """The weights that this notebook's training makes."""
        return self.run / "FeatherFaceV2_final.pth"

    @property
    def deployed(self) -> Path:
        """The V2 to use and to export: this run's in full mode, the shipped one in quick mode."""
        return self.final if self.mode == "full" and self.final.is_file() else shipped()

    @property
    def protocol(self) -> str:
        """The size of photographs that AP is measured at: VGA for real ones in quick mode."""
        return "vga" if self.mode == "quick" and not self.drawn else "original"

    @property
    def protocol_text(self) -> str:
        return "VGA size (long side 640)" if self.protocol == "vga" else "original size"


_current: Session | None = None
_P = ParamSpec("_P")
_R = TypeVar("_R")


class Refused(ConfigError):
    """Nothing can be run: ends the cell, and running all cells, with its message alone."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of the traceback."""
        return [f"Not done: opening the session: {self}"]


def _in_one_message(function: Callable[_P, _R]) -> Callable[_P, _R]:
    @wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except FeatherFaceError as error:
            raise Refused(str(error)) from None

    return wrapped


@_in_one_message
def open_session(
    mode: str = "auto",
    *,
    settings: Mapping[str, Any] | None = None,
    demo_photos: tuple[int, int] = (400, 40),
    fresh: bool = False,
) -> Session:
    """Choose mode, data and recipe, and work from the project's root from now on.

    mode: auto, quick or full; FEATHERFACE_MODE in the environment decides where it is auto.
    settings: training settings that differ from the mode's. demo_photos: how many to draw. fresh:
    train anew even where a finished run lies. FEATHERFACE_ROOT names another folder to work in,
    FEATHERFACE_HEADLESS=1 says that nobody watches. ConfigError for a setting that cannot work.
    """
    global _current
    os.chdir(os.environ.get("FEATHERFACE_ROOT") or CHECKOUT)
    mode = mode if mode != "auto" else os.environ.get("FEATHERFACE_MODE", "auto")
    mode, reason = choose_mode(mode, complete=is_complete(REAL_DATA), cuda=_has_cuda())
    settings = dict(settings or {})
    drawn = None if mode == "full" or has_photos(REAL_DATA) else demo_photos
    data = REAL_DATA if drawn is None else demo_folder(drawn)
    known = next((path for path in TEACHERS if path.is_file()), None)
    config, teacher_config = configs(mode, data, known, settings)
    _current = Session(
        mode=mode,
        reason=reason,
        data=data,
        drawn=drawn,
        teacher=Path(config.teacher_model),
        config=config,
        teacher_config=teacher_config,
        settings=settings,
        fresh=fresh,
        headless=bool(os.environ.get("FEATHERFACE_HEADLESS")),
    )
    return _current


def session() -> Session:
    """The session of this kernel, or after a restart the one that was recorded last."""
    if _current is not None:
        return _current
    os.chdir(os.environ.get("FEATHERFACE_ROOT") or CHECKOUT)
    try:
        recorded = json.loads(RECORD.read_text(encoding="utf-8"))["session"]
        mode, settings = recorded["mode"], dict(recorded["settings"])
        train, val = recorded["demo_photos"]
    except (OSError, ValueError, KeyError, TypeError):
        return open_session()
    return open_session(mode, settings=settings, demo_photos=(train, val))


def choose_mode(wanted: str, *, complete: bool, cuda: bool) -> tuple[str, str]:
    """("quick" or "full", why). auto: full where WIDER FACE is complete and CUDA is there."""
    if wanted not in MODES:
        raise ConfigError(f"MODE must be one of {', '.join(MODES)}; got {wanted!r}")
    if wanted != "auto":
        return wanted, "asked for"
    if complete and cuda:
        return "full", "WIDER FACE is complete and CUDA is available"
    lacking = [
        "" if complete else f"WIDER FACE is not complete at {REAL_DATA}",
        "" if cuda else "there is no CUDA device",
    ]
    return "quick", " and ".join(filter(None, lacking))


def configs(
    mode: str, data: Path, teacher: Path | None, settings: Mapping[str, Any]
) -> tuple[TrainConfig, TrainConfig]:
    """The settings of V2's run and of a teacher's, where one has to be trained first."""
    run = RESULTS / "quick_run" if mode == "quick" else Path(PRESETS["v2"].save_folder)
    short = SHORT if mode == "quick" else {"validate_every": 10, "validate_photos": 500}
    own = RESULTS / "quick_run/teacher" if mode == "quick" else Path(PRESETS["v1"].save_folder)
    limit = MOST_QUICK_PHOTOS if mode == "quick" else 0
    common = {"data": data.as_posix(), "limit": limit, **short, **settings}
    _check(common)
    chosen = teacher or (own / "FeatherFaceV1_final.pth" if mode == "quick" else TEACHERS[0])
    v2 = {"teacher_model": chosen.as_posix(), "save_folder": run.as_posix()} | common
    shared = {name: value for name, value in common.items() if name in TEACHER_SHARES}
    v1 = {"save_folder": own.as_posix(), "backbone_weights": shipped().as_posix()} | shared
    return PRESETS["v2"].replace(**v2), PRESETS["v1"].replace(**v1)


def _check(settings: Mapping[str, Any]) -> None:
    """ConfigError for a setting that does not exist, or is of another kind than its default."""
    defaults = PRESETS["v2"].as_dict()
    unknown = sorted(settings.keys() - defaults.keys())
    if unknown:
        raise ConfigError(f"SETTINGS: no such setting: {', '.join(unknown)}; section 3 lists all")
    for name, value in settings.items():
        kind = type(defaults[name])
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"SETTINGS: {name} must be of type {kind.__name__}; got {value!r}")


def demo_folder(photos: tuple[int, int]) -> Path:
    """data/demo is the usual set; a set of another size has its own folder."""
    train, val = photos
    return Path("data/demo") if (train, val) == (400, 40) else Path(f"data/demo_{train}_{val}")


def make_drawn_set(current: Session) -> None:
    """Render the drawn set where it is not there yet; a finished one is kept."""
    if current.drawn:
        train, val = current.drawn
        make_demo(current.data, train=train, val=val, progress=not current.headless)


def shipped() -> Path:
    """The shipped V2, relative to the working folder where it lies below it."""
    here = Path.cwd()
    inside = SHIPPED_WEIGHTS.is_relative_to(here)
    return SHIPPED_WEIGHTS.relative_to(here) if inside else SHIPPED_WEIGHTS


def is_complete(data: Path) -> bool:
    """Whether all photographs of WIDER FACE's train and val splits are annotated under `data`."""
    return all(_count(data, split) == FULL_COUNTS[split] for split in ("train", "val"))


def has_photos(data: Path) -> bool:
    """Whether there are real photographs to train on and others to measure on."""
    return all(_count(data, split) for split in ("train", "val"))


def _count(data: Path, split: str) -> int:
    try:
        return len(read_split(data, split))
    except DataError:
        return 0


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
