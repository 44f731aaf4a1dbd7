"""Measure detectors on WIDER FACE (easy, medium, hard) or on any annotated photos (by size)."""

import argparse
import hashlib
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherface import cli
from featherface.config import EVALUATION_SCORE, NMS_IOU
from featherface.errors import ConfigError

if TYPE_CHECKING:
    from featherface.evaluation import Evaluation
    from featherface.evaluation.sets import EvaluationSet

PROTOCOLS = {
    "original": "photos as stored",
    "vga": "long side 640",
    "mxnet": "short side 1600, long side at most 2150",
    "multiscale": "five sizes, mirrored too, merged by box voting",
}
SHOWN = "(default: %(default)s)"


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--weights", nargs="+", metavar="W", help="weights to compare (default: the shipped V2)"
    )
    parser.add_argument(
        "--predictions", nargs="+", metavar="DIR", help="evaluate these submission folders instead"
    )
    parser.add_argument("--data", default="data/widerface", help=f"data folder {SHOWN}")
    parser.add_argument(
        "--split", default="val", choices=("val", "train", "test"), help=f"which photos {SHOWN}"
    )
    parser.add_argument(*cli.flag("training_dataset"), default="", help="annotation file to use")
    parser.add_argument(
        "--protocol",
        default="original",
        choices=tuple(PROTOCOLS),
        help="; ".join(f"{name}: {text}" for name, text in PROTOCOLS.items()) + f" {SHOWN}",
    )
    parser.add_argument(
        *cli.flag("save_predictions"), metavar="DIR", help="write <event>/<image>.txt files there"
    )
    parser.add_argument(
        "--out", default="results/evaluation", help=f"folder for the result {SHOWN}"
    )
    for name, default, text in (
        ("score_threshold", EVALUATION_SCORE, "faces must score more, 0..1"),
        ("iou_threshold", NMS_IOU, "of two faces overlapping more than this the better stays"),
    ):
        parser.add_argument(*cli.flag(name), type=float, default=default, help=f"{text} {SHOWN}")
    parser.add_argument(
        "--limit", type=int, default=0, metavar="N", help=f"only the first N photos; 0: all {SHOWN}"
    )
    parser.add_argument("--device", default="auto", help=f"auto, cpu, cuda, cuda:1, mps {SHOWN}")
    return parser


def labels(paths: list[str]) -> dict[str, str]:
    """{short name: path}: the file's stem, with its folder where two would be alike."""
    stems = [Path(path).stem for path in paths]
    named = {
        stem if stems.count(stem) == 1 else f"{Path(path).resolve().parent.name}/{stem}": path
        for stem, path in zip(stems, paths, strict=True)
    }
    if len(named) < len(paths):
        raise ConfigError("two of the files to compare have the same name and folder: rename one")
    return named


def run_detectors(args: argparse.Namespace, data: "EvaluationSet") -> "dict[str, Evaluation]":
    from featherface.detector import Detector
    from featherface.evaluation import write_submission
    from featherface.evaluation.run import detect_photos

    if not data.annotated and not args.save_predictions:
        raise ConfigError(f"{args.split} has no annotation here: give --save-predictions DIR")
    named = labels(args.weights) if args.weights else {"FeatherFaceV2": None}
    detectors = {
        name: Detector(path, args.device, args.score_threshold, args.iou_threshold)
        for name, path in named.items()
    }
    results = {}
    for name, detector in detectors.items():
        print(f"{name}: {detector}")
        found = detect_photos(detector, data.photos, protocol=args.protocol, label=name)
        if args.save_predictions:
            folder = Path(args.save_predictions)
            write_submission(folder / name if len(detectors) > 1 else folder, found)
        if data.annotated:
            results[name] = data.evaluate(found)
    return results


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
        name: {
            "file": without_machine(path),
            "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        }
        for name, path in named.items()
    }


def describe(args: argparse.Namespace, data: "EvaluationSet") -> dict[str, Any]:
    """What a number needs beside it to mean anything."""
    from featherface.provenance import commit, versions

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


def write(args: argparse.Namespace, results: "dict[str, Evaluation]", record: dict) -> None:
    """Files into --out, the table onto the screen."""
    from featherface.evaluation.report import to_text, write_results
    from featherface.plots import plot_precision_recall, save_figure

    out = Path(args.out)
    write_results(out, results, record)
    curves = {name: result.curves for name, result in results.items()}
    lines = curves if len(curves) > 1 else next(iter(curves.values()))
    title = f"{record['description']}\nprotocol {record['protocol']}"
    save_figure(plot_precision_recall(lines, title=title), out / "precision_recall.png")
    print(to_text(results, title=title.replace("\n", ", ")))
    print(f"written: {out / 'evaluation.json'}, evaluation.csv, precision_recall.png")


def make_folder(path: str) -> None:
    """Fails before hours of detection, not after."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {path}: {error.strerror}") from error


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    if args.weights and args.predictions:
        parser.error("give either --weights or --predictions")

    from featherface.evaluation import EvaluationWarning
    from featherface.evaluation.sets import find_evaluation_set

    data = find_evaluation_set(
        args.data, args.split, annotation=args.training_dataset, need_photos=not args.predictions
    )
    data = data.first(args.limit) if args.limit > 0 else data
    for folder in filter(None, (args.save_predictions, args.out)):
        make_folder(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", EvaluationWarning)
        if args.predictions:
            named = labels(args.predictions)
            results = {name: data.evaluate(path) for name, path in named.items()}
        else:
            results = run_detectors(args, data)
    notes = [str(warning.message) for warning in caught]
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    if results:
        write(args, results, {**describe(args, data), "warnings": notes})


if __name__ == "__main__":
    cli.run(main)
