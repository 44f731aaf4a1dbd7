"""Defaults: the constants of the detector and the settings of a training run.

`TrainConfig` fields become the flags of scripts/train_v1.py and train_v2.py, their help text and
the configuration table of the notebook. Every property of a setting is stated here only.
"""

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from numbers import Real
from typing import Any

from featherface.errors import ConfigError

# The detector, fixed by the published networks (Electronics 2025, 14(3), 517; RetinaFace).
MEAN_BGR = (104.0, 117.0, 123.0)  # subtracted from 0-255 BGR pixels, no division
STRIDES = (8, 16, 32)  # levels P3, P4, P5
ANCHOR_SIZES = ((16, 32), (64, 128), (256, 512))  # pixels, square, two per cell
VARIANCES = (0.1, 0.2)  # scale of centre and size deltas
PAD_MULTIPLE = 32  # images are padded to this for inference

# Post-processing defaults.
DISPLAY_SCORE = 0.5
EVALUATION_SCORE = 0.02
NMS_IOU = 0.4
PRE_NMS_TOP_K = 5000
KEEP_TOP_K = 750


def check_detection(score_threshold: float, iou_threshold: float, max_side: int | None) -> None:
    """Raise ConfigError if a detector cannot work with these settings."""
    for name, value in (("score_threshold", score_threshold), ("iou_threshold", iou_threshold)):
        if not isinstance(value, Real) or not 0 <= value <= 1:
            raise ConfigError(f"{name} must be between 0 and 1; got {value!r}")
    if max_side is not None and not (isinstance(max_side, Real) and 1 <= max_side < math.inf):
        raise ConfigError(f"max_side must be at least 1 pixel, or None; got {max_side!r}")


RANGES: dict[str, Callable[[Any, Any], bool]] = {
    "above": operator.gt,
    "at least": operator.ge,
    "at most": operator.le,
    "below": operator.lt,
}


