"""scripts/detect.py: photos, folders and videos in, pictures and tables out, and honest exits."""

import json
import os
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from spotter import Spotter, photo

import featherface as ff
from featherface import detect_files
from featherface.detect_files import detect_paths
from featherface.detector import Detector
from featherface.errors import ConfigError, DataError

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "detect.py"


@pytest.fixture
def detector():
    return Detector(Spotter())


@pytest.fixture
def folder(tmp_path):
    """Two photos (one in a folder below), a text that calls itself a photo, and other files."""
    root = tmp_path / "in"
    (root / "below").mkdir(parents=True)
    Image.fromarray(photo(64, 96, (2, 2), (7, 3))).save(root / "b.png")
    Image.fromarray(photo(64, 64)).save(root / "below" / "a.webp", lossless=True)
    (root / "bad.jpg").write_text("no picture")
    (root / "notes.txt").write_text("not looked at")
    return root


def test_a_folder(tmp_path, folder, detector, capsys):
    out = tmp_path / "out"
    report = detect_paths(detector, [folder], out)
    assert report.faces == 2 and len(report.problems) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "skipped:" in line]
    assert len(lines) == 1 and "bad.jpg" in lines[0]
    summary = json.loads((out / "detections.json").read_text())
    assert [Path(record["file"]).name for record in summary["files"]] == ["b.png", "a.webp"]
    record = summary["files"][0]
    assert (record["width"], record["height"]) == (96, 64)
    assert sorted(face["box"] for face in record["faces"]) == [[12, 12, 28, 28], [52, 20, 68, 36]]
    assert record["faces"][0]["landmarks"]["nose"] in ([20, 20], [60, 28])
    assert summary["files"][1]["faces"] == [] and len(summary["skipped"]) == 1
    table = pd.read_csv(out / "detections.csv")
    assert table["file"].tolist() == [str(folder / "b.png")] * 2
    assert sorted(table["x1"]) == [12, 52] and table["frame"].isna().all()
    assert Image.open(out / "b.png").size == (96, 64)
    assert Image.open(out / "below" / "a.webp.jpg").size == (64, 64)
    assert {p.name for p in out.rglob("*") if p.is_file()} == {
        *("b.png", "a.webp.jpg", "detections.json", "detections.csv")
    }


def test_results_inside_the_folder_are_not_looked_at_again(folder, detector):
    first = detect_paths(detector, [folder], folder / "out")
    second = detect_paths(detector, [folder], folder / "out")
    assert len(first.files) == len(second.files) == 2


def test_inputs_are_never_drawn_over(tmp_path, folder, detector):
    before = (folder / "b.png").read_bytes()
    with pytest.raises(ConfigError, match="output folder"):
        detect_paths(detector, [folder], folder)
    detect_paths(detector, [folder / "b.png"], folder)
    assert (folder / "b.png").read_bytes() == before and (folder / "b_2.png").is_file()
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(photo(32, 32)).save(other / "b.png")
    detect_paths(detector, [folder / "b.png", other / "b.png"], tmp_path / "both")
    assert Image.open(tmp_path / "both" / "b_2.png").size == (32, 32)


def test_no_draw_writes_tables_only(tmp_path, folder, detector):
    detect_paths(detector, [folder / "b.png"], tmp_path / "out", draw_pictures=False)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["detections.csv", "detections.json"]


def test_nothing_to_read_writes_nothing(tmp_path, folder, detector):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    with pytest.raises(DataError, match="nothing could be read"):
        detect_paths(detector, [folder / "bad.jpg", tmp_path / "empty", "gone.jpg"], out)
    assert not list(out.rglob("*.*"))


def test_an_output_that_is_a_file_is_an_error(tmp_path, folder, detector):
    with pytest.raises(ConfigError, match="output folder"):
        detect_paths(detector, [folder / "b.png"], folder / "notes.txt")


def test_ctrl_c_keeps_what_is_done(tmp_path, folder):
    class Impatient(Spotter):
        def forward(self, images):
            if self.shapes:
                raise KeyboardInterrupt
            return super().forward(images)

    with pytest.raises(KeyboardInterrupt):
        detect_paths(Detector(Impatient()), [folder], tmp_path / "out")
    files = json.loads((tmp_path / "out" / "detections.json").read_text())["files"]
    assert [Path(record["file"]).name for record in files] == ["b.png"]


