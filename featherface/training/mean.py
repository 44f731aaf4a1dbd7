"""The mean of the weights of several runs that went on from one another.

Weights on either side of a minimum, as consecutive runs leave them, have a mean nearer to it
(Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018).
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from featherface.checkpoint import read_file, write_file
from featherface.errors import CheckpointError, ConfigError
from featherface.files import check_writable, sha256


def average_weights(files: Sequence[Path], out: Path) -> None:
    """Write the mean of the networks of weights files, batch statistics too, with the last's facts.

    `mean_of` tells the files' names and SHA-256. Evaluations that the last one carries are left
    out: they are not the mean's. ConfigError for fewer than two files or a place that cannot be
    written to, CheckpointError for a file that is no weights file or of another network.
    """
    if len(files) < 2:
        raise ConfigError("a mean needs two weights files or more")
    if out.is_dir():
        raise ConfigError(f"cannot write weights to {out}: it is a folder; name a file in it")
    check_writable(out.parent)
    contents = [read_file(file) for file in files]
    for file, content in zip(files, contents, strict=True):
        if not isinstance(content.get("model"), dict):
            raise CheckpointError(f"{file}: no weights of this project (no 'model' in it)")
        if "optimizer" in content:  # with raw and averaged weights
            raise CheckpointError(f"{file}: to resume from; give the …_final.pth of that run")
        if shapes(content["model"]) != shapes(contents[0]["model"]):
            raise CheckpointError(f"{file}: another network than {files[0]}")
    mean = {
        name: torch.stack([content["model"][name].double() for content in contents])
        .mean(dim=0)
        .to(value.dtype)
        for name, value in contents[-1]["model"].items()
    }
    sources = [{"file": file.name, "sha256": sha256(file)} for file in files]
    measured = ("evaluations", "validation")
    facts = {name: value for name, value in contents[-1].items() if name not in measured}
    write_file(out, {**facts, "model": mean, "mean_of": sources})


def shapes(state: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    """The names and shapes of a network's tensors."""
    return {name: value.shape for name, value in state.items()}
