"""Every default, once: the constants of the detector and the settings of a training run.

`TrainConfig` fields become the flags of scripts/train_v1.py and train_v2.py, their help text and
the configuration table of the notebook, so a setting is described here and nowhere else.
"""

import dataclasses
import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any

from featherface.errors import ConfigError

# The detector, fixed by the published networks (Electronics 2025, 14(3), 517; RetinaFace).
MEAN_BGR = (104.0, 117.0, 123.0)  # subtracted from 0-255 BGR pixels, no division
STRIDES = (8, 16, 32)  # levels P3, P4, P5
ANCHOR_SIZES = ((16, 32), (64, 128), (256, 512))  # pixels, square, two a cell
VARIANCES = (0.1, 0.2)  # scale of centre and size deltas
PAD_MULTIPLE = 32  # images are padded to this for inference

# Post-processing defaults.
DISPLAY_SCORE = 0.5
EVALUATION_SCORE = 0.02
NMS_IOU = 0.4
PRE_NMS_TOP_K = 5000
KEEP_TOP_K = 750


def check_detection(score_threshold: float, iou_threshold: float, max_side: int | None) -> None:
    """ConfigError for a detector's first setting that cannot work."""
    for name, value in (("score_threshold", score_threshold), ("iou_threshold", iou_threshold)):
        if not isinstance(value, Real) or not 0 <= value <= 1:
            raise ConfigError(f"{name} must lie in 0..1; got {value!r}")
    if max_side is not None and not (isinstance(max_side, Real) and 1 <= max_side < math.inf):
        raise ConfigError(f"max_side must be at least 1 pixel, or None; got {max_side!r}")