def test_odd_files_cost_only_themselves(tmp_path, capsys):
    """A pipe, a broken DDS, a folder's name, a crash inside the detector; the rest is written."""

    class Delicate(Spotter):
        def forward(self, images):
            if images.shape[-1] == 32:
                raise RuntimeError("not \x1b[31mthis one")
            return super().forward(images)

    folder = tmp_path / "in"
    folder.mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "texture.png").write_bytes(b"DDS |" + bytes(200))
    Image.fromarray(photo(32, 32)).save(folder / "crash.png")
    good = [b"a.png", b"caf\xe9.png", b"l" * 240 + b".png", b"\x1b[2Jtwo\nlines.png"]
    for name in good:
        Image.fromarray(photo(64, 64, (2, 2))).save(tmp_path / "x.png")
        os.rename(tmp_path / "x.png", os.path.join(os.fsencode(folder), name))
    report = detect_paths(Detector(Delicate()), [folder, "n" * 300], tmp_path / "out")
    assert len(report.files) == report.faces == 4 and len(report.skipped) == 4
    said = capsys.readouterr().err
    for words in ("pipe.jpg is not a regular file", "texture.png", "not \\x1b[31mthis one", "nnn:"):
        assert sum(words in line for line in report.skipped) == 1 and words in said
    assert "\x1b[31m" not in said
    files = json.loads((tmp_path / "out" / "detections.json").read_text())["files"]
    assert {os.fsencode(Path(one["file"]).name) for one in files} == set(good)
    assert "caf\\udce9.png" in (tmp_path / "out" / "detections.csv").read_text()
    assert len(list((tmp_path / "out").glob("*.png"))) == 4


def test_results_are_written_as_they_come(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(detect_files, "WRITE_EVERY", 0)
    out, seen = tmp_path / "out", []

    class Reading(Spotter):
        def forward(self, images):
            if (out / "detections.json").exists():
                seen.append(len(json.loads((out / "detections.json").read_text())["files"]))
                (out / "detections.csv").chmod(0o640)
            return super().forward(images)

    detect_paths(Detector(Reading()), [folder / "b.png"] * 3, out)
    assert seen[-1] >= 1
    assert (out / "detections.csv").stat().st_mode & 0o777 == 0o640  # also when written over


def test_blurred_pictures_and_saved_faces(tmp_path, folder, detector):
    out = tmp_path / "out"
    detect_paths(detector, [folder / "b.png"], out, blur_faces=True, save_faces="cropped")
    blurred = ff.blur(folder / "b.png", detector.detect(folder / "b.png"))
    np.testing.assert_array_equal(Image.open(out / "b.png"), blurred)
    assert [Image.open(out / "faces" / f"b_{n}.png").size for n in (1, 2)] == [(24, 24)] * 2
    with pytest.raises(ConfigError, match="'whole'"):
        detect_paths(detector, [folder], out, save_faces="whole")
    detect_paths(detector, [folder / "b.png"], out, save_faces="aligned")  # all points in one place


def run_script(monkeypatch, *arguments):
    """Exit code of the script run in this process, with the white-spot network for weights."""
    import featherface.checkpoint

    monkeypatch.setattr(featherface.checkpoint, "load_model", lambda path: Spotter())
    monkeypatch.setattr(sys, "argv", ["detect.py", *map(str, arguments)])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as stop:
        return stop.code or 0
    return 0


def test_the_script(tmp_path, folder, monkeypatch, capsys):
    out = tmp_path / "out"
    options = ("--weights", "w.pth", "--out", out, "--device", "cpu")
    assert run_script(monkeypatch, folder, *options, "--no_draw") == 2
    said = capsys.readouterr()
    assert "2 faces in 2 files, 1 skipped" in said.out and "error: 1 problem" in said.err
    assert not (out / "b.png").exists() and (out / "detections.csv").exists()
    assert run_script(monkeypatch, folder / "b.png", *options, "--score_threshold", "0.9999") == 0
    assert "0 faces in 1 file: " in capsys.readouterr().out
    assert (out / "b.png").exists()
    for arguments in (
        [tmp_path / "gone\x1b[2J\n.jpg", *options],
        ["--\x1b[2J", *options],
        [folder, *options, "--score-threshold", "3"],
        [folder, *options, "--device", "abacus"],
        [],
    ):
        assert run_script(monkeypatch, *arguments) == 2
        said = capsys.readouterr().err
        assert "error: " in said and "\x1b[2J" not in said


def test_sixteen_bit_and_rotated_photos_are_drawn_upright(tmp_path, detector):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.ascontiguousarray(np.rot90(photo(64, 96, (2, 2))))
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    cv2.imwrite(str(tmp_path / "deep.png"), photo(64, 96, (2, 2))[..., 0].astype(np.uint16) * 257)
    detect_paths(detector, [tmp_path / "turned.png", tmp_path / "deep.png"], tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "detections.csv")
    assert table[["x1", "y1"]].values.tolist() == [[12, 12]] * 2
    assert Image.open(tmp_path / "out" / "turned.png").size == (96, 64)
