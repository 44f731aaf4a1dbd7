"""The command line of scripts/evaluate.py: detect or read, measure, write, draw.

torch, pandas and matplotlib are imported where they are used, so that --help is quick.
"""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherface import cli
from featherface.config import DISPLAY_SCORE, EVALUATION_SCORE
from featherface.errors import CheckpointError, ConfigError
from featherface.evaluation.consistency import Pair, compare_with_first
from featherface.evaluation.curves import (
    Evaluation,
    calibration_summary,
    reliability,
    setting_of_most_faces,
)
from featherface.evaluation.predictions import EvaluationWarning
from featherface.evaluation.run import PROTOCOLS, detect_photos, evaluate
from featherface.evaluation.sets import EvaluationSet, find_evaluation_set
from featherface.evaluation.submission import write_submission
from featherface.files import check_writable, commit, sha256, versions, write_text

if TYPE_CHECKING:
    import pandas as pd


def evaluate_command(description: str | None) -> None:
    """Read the flags, run the detectors or read their files, write and print the results."""
    args = parse(description or "")
    data = find_evaluation_set(
        args.data, args.split, annotation=args.training_dataset, need_photos=not args.predictions
    )
    data = data.first(args.limit) if args.limit else data
    files = named_files(args)
    if args.record:
        refuse_foreign(files.values())
    for folder in filter(None, (args.save_predictions, args.out)):
        check_writable(folder)  # now, not after hours of detection
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", EvaluationWarning)
        if args.predictions:
            results = {name: data.evaluate(path) for name, path in files.items()}
        else:
            results = run_detectors(args, files, data)
    notes = [str(warning.message) for warning in caught]
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    if results:
        record = {**describe(args, files, data), "warnings": notes}
        write(args, results, record)
        if args.record:
            record_in_weights(files, results, record)


def parse(description: str) -> argparse.Namespace:
    """Read and check the flags."""
    parser = make_parser(description)
    args = parser.parse_args()
    if args.weights and args.predictions:
        parser.error("give either --weights or --predictions")
    if args.predictions:
        others = ("protocol", "score_threshold", "iou_threshold", "device", "save_predictions")
        for name in (n for n in others if getattr(args, n) != parser.get_default(n)):
            parser.error(f"{cli.flag(name)[0]} cannot be combined with --predictions")
    if args.limit < 0:
        parser.error("--limit must be 0 or more")
    if args.record and not args.weights:
        parser.error("--record writes into the files of --weights: give some")
    return args


def make_parser(description: str) -> argparse.ArgumentParser:
    parser = cli.parser(description)
    add = parser.add_argument
    add("--weights", nargs="+", metavar="W",
        help="weights or .onnx files to compare (default: the shipped V2)")  # fmt: skip
    add("--predictions", nargs="+", metavar="DIR", help="evaluate these submission folders instead")
    add("--data", default="data/widerface", help="data folder")
    add("--split", default="val", choices=("val", "train", "test"), help="split of the photos")
    add(*cli.flag("training_dataset"), default="", help="annotation file to use")
    add("--protocol", default="original", choices=tuple(PROTOCOLS),
        help="; ".join(f"{name}: {text}" for name, text in PROTOCOLS.items()))  # fmt: skip
    add(*cli.flag("save_predictions"), metavar="DIR", help="write <event>/<image>.txt files there")
    add("--out", default="results/evaluation", help="folder for the results")
    add("--record", action="store_true", help="write the AP into the weights files too")
    add(*cli.flag("no_plots"), action="store_true", help="write the tables only, no figures")
    cli.add_detection_flags(parser, score_threshold=EVALUATION_SCORE)
    add("--limit", type=int, default=0, metavar="N", help="use only the first N photos; 0: all")
    return parser


def named_files(args: argparse.Namespace) -> dict[str, str]:
    """{name: path} of the submission folders, or of the weights."""
    if args.weights or args.predictions:
        return labels(args.weights or args.predictions)
    from featherface.detector import SHIPPED_WEIGHTS

    return {"FeatherFaceV2": str(SHIPPED_WEIGHTS)}


