"""V1 to time, also where its weights are missing: they are not in the repository."""

from pathlib import Path

from torch import nn

from featherface.checkpoint import load_model
from featherface.config import PRESETS
from featherface.models.v1 import FeatherFaceV1

DEFAULT_V1 = PRESETS["v2"].teacher_model


def v1_or_untrained(path: str) -> nn.Module:
    """V1's weights, or a new network where the default file is missing: as fast.

    CheckpointError for any other file that is missing or is no network's weights.
    """
    if path != DEFAULT_V1 or Path(path).is_file():
        return load_model(path)
    print(f"{path} is not there: V1 is timed untrained, which takes as long, and has no AP")
    return FeatherFaceV1().eval()
