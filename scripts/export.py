"""Export trained weights: ONNX files, a deployment package, and a README with what was measured."""

from featherface import cli
from featherface.errors import ConfigError


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
    parser.add_argument("--fp16", action="store_true", help="a float16 form as well, for GPUs")
    parser.add_argument(
        "--calibration",
        default="",
        metavar="DIR",
        help="photos to check on and to calibrate INT8 with (default: drawn ones)",
    )
    parser.add_argument(
        "--data", default="", help="data folder whose val split AP is measured on (default: none)"
    )
    parser.add_argument("--rounds", type=int, default=15, help="of the speed measurement; 0: none")
    args = parser.parse_args()
    if args.rounds < 0:
        raise ConfigError(f"--rounds must be 0 or more; got {args.rounds}")

    from featherface.detector import SHIPPED_WEIGHTS  # torch takes seconds; --help should not
    from featherface.export import FORMS, Settings, export, parse_size

    settings = Settings(
        forms=FORMS if args.form == "both" else (args.form,),
        size=parse_size(args.size),
        opset=args.opset,
        int8=args.int8,
        fp16=args.fp16,
        photos=args.calibration,
        data=args.data,
        rounds=args.rounds,
    )
    made = export(args.weights or SHIPPED_WEIGHTS, args.out, settings)
    for path in made.files:
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    cli.run(main)
