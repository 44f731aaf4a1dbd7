"""The command line of scripts/evaluate.py: detect or read, measure, write, draw.

torch, OpenCV, pandas and matplotlib are imported where they are used: --help should not wait.
"""

import argparse
import json
import math
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherface import cli
from featherface.config import DISPLAY_SCORE, EVALUATION_SCORE, NMS_IOU
from featherface.errors import CheckpointError, ConfigError
from featherface.evaluation.consistency import Pair, compare_with_first
from featherface.evaluation.curves import Evaluation, reliability, setting_of_most_faces, summarise
from featherface.evaluation.sets import EvaluationSet, find_evaluation_set
from featherface.evaluation.submission import EvaluationWarning, write_submission
from featherface.files import commit, sha256, versions, write_text
from featherface.structures import Detections

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


PROTOCOLS = {
    "original": "photos as stored",
    "vga": "long side 640",
    "mxnet": "short side 1600, long side at most 2150",
    "multiscale": "five sizes, mirrored too, merged by box voting",
}


def evaluate_command(description: str | None) -> None:
    """Read the flags, run the detectors or read their files, and write what was measured."""
    commands = make_parser(description or "")
    args = commands.parse_args()
    if args.weights and args.predictions:
        commands.error("give either --weights or --predictions")
    if args.predictions:
        beside = ("protocol", "score_threshold", "iou_threshold", "device", "save_predictions")
        for name in (n for n in beside if getattr(args, n) != commands.get_default(n)):
            commands.error(f"{cli.flag(name)[0]} has no use beside --predictions: leave it out")
    if args.limit < 0:
        commands.error("--limit must be 0 or more")
    if args.record and not args.weights:
        commands.error("--record writes into the files of --weights: give some")
    data = find_evaluation_set(
        args.data, args.split, annotation=args.training_dataset, need_photos=not args.predictions
    )
    data = data.first(args.limit) if args.limit else data
    if args.record:
        refuse_foreign(labels(args.weights).values())
    for folder in filter(None, (args.save_predictions, args.out)):
        make_folder(folder)
    detected: dict[str, dict[str, Detections]] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", EvaluationWarning)
        if args.predictions:
            files = labels(args.predictions)
            results = {name: data.evaluate(path) for name, path in files.items()}
        else:
            detected = run_detectors(args, data)
            named = detected if data.annotated else {}
            results = {name: data.evaluate(found) for name, found in named.items()}
    notes = [str(warning.message) for warning in caught]
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    if results:
        record = describe(args, data)
        write(args, results, detected, {**record, "warnings": notes})
        if args.record:
            record_in_weights(labels(args.weights), results, record)


