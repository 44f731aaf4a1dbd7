"""The command line of scripts/evaluate.py: detect or read, measure, write, draw.

torch, pandas and matplotlib are imported where they are used, so that --help is quick.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from featherface import cli
from featherface.config import DISPLAY_SCORE, EVALUATION_SCORE
from featherface.errors import CheckpointError, ConfigError, printable
from featherface.evaluation.consistency import compare
from featherface.evaluation.curves import (
    Evaluation,
    calibration_summary,
    reliability,
    setting_of_most_faces,
)
from featherface.evaluation.run import PROTOCOLS, detect_photos
from featherface.evaluation.sets import EvaluationSet, find_evaluation_set
from featherface.evaluation.submission import EvaluationWarning, write_submission
from featherface.files import check_writable, commit, sha256, versions, write_text

# {(first, other detector): table and summary of `compare`}
Comparisons = Mapping[tuple[str, str], tuple[Any, dict[str, float]]]

AGREEMENT = ("matched", "missed", "extra", "agreement", "score_correlation", "iou_median",
             "landmark_distance_median")  # fmt: skip


def evaluate_command(description: str | None) -> None:
    """Read the flags, run the detectors or read their files, write and print the results."""
    args = parse(description or "")
    data = find_evaluation_set(
        args.data, args.split, annotation=args.training_dataset, need_photos=not args.predictions
    )
    data = data.first(args.limit)
    files = named_files(args)
    if args.record:
        refuse_foreign(files.values())
    for folder in filter(None, (args.save_predictions, args.errors, args.out)):
        check_writable(folder)  # now, not after hours of detection
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", EvaluationWarning)
        if args.predictions:
            results = {name: data.evaluate(path) for name, path in files.items()}
        else:
            results = run_detectors(args, files, data)
    notes = [str(warning.message) for warning in caught]
    for note in notes:
        print(f"warning: {printable(note)}", file=sys.stderr)
    if results:
        record = {**describe(args, files, data), "warnings": notes}
        report(args, results, record)
        if args.errors:
            from featherface.evaluation.errors import write_errors

            found = {name: result.detections for name, result in results.items()}
            title = f"{record['description']}, protocol {record['protocol']}"
            written = write_errors(args.errors, data.photos, found, title=title)
            print("errors:", ", ".join(map(str, written)))
        if args.record:
            record_in_weights(files, results, record)


def parse(description: str) -> argparse.Namespace:
    """Read and check the flags."""
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
    add("--errors", metavar="DIR", help="write the worst false alarms and misses, and AP by face "
        "size, blur, occlusion and pose there")  # fmt: skip
    add("--out", default="results/evaluation", help="folder for the results")
    add("--record", action="store_true", help="write the AP into the weights files too")
    add(*cli.flag("no_plots"), action="store_true", help="write the tables only, no figures")
    cli.add_detection_flags(parser, score_threshold=EVALUATION_SCORE)
    add(*cli.flag("second_look"), action="store_true",
        help="see photos over 640 pixels again at long side 640, as detect.py does")  # fmt: skip
    add("--limit", type=int, default=0, metavar="N", help="use only the first N photos; 0: all")
    args = parser.parse_args()
    if args.weights and args.predictions:
        parser.error("give either --weights or --predictions")
    if args.predictions:
        others = (
            *("protocol", "score_threshold", "iou_threshold", "second_look"),
            *("device", "save_predictions", "errors"),
        )
        for name in (n for n in others if getattr(args, n) != parser.get_default(n)):
            parser.error(f"{cli.flag(name)[0]} cannot be combined with --predictions")
    if args.limit < 0:
        parser.error("--limit must be 0 or more")
    if args.record and not args.weights:
        parser.error("--record writes into the files of --weights: give some")
    return args


def named_files(args: argparse.Namespace) -> dict[str, str]:
    """{name: path} of the submission folders, or of the weights."""
    if args.weights or args.predictions:
        return labels(args.weights or args.predictions)
    from featherface.detector import SHIPPED_WEIGHTS

    return {"FeatherFaceV2": str(SHIPPED_WEIGHTS)}


def labels(paths: list[str]) -> dict[str, str]:
    """{short name: path}: the file's stem; with folder, then suffix, if two are alike."""
    files = [Path(path).resolve() for path in paths]
    short = [file.stem for file in files]
    longer = [f"{file.parent.name}_{file.stem}" for file in files]
    longest = [f"{file.parent.name}_{file.name}" for file in files]
    for names in (short, longer, longest):
        if len(set(names)) == len(paths):
            return dict(zip(names, paths, strict=True))
    raise ConfigError("two of the files to compare have the same name and folder: rename one")


