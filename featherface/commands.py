"""The command `featherface` and its sub-commands; each imports what it needs when it runs.

scripts/ runs the same functions, with the same flags.
"""

import errno
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherface import __version__, cli
from featherface.config import DISPLAY_SCORE, PRESETS
from featherface.errors import ConfigError, DataError, printable
from featherface.files import CHECKOUT

if TYPE_CHECKING:
    from featherface.face_detector import FaceDetector

Commands = Mapping[str, tuple[str, Callable[[], None]]]  # {name: (help, function)}
SHOWN_FACES = 20  # rows of the table that `detect` prints
PAGE = Path("docs/demo/dist")  # below the checkout or the working folder; made by make browser
LANDMARK_HELP = (
    "no landmarks: training works without them (the teacher supplies them); for annotated ones get "
    "RetinaFace's annotation package, linked from "
    "https://github.com/deepinsight/insightface/tree/master/detection/retinaface, and put its "
    "train/label.txt into {root}/train"
)


def main() -> None:
    """Run the sub-command that the command line names."""
    sys.argv[0] = "featherface"  # also for python -m featherface
    cli.run(partial(choose, "Find faces; train, measure and export the detector.", COMMANDS))


def choose(description: str, commands: Commands) -> None:
    """Run the command that the first argument names; its parser reads the arguments after it."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in commands:
        sys.argv[:2] = [f"{sys.argv[0]} {name}"]  # the program's name in help and errors
        commands[name][1]()
        return
    parser = cli.parser(description)
    parser.add_argument("--version", action="version", version=__version__)
    table = parser.add_subparsers(metavar="sub-command", required=True)
    for command, (text, _) in commands.items():
        table.add_parser(command, help=text)
    parser.parse_args(sys.argv[1:] or ["--help"])


def detect() -> None:
    """Find faces in photos, folders, videos and camera pictures: draw or blur them, write tables.

    The results are detections.json, detections.csv and a picture or video for each input. The exit
    code is 2 if an input could not be read; the results of the others are written all the same.
    """
    args = _detect_flags()
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # one line per file is enough
    from featherface.detect_files import detect_paths

    detector = _open_detector(args)
    print(printable(detector))
    report = detect_paths(
        detector,
        args.paths,
        args.out,
        draw_pictures=not args.no_draw,
        blur_faces=args.blur,
        track=args.track,
        show=args.show,
        save_faces=args.save_faces,
    )
    if report.rows:
        print(face_table(report.rows))
    found = f"{_count(report.faces, 'face')} in {_count(len(report.files), 'file')}"
    found += f", {len(report.skipped)} skipped" if report.skipped else ""
    print(f"{found}: {printable(Path(args.out) / 'detections.json')}, detections.csv")
    if len(report.drawn) == 1:
        print(f"drawn: {printable(report.drawn[0])}")
    elif report.drawn:
        print(f"drawn: {_count(len(report.drawn), 'picture')} in {printable(args.out)}")
    if report.problems:
        raise DataError(f"{_count(len(report.problems), 'problem')}: see the lines above")


def _detect_flags() -> Namespace:
    parser = cli.parser(detect.__doc__ or "")
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PHOTO|FOLDER|VIDEO|CAMERA|ADDRESS",
        help="what to search: files, folders, a camera's number (0), rtsp:// or http:// addresses",
    )
    parser.add_argument("--weights", help="weights of V1 or V2, or an exported file (default: V2)")
    parser.add_argument(
        "--engine",
        choices=("auto", "onnx", "torch"),
        default="auto",
        help="onnx (ONNX Runtime), torch (PyTorch) or auto: torch for .pth weights and for devices "
        "other than cpu, else onnx",
    )
    parser.add_argument("--out", default="results/detections", help="folder for the results")
    cli.add_detection_flags(parser, score_threshold=DISPLAY_SCORE)
    parser.add_argument(
        *cli.flag("max_side"), type=int, help="shrink larger pictures to this long side, pixels"
    )
    parser.add_argument(
        *cli.flag("save_faces"),
        choices=("aligned", "cropped"),
        default="",
        help="also write each face of a photo as a picture, into OUT/faces: turned upright at "
        "112×112 pixels for face recognition, or its box",
    )
    for name, text in (
        (
            "no_second_look",
            "do not see pictures of more than 640 pixels again at long side 640: less time, but "
            "faces over 600 pixels are missed",
        ),
        ("no_draw", "write the tables only, no pictures"),
        ("blur", "blur the faces in the pictures instead of drawing them"),
        ("track", "number the faces of a video from frame to frame (extra: track)"),
        ("show", "show videos and cameras in a window; q closes it"),
    ):
        parser.add_argument(*cli.flag(name), action="store_true", help=text)
    return parser.parse_args()


def _open_detector(args: Namespace) -> "FaceDetector":
    settings: dict[str, Any] = {
        "score_threshold": args.score_threshold,
        "iou_threshold": args.iou_threshold,
        "max_side": args.max_side,
        "second_look": not args.no_second_look,
    }
    from featherface.runtimes import OPENERS, RuntimeDetector

    engine = args.engine
    if args.weights and Path(args.weights).suffix.lower() in OPENERS and engine == "auto":
        return RuntimeDetector(args.weights, args.device, **settings)
    is_onnx = not args.weights or args.weights.lower().endswith(".onnx")
    if args.weights and engine != "auto" and is_onnx != (engine == "onnx"):
        raise ConfigError(f"--engine {engine} cannot run {args.weights}: leave --engine out")
    if engine == "auto":
        by_onnx = is_onnx and (args.weights or args.device in ("auto", "cpu"))
        engine = "onnx" if by_onnx else "torch"
    if engine == "onnx":
        from featherface.onnx_detector import OnnxDetector

        return OnnxDetector(args.weights, args.device, **settings)
    from featherface.detector import Detector

    return Detector(args.weights, args.device, **settings)


def face_table(rows: list[list[Any]]) -> str:
    """The first faces of `FileDetections.rows` as text: file, frame of a video, score and box."""
    table = [["file", "frame", "score", "x1", "y1", "x2", "y2"]]
    for label, frame, score, *values in rows[:SHOWN_FACES]:
        box = ["" if value == "" else f"{value:.0f}" for value in values[:4]]
        table.append([printable(label), str(frame), f"{score:.2f}", *box])
    if not any(row[1] for row in table[1:]):
        table = [row[:1] + row[2:] for row in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table
    ]
    more = len(rows) - SHOWN_FACES
    return "\n".join(lines + [f"… and {more} more"] * (more > 0))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def train(model: str) -> None:
    cli.share_cores()
    from featherface.training.command import train_command

    train_command(PRESETS[model], TRAIN[model][0])


def evaluate() -> None:
    """Measure AP on WIDER FACE (easy, medium, hard) or on annotated photos (by face size)."""
    from featherface.evaluation.command import evaluate_command

    evaluate_command(evaluate.__doc__)


def benchmark() -> None:
    from featherface.benchmark.command import main

    main()


def export() -> None:
    """Export weights: ONNX files, a deployment package, and a README with what was measured.

    --format writes a file for another runtime instead. Each file is compared with the network.
    """
    parser = cli.parser(export.__doc__ or "")
    parser.add_argument("--weights", help="weights of V1 or V2 (default: the shipped V2)")
    parser.add_argument("--out", default="results/v2", help="folder for the files")
    parser.add_argument(
        "--format",
        choices=("onnx", "openvino", "ncnn", "tflite", "pt2"),
        default="onnx",
        help="runtime; the others need the extra of that name, pt2 (torch.export) needs none",
    )
    parser.add_argument(
        "--form",
        choices=("both", "end_to_end", "raw"),
        default="both",
        help="end_to_end: picture in, faces out; raw: pixels in, all anchors out, decoded",
    )
    parser.add_argument(
        "--size",
        default="",
        metavar="HxW",
        help="one image size, such as 640x640 (default: any; ncnn, tflite and pt2: 640x640)",
    )
    parser.add_argument("--opset", type=int, default=20, help="ONNX opset, 18 to 23; V1 needs 19")
    parser.add_argument("--int8", action="store_true", help="an INT8 form as well")
    parser.add_argument(
        "--calibration",
        default="",
        metavar="DIR",
        help="photos to check on and to calibrate INT8 with (default: drawn ones)",
    )
    args = parser.parse_args()
    if args.format != "onnx":
        _export_runtime(args)
        return
    from featherface.detector import SHIPPED_WEIGHTS  # torch takes seconds; --help should not
    from featherface.export import FORMS, Settings, parse_size
    from featherface.export import export as export_files

    settings = Settings(
        forms=FORMS if args.form == "both" else (args.form,),
        size=parse_size(args.size),
        opset=args.opset,
        int8=args.int8,
        photos=args.calibration,
    )
    made = export_files(args.weights or SHIPPED_WEIGHTS, args.out, settings)
    for path in made.files:
        print(f"{path}: {path.stat().st_size:,} bytes")


def hub() -> None:
    """Write weights as safetensors and a model card, ready for the Hugging Face Hub."""
    parser = cli.parser(hub.__doc__ or "")
    parser.add_argument("--weights", help="weights of V1 or V2 (default: the shipped V2)")
    parser.add_argument("--out", default="results/hub", help="folder for the files")
    parser.add_argument(
        "--evaluation", default="", metavar="FILE", help="evaluation.json of these weights"
    )
    parser.add_argument("--licence", default="mit", help="licence in the card's front matter")
    args = parser.parse_args()
    from featherface.detector import SHIPPED_WEIGHTS
    from featherface.export.hub import write_hub_folder

    for path in write_hub_folder(
        args.weights or SHIPPED_WEIGHTS, args.out, evaluation=args.evaluation, licence=args.licence
    ):
        print(f"{path}: {path.stat().st_size:,} bytes")


def _export_runtime(args: Namespace) -> None:
    if args.int8 or args.form == "end_to_end":
        raise ConfigError("--int8 and --form end_to_end are for --format onnx: leave them out")
    from featherface.detector import SHIPPED_WEIGHTS
    from featherface.export import parse_size
    from featherface.export.runtimes import export_runtime

    files, parity = export_runtime(
        args.weights or SHIPPED_WEIGHTS,
        args.out,
        runtime=args.format,
        size=parse_size(args.size),
        photos=args.calibration,
    )
    for path in files:
        print(f"{path}: {path.stat().st_size:,} bytes")
    line = (
        "{faces} faces over a score of {score_threshold:.2g} in both, {in_one_only} in one only, "
        "boxes within {box_difference:.1e} px, scores within {score_difference:.1e}"
    )
    print(line.format(**parity))


def runs() -> None:
    from featherface.training.runs import main

    main()


def prepare_data() -> None:
    """Download WIDER FACE and check that a data folder is complete and readable."""
    parser = cli.parser(prepare_data.__doc__ or "")
    parser.add_argument("--data", default="data/widerface", help="data folder")
    parser.add_argument(
        "--download", action="store_true", help="download train and val first (about 1.8 GB)"
    )
    parser.add_argument(
        *cli.flag("with_test"),
        action="store_true",
        help="with --download: the test photos too (another 1.8 GB)",
    )
    parser.add_argument(
        "--deep",
        action="store_true",
        help="decode every photo, instead of checking only its header and end",
    )
    args = parser.parse_args()
    from featherface.data.widerface import download, verify

    if args.download:
        download(args.data, splits=("train", "val", "test")[: 2 + args.with_test])
    report = verify(args.data, deep=args.deep)
    print(report.table.set_index("split").T.to_string())
    for line in report.absent:
        print(f"not found: {line}")
    if not report.table["with landmarks"].any():
        print(LANDMARK_HELP.format(root=args.data))
    if report.problems:
        raise DataError("; ".join(report.problems))
    print(
        "ready:", "all of WIDER FACE" if report.is_full else "a subset of WIDER FACE or other data"
    )


def label() -> None:
    """Label photographs by an ensemble of detectors: boxes, landmarks, and faces to ignore.

    Writes an annotation that training reads. Ctrl-C keeps what is done; the same command continues.
    The exit code is 2 if a file could not be read; the others are labelled all the same.
    """
    parser = cli.parser(label.__doc__ or "")
    parser.add_argument("folder", metavar="FOLDER", help="photographs, also in subfolders")
    parser.add_argument(
        "--detectors",
        nargs="+",
        required=True,
        metavar="FILE",
        help="weights of V1 or V2, or ONNX files: exported ones, RetinaFace, SCRFD, YuNet",
    )
    parser.add_argument("--out", default="", help="the annotation (default: FOLDER/label.txt)")
    parser.add_argument(
        "--sides",
        nargs="+",
        type=int,
        default=[640, 1024],
        metavar="PIXELS",
        help="long sides at which each photograph is seen, mirrored too (default: 640 1024)",
    )
    parser.add_argument("--score", type=float, default=0.42, help="lowest score of a face, 0 to 1")
    parser.add_argument(
        "--doubt", type=float, default=0.15, help="ignore faces from this score up to --score"
    )
    parser.add_argument(
        *cli.flag("save_predictions"),
        default="",
        metavar="DIR",
        help="also write all faces with their scores, for `evaluate --predictions`",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    args = vars(parser.parse_args())
    from featherface.labelling import label_photos

    predictions = args.pop("save_predictions")
    labels = label_photos(**args, predictions=predictions)
    counts = _count(len(labels.photos), "photograph"), _count(labels.faces, "face")
    print(f"{', '.join(counts)}, {labels.ignored} to ignore: {printable(labels.path)}")
    if labels.skipped:
        raise DataError(f"{_count(len(labels.skipped), 'problem')}: see the lines above")


def draw_data() -> None:
    from featherface.data.demo import main

    main()


def convert_data() -> None:
    from featherface.data.convert import main

    main()


def demo() -> None:
    """Serve the page that finds faces in a browser, on this machine only, until Ctrl-C."""
    parser = cli.parser(demo.__doc__ or "")
    parser.add_argument("--port", type=int, default=8000, help="port; 0: a free one")
    args = parser.parse_args()
    page = next((p for p in (CHECKOUT / PAGE, PAGE) if (p / "index.html").is_file()), None)
    if page is None:
        raise DataError(
            f"{PAGE} holds no page here: run make browser in a checkout (needs Node.js) first"
        )
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Print no line per request."""

    try:
        server = ThreadingHTTPServer(
            ("127.0.0.1", args.port), partial(Handler, directory=str(page))
        )
    except (OSError, OverflowError) as error:
        used = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        why = "is in use" if used else f"cannot be opened ({error})"
        raise ConfigError(f"port {args.port} {why}: choose another with --port") from error
    with server, suppress(KeyboardInterrupt):
        print(f"http://127.0.0.1:{server.server_port} (Ctrl-C ends it)", flush=True)
        server.serve_forever()


TRAIN: Commands = {
    "v1": ("Train FeatherFace V1, the 592K-parameter teacher.", partial(train, "v1")),
    "v2": ("Train FeatherFace V2, the 256K-parameter student.", partial(train, "v2")),
}
DATA: Commands = {
    "prepare": ("download WIDER FACE, check a data folder", prepare_data),
    "convert": ("convert annotations of YOLO, COCO or Pascal VOC", convert_data),
    "demo": ("draw a synthetic data set to try every step with", draw_data),
}
COMMANDS: Commands = {
    "detect": ("find faces in photos, folders, videos and cameras", detect),
    "train": ("train V1 or V2", partial(choose, "Train a network.", TRAIN)),
    "runs": ("list and compare finished and running trainings", runs),
    "evaluate": ("measure AP on WIDER FACE or annotated photos", evaluate),
    "label": ("label photographs to train on by other detectors", label),
    "export": ("write ONNX files and a deployment package", export),
    "hub": ("write safetensors and a model card for the Hugging Face Hub", hub),
    "benchmark": ("measure the speed of detectors and of training", benchmark),
    "data": ("get, check, convert or draw a data set", partial(choose, "Get or check data.", DATA)),
    "demo": ("serve the page that finds faces in a browser", demo),
}
