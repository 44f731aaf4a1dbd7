"""Each experiment runs from its command line, in small."""

import runpy
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny_runs import prepare, tiny_config, trained

from featherface.checkpoint import read_file, write_file
from featherface.errors import CheckpointError, DataError

FOLDER = Path(__file__).resolve().parents[1] / "experiments"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return prepare(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def experiment(monkeypatch):
    """Run the main function of an experiment with these arguments."""

    def run(name: str, *arguments: object) -> dict:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        names = runpy.run_path(str(FOLDER / name))
        names["main"]()
        return names

    return run


def tiny_flags(root: Path, out: Path) -> list[object]:
    return [
        *("--data", root / "data", "--teacher-model", root / "v1.pth", "--save-folder", out),
        *("--image-size", 64, "--batch-size", 2, "--num-workers", 0),
    ]


def test_ablations_add_a_row_per_run_and_continue(experiment, root, tmp_path, capsys):
    table = tmp_path / "table.csv"
    flags = [*tiny_flags(root, tmp_path / "run"), "--images", 6, "--seeds", 0, "--out", table]
    names = experiment("ablate.py", *flags, "--variants", "disagreement")
    assert names["divide"](list(range(8)))[1] == names["divide"](list(range(8)))[1] != []
    first = table.read_text()
    experiment("ablate.py", *flags, "--variants", "disagreement", "base")
    assert table.read_text().startswith(first), "what is done is not run again"
    assert pd.read_csv(table)["variant"].tolist() == ["disagreement", "base"]
    assert "difference" in capsys.readouterr().out
    for name, changes in names["VARIANTS"].items():
        settings = {key: value for key, value in changes.items() if key != "criterion"}
        tiny_config(root, tmp_path).replace(**names["BASE"], **{}).replace(**settings)
        assert name == "base" or changes


def test_hard_examples_are_found_and_trained_on(experiment, root, tmp_path, capsys):
    config = tiny_config(root, tmp_path / "first").replace(epochs=1)
    trained(config)
    student = tmp_path / "first" / "FeatherFaceV2_final.pth"
    photos = root / "data" / "WIDER_val" / "images"
    flags = [*tiny_flags(root, tmp_path / "hard"), "--epochs", 1, "--weights", student]
    experiment("hard_examples.py", photos, *flags, "--least", 0.001, "--device", "cpu")
    assert "photos to look at again" in capsys.readouterr().out
    facts = read_file(tmp_path / "hard" / "FeatherFaceV2_final.pth")["data"]
    assert 8 < facts["photos"] <= 12 and facts["faces"] == 12
    with pytest.raises(DataError, match="agree on all 4 photos"):
        experiment("hard_examples.py", photos, *flags, "--least", 1.0)


def test_weights_are_averaged(experiment, root, tmp_path):
    for seed in (0, 1):
        trained(tiny_config(root, tmp_path / str(seed)).replace(epochs=1, seed=seed))
    files = [tmp_path / str(seed) / "FeatherFaceV2_final.pth" for seed in (0, 1)]
    experiment("average_weights.py", *files, "--out", tmp_path / "mean.pth")
    first, second, mean = (read_file(file) for file in (*files, tmp_path / "mean.pth"))
    for name, value in mean["model"].items():
        expected = (first["model"][name].double() + second["model"][name].double()) / 2
        torch.testing.assert_close(value, expected.to(value.dtype))
    assert [source["file"] for source in mean["mean_of"]] == [files[0].name] * 2
    with pytest.raises(CheckpointError, match="another network"):
        experiment("average_weights.py", files[0], root / "v1.pth", "--out", tmp_path / "bad.pth")
    next(iter(first["model"].values())).fill_(float("nan"))
    write_file(tmp_path / "nan.pth", first)
    with pytest.raises(CheckpointError, match="NaN"):
        experiment("average_weights.py", files[1], tmp_path / "nan.pth", "--out", tmp_path / "bad")
