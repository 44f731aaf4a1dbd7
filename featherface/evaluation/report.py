"""The result of an evaluation on disk: JSON, CSV, and the lines to print."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherface.errors import CheckpointError
from featherface.evaluation.average_precision import Evaluation
from featherface.files import write_text

if TYPE_CHECKING:
    import pandas as pd


def to_table(results: Mapping[str, Evaluation]) -> "pd.DataFrame":
    """One row a detector and setting: detector, setting, ap, ap_exact (0..1), faces, images."""
    import pandas as pd

    rows = [
        (name, setting, curve.ap, curve.ap_exact, curve.faces, result.images)
        for name, result in results.items()
        for setting, curve in result.curves.items()
    ]
    columns = ["detector", "setting", "ap", "ap_exact", "faces", "images"]
    return pd.DataFrame(rows, columns=columns)


def to_text(results: Mapping[str, Evaluation], *, title: str) -> str:
    """The table for people: a line a detector, official and exact AP in percent a setting."""
    table = to_table(results)
    settings = list(dict.fromkeys(table["setting"]))
    wide = 100 * table.pivot(index="detector", columns="setting", values=["ap", "ap_exact"])
    wide = wide.loc[
        list(results), [(kind, name) for kind in ("ap", "ap_exact") for name in settings]
    ]
    wide.columns = settings + [f"{name} (exact)" for name in settings]
    shown = wide.rename_axis(None).to_string(float_format="%.2f", na_rep="no face")
    return f"AP in percent: {title}\n{shown}"


def calibration_text(calibration: Mapping[str, Mapping[str, Any]], *, score_above: float) -> str:
    """A line a detector, from {name: {"setting", …, as `calibration.summarise` gives it}}.

    score_above: the score that the detectors had to exceed, which bounds what the error is about.
    """
    settings = " and ".join(dict.fromkeys(part["setting"] for part in calibration.values()))
    lines = [f"calibration of detections that score over {score_above:g} (setting: {settings})"]
    for name, part in calibration.items():
        if not part["detections"]:
            lines.append(f"{name}: no detections")
            continue
        parts = [f"expected calibration error {part['expected_calibration_error']:.3f}"]
        for precision, point in part["thresholds"].items():
            reached = (
                f"from score {point['threshold']:.4f} (recall {point['recall']:.3f})"
                if point
                else "at no score"
            )
            parts.append(f"precision {precision} {reached}")
        lines.append(f"{name}: {', '.join(parts)}")
    return "\n".join(lines)


def consistency_text(summary: Mapping[str, Any]) -> str:
    """One line: {"a", "b", "score_above", …, as `consistency.compare` sums it up}."""
    a, b = summary["a"], summary["b"]
    agreement = f"{100 * summary['agreement']:.1f} %" if summary["agreement"] >= 0 else "undefined"
    return (
        f"consistency of {b} with {a}, faces that score over {summary['score_above']:g}: "
        f"agreement {agreement} ({summary['matched']} both, {summary['missed']} only {a}, "
        f"{summary['extra']} only {b}), score correlation {summary['score_correlation']:.3f}, "
        f"median box IoU {summary['iou_median']:.3f}, median landmark distance "
        f"{summary['landmark_distance_median']:.4f} face sizes"
    )


def write_results(
    folder: str | os.PathLike, results: Mapping[str, Evaluation], record: Mapping[str, Any]
) -> None:
    """Write evaluation.json and evaluation.csv, atomically.

    The JSON is `record` (protocol, data, versions, …) with "detectors": {name: {setting: {"ap",
    "ap_exact", "faces"}, …, "images"}}; the CSV is `to_table` with the record's plain values beside
    each row. An AP that no face defines is null, or empty.
    """
    detectors = {name: result.as_dict() for name, result in results.items()}
    plain = _without_nan({**record, "detectors": detectors})
    content = json.dumps(plain, indent=2, ensure_ascii=False)
    write_text(Path(folder) / "evaluation.json", content + "\n")
    table = to_table(results)
    for key, value in record.items():
        if value is None or isinstance(value, (str, int, float)):
            table[key] = value
    write_text(Path(folder) / "evaluation.csv", table.to_csv(index=False, lineterminator="\n"))


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: None instead."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def refuse_foreign(weights: Iterable[str]) -> None:
    """CheckpointError for the first file that is no checkpoint of this project."""
    from featherface.checkpoint import is_checkpoint, read_file

    for path in weights:
        if Path(path).suffix == ".onnx":
            raise CheckpointError(f"{path}: AP is recorded in .pth files only; nothing recorded")
        if not is_checkpoint(read_file(path)):
            raise CheckpointError(f"{path}: not a checkpoint of this project; nothing recorded")


def record_in_weights(
    weights: Mapping[str, str], results: Mapping[str, Evaluation], record: Mapping[str, Any]
) -> None:
    """Add the AP to each weights file, under "evaluations"; the same measurement is replaced.

    weights: paths, by the names in `results`. CheckpointError for a file that is none of this
    project's, such as the original project's; then none is changed.
    """
    from featherface.checkpoint import read_file, write_file

    refuse_foreign(weights.values())

    kept = ("description", "protocol", "images", "subset", "score_threshold", "iou_threshold")
    about = {name: record[name] for name in (*kept, "commit")}
    for name, path in weights.items():
        content = read_file(path)
        now = (about["description"], about["protocol"])
        others = [
            part
            for part in content.get("evaluations", [])
            if (part["description"], part["protocol"]) != now
        ]
        content["evaluations"] = [*others, {**about, **results[name].as_dict()}]
        write_file(path, content)
        print(f"recorded in {path}")
