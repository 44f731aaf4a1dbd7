"""training_log.csv: a row an epoch, rewritten atomically, so that a reader never sees half a
row."""

from pathlib import Path
from typing import Any

import pandas as pd

from featherface.errors import TrainingError
from featherface.files import atomic_path


class TrainingLog:
    """Rows of one run; `resume_from(epoch)` drops the rows that the resumed run will write
    again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def resume_from(self, epoch: int) -> None:
        """Keep the rows of the `epoch` epochs that are done."""
        if not self.path.exists():
            return
        try:
            frame = pd.read_csv(self.path)
            self.rows = frame[frame["epoch"] <= epoch].to_dict("records")
        except (ValueError, KeyError) as error:
            raise TrainingError(
                f"{self.path}: not a training log ({error}); move it away to resume without it"
            ) from error

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with atomic_path(self.path) as temporary:
            pd.DataFrame(self.rows).to_csv(temporary, index=False, float_format="%.6g")
