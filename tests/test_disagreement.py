"""Hard places: what two detectors score differently, as a table that training reads."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_sets import make_photo, write_photo

from featherface.checkpoint import read_file, write_file
from featherface.data.demo_scene import make_photo as draw
from featherface.structures import Detections
from featherface.training.disagreement import COLUMNS, find_disagreements

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "find_disagreements.py"
SHIPPED = ROOT / "weights" / "v2" / "FeatherFaceV2_final.pth"
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


def test_crowds_are_left_out_on_request(tmp_path):
    photos = [make_photo(tmp_path / "a.png")]
    sides = Known(shared=0.9, extra=0.7), Known(shared=0.9, missed=0.8)
    for most, places in ((0, 2), (1, 0), (2, 2)):
        table = find_disagreements(*sides, photos, protocols=["vga"], most=most)
        assert len(table) == places, most
    photos.append(make_photo(tmp_path / "b.png"))
    table = find_disagreements(*sides, photos, protocols=["vga", "original"], most=2)
    assert len(table) == 8, "each photo and each protocol counts for itself"
    sides = Known(shared=0.9, extra=0.7), Known(shared=0.9, tiny=0.8)  # tiny: large enough at VGA
    protocols = ["vga", "original"]
    assert len(find_disagreements(*sides, photos, protocols=protocols)) == 6
    assert len(find_disagreements(*sides, photos, protocols=protocols, most=1)) == 0


def test_nothing_to_disagree_about_is_an_empty_table(tmp_path):
    table = find_disagreements(Known(), Known(), [make_photo(tmp_path / "a.png")])
    assert len(table) == 0 and tuple(table.columns) == COLUMNS


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A student that finds nothing anywhere, as its faces score low, beside the shipped one."""
    path = tmp_path_factory.mktemp("weights") / "blind.pth"
    content = read_file(SHIPPED)
    for name, value in content["model"].items():
        if name.startswith("heads.classes") and name.endswith("bias"):
            value.copy_(torch.tensor([9.0, -9.0, 9.0, -9.0]))  # background, face of two anchors
    write_file(path, content)
    return path


def run_script(folder, *arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_script_writes_the_table(tmp_path, others):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(draw(seed=0, split=0, index=0, size=320).jpeg)
    sides = ("--weights", others, "--teacher-model", SHIPPED)
    run = run_script(tmp_path, "photos", *sides, "--protocols", "vga", "--out", "out/hard.csv")
    assert run.returncode == 0 and "missed in 1 of 1 photos: out/hard.csv" in run.stdout, run.stderr
    table = pd.read_csv(tmp_path / "out/hard.csv")
    assert set(table["kind"]) == {"missed"} and set(table["protocol"]) == {"vga"}
    assert table["score"].min() > 0.4
    run = run_script(tmp_path, "photos", *sides, "--least", "0.99999", "--out", "out/hard.csv")
    assert run.returncode == 0 and "nothing written" in run.stdout
    assert len(pd.read_csv(tmp_path / "out/hard.csv")) == len(table), "still there"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("photos", "--teacher-model", "none.pth"), "none.pth"),
        (("photos", "--least", "40"), "least, a difference of scores"),
        (("photos", "--min-face", "nan"), "min_face must be"),
        (("photos", "--most", "-1"), "most, places in a photo"),
        (("photos", "--protocols", "vga", "huge"), "'huge'"),
        (("photos", "--out", "hard.txt"), "must be a .csv file"),
        (("photos", "--out", "photos/a.jpg/hard.csv"), "is a file"),
        (("nowhere",), "nowhere does not exist"),
    ],
)
def test_what_the_script_cannot_do_is_one_line_at_once(tmp_path, arguments, message):
    write_photo(tmp_path / "photos" / "a.jpg")
    run = run_script(tmp_path, "--teacher-model", SHIPPED, *arguments)
    assert run.returncode == 2 and message in run.stderr and "image/s" not in run.stderr
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1