def make_parser(description: str) -> argparse.ArgumentParser:
    parser = cli.parser(description)
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="W",
        help="weights or .onnx to compare (default: the shipped V2)",
    )
    parser.add_argument(
        "--predictions", nargs="+", metavar="DIR", help="evaluate these submission folders instead"
    )
    parser.add_argument("--data", default="data/widerface", help="data folder")
    parser.add_argument(
        "--split", default="val", choices=("val", "train", "test"), help="which photos"
    )
    parser.add_argument(*cli.flag("training_dataset"), default="", help="annotation file to use")
    parser.add_argument(
        "--protocol",
        default="original",
        choices=tuple(PROTOCOLS),
        help="; ".join(f"{name}: {text}" for name, text in PROTOCOLS.items()),
    )
    parser.add_argument(
        *cli.flag("save_predictions"), metavar="DIR", help="write <event>/<image>.txt files there"
    )
    parser.add_argument("--out", default="results/evaluation", help="folder for the result")
    parser.add_argument(
        "--record", action="store_true", help="write the AP into the weights files too"
    )
    parser.add_argument(
        *cli.flag("no_plots"), action="store_true", help="write the tables only, no figures"
    )
    for name, default, text in (
        ("score_threshold", EVALUATION_SCORE, "faces must score more, 0..1"),
        ("iou_threshold", NMS_IOU, "of two faces overlapping more than this the better stays"),
    ):
        parser.add_argument(*cli.flag(name), type=float, default=default, help=text)
    parser.add_argument(
        "--limit", type=int, default=0, metavar="N", help="only the first N photos; 0: all"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    return parser


def make_folder(path: str) -> None:
    """Fails before hours of detection, not after."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {path}: {error.strerror}") from error


def labels(paths: list[str]) -> dict[str, str]:
    """{short name: path}: the file's stem, with folder, then suffix where two would be alike."""
    files = [Path(path) for path in paths]
    names = [file.stem for file in files]
    for longer in (lambda file: file.stem, lambda file: file.name):
        names = [
            f"{file.resolve().parent.name}/{longer(file)}" if names.count(name) > 1 else name
            for name, file in zip(names, files, strict=True)
        ]
    named = dict(zip(names, paths, strict=True))
    if len({file_part(name) for name in named}) < len(paths):
        raise ConfigError("two of the files to compare have the same name and folder: rename one")
    return named


def file_part(label: str) -> str:
    """A label as a part of a file name."""
    return label.replace("/", "_")


def run_detectors(
    args: argparse.Namespace, data: EvaluationSet
) -> dict[str, dict[str, Detections]]:
    """{label: {photo: faces}} of every detector; all of them load before the first one runs."""
    from featherface.detector import open_detector
    from featherface.evaluation.run import detect_photos

    if not data.annotated and not args.save_predictions:
        raise ConfigError(f"{args.split} has no annotation here: give --save-predictions DIR")
    named = labels(args.weights) if args.weights else {"FeatherFaceV2": None}
    detectors = {
        name: open_detector(
            path,
            args.device,
            score_threshold=args.score_threshold,
            iou_threshold=args.iou_threshold,
        )
        for name, path in named.items()
    }
    detected = {}
    for name, detector in detectors.items():
        print(f"{name}: {detector}")
        detected[name] = detect_photos(detector, data.photos, protocol=args.protocol, label=name)
        if args.save_predictions:
            folder = Path(args.save_predictions)
            write_submission(folder / name if len(detectors) > 1 else folder, detected[name])
    return detected


def describe(args: argparse.Namespace, data: EvaluationSet) -> dict[str, Any]:
    """What a number needs beside it to mean anything."""
    ran = not args.predictions
    return {
        "data": without_machine(args.data),
        "split": args.split,
        "description": data.description,
        "images": data.count,
        "images_of_the_whole": data.total,
        "subset": data.count < data.total,
        "protocol": args.protocol if ran else "unknown (files)",
        "score_threshold": args.score_threshold if ran else None,
        "iou_threshold": args.iou_threshold if ran else None,
        "sources": sources(args),
        "commit": commit(),
        "versions": versions(),
    }


def without_machine(path: str) -> str:
    """A path for a result that is passed on: absolute ones name folders of this machine only."""
    return Path(path).name if Path(path).is_absolute() else Path(path).as_posix()


def sources(args: argparse.Namespace) -> dict[str, dict[str, str]]:
    """{name: file, and for weights its SHA-256: many checkpoints have the same name}."""
    if args.predictions:
        return {k: {"file": without_machine(v)} for k, v in labels(args.predictions).items()}
    from featherface.detector import SHIPPED_WEIGHTS

    named = labels(args.weights) if args.weights else {"FeatherFaceV2": str(SHIPPED_WEIGHTS)}
    return {
        name: {"file": without_machine(path), "sha256": sha256(path)}
        for name, path in named.items()
    }


def pair_file(pair: Pair) -> str:
    """consistency_<a>_<b>, the name of a pair's files without suffix."""
    return f"consistency_{file_part(pair.a)}_{file_part(pair.b)}"


def write(
    args: argparse.Namespace,
    results: Mapping[str, Evaluation],
    detected: Mapping[str, Mapping[str, Detections]],
    record: dict[str, Any],
) -> None:
    """Files into --out, the tables onto the screen."""
    out, names = Path(args.out), ["evaluation.json", "evaluation.csv"]
    # the scores of files may be in any range: nothing to calibrate, nothing to compare at 0.5
    judged = {name: results[name] for name in detected}
    pairs = compare_with_first(detected, score_above=DISPLAY_SCORE)
    calibration = {name: summarise(result) for name, result in judged.items()}
    agreement = [
        {"a": pair.a, "b": pair.b, "score_above": DISPLAY_SCORE, **pair.summary} for pair in pairs
    ]
    record = {**record, "calibration": calibration, "consistency": agreement}
    write_results(out, results, record)
    for pair in pairs:
        names.append(f"{pair_file(pair)}.csv")
        write_text(out / names[-1], pair.table.to_csv(index=False, lineterminator="\n"))
    title = f"{record['description']}\nprotocol {record['protocol']}"
    if not args.no_plots:
        names += draw(out, results, judged, pairs, title)
    print(to_text(results, title=title.replace("\n", ", ")))
    if judged:
        print(calibration_text(calibration, score_above=args.score_threshold))
    for summary in agreement:
        print(consistency_text(summary))
    print(f"written: {out / names[0]}, {', '.join(names[1:])}")


def draw(
    out: Path,
    results: Mapping[str, Evaluation],
    judged: Mapping[str, Evaluation],
    pairs: list[Pair],
    title: str,
) -> list[str]:
    """Write every figure into `out` and return their names."""
    from featherface.plots import (
        plot_consistency,
        plot_precision_recall,
        plot_reliability,
        save_figure,
    )

    curves = {name: result.curves for name, result in results.items()}
    lines = curves if len(curves) > 1 else next(iter(curves.values()))
    figures = {"precision_recall.png": plot_precision_recall(lines, title=title)}
    for name, result in judged.items():
        setting = setting_of_most_faces(result)
        curve = result.curves[setting]
        if not len(curve.scores):
            continue  # nothing found, nothing to draw; the text says so
        diagram = reliability(curve)
        error = f"{setting} faces, expected calibration error {diagram.error:.3f}"
        file_name = f"reliability_{file_part(name)}.png" if len(judged) > 1 else "reliability.png"
        figures[file_name] = plot_reliability(diagram, title=f"{name}\n{title}\n{error}")
    for pair in pairs:
        figures[f"{pair_file(pair)}.png"] = plot_consistency(
            pair.table,
            pair.summary,
            names=(pair.a, pair.b),
            title=f"{title}, faces that score over {DISPLAY_SCORE}",
        )
    for file_name, figure in figures.items():
        save_figure(figure, out / file_name)
    return list(figures)