def run_detectors(
    args: argparse.Namespace, files: Mapping[str, str], data: EvaluationSet
) -> dict[str, Evaluation]:
    """Evaluate each detector; all of them load before the first one runs.

    Empty for photos without annotation, whose detections are only saved.
    """
    from featherface.detector import open_detector

    if not data.annotated and not args.save_predictions:
        raise ConfigError(f"{args.split} has no annotation here: give --save-predictions DIR")
    names = ("score_threshold", "iou_threshold", "second_look")
    settings = {name: getattr(args, name) for name in names}
    detectors = {
        name: open_detector(path if args.weights else None, args.device, **settings)
        for name, path in files.items()
    }
    results = {}
    for name, detector in detectors.items():
        print(f"{name}: {detector}")
        found = detect_photos(detector, data.photos, protocol=args.protocol, label=name)
        if data.annotated:
            results[name] = replace(data.evaluate(found), detections=found)
        if args.save_predictions:
            several = len(detectors) > 1
            write_submission(Path(args.save_predictions, name if several else ""), found)
    return results


def describe(
    args: argparse.Namespace, files: Mapping[str, str], data: EvaluationSet
) -> dict[str, Any]:
    """The conditions of a measurement; weights with SHA-256, as many have the same name."""
    ran = not args.predictions
    protocol = args.protocol + (" and a second look" if args.second_look else "")
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
        "protocol": protocol if ran else "unknown (files)",
        "score_threshold": args.score_threshold if ran else None,
        "iou_threshold": args.iou_threshold if ran else None,
        "sources": sources,
        "commit": commit(),
        "versions": versions(),
    }


def without_machine(path: str) -> str:
    """A path for a published result: absolute paths name folders of this machine only."""
    return Path(path).name if Path(path).is_absolute() else Path(path).as_posix()


def report(
    args: argparse.Namespace, results: Mapping[str, Evaluation], record: dict[str, Any]
) -> None:
    """Write the files into --out and print the tables."""
    out, title = Path(args.out), f"{record['description']}\nprotocol {record['protocol']}"
    # scores of files may be in any range: nothing to calibrate or to compare at 0.5
    faces = {name: result.detections for name, result in results.items() if result.detections}
    first, *others = faces or [""]
    pairs = {
        (first, name): compare(faces[first], faces[name], score_above=DISPLAY_SCORE)
        for name in others
    }
    calibration = {name: calibration_summary(results[name]) for name in faces}
    consistency = [
        {"a": a, "b": b, "score_above": DISPLAY_SCORE, **summary}
        for (a, b), (_, summary) in pairs.items()
    ]
    record = {**record, "calibration": calibration, "consistency": consistency}
    names = write_tables(out, results, record, pairs)
    if not args.no_plots:
        names += draw(out, results, pairs, title)
    show(f"AP in percent: {title}".replace("\n", ", "), [ap_row(n, r) for n, r in results.items()])
    if faces:
        setting = setting_of_most_faces(results[first])
        over = f"calibration of detections that score over {args.score_threshold:g}"
        rows = [calibration_row(name, part) for name, part in calibration.items()]
        show(f"{over} (setting: {setting}); score: the lowest for a precision", rows, digits=3)
    if pairs:
        rows = [{"": part["b"]} | {key: part[key] for key in AGREEMENT} for part in consistency]
        show(f"consistency with {first}, faces that score over {DISPLAY_SCORE:g}", rows, digits=3)
    print(f"written: {out / names[0]}, {', '.join(names[1:])}")


