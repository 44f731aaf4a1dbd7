"""Which photos a run learns from, and which it keeps aside."""

import numpy as np

from featherface.config import TrainConfig
from featherface.data.annotations import Photo
from featherface.data.unlabelled import read_unlabelled
from featherface.data.widerface import read_split
from featherface.errors import ConfigError

HOLD_OUT_SEED = 0  # not the run's: runs of several seeds are compared on the same photos


def training_photos(config: TrainConfig) -> list[Photo]:
    """The labelled photos of the split, then the unlabelled ones, none of them held out.

    ConfigError if V1 is given unlabelled photos: without a teacher they teach nothing; and for the
    faces of unlabelled photos without the photos.
    """
    photos = _divided(config, held_out=False)
    if not config.unlabelled:
        if config.unlabelled_faces:
            raise ConfigError(
                "--unlabelled-faces is for the photos of --unlabelled: name their folders, or "
                "leave it out"
            )
        return photos
    if config.model == "v1":
        raise ConfigError("--unlabelled needs a teacher, and V1 has none: leave it out")
    kept_out = {photo.path.resolve() for photo in held_out_photos(config)}
    unlabelled = read_unlabelled(config.unlabelled, config.unlabelled_faces)
    return photos + [photo for photo in unlabelled if photo.path.resolve() not in kept_out]


def held_out_photos(config: TrainConfig) -> list[Photo]:
    """The labelled photos that `hold_out` keeps aside: the same for every seed."""
    return _divided(config, held_out=True)


def _divided(config: TrainConfig, *, held_out: bool) -> list[Photo]:
    photos = read_split(config.data, config.split, config.training_dataset, limit=config.limit)
    order = np.random.default_rng(HOLD_OUT_SEED).permutation(len(photos))
    count = round(config.hold_out * len(photos))
    chosen = order[:count] if held_out else order[count:]
    return [photos[index] for index in np.sort(chosen)]