def setting(
    default: Any,
    text: str,
    choices: tuple[str, ...] | None = None,
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """A config field with its description (and allowed values), for --help and the notebook.

    parse: from what is typed to the value, where that is not the default's type.
    """
    metadata = {"help": text, "choices": choices, "parse": parse or type(default)}
    return field(default=default, metadata=metadata)


def number_or_auto(text: str) -> int:
    """A whole number; "auto" is 0."""
    if text != "auto" and not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is neither a whole number nor auto")
    return 0 if text == "auto" else int(text)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Every setting of a training run. Pixels are pixels of the training image."""

    # network and data
    model: str = setting("v2", "network to train", ("v1", "v2"))
    data: str = setting("data/widerface", "data folder; layout and annotation found by itself")
    training_dataset: str = setting("", "annotation file to use instead of the one found in data")
    unlabelled: str = setting(
        "",
        "folders of unlabelled photos, comma-separated, from which the teacher alone teaches",
    )
    split: str = setting("train", "split to train on", ("train", "val", "test"))
    limit: int = setting(0, "use only the first N photos of the split; 0: all")
    hold_out: float = setting(
        0.0, "share of the labelled photos kept out of training, to compare recipes on"
    )
    image_size: int = setting(640, "side of the square training image, pixels")
    crop_scale_min: float = setting(0.3, "smallest crop, as a share of the photo's short side")
    crop_scale_max: float = setting(2.0, "largest crop; above 1 the outside is filled with mean")
    min_face: float = setting(4.0, "faces with a shorter side than this are ignored, pixels")
    num_workers: int = setting(-1, "loader processes; -1: one a core, at most 8; 0: none")
    cache: str = setting(
        "auto",
        "photos decoded once and augmented on the device: kept in its memory, in the host's, or "
        "read anew each epoch; auto: on CUDA what fits, on a CPU none",
        ("auto", "device", "ram", "none"),
    )
    cache_side: int = setting(1024, "longest side of a photo in the cache, pixels")
    # teacher and initialisation
    teacher_model: str = setting("weights/featherface_v1.pth", "weights of the V1 teacher")
    teacher_engine: str = setting(
        "auto",
        "what runs the teacher: ONNX Runtime (5 times faster on a CPU) or torch; auto: by device",
        ("auto", "torch", "onnx"),
    )
    init: str = setting("teacher", "start of the backbone", ("teacher", "imagenet", "scratch"))
    weights: str = setting("", "start from these weights of the same network, instead of --init")
    backbone_weights: str = setting(
        "weights/mobilenetV1X0.25_pretrain.tar",
        "for --init imagenet: that checkpoint, or a V1 or V2",
    )
    frozen_blocks: int = setting(
        0, "first blocks of the backbone that stay as they start, 0 to 6: less to compute"
    )
    frozen_norms: str = setting(
        "off",
        "on: train with the batch norms' statistics of --weights, which stay, as in evaluation",
        ("off", "on"),
    )
    # distillation: total = (1 − α)·task + α·distillation + λ·feature
    temperature: float = setting(1.0, "T: softens teacher and student in the class KL")
    alpha: float = setting(0.7, "α: share of distillation against the task loss")
    feature_weight: float = setting(0.1, "λ: weight of the feature loss")
    distill_form: str = setting(
        "weighted",
        "anchors in the class KL: all alike; by teacher's face probability and disagreement; by "
        "disagreement alone; by that, but all that is clear nearly alike; or where the teacher is "
        "unsure, with the matched and mined (TDKD)",
        ("naive", "weighted", "disagreement", "saturating", "band"),
    )
    crowd_power: float = setting(
        1.0, "an image of weight W in the class KL counts W to this power; 0: images all alike"
    )
    distill_box: str = setting(
        "giou", "distance of student and teacher boxes", ("giou", "smooth_l1")
    )
    feature_form: str = setting("pkd", "feature distance: Pearson or L2", ("pkd", "l2"))
    feature_attention: str = setting(
        "teacher", "places weighted by the teacher's attention, or all alike", ("none", "teacher")
    )
    # regularisation of the student
    mixup_alpha: float = setting(0.2, "MixUp: λ ~ Beta(α, α); 0: off")
    mixup_prob: float = setting(0.5, "probability that a batch is mixed by MixUp")
    cutmix_prob: float = setting(0.5, "probability that a batch, not mixed by MixUp, is CutMixed")
    clean_share: float = setting(0.0, "last share of the run without MixUp and CutMix")
    dropblock_prob: float = setting(0.1, "DropBlock at the end of training (ramped from 0)")
    dropblock_size: int = setting(3, "DropBlock's block side on the feature map, odd")
    # losses
    box_weight: float = setting(2.0, "weight of the box term, in the task and in distillation")
    landmark_weight: float = setting(1.0, "weight of the landmark term, likewise")
    negative_ratio: int = setting(7, "hard negatives a positive anchor")
    # optimisation
    epochs: int = setting(400, "passes over the data")
    batch_size: int = setting(
        32, "images a step, of all processes together; auto: what fits", parse=number_or_auto
    )
    accumulate: int = setting(
        1, "parts that a process computes its images in, one after the other: less memory"
    )
    lr: float = setting(2e-3, "highest learning rate of AdamW")
    min_lr: float = setting(1e-5, "learning rate at the end of the cosine")
    weight_decay: float = setting(5e-4, "AdamW's weight decay")
    warmup_epochs: float = setting(5.0, "linear warm-up, at most a tenth of the run")
    clip_norm: float = setting(10.0, "largest gradient norm; 0: no clipping")
    ema_decay: float = setting(0.999, "decay of the averaged weights a step; 0: off")
    bn_batches: int = setting(
        0, "batches that re-estimate the batch norms at the end; short runs need some; 0: off"
    )
    amp: str = setting(
        "auto",
        "bf16 autocast: where a CUDA device has it, off, or on any device (on a CPU V2 alone)",
        ("auto", "off", "bf16"),
    )
    compile: str = setting(
        "auto",
        "torch.compile of student and teacher; auto: in long runs on CUDA",
        ("auto", "on", "off"),
    )
    sync_bn: str = setting(
        "auto",
        "batch norms over all processes; auto: on CUDA with fewer than 16 images a process",
        ("auto", "on", "off"),
    )
    # validation: AP of the averaged weights on the val split of `data` (EMA off: of the weights)
    validate_every: int = setting(0, "epochs between validations, and after the last; 0: never")
    validate_photos: int = setting(0, "validate on a seeded part of N photos; 0: on all")
    validate_protocol: str = setting(
        "vga", "size of the photos to validate on", ("original", "vga", "mxnet", "multiscale")
    )
    # the run
    save_folder: str = setting("weights/v2", "checkpoints and training_log.csv go here")
    save_every: int = setting(10, "epochs between checkpoints")
    seed: int = setting(0, "seed of everything random")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")

    def __post_init__(self) -> None:
        for item in fields(self):
            choices = item.metadata["choices"]
            value = getattr(self, item.name)
            if choices and value not in choices:
                raise ConfigError(f"{item.name} must be one of {', '.join(choices)}; got {value!r}")
        _check(self)

    def replace(self, **changes: Any) -> "TrainConfig":
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _check(config: TrainConfig) -> None:
    """ConfigError for the first setting that cannot work."""
    positive = "image_size epochs lr temperature save_every cache_side accumulate"
    not_negative = (
        "limit min_face feature_weight mixup_alpha dropblock_prob box_weight landmark_weight "
        "negative_ratio min_lr weight_decay warmup_epochs clip_norm ema_decay seed "
        "validate_every validate_photos bn_batches batch_size"
    )
    shares = "alpha crowd_power mixup_prob cutmix_prob clean_share"
    limits = (
        (positive, "be above 0", lambda v: 0 < v < math.inf),
        (not_negative, "be 0 or more", lambda v: 0 <= v < math.inf),
        (shares, "lie in 0..1", lambda v: 0 <= v <= 1),
        ("hold_out", "lie in 0..1, below 1", lambda v: 0 <= v < 1),
        ("ema_decay dropblock_prob", "be below 1", lambda v: v < 1),
        ("frozen_blocks", "lie in 0..6", lambda v: 0 <= v <= 6),
        ("num_workers", "be -1 or more", lambda v: v >= -1),
        ("dropblock_size", "be odd and above 0", lambda v: v > 0 and v % 2 == 1),
        ("image_size", f"be a multiple of {PAD_MULTIPLE}", lambda v: v % PAD_MULTIPLE == 0),
        ("min_lr", "be at most lr", lambda v: v <= config.lr),
        ("crop_scale_min", "be above 0", lambda v: v > 0),
        ("crop_scale_max", "be finite and at least crop_scale_min",
         lambda v: config.crop_scale_min <= v < math.inf),
    )  # fmt: skip
    for names, rule, holds in limits:
        for name in names.split():
            if not holds(getattr(config, name)):
                raise ConfigError(f"{name} must {rule}; got {getattr(config, name)!r}")
    if config.frozen_norms == "on" and config.bn_batches:
        raise ConfigError(
            "bn_batches estimates the statistics anew that frozen_norms keeps: leave one out"
        )


V2 = TrainConfig()
PUBLISHED = V2.replace(  # FeatherFace V2 as it was published: README says what changed and why
    temperature=4.0,
    alpha=0.7,
    distill_form="naive",
    distill_box="smooth_l1",
    feature_form="l2",
    feature_attention="none",
    feature_weight=0.1,
    mixup_alpha=0.2,
    mixup_prob=0.5,
    cutmix_prob=0.5,
    clean_share=0.0,
    dropblock_prob=0.1,
    dropblock_size=3,
    landmark_weight=1.0,
    lr=1e-3,
    warmup_epochs=5.0,
    epochs=400,
)
V1 = TrainConfig(
    model="v1",
    lr=1e-3,
    init="imagenet",
    mixup_prob=0.0,
    cutmix_prob=0.0,
    dropblock_prob=0.0,
    save_folder="weights/v1",
)
QUICK = V2.replace(epochs=5, image_size=320, batch_size=16)  # a trial: minutes on a laptop
PRESETS = {"v1": V1, "v2": V2, "quick": QUICK, "published": PUBLISHED}
