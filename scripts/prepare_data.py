"""Download WIDER FACE and check that a data folder is complete and readable."""

import sys

from featherface.cli import flag, parser, run


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

    if arguments.download:
        download(arguments.data, splits=("train", "val", "test")[: 2 + arguments.with_test])
    report = verify(arguments.data, deep=arguments.deep)
    print(report)
    if not report.ready:
        sys.exit(2)


if __name__ == "__main__":
    run(main)
