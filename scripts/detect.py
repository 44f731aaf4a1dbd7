"""Find faces in photos, folders and videos: draw them and write detections.json and .csv."""

import os
from pathlib import Path

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # our one line per file is enough

from featherface import cli
from featherface.config import DISPLAY_SCORE


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("paths", nargs="+", metavar="PHOTO|FOLDER|VIDEO", help="files to search")
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
    print(detector)
    report = detect_paths(detector, args.paths, args.out, draw_pictures=not args.no_draw)
    print(
        f"{report.faces} faces in {len(report.files)} files, {len(report.problems)} skipped: "
        f"{Path(args.out) / 'detections.json'}, detections.csv"
    )


if __name__ == "__main__":
    cli.run(main)
