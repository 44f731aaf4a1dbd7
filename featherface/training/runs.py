"""Training runs on disk, compared: the settings that differ, AP and hours, and their curves."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from featherface.cli import parser
from featherface.errors import DataError, printable

UNCOMPARED = ("save_folder", "device", "num_workers")  # settings that say nothing of a result


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run's folder with its settings, its log (one row per epoch) and its state."""

    folder: Path
    settings: dict[str, Any]
    log: pd.DataFrame
    state: str  # done, training, stopped, failed, …; "" if not known

    @property
    def ap(self) -> float | None:
        """The highest validation AP, 0..1; None if the run was not validated."""
        scores = self.log["val_ap"].dropna() if "val_ap" in self.log else ()
        return float(max(scores)) if len(scores) else None


def find_runs(folders: Iterable[str | os.PathLike]) -> list[RunRecord]:
    """Read the runs in these folders and below them, sorted by folder.

    A run has training_log.csv. Raises DataError if there is none, and for a damaged file.
    """
    places = [Path(folder) for folder in folders]
    logs = {path for place in places for path in place.rglob("training_log.csv")}
    if not logs:
        raise DataError(f"no training_log.csv in {', '.join(map(str, places))} or below")
    return [_read(path) for path in sorted(logs)]


def _read(path: Path) -> RunRecord:
    try:
        log = pd.read_csv(path)
        log[["epoch", "loss", "seconds"]]  # each log has them
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: not the log of a run: {error}") from None
    settings, progress = (_json(path.with_name(name)) for name in ("config.json", "progress.json"))
    return RunRecord(path.parent, settings, log, str(progress.get("state", "")))


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty without a file."""
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not a JSON object: {error}") from None


def run_table(records: Sequence[RunRecord]) -> pd.DataFrame:
    """One row per run: state, epochs, loss, AP in percent, hours, then the settings that differ."""
    names = dict.fromkeys(name for record in records for name in record.settings)
    differ = [
        name
        for name in names
        if name not in UNCOMPARED
        and len({json.dumps(r.settings[name]) for r in records if name in r.settings}) > 1
    ]
    rows = [
        {
            "run": printable(record.folder),
            "state": record.state,
            "epochs": len(record.log),
            "loss": record.log["loss"].iloc[-1] if len(record.log) else None,
            "AP": None if record.ap is None else 100 * record.ap,
            "hours": record.log["seconds"].sum() / 3600,
            **{name: record.settings.get(name, "") for name in differ},
        }
        for record in records
    ]
    return pd.DataFrame(rows).set_index("run")


def main() -> None:
    """List training runs: the settings that differ, validation AP, hours; draw their curves."""
    options = parser(main.__doc__ or "")
    options.add_argument("folders", nargs="+", metavar="FOLDER", help="searched with subfolders")
    options.add_argument("--plot", default="", metavar="FILE", help="draw loss and AP over epochs")
    args = options.parse_args()
    records = find_runs(args.folders)
    print(run_table(records).to_string(float_format="%.4g", na_rep="none"))
    if args.plot:
        from featherface.plots import plot_runs, save_figure

        figure = plot_runs({printable(record.folder): record.log for record in records})
        save_figure(figure, args.plot)
        print(f"written: {args.plot}")
