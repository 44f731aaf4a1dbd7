"""Weights tell of the runs behind them."""

from pathlib import Path

import pytest
import torch
from tiny_runs import prepare, tiny_config

from featherface.checkpoint import FORMAT, read_file, write_file
from featherface.training import engine
from featherface.training.mean import average_weights
from featherface.training.state import history_of


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return prepare(tmp_path_factory.mktemp("tiny"))


def test_a_run_tells_of_those_before_it_also_when_resumed(root, tmp_path):
    config = tiny_config(root, tmp_path / "first").replace(seed=3, epochs=1)
    first = engine.train(config, progress=False)
    assert read_file(first)["history"] == []
    config = config.replace(save_folder=str(tmp_path / "second"), weights=str(first), seed=4)
    second = engine.train(config, progress=False)
    (row,) = read_file(second)["history"]
    assert row["file"] == first.name and row["config"] == read_file(first)["config"]
    assert row["epoch"] == 1 and row["data"]["photos"] == 8 and row["teacher"] and "commit" in row
    assert row["processes"] == 1
    mean = tmp_path / "mean.pth"
    average_weights([first, second], mean)
    config = config.replace(save_folder=str(tmp_path / "third"), weights=str(mean), epochs=2)
    third = engine.train(config, progress=False)
    history = read_file(third)["history"]
    assert [part["config"]["seed"] for part in history] == [3, 4]
    assert [part["file"] for part in history[1]["mean_of"]] == [first.name, second.name]
    engine.train(config, progress=False, resume=tmp_path / "third" / "FeatherFaceV2_epoch_1.pth")
    assert read_file(third)["history"] == history


def test_files_of_other_projects_and_of_older_versions(root, tmp_path):
    config = tiny_config(root, tmp_path)
    assert history_of(config) == []
    path = tmp_path / "other.pth"
    config, state = config.replace(weights=str(path)), read_file(root / "v1.pth")["model"]
    torch.save(state, path)
    assert history_of(config) == [{"file": "other.pth"}]
    content = {"format": FORMAT, "architecture": "v1", "model": state, "epoch": 7}
    for earlier, kept in ((None, []), ({"lr": 1}, []), ([{"lr": 1, "epochs": "7 of 16"}],) * 2):
        write_file(path, content | {"history": earlier})
        assert history_of(config) == [*kept, {"file": "other.pth", "epoch": 7}]
