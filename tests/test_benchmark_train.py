"""The table of where a training step's time goes: its parts, its counts, its sums."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_targets
from tiny_sets import draw_squares

from featherface.benchmark.roofline import counted
from featherface.benchmark.train import COLUMNS, Bench, summary_line, train_speed
from featherface.config import TrainConfig
from featherface.errors import CheckpointError
from featherface.structures import Batch


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return draw_squares(tmp_path_factory.mktemp("data") / "data", train=6, val=1)


@pytest.mark.parametrize("cache", ["none", "device"])
def test_the_table_adds_up(data, cache):
    options = {"image_size": 64, "batch_size": 2, "rounds": 2, "num_workers": 0, "steps": 1}
    table = train_speed(data, device="cpu", cache=cache, **options)
    assert table.columns.tolist() == COLUMNS
    parts = "decode,teacher,student forward,losses,backward,optimizer,step,augment,to the device"
    names = set(table["part"])
    assert set(parts.split(",")) < names and any("loader" in name for name in names)
    rows = table.set_index("part")
    inside = [
        "to the device",
        "mixing",
        "teacher",
        "student forward",
        "losses",
        "backward",
        "optimizer",
    ]
    assert rows.loc["step", "seconds"] == pytest.approx(rows.loc[inside, "seconds"].sum())
    np.testing.assert_allclose(table["images_per_second"], 2 / table["seconds"])
    heavy = rows.loc[["teacher", "student forward", "backward"]]
    assert (heavy[["gflop", "mb", "bound"]] > 0).all().all()
    assert (heavy["achieved"] > 0).all() and (heavy["bound"] > heavy["images_per_second"] / 5).all()
    assert rows.loc["teacher", "gflop"] > rows.loc["student forward", "gflop"]
    assert rows.loc["backward", "gflop"] > 1.5 * rows.loc["student forward", "gflop"]
    assert summary_line(table, "cpu").startswith(
        f"{table.iloc[-1]['images_per_second']:.1f} images"
    )


def test_operations_and_bytes_are_those_asked_for():
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    assert counted(lambda: a @ b) == (2 * 3 * 4 * 5, 4 * (12 + 20 + 15))
    assert counted(lambda: a.t()) == (0, 0), "a view moves nothing"
    operations, moved = counted(lambda: a + 1)
    assert operations == 0 and moved == 4 * 24


def test_v2_has_the_operations_that_are_known(data):
    """0.41 G multiply-accumulates at 640 pixels (V2) and 1.24 G (V1, its deformable ones too)."""
    config = TrainConfig(image_size=640, batch_size=1, device="cpu")
    batch = Batch(torch.zeros(1, 3, 640, 640, dtype=torch.uint8), make_targets([(9, 9, 90, 90)]))
    bench = Bench(config, torch.device("cpu"), batch, steps=1)
    multiply_adds = {name: done[0] / 2e9 for name, done in bench.counts.items()}
    assert math.isclose(multiply_adds["student forward"], 0.411, rel_tol=0.02)
    assert math.isclose(multiply_adds["teacher"], 1.24, rel_tol=0.05)
    assert math.isclose(multiply_adds["backward"], 2 * 0.411, rel_tol=0.1), "each gradient once"


def test_a_teacher_that_is_named_must_be_there(data):
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such file"):
        train_speed(data, device="cpu", teacher_model="nowhere.pth", batch_size=1)
