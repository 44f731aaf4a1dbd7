"""Measure detectors on WIDER FACE (easy, medium, hard) or on any annotated photos (by size)."""

import argparse
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


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--weights", nargs="+", metavar="W", help="weights to compare (default: the shipped V2)"
    )
    parser.add_argument(
        "--predictions", nargs="+", metavar="DIR", help="evaluate these submission folders instead"
    )
    parser.add_argument("--data", default="data/widerface", help="data folder")
    parser.add_argument("--split", default="val", choices=("val", "train", "test"), help="photos")
    parser.add_argument(*cli.flag("training_dataset"), default="", help="annotation file to use")
    parser.add_argument(
        "--protocol",
        default="original",
        choices=tuple(PROTOCOLS),
        help="size of the photos: " + "; ".join(f"{k}: {v}" for k, v in PROTOCOLS.items()),
    )
    parser.add_argument(
        *cli.flag("save_predictions"), metavar="DIR", help="write <event>/<image>.txt files there"
    )
    parser.add_argument("--out", default="results/evaluation", help="folder for the result")
    parser.add_argument(
        *cli.flag("score_threshold"), type=float, default=EVALUATION_SCORE, help="least score, 0..1"
    )
    parser.add_argument(
        *cli.flag("iou_threshold"), type=float, default=NMS_IOU, help="of non-maximum suppression"
    )
    parser.add_argument("--limit", type=int, default=0, help="only the first N photos; 0: all")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
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


def describe(args: argparse.Namespace, data: "EvaluationSet") -> dict[str, Any]:
    """What a number needs beside it to mean anything."""
    from featherface.provenance import commit, versions

    ran = not args.predictions
    return {
        "data": str(args.data),
        "split": args.split,
        "images": data.count,
        "images_of_the_whole": data.total,
        "subset": data.count < data.total,
        "protocol": args.protocol if ran else "unknown (files)",
        "score_threshold": args.score_threshold if ran else None,
        "iou_threshold": args.iou_threshold if ran else None,
        "sources": args.predictions or args.weights or ["shipped V2"],
        "commit": commit(),
        "versions": versions(),
    }


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    if args.weights and args.predictions:
        parser.error("give either --weights or --predictions")

    from featherface.evaluation.report import to_text, write_results
    from featherface.evaluation.sets import find_evaluation_set
    from featherface.plots import plot_precision_recall, save_figure

    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    data = find_evaluation_set(
        args.data,
        args.split,
        annotation=args.training_dataset,
        need_photos=not args.predictions,
    )
    data = data.first(args.limit) if args.limit > 0 else data
    if args.predictions:
        results = {name: data.evaluate(path) for name, path in labels(args.predictions).items()}
    else:
        results = run_detectors(args, data)
    if not results:
        return
    record = describe(args, data)
    title = f"{data.description}, protocol {record['protocol']}"
    curves = {name: result.curves for name, result in results.items()}
    write_results(args.out, results, record)
    save_figure(
        plot_precision_recall(
            curves if len(curves) > 1 else next(iter(curves.values())), title=title
        ),
        Path(args.out) / "precision_recall.png",
    )
    print(to_text(results, title=title))
    print(f"written: {Path(args.out) / 'evaluation.json'}, evaluation.csv, precision_recall.png")


if __name__ == "__main__":
    cli.run(main)
