"""Write the mean of several weights files of one network, of runs that went on from one another."""

from pathlib import Path

from featherface import cli


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("weights", nargs="+", type=Path, metavar="FILE", help="weights to average")
    parser.add_argument("--out", type=Path, required=True, help="the weights file to write")
    args = parser.parse_args()

    from featherface.training.mean import average_weights  # torch takes seconds

    average_weights(args.weights, args.out)
    print(f"mean of {len(args.weights)} networks: {args.out}")


if __name__ == "__main__":
    cli.run(main)
