"""Write the mean of the weights of several runs of one network.

Weights on both sides of a minimum, as consecutive runs leave them, have a mean nearer to it
(Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018).
"""

from pathlib import Path

import torch

from featherface.checkpoint import check_finite, read_file, write_file
from featherface.cli import parser, run
from featherface.errors import CheckpointError, ConfigError
from featherface.files import sha256


def average_weights(files: list[Path], out: Path) -> None:
    """Average the networks of weights files, batch statistics too; facts are those of the last.

    Raises ConfigError for a single file, CheckpointError for a file of another network or with NaN.
    """
    if len(files) < 2:
        raise ConfigError("a mean needs two weights files or more")
    contents = [read_file(file) for file in files]
    for file, content in zip(files, contents, strict=True):
        if "model" not in content or "optimizer" in content:
            raise CheckpointError(f"{file}: give the …_final.pth of a run of this project")
        check_finite(content["model"], str(file))
    states = [content["model"] for content in contents]
    shapes = [{name: value.shape for name, value in state.items()} for state in states]
    for file, shape in zip(files, shapes, strict=True):
        if shape != shapes[0]:
            raise CheckpointError(f"{file}: holds another network than {files[0]}")
    mean = {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        for name, value in states[-1].items()
    }
    facts = {n: v for n, v in contents[-1].items() if n not in ("evaluations", "validation")}
    sources = [{"file": file.name, "sha256": sha256(file)} for file in files]
    write_file(out, {**facts, "model": mean, "mean_of": sources})


def main() -> None:
    commands = parser(__doc__ or "")
    commands.add_argument("weights", nargs="+", type=Path, metavar="FILE", help="weights files")
    commands.add_argument("--out", type=Path, required=True, help="weights file to write")
    args = commands.parse_args()
    average_weights(args.weights, args.out)
    print(f"mean of {len(args.weights)} networks: {args.out}")


if __name__ == "__main__":
    run(main)