def labels(paths: list[str]) -> dict[str, str]:
    """{short name: path}: the file's stem; with folder, then suffix, if two are alike."""
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
    args: argparse.Namespace, files: Mapping[str, str], data: EvaluationSet
) -> dict[str, Evaluation]:
    """Evaluate each detector; all of them load before the first one runs.

    Empty for photos without annotation, whose detections are only saved.
    """
    from featherface.detector import open_detector

    if not data.annotated and not args.save_predictions:
        raise ConfigError(f"{args.split} has no annotation here: give --save-predictions DIR")
    thresholds = {name: getattr(args, name) for name in ("score_threshold", "iou_threshold")}
    detectors = {
        name: open_detector(path if args.weights else None, args.device, **thresholds)
        for name, path in files.items()
    }
    results = {}
    for name, detector in detectors.items():
        print(f"{name}: {detector}")
        if data.annotated:
            results[name] = evaluate(detector, data, protocol=args.protocol, label=name)
            found = results[name].detections
        else:
            found = detect_photos(detector, data.photos, protocol=args.protocol, label=name)
        if args.save_predictions:
            folder = Path(args.save_predictions)
            write_submission(folder / name if len(detectors) > 1 else folder, found)
    return results


def describe(
    args: argparse.Namespace, files: Mapping[str, str], data: EvaluationSet
) -> dict[str, Any]:
    """The conditions of a measurement; weights with SHA-256, as many have the same name."""
    ran = not args.predictions
    sources = {name: {"file": without_machine(path)} for name, path in files.items()}
    if ran:
        sources = {n: {**source, "sha256": sha256(files[n])} for n, source in sources.items()}
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
        "sources": sources,
        "commit": commit(),
        "versions": versions(),
    }


def without_machine(path: str) -> str:
    """A path for a published result: absolute paths name folders of this machine only."""
    return Path(path).name if Path(path).is_absolute() else Path(path).as_posix()


def write(
    args: argparse.Namespace, results: Mapping[str, Evaluation], record: dict[str, Any]
) -> None:
    """Write the files into --out and print the tables."""
    out, names = Path(args.out), ["evaluation.json", "evaluation.csv"]
    # scores of files may be in any range: nothing to calibrate or to compare at 0.5
    judged = {name: result for name, result in results.items() if result.detections}
    pairs = compare_with_first(
        {name: result.detections for name, result in judged.items()}, score_above=DISPLAY_SCORE
    )
    calibration = {name: calibration_summary(result) for name, result in judged.items()}
    consistency = [
        {"a": pair.a, "b": pair.b, "score_above": DISPLAY_SCORE, **pair.summary} for pair in pairs
    ]
    write_results(out, results, {**record, "calibration": calibration, "consistency": consistency})
    for pair in pairs:
        names.append(f"{pair_file(pair)}.csv")
        write_text(out / names[-1], pair.table.to_csv(index=False, lineterminator="\n"))
    title = f"{record['description']}\nprotocol {record['protocol']}"
    if not args.no_plots:
        names += draw(out, results, judged, pairs, title)
    print(to_text(results, title=title.replace("\n", ", ")))
    if judged:
        print(calibration_text(calibration, score_above=args.score_threshold))
    for summary in consistency:
        print(consistency_text(summary))
    print(f"written: {out / names[0]}, {', '.join(names[1:])}")


def write_results(
    folder: str | os.PathLike, results: Mapping[str, Evaluation], record: Mapping[str, Any]
) -> None:
    """Write evaluation.json and evaluation.csv, atomically.

    The JSON is `record` (protocol, data, versions, …) with "detectors": {name: {setting: {"ap",
    "ap_exact", "faces"}, …, "images"}}; the CSV is `to_table` with the record's plain values in
    each row. An undefined AP is null, or empty.
    """
    detectors = {name: result.as_dict() for name, result in results.items()}
    content = json.dumps({**record, "detectors": detectors})
    plain = json.loads(content, parse_constant=lambda _: None)  # JSON has no NaN: null instead
    text = json.dumps(plain, indent=2, ensure_ascii=False)
    write_text(Path(folder) / "evaluation.json", text + "\n")
    scalars = {k: v for k, v in record.items() if v is None or isinstance(v, (str, int, float))}
    table = to_table(results).assign(**scalars)
    write_text(Path(folder) / "evaluation.csv", table.to_csv(index=False, lineterminator="\n"))


def pair_file(pair: Pair) -> str:
    """The name of a pair's files without suffix: consistency_<a>_<b>."""
    return f"consistency_{file_part(pair.a)}_{file_part(pair.b)}"


