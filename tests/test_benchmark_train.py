"""The table of where a training step's time goes: its parts and their sums."""

from pathlib import Path

import numpy as np
import pytest
from tiny_sets import draw_squares

from featherface.benchmark.train import COLUMNS, summary_line, train_speed
from featherface.errors import CheckpointError


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return draw_squares(tmp_path_factory.mktemp("data") / "data", train=6, val=1)


@pytest.mark.parametrize("cache", ["none", "device"])
def test_the_table_adds_up(data, cache):
    options = {"image_size": 64, "batch_size": 2, "rounds": 2, "num_workers": 0, "steps": 1}
    table = train_speed(data, device="cpu", cache=cache, **options)
    assert table.columns.tolist() == COLUMNS
    parts = "teacher,student forward,losses,backward,optimizer,step,to the device,step and loader"
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
    assert summary_line(table, "cpu").startswith(
        f"{table.iloc[-1]['images_per_second']:.1f} images"
    )


def test_a_teacher_that_is_named_must_be_there(data):
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such file"):
        train_speed(data, device="cpu", teacher_model="nowhere.pth", batch_size=1)