def write_tables(
    out: Path, results: Mapping[str, Evaluation], record: Mapping[str, Any], pairs: Comparisons
) -> list[str]:
    """Write evaluation.json, evaluation.csv and a CSV file per comparison; return their names.

    The JSON is `record` (protocol, data, versions, …) with "detectors": {name: {setting: {"ap",
    "ap_exact", "faces"}, …, "images"}}. The CSV has one row per detector and setting, each with
    the record's plain values. An undefined AP is null, or empty.
    """
    import pandas as pd

    detectors = {name: result.as_dict() for name, result in results.items()}
    content = json.dumps({**record, "detectors": detectors})
    plain = json.loads(content, parse_constant=lambda _: None)  # JSON has no NaN: null instead
    write_text(out / "evaluation.json", json.dumps(plain, indent=2, ensure_ascii=False) + "\n")
    scalars = {k: v for k, v in record.items() if v is None or isinstance(v, (str, int, float))}
    found = {name: result.to_dataframe() for name, result in results.items()}
    table = pd.concat(found, names=["detector", None]).reset_index("detector").assign(**scalars)
    tables = {"evaluation.csv": table} | {f"{pair_file(p)}.csv": pairs[p][0] for p in pairs}
    for name, table in tables.items():
        write_text(out / name, table.to_csv(index=False, lineterminator="\n"))
    return ["evaluation.json", *tables]


def pair_file(pair: tuple[str, str]) -> str:
    """The name of a comparison's files without suffix."""
    return f"consistency_{pair[0]}_{pair[1]}"


def draw(out: Path, results: Mapping[str, Evaluation], pairs: Comparisons, title: str) -> list[str]:
    """Write every figure into `out` and return their names."""
    from featherface import plots

    curves = {name: result.curves for name, result in results.items()}
    lines = curves if len(curves) > 1 else next(iter(curves.values()))
    figures = {"precision_recall.png": plots.plot_precision_recall(lines, title=title)}
    judged = {
        name: result.curves[setting_of_most_faces(result)]
        for name, result in results.items()
        if result.detections
    }
    diagrams = {name: reliability(curve) for name, curve in judged.items() if len(curve.scores)}
    if diagrams:
        figures["reliability.png"] = plots.plot_reliability(diagrams, title=title)
    over = f"{title}, faces that score over {DISPLAY_SCORE}"
    for pair, found in pairs.items():
        figure = plots.plot_consistency(*found, names=pair, title=over)
        figures[f"{pair_file(pair)}.png"] = figure
    for name, figure in figures.items():
        plots.save_figure(figure, out / name)
    return list(figures)


def show(title: str, rows: list[dict[str, Any]], *, digits: int = 2) -> None:
    """Print rows as a table under a title; the first column names the detector."""
    import pandas as pd

    table = pd.DataFrame(rows).set_index("").rename_axis(None)
    print(f"{title}\n{table.to_string(float_format=f'%.{digits}f', na_rep='none')}")


def ap_row(name: str, result: Evaluation) -> dict[str, Any]:
    """Official and exact AP in percent for each setting."""
    official = {setting: 100 * curve.ap for setting, curve in result.curves.items()}
    exact = {f"{s} (exact)": 100 * curve.ap_exact for s, curve in result.curves.items()}
    return {"": name, **official, **exact}


def calibration_row(name: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    """`calibration_summary` without nesting."""
    row = {"": name, "detections": summary["detections"]}
    row["error"] = summary["expected_calibration_error"]
    for precision, point in summary["thresholds"].items():
        row[f"score for {precision}"] = point["threshold"] if point else None
        row[f"recall at {precision}"] = point["recall"] if point else None
    return row


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

    weights: paths, by the names in `results`.
    """
    from featherface.checkpoint import read_file, write_file

    same = ("description", "protocol")
    kept = (*same, "images", "subset", "score_threshold", "iou_threshold", "commit")
    about = {name: record[name] for name in kept}
    for name, path in weights.items():
        content = read_file(path)
        earlier = content.get("evaluations", [])
        others = [part for part in earlier if any(part[key] != about[key] for key in same)]
        content["evaluations"] = [*others, {**about, **results[name].as_dict()}]
        write_file(path, content)
        print(f"recorded in {path}")
