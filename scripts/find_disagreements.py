"""Find the places of photos where a student and its teacher disagree, to train on them.

Give the table to scripts/train_v2.py as --unlabelled: crops are drawn to hold these places.
"""

from pathlib import Path

from featherface import cli
from featherface.config import PRESETS


def main() -> None:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("folders", nargs="+", metavar="FOLDER", help="photos, with or without labels")
    add("--weights", help="the student: weights or .onnx (default: the shipped V2)")
    default = PRESETS["v2"].teacher_model
    add(*cli.flag("teacher_model"), default=default, help="V1: weights or .onnx")
    add("--protocols", nargs="+", default=["vga", "original"], help="sizes to look at photos in")
    add("--least", type=float, default=0.4, help="difference of scores from which a place counts")
    add(*cli.flag("min_face"), type=float, default=10.0, help="smallest box, pixels as seen")
    add("--most", type=int, default=0, help="leave out photos with more places; 0: keep all")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--out", default="runs/disagreements.csv", help="the table to write")
    args = parser.parse_args()

    from featherface.config import EVALUATION_SCORE
    from featherface.data.widerface import photos_in
    from featherface.detector import open_detector  # torch takes seconds
    from featherface.errors import ConfigError
    from featherface.files import check_writable, write_text
    from featherface.training.disagreement import find_disagreements

    out = Path(args.out)
    if out.suffix.lower() != ".csv" or out.is_dir():
        raise ConfigError(f"--out {out}: must be a .csv file, as --unlabelled knows tables by that")
    check_writable(out.parent)
    photos = [photo for folder in args.folders for photo in photos_in(folder, "FOLDER")]
    student, teacher = (
        open_detector(weights, args.device, score_threshold=EVALUATION_SCORE)
        for weights in (args.weights, args.teacher_model)
    )
    table = find_disagreements(
        student,
        teacher,
        photos,
        protocols=args.protocols,
        least=args.least,
        min_face=args.min_face,
        most=args.most,
    )
    if table.empty:
        crowds = f" with at most {args.most}" if args.most else ""
        print(f"no place in {len(photos):,} photos{crowds}: nothing written")
        return
    write_text(out, table.to_csv(index=False, lineterminator="\n"))
    counts = ", ".join(f"{count:,} {kind}" for kind, count in table["kind"].value_counts().items())
    files = table["file"].nunique()
    print(f"{counts} in {files:,} of {len(photos):,} photos: {out}")


if __name__ == "__main__":
    cli.run(main)
