"""Training of V1 and V2: `train(config)` runs from the first epoch to the final weights."""

from featherface.training.engine import train
from featherface.training.state import checkpoint_path

__all__ = ["checkpoint_path", "train"]
