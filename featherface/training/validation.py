"""AP during training: what chooses the best weights. Never the training loss."""

import math
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from featherface.config import EVALUATION_SCORE, TrainConfig
from featherface.data.annotations import Photo
from featherface.data.widerface import find_dataset
from featherface.detector import Detector
from featherface.errors import ConfigError
from featherface.evaluation.run import detect_photos
from featherface.evaluation.sets import find_evaluation_set


class Validator:
    """Measures a network on the val split of the training data, or on a seeded part of it.

    Raises at the start, not after hours: DataError when there is nothing to measure on, ConfigError
    when that would be photos that are trained on, of `training` or of the labelled ones.
    """

    def __init__(self, config: TrainConfig, training: Sequence[Photo] = ()) -> None:
        found = find_evaluation_set(config.data, "val")
        refuse_training_photos(config)
        self.photos = found.sample(config.validate_photos or found.count, seed=config.seed)
        taught = {photo.path.resolve() for photo in training}
        both = [photo.path for photo in self.photos.photos if photo.path.resolve() in taught]
        if both:
            raise ConfigError(
                f"{len(both)} photos to validate on are also trained on, the first is {both[0]}: "
                "take them out of --unlabelled, or leave out --validate-every"
            )
        self.protocol = config.validate_protocol
        self.description = f"{self.photos.description}, protocol {self.protocol}"

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Exact AP in 0..1 of every setting as `val_ap_…`, and their mean as `val_ap`.

        Settings are easy, medium, hard where WIDER FACE's ground truth is there, else all, small,
        medium, large; a size without faces is left out, and `val_ap` is then that of all.
        """
        detector = Detector(model, score_threshold=EVALUATION_SCORE)
        found = detect_photos(detector, self.photos.photos, protocol=self.protocol, progress=False)
        result = self.photos.evaluate(found).as_dict()
        result.pop("images")
        scores = {f"val_ap_{name}": float(part["ap_exact"]) for name, part in result.items()}
        scores = {name: value for name, value in scores.items() if not math.isnan(value)}
        mean = sum(scores.values()) / max(1, len(scores))
        return {"val_ap": scores.get("val_ap_all", mean), **scores}


def refuse_training_photos(config: TrainConfig) -> None:
    """ConfigError if the val split has the annotation that is trained on.

    A plain folder (images/ and one annotation) is given for any split. Weights chosen by AP on the
    training photos would be those that know them best by heart.
    """
    training = find_dataset(config.data, config.split, config.training_dataset).annotation
    validation = find_dataset(config.data, "val").annotation
    if validation.samefile(training):
        raise ConfigError(
            f"{validation}: training and validation would use the same photos; put others under "
            f"{Path(config.data) / 'val'} (images/ and label.txt), or leave out --validate-every"
        )
