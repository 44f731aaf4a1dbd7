"""AP during training, which selects the best weights."""

import math
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from featherface.config import EVALUATION_SCORE, TrainConfig
from featherface.data.annotations import Photo
from featherface.detector import Detector
from featherface.errors import ConfigError
from featherface.evaluation.run import detect_photos
from featherface.evaluation.sets import find_evaluation_set

PROTOCOL = "vga"  # size of the photos


class Validator:
    """Measure a network on the val split of the training data, or on a seeded sample of it.

    Raises before the training starts: DataError if there are no photos to measure on, ConfigError
    if any is one of the `training` photos.
    """

    def __init__(self, config: TrainConfig, training: Sequence[Photo] = ()) -> None:
        found = find_evaluation_set(config.data, "val")
        _refuse_training_photos(found.photos, training, config)
        self.photos = found.sample(config.validate_photos or found.count, seed=config.seed)
        if not any(len(photo.boxes) for photo in self.photos.photos):
            raise ConfigError(
                f"no face is annotated in the {self.photos.description} to validate on, so AP "
                "cannot choose the best weights: leave out --validate-every, or annotate them"
            )
        self.description = f"{self.photos.description}, protocol {PROTOCOL}"

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return the exact AP, 0..1, of each setting as `val_ap_…`, and their mean as `val_ap`.

        Settings are easy, medium, hard if WIDER FACE's ground truth exists, else all, small,
        medium, large; sizes without faces are left out, and `val_ap` is then that of all.
        """
        detector = Detector(model, score_threshold=EVALUATION_SCORE)
        found = detect_photos(detector, self.photos.photos, protocol=PROTOCOL, progress=False)
        result = self.photos.evaluate(found).as_dict()
        result.pop("images")
        scores = {f"val_ap_{name}": float(part["ap_exact"]) for name, part in result.items()}
        scores = {name: value for name, value in scores.items() if not math.isnan(value)}
        mean = sum(scores.values()) / max(1, len(scores))
        return {"val_ap": scores.get("val_ap_all", mean), **scores}


def _refuse_training_photos(
    validation: Sequence[Photo], training: Sequence[Photo], config: TrainConfig
) -> None:
    """Raise ConfigError if a photo is in both: AP would then reward overfitting.

    A plain folder (images/ and one annotation) serves as train and as val split.
    """
    taught = {photo.path.resolve() for photo in training}
    both = [photo.path for photo in validation if photo.path.resolve() in taught]
    if both:
        raise ConfigError(
            f"{len(both)} photos to validate on are also trained on, the first is {both[0]}: put "
            f"others under {Path(config.data) / 'val'} (images/ and label.txt), take them out of "
            "--unlabelled, or leave out --validate-every"
        )
