"""Export trained weights: ONNX files, a deployment package, and a README with what was measured."""

from featherface import cli


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--weights", help="weights of V1 or V2 (default: the shipped V2)")
    parser.add_argument("--out", default="results/v2", help="folder for the files")
    parser.add_argument(
        "--form",
        choices=("both", "end_to_end", "raw"),
        default="both",
        help="end_to_end: picture in, faces out; raw: pixels in, all anchors out, decoded",
    )
    parser.add_argument(
        "--size", default="", metavar="HxW", help="one image size, such as 640x640 (default: any)"
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
    from featherface.detector import SHIPPED_WEIGHTS  # torch takes seconds; --help should not
    from featherface.export import FORMS, Settings, export, parse_size

    settings = Settings(
        forms=FORMS if args.form == "both" else (args.form,),
        size=parse_size(args.size),
        opset=args.opset,
        int8=args.int8,
        photos=args.calibration,
    )
    made = export(args.weights or SHIPPED_WEIGHTS, args.out, settings)
    for path in made.files:
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    cli.run(main)
