"""Weights tell of the runs behind them."""

import pytest
import torch
from tiny_runs import prepare, tiny_config

from featherface.checkpoint import read_file
from featherface.training import engine
from featherface.training.lineage import history_of


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("tiny"))


def test_a_run_tells_of_those_before_it_also_when_resumed(root, tmp_path):
    config = tiny_config(root, tmp_path / "first").replace(seed=3, epochs=1)
    first = engine.train(config, progress=False)
    assert "history" not in read_file(first)
    config = config.replace(save_folder=str(tmp_path / "second"), weights=str(first), seed=4)
    second = engine.train(config, progress=False)
    (row,) = read_file(second)["history"]
    assert row["settings"]["seed"] == 3 and row["settings"]["image_size"] == 64
    assert "alpha" not in row["settings"], "a default"
    assert row["epoch"] == 1 and row["data"]["photos"] == 8 and "commit" in row
    config = config.replace(save_folder=str(tmp_path / "third"), weights=str(second), epochs=2)
    third = engine.train(config, progress=False)
    history = read_file(third)["history"]
    assert [part["settings"]["seed"] for part in history] == [3, 4]
    engine.train(config, progress=False, resume=tmp_path / "third" / "FeatherFaceV2_epoch_1.pth")
    assert read_file(third)["history"] == history


def test_a_bare_state_dict_has_no_past(root, tmp_path):
    torch.save(read_file(root / "v1.pth")["model"], tmp_path / "bare.pth")
    config = tiny_config(root, tmp_path)
    assert history_of(config) == []
    assert history_of(config.replace(weights=str(tmp_path / "bare.pth"))) == []
