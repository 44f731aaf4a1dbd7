"""Find faces in photos, folders, videos and camera pictures: draw or blur them, write tables.

The results are detections.json, detections.csv and a picture or video for each input. The exit code
is 2 if an input could not be read; the results of the others are written all the same.
"""

import os
from pathlib import Path

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # our one line per file is enough

from featherface import cli
from featherface.config import DISPLAY_SCORE
from featherface.errors import DataError, printable


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PHOTO|FOLDER|VIDEO|CAMERA|ADDRESS",
        help="what to search: files, folders, a camera's number (0), rtsp:// or http:// addresses",
    )
    parser.add_argument("--weights", help="weights of V1 or V2, or an .onnx file (default: V2)")
    parser.add_argument("--out", default="results/detections", help="folder for the results")
    cli.add_detection_flags(parser, score_threshold=DISPLAY_SCORE)
    parser.add_argument(
        *cli.flag("max_side"), type=int, help="shrink larger pictures to this long side, pixels"
    )
    parser.add_argument(
        *cli.flag("no_second_look"),
        action="store_true",
        help="do not see pictures of more than 640 pixels again at long side 640: less time, but "
        "faces over 600 pixels are missed",
    )
    parser.add_argument(
        *cli.flag("no_draw"), action="store_true", help="write the tables only, no pictures"
    )
    for name, text in (
        ("blur", "blur the faces in the pictures instead of drawing them"),
        ("track", "number the faces of a video from frame to frame (extra: track)"),
        ("show", "show videos and cameras in a window; q closes it"),
    ):
        parser.add_argument(*cli.flag(name), action="store_true", help=text)
    parser.add_argument(
        *cli.flag("save_faces"),
        choices=("aligned", "cropped"),
        default="",
        help="also write each face of a photo as a picture, into OUT/faces: turned upright at "
        "112×112 pixels for face recognition, or its box",
    )
    args = parser.parse_args()

    from featherface.detect_files import detect_paths  # importing torch takes seconds
    from featherface.detector import open_detector

    detector = open_detector(
        args.weights,
        args.device,
        score_threshold=args.score_threshold,
        iou_threshold=args.iou_threshold,
        max_side=args.max_side,
        second_look=not args.no_second_look,
    )
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
    found = f"{_count(report.faces, 'face')} in {_count(len(report.files), 'file')}"
    found += f", {len(report.skipped)} skipped" if report.skipped else ""
    print(f"{found}: {printable(Path(args.out) / 'detections.json')}, detections.csv")
    if report.problems:
        raise DataError(f"{_count(len(report.problems), 'problem')}: see the lines above")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


if __name__ == "__main__":
    cli.run(main)