def setting(
    default: Any,
    text: str,
    *,
    choices: tuple[str, ...] | None = None,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    below: float | None = None,
    free: bool = False,
    shared: bool = False,
    published: Any = None,
) -> Any:
    """Describe a field of TrainConfig once, for the flags, --help, checks and presets.

    choices: the values allowed. above, least, most, below: the range of a number.
    free: a resumed run may change it, as it does not change what is learned.
    shared: a teacher trained for this student takes the same value (see `teacher_changes`).
    published: the value in the preset "published", if it is not the default.
    """
    bounds = dict(zip(RANGES, (above, least, most, below), strict=True))
    metadata = {"help": text, "choices": choices, "free": free, "shared": shared,
                "published": published, "bounds": bounds}  # fmt: skip
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Every setting of a training run. Pixels are pixels of the training image.

    Raises ConfigError for a value of the wrong type, outside its range or not among its choices.
    """

    # network and data
    model: str = setting("v2", "network to train", choices=("v1", "v2"))
    data: str = setting(
        "data/widerface", "data folder; its layout and annotation are detected",
        free=True, shared=True,
    )  # fmt: skip
    training_dataset: str = setting(
        "", "annotation file to use instead of the one found in data", free=True, shared=True
    )
    unlabelled: str = setting(
        "", "folders of photos without labels, comma-separated; only the teacher's outputs are "
        "learned from them", free=True,
    )  # fmt: skip
    limit: int = setting(0, "use only the first N photos; 0: all", least=0, shared=True)
    image_size: int = setting(
        640, f"side of the square training image, pixels; a multiple of {PAD_MULTIPLE}",
        above=0, shared=True,
    )  # fmt: skip
    crop_scale_min: float = setting(
        0.3, "smallest crop, as a share of the photo's shorter side", above=0, shared=True
    )
    crop_scale_max: float = setting(
        2.0, "largest crop; above 1 the outside is filled with the mean colour", shared=True
    )
    min_face: float = setting(4.0, "faces with a shorter side are ignored, pixels", least=0)
    num_workers: int = setting(
        -1, "loader processes; -1: one per core, at most 8; 0: none",
        least=-1, free=True, shared=True,
    )  # fmt: skip
    cache: str = setting(
        "auto",
        "keep decoded photos in the device's memory or in the host's and augment them on the "
        "device, or read them again in each epoch; auto: on CUDA whichever has room, on a CPU none",
        choices=("auto", "device", "ram", "none"),
        free=True,
    )
    cache_side: int = setting(1024, "longest side of a photo in the cache, pixels", above=0)
    # teacher and initialisation
    teacher_model: str = setting(
        "weights/featherface_v1.pth", "weights of the V1 teacher", free=True
    )
    teacher_engine: str = setting(
        "auto",
        "library that runs the teacher: ONNX Runtime (5 times faster on a CPU) or torch; auto: "
        "by device",
        choices=("auto", "torch", "onnx"),
    )
    init: str = setting(
        "teacher", "initial weights of the backbone", choices=("teacher", "imagenet", "scratch")
    )
    weights: str = setting("", "start from these weights of the same network, instead of --init")
    backbone_weights: str = setting(
        "weights/mobilenetV1X0.25_pretrain.tar",
        "for --init imagenet: that checkpoint, or one of V1 or V2", free=True,
    )  # fmt: skip
    # distillation: total = (1 − α)·task + α·distillation + λ·feature
    recipe: str = setting(
        "improved",
        "form of the distillation terms. improved: weighted class KL, GIoU, Pearson correlation "
        "of features; published: plain class KL, smooth L1, L2",
        choices=("improved", "published"), published="published",
    )  # fmt: skip
    temperature: float = setting(
        1.0, "T: softens teacher and student in the class KL", above=0, published=4.0
    )
    alpha: float = setting(0.7, "α: share of distillation in task + distillation", least=0, most=1)
    feature_weight: float = setting(0.1, "λ: weight of the feature loss", least=0)
    # regularisation of the student
    mixup_alpha: float = setting(0.2, "MixUp: λ ~ Beta(α, α); 0: off", least=0)
    mixup_prob: float = setting(0.5, "probability that a batch is mixed by MixUp", least=0, most=1)
    cutmix_prob: float = setting(
        0.5, "probability that a batch not mixed by MixUp is mixed by CutMix", least=0, most=1
    )
    clean_share: float = setting(
        0.0, "final share of the run without MixUp and CutMix", least=0, most=1
    )
    dropblock_prob: float = setting(
        0.1, "DropBlock at the end of training (ramped from 0)", least=0, below=1
    )
    # losses
    box_weight: float = setting(
        2.0, "weight of the box term, in the task and in distillation", least=0
    )
    landmark_weight: float = setting(
        1.0, "weight of the landmark term, in both", least=0, shared=True
    )
    # optimisation
    epochs: int = setting(400, "passes over the data", above=0, shared=True)
    batch_size: int = setting(
        32, "images per step, of all processes together", above=0, shared=True
    )
    accumulate: int = setting(
        1, "parts in which a process computes its images, one after another: less memory",
        above=0, free=True,
    )  # fmt: skip
    lr: float = setting(
        2e-3, "highest learning rate of AdamW", above=0, shared=True, published=1e-3
    )
    min_lr: float = setting(1e-5, "learning rate at the end of the cosine", least=0)
    weight_decay: float = setting(5e-4, "AdamW's weight decay", least=0)
    warmup_epochs: float = setting(5.0, "linear warm-up, at most a tenth of the run", least=0)
    clip_norm: float = setting(10.0, "largest gradient norm; 0: no clipping", least=0)
    ema_decay: float = setting(
        0.999, "decay of the averaged weights per step; 0: off", least=0, below=1
    )
    bn_batches: int = setting(
        0, "batches to re-estimate the batch norms with at the end; short runs need some; 0: off",
        least=0, shared=True,
    )  # fmt: skip
    amp: str = setting(
        "auto",
        "bf16 autocast; auto: on CUDA devices that have it; bf16: everywhere (on a CPU only V2)",
        choices=("auto", "off", "bf16"),
    )
    compile: str = setting(
        "auto", "torch.compile of student and teacher; auto: in long runs on CUDA",
        choices=("auto", "on", "off"), free=True,
    )  # fmt: skip
    # validation: AP at VGA size of the averaged weights on the val split of `data`
    validate_every: int = setting(
        0, "epochs between validations; 0: never, else also after the last epoch",
        least=0, free=True,
    )  # fmt: skip
    validate_photos: int = setting(
        0, "validate on a seeded sample of N photos; 0: on all", least=0, free=True
    )
    # the run
    save_folder: str = setting(
        "weights/v2", "folder of checkpoints, training_log.csv and progress.json", free=True
    )
    save_every: int = setting(10, "epochs between checkpoints", above=0, free=True, shared=True)
    seed: int = setting(0, "seed of all random numbers", least=0, shared=True)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps", free=True, shared=True)

    def __post_init__(self) -> None:
        for item in fields(self):
            _check_value(item, getattr(self, item.name))
        if self.image_size % PAD_MULTIPLE:
            raise ConfigError(
                f"image_size must be a multiple of {PAD_MULTIPLE}; got {self.image_size}"
            )
        if self.min_lr > self.lr:
            raise ConfigError(f"min_lr must be at most lr ({self.lr}); got {self.min_lr}")
        if self.crop_scale_max < self.crop_scale_min:
            raise ConfigError(
                f"crop_scale_max must be at least crop_scale_min ({self.crop_scale_min}); "
                f"got {self.crop_scale_max}"
            )

    def replace(self, **changes: Any) -> "TrainConfig":
        """Return a copy with other values. Raises ConfigError for an unknown setting."""
        unknown = sorted(changes.keys() - SETTINGS.keys())
        if unknown:
            raise ConfigError(f"no such setting: {', '.join(unknown)}")
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def changes(self) -> dict[str, Any]:
        """Return the settings that differ from the preset of this network."""
        defaults = PRESETS[self.model].as_dict()
        return {name: value for name, value in self.as_dict().items() if value != defaults[name]}


def _check_value(item: Field, value: Any) -> None:
    """Raise ConfigError unless the value has the type, the range and the choices of its field."""
    kind = type(item.default)
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise ConfigError(f"{item.name} must be of type {kind.__name__}; got {value!r}")
    choices = item.metadata["choices"]
    if choices and value not in choices:
        raise ConfigError(f"{item.name} must be one of {', '.join(choices)}; got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{item.name} must be finite; got {value!r}")
    for words, bound in item.metadata["bounds"].items():
        if bound is not None and not RANGES[words](value, bound):
            raise ConfigError(f"{item.name} must be {words} {bound:g}; got {value!r}")


SETTINGS = {item.name: item for item in fields(TrainConfig)}


def teacher_changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a student's changed settings that its teacher's run takes over."""
    return {name: value for name, value in changes.items() if SETTINGS[name].metadata["shared"]}


V2 = TrainConfig()
V1 = TrainConfig(
    model="v1",
    lr=1e-3,
    init="imagenet",
    mixup_prob=0.0,
    cutmix_prob=0.0,
    dropblock_prob=0.0,
    save_folder="weights/v1",
)
# FeatherFace V2 as published; docs/experiments.md says what the default recipe changed and why
PUBLISHED = V2.replace(
    **{
        name: item.metadata["published"]
        for name, item in SETTINGS.items()
        if item.metadata["published"] is not None
    }
)
# minutes on a laptop: small images and crops, no mixing, batch norms re-estimated at the end
QUICK: dict[str, Any] = {
    "epochs": 5,
    "image_size": 160,
    "crop_scale_min": 0.15,
    "crop_scale_max": 1.0,
    "batch_size": 8,
    "mixup_prob": 0.0,
    "cutmix_prob": 0.0,
    "dropblock_prob": 0.0,
    "landmark_weight": 0.1,
    "lr": 2e-3,
    "bn_batches": 25,
    "save_every": 50,
}
PRESETS = {"v1": V1, "v2": V2, "quick": V2.replace(**QUICK), "published": PUBLISHED}
