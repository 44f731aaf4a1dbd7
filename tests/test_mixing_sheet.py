"""The picture of mixed samples, and the command that draws it."""

import numpy as np
import pytest
import torch
from conftest import make_targets
from PIL import Image

from featherface.data import loader, mixing_sheet, widerface
from featherface.data.mixing_sheet import draw_mixed
from featherface.errors import DataError
from featherface.structures import Batch

SIZE = 64
FACE = (10.0, 10.0, 30.0, 30.0)
FAR = (40.0, 36.0, 56.0, 60.0)


def test_the_sheet_shows_kept_faces_and_ignored_ones():
    images, targets = torch.zeros(8, 3, SIZE, SIZE), make_targets(*[[FACE, FAR]] * 8)
    targets.ignore[0, 1] = True
    targets.weight[1] = 0
    sheet = draw_mixed(images, targets)
    assert sheet.dtype == np.uint8 and sheet.shape == (2 * (SIZE + 4) + 4, 4 * (SIZE + 4) + 4, 3)
    first, second = (sheet[4 : 4 + SIZE, x : x + SIZE].reshape(-1, 3) for x in (4, 8 + SIZE))
    for color in ((240, 228, 66), (204, 121, 167)):
        assert (first == color).all(axis=1).any()
    assert not second.any()


def test_the_command_draws_eight_samples(tmp_path, monkeypatch, capsys):
    def batches(photos, config):
        size = config.image_size
        images = torch.full((4, 3, size, size), 90, dtype=torch.uint8)
        return [Batch(images, make_targets([FACE], [FAR], [FACE], []))] * 2, None

    monkeypatch.setattr(widerface, "read_split", lambda root, split: [None] * 8)
    monkeypatch.setattr(loader, "make_loader", batches)
    out = tmp_path / "sub" / "m.png"
    mixing_sheet.main(["--data", "d", "--out", str(out), "--image_size", "64"])
    assert Image.open(out).size == (4 * 68 + 4, 2 * 72)
    assert "m.png" in capsys.readouterr().out
    monkeypatch.setattr(widerface, "read_split", lambda root, split: [None] * 4)
    with pytest.raises(DataError, match=r"d has 4 photos: the sheet needs 8"):
        mixing_sheet.main(["--data", "d", "--out", str(out)])
