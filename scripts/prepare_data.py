"""Download WIDER FACE and check that a data folder is complete and readable."""

from featherface.cli import flag, parser, run

LANDMARK_HELP = (
    "no landmarks: training works without them (the teacher supplies them); for annotated ones get "
    "RetinaFace's annotation package, linked from "
    "https://github.com/deepinsight/insightface/tree/master/detection/retinaface, and put its "
    "train/label.txt into {root}/train"
)


def main() -> None:
    options = parser(__doc__)
    options.add_argument(*flag("data"), default="data/widerface", help="data folder")
    options.add_argument(
        *flag("download"), action="store_true", help="download train and val first (about 1.8 GB)"
    )
    options.add_argument(
        *flag("with_test"),
        action="store_true",
        help="with --download: the test photos too (another 1.8 GB)",
    )
    options.add_argument(
        *flag("deep"),
        action="store_true",
        help="decode every photo, instead of checking only its header and end",
    )
    arguments = options.parse_args()

    from featherface.data.widerface import download, verify
    from featherface.errors import DataError

    if arguments.download:
        download(arguments.data, splits=("train", "val", "test")[: 2 + arguments.with_test])
    report = verify(arguments.data, deep=arguments.deep)
    print(report.table.set_index("split").T.to_string())
    for line in report.absent:
        print(f"not found: {line}")
    if not report.table["with landmarks"].any():
        print(LANDMARK_HELP.format(root=arguments.data))
    if report.problems:
        raise DataError("; ".join(report.problems))
    print(
        "ready:", "all of WIDER FACE" if report.is_full else "a subset of WIDER FACE or other data"
    )


if __name__ == "__main__":
    run(main)
