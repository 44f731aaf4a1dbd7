"""Hard places: what two detectors score differently, as a table that training reads."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_sets import make_photo, write_photo

from featherface.data.unlabelled import read_unlabelled
from featherface.errors import DataError
from featherface.structures import Detections
from featherface.training.disagreement import COLUMNS, find_disagreements

SCRIPT = Path(__file__).parents[1] / "scripts" / "find_disagreements.py"
SHARED, MISSED, EXTRA, TINY = (4, 4, 24, 24), (30, 30, 50, 50), (60, 10, 80, 30), (90, 50, 94, 54)


class Known:
    """Finds the same boxes in every photo of 96 × 64 pixels, at whatever size it is seen."""

    def __init__(self, **scores):
        self.boxes = {"shared": SHARED, "missed": MISSED, "extra": EXTRA, "tiny": TINY}
        self.scores = dict(sorted(scores.items(), key=lambda item: -item[1]))

    def detect_batch(self, images, *, bgr=False):
        found = []
        for image in images:
            boxes = np.array([self.boxes[name] for name in self.scores], np.float32)
            boxes = boxes.reshape(-1, 4) * image.shape[1] / 96
            scores = np.array(list(self.scores.values()), np.float32)
            found.append(Detections(boxes, scores, np.zeros((len(boxes), 5, 2), np.float32)))
        return found


def test_places_that_differ_and_no_others(tmp_path):
    photos = [make_photo(tmp_path / name / "a.png") for name in ("one", "two")]
    photos = [type(photo)(**{**vars(photo), "name": "same"}) for photo in photos]
    table = find_disagreements(
        Known(shared=0.6, extra=0.7), Known(shared=0.9, missed=0.8, tiny=0.9), photos
    )
    assert tuple(table.columns) == COLUMNS
    assert set(table["file"]) == {str(photo.path) for photo in photos}
    one = table[table["file"] == str(photos[0].path)]
    found = {
        (row.protocol, row.kind, round(row.score, 3)): tuple(
            round(corner) for corner in (row.x1, row.y1, row.x2, row.y2)
        )
        for row in one.itertuples()
    }
    assert found == {
        ("vga", "missed", 0.9): TINY,  # 27 pixels there, 4 as stored
        ("vga", "missed", 0.8): MISSED,
        ("vga", "extra", 0.7): EXTRA,
        ("original", "missed", 0.8): MISSED,
        ("original", "extra", 0.7): EXTRA,
    }


def test_a_pair_counts_by_its_difference(tmp_path):
    photos = [make_photo(tmp_path / "a.png")]
    for student, kind in ((0.2, ["missed"]), (0.5, []), (0.9, ["extra"])):
        table = find_disagreements(
            Known(shared=student), Known(shared=0.45), photos, protocols=["vga"], least=0.2
        )
        assert table["kind"].tolist() == kind


def test_nothing_to_disagree_about_is_an_empty_table(tmp_path):
    table = find_disagreements(Known(), Known(), [make_photo(tmp_path / "a.png")])
    assert len(table) == 0 and tuple(table.columns) == COLUMNS


def test_a_table_gives_its_photos_and_their_places(tmp_path, monkeypatch):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        write_photo(tmp_path / "more" / name)
    rows = "more/b.jpg,1,2,3,4\nmore/a.jpg,5,6,7,8\nmore/b.jpg,1,1,2,2\n"
    (tmp_path / "hard.csv").write_text("file,x1,y1,x2,y2\n" + rows)
    monkeypatch.chdir(tmp_path)
    first, second = read_unlabelled("hard.csv")
    assert [photo.path.name for photo in (first, second)] == ["a.jpg", "b.jpg"]
    assert first.likely.tolist() == [[5, 6, 7, 8]] and len(second.likely) == 2
    assert not first.labelled and first.name != second.name
    both = read_unlabelled("more, hard.csv", "hard.csv")
    assert [len(photo.likely) for photo in both] == [1, 2, 0, 1, 2]
    assert len({photo.name for photo in both}) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,x1,y1,x2,y2\n", "names no photo"),
        ("file,x1,y1,x2,y2\ngone.jpg,1,2,3,4\n", r"1 photos that .* are not there.*gone\.jpg"),
        ("nonsense", "no boxes of files"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(tmp_path, text, message):
    table = tmp_path / "hard.csv"
    table.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_unlabelled(str(table))
    assert str(table) in str(caught.value) and "\n" not in str(caught.value)


def test_the_script_writes_the_table(tmp_path):
    write_photo(tmp_path / "photos" / "a.jpg")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "photos"), "--out", "out/hard.csv"]
    student = Path(__file__).parents[1] / "weights/v2/FeatherFaceV2_final.pth"
    run = subprocess.run(
        [*command, "--teacher-model", str(student)], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "no place in 0 of 1 photos" in run.stdout, "a detector agrees with itself"
    assert pd.read_csv(tmp_path / "out/hard.csv").columns.tolist() == list(COLUMNS)
    run = subprocess.run(
        [*command, "--teacher-model", "none.pth"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 2 and "none.pth" in run.stderr and "Traceback" not in run.stderr
