"""The table of where a training step's time goes: its parts and their sums."""

from pathlib import Path

import numpy as np
import pytest
from tiny_sets import draw_squares

from featherface.benchmark.train import train_speed
from featherface.errors import CheckpointError


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return draw_squares(tmp_path_factory.mktemp("data") / "data", train=6, val=1)


@pytest.mark.parametrize("cache", ["none", "device"])
def test_the_table_adds_up(data, cache):
    options = {"image_size": 64, "batch_size": 2, "rounds": 2, "num_workers": 0, "steps": 1}
    table = train_speed(data, device="cpu", cache=cache, **options)
    assert table.columns.tolist() == ["part", "seconds", "images_per_second"]
    inside = ["to the device", "mixing", "teacher", "student forward", "losses", "backward",
              "optimizer"]  # fmt: skip
    after = ["step", "loader alone (0 processes)", "step and loader"]
    assert table["part"].tolist() == inside + after and (table["seconds"] > 0).all()
    rows = table.set_index("part")
    assert rows.loc["step", "seconds"] == pytest.approx(rows.loc[inside, "seconds"].sum())
    np.testing.assert_allclose(table["images_per_second"], 2 / table["seconds"])


def test_a_teacher_that_is_named_must_be_there(data):
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such file"):
        train_speed(data, device="cpu", teacher_model="nowhere.pth", batch_size=1)
