"""What weights were made with before the run at hand: a row for each run that went before it.

A network that was trained in several runs, each on from the last, could otherwise not be made again
from what its file says.
"""

from pathlib import Path
from typing import Any

from featherface.checkpoint import is_checkpoint, read_file
from featherface.config import TrainConfig

FACTS = "config epoch batch steps_per_epoch data processes teacher commit mean_of".split()


def history_of(config: TrainConfig) -> list[dict[str, Any]]:
    """The runs behind the weights that this one starts from, oldest first; none without --weights.

    A row has the `file` that the next run started from, its name alone, and what that tells of
    `FACTS`: nothing if it is of another project. Rows that the file has of its own start come
    first, as they are.
    """
    if not config.weights:
        return []
    content = read_file(config.weights)
    row: dict[str, Any] = {"file": Path(config.weights).name}
    if not is_checkpoint(content):
        return [row]
    earlier = content.get("history")
    row |= {name: content[name] for name in FACTS if name in content}
    return [*(earlier if isinstance(earlier, list) else []), row]
