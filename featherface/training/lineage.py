"""What weights were made with before the run at hand: a row for each run that went before it.

A network that was trained in several runs, each on from the last, could otherwise not be made again
from what its file says.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from featherface.checkpoint import read_file
from featherface.config import TrainConfig

FACTS = ("epoch", "data", "commit", "mean_of")


def history_of(config: TrainConfig) -> list[dict[str, Any]]:
    """The runs behind the weights that this one starts from, oldest first; none without --weights.

    A row has `settings`, those that differ from the defaults of the code that reads them here, and
    what the file tells of `FACTS`. Rows that a file has from its own start are kept as they are;
    a file without settings (the original project's) leaves none.
    """
    if not config.weights:
        return []
    content = read_file(config.weights)
    settings = content.get("config")
    if not isinstance(settings, Mapping):
        return []
    defaults = {item.name: item.default for item in fields(TrainConfig)}
    different = {
        name: value
        for name, value in settings.items()
        if name not in defaults or value != defaults[name]
    }
    row = {"settings": different} | {name: content[name] for name in FACTS if name in content}
    return [*content.get("history", []), row]
