"""Find faces in photos, folders and videos: draws them, writes detections.json and .csv."""

import os
from pathlib import Path

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # our one line a file says it

from featherface import cli
from featherface.config import DISPLAY_SCORE, NMS_IOU


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("paths", nargs="+", metavar="PHOTO|FOLDER|VIDEO", help="what to look at")
    parser.add_argument("--weights", help="weights of V1 or V2, or their .onnx (default: V2)")
    parser.add_argument("--out", default="results/detections", help="folder for what is found")
    for name, default, text in (
        ("score_threshold", DISPLAY_SCORE, "faces must score more, 0..1"),
        ("iou_threshold", NMS_IOU, "of two faces overlapping more than this the better stays"),
    ):
        parser.add_argument(*cli.flag(name), type=float, default=default, help=text)
    parser.add_argument(
        *cli.flag("max_side"), type=int, help="shrink larger pictures to this long side, pixels"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument(
        *cli.flag("no_draw"), action="store_true", help="write no pictures, only the tables"
    )
    args = parser.parse_args()

    from featherface.detect_files import detect_paths, open_detector  # torch takes seconds

    detector = open_detector(
        args.weights, args.device, args.score_threshold, args.iou_threshold, args.max_side
    )
    print(detector)
    report = detect_paths(detector, args.paths, args.out, draw_pictures=not args.no_draw)
    print(
        f"{report.faces} faces in {len(report.files)} files, {len(report.problems)} skipped: "
        f"{Path(args.out) / 'detections.json'}, detections.csv"
    )


if __name__ == "__main__":
    cli.run(main)