def draw(
    out: Path,
    results: Mapping[str, Evaluation],
    judged: Mapping[str, Evaluation],
    pairs: list[Pair],
    title: str,
) -> list[str]:
    """Write every figure into `out` and return their names."""
    from featherface import plots

    curves = {name: result.curves for name, result in results.items()}
    lines = curves if len(curves) > 1 else next(iter(curves.values()))
    figures = {"precision_recall.png": plots.plot_precision_recall(lines, title=title)}
    shown = {name: result.curves[setting_of_most_faces(result)] for name, result in judged.items()}
    diagrams = {name: reliability(curve) for name, curve in shown.items() if len(curve.scores)}
    if diagrams:
        figures["reliability.png"] = plots.plot_reliability(diagrams, title=title)
    for pair in pairs:
        figures[f"{pair_file(pair)}.png"] = plots.plot_consistency(
            pair.table,
            pair.summary,
            names=(pair.a, pair.b),
            title=f"{title}, faces that score over {DISPLAY_SCORE}",
        )
    for name, figure in figures.items():
        plots.save_figure(figure, out / name)
    return list(figures)


def to_table(results: Mapping[str, Evaluation]) -> "pd.DataFrame":
    """One row per detector and setting: detector, setting, ap, ap_exact (0..1), faces, images."""
    import pandas as pd

    tables = {name: result.to_dataframe() for name, result in results.items()}
    return pd.concat(tables, names=["detector", None]).reset_index("detector")


def to_text(results: Mapping[str, Evaluation], *, title: str) -> str:
    """A line per detector: official and exact AP in percent for each setting."""
    table = to_table(results)
    settings = list(dict.fromkeys(table["setting"]))
    wide = 100 * table.pivot(index="detector", columns="setting", values=["ap", "ap_exact"])
    columns = [(kind, name) for kind in ("ap", "ap_exact") for name in settings]
    wide = wide.loc[list(results), columns]
    wide.columns = settings + [f"{name} (exact)" for name in settings]
    shown = wide.rename_axis(None).to_string(float_format="%.2f", na_rep="no face")
    return f"AP in percent: {title}\n{shown}"


def calibration_text(calibration: Mapping[str, Mapping[str, Any]], *, score_above: float) -> str:
    """A line per detector, from {name: `calibration_summary`}.

    score_above: the score threshold of the detectors, which limits what the error is about.
    """
    settings = " and ".join(dict.fromkeys(part["setting"] for part in calibration.values()))
    lines = [f"calibration of detections that score over {score_above:g} (setting: {settings})"]
    for name, part in calibration.items():
        if not part["detections"]:
            lines.append(f"{name}: no detections")
            continue
        text = f"{name}: expected calibration error {part['expected_calibration_error']:.3f}"
        for precision, point in part["thresholds"].items():
            reached = "at no score"
            if point:
                reached = f"from score {point['threshold']:.4f} (recall {point['recall']:.3f})"
            text += f", precision {precision} {reached}"
        lines.append(text)
    return "\n".join(lines)


def consistency_text(summary: Mapping[str, Any]) -> str:
    """One line from {"a", "b", "score_above", and the summary of `compare`}."""
    a, b = summary["a"], summary["b"]
    agreement = f"{100 * summary['agreement']:.1f} %" if summary["agreement"] >= 0 else "undefined"
    return (
        f"consistency of {b} with {a}, faces that score over {summary['score_above']:g}: "
        f"agreement {agreement} ({summary['matched']} both, {summary['missed']} only {a}, "
        f"{summary['extra']} only {b}), score correlation {summary['score_correlation']:.3f}, "
        f"median box IoU {summary['iou_median']:.3f}, median landmark distance "
        f"{summary['landmark_distance_median']:.4f} face sizes"
    )


def refuse_foreign(weights: Iterable[str]) -> None:
    """Raise CheckpointError for the first file that is not a checkpoint of this project."""
    from featherface.checkpoint import is_checkpoint, read_file

    for path in weights:
        if Path(path).suffix == ".onnx":
            raise CheckpointError(f"{path}: AP is recorded in .pth files only; nothing recorded")
        if not is_checkpoint(read_file(path)):
            raise CheckpointError(f"{path}: not a checkpoint of this project; nothing recorded")


def record_in_weights(
    weights: Mapping[str, str], results: Mapping[str, Evaluation], record: Mapping[str, Any]
) -> None:
    """Add the AP to each weights file, under "evaluations"; replace the same measurement.

    weights: paths, by the names in `results`. If one is not a checkpoint of this project, raise
    CheckpointError and change none.
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
