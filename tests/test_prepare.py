"""The check of a data folder says truly what is there; a failed download is one line."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tiny_sets import PHOTOS, landmark_text, official_set, official_text, retinaface_set, write_text

from featherface.data.widerface import FULL_COUNTS, download, verify
from featherface.errors import DataError

SCRIPT = Path(__file__).parents[1] / "scripts" / "prepare_data.py"


def check(root, **options):
    return verify(root, progress=False, **options)


def test_a_subset_is_told_from_a_full_set(tmp_path, monkeypatch):
    official_set(tmp_path, "train")
    official_set(tmp_path, "val")
    report = check(tmp_path)
    assert not (report.problems or report.absent or report.is_full)
    assert report.table["split"].tolist() == ["train", "val"]
    assert report.table["faces"].tolist() == [3, 3] and not report.table["with landmarks"].any()
    assert report.table["annotation"][0] == "wider_face_split/wider_face_train_bbx_gt.txt"
    for split in ("train", "val"):
        monkeypatch.setitem(FULL_COUNTS, split, 2)
    assert check(tmp_path).is_full


def test_one_split_alone_can_be_used(tmp_path, monkeypatch):
    monkeypatch.setitem(FULL_COUNTS, "train", 2)
    retinaface_set(tmp_path)
    report = check(tmp_path)
    assert report.table["with landmarks"].tolist() == [3]
    assert len(report.absent) == 1 and "val" in report.absent[0]
    assert not report.problems and not report.is_full


def test_missing_and_damaged_photos_are_problems(tmp_path):
    official_set(tmp_path)
    folder = tmp_path / "WIDER_train" / "images"
    first, second = (folder / name for name in PHOTOS)
    second.write_bytes(second.read_bytes()[:-10])
    for count, path in ((1, second), (2, first)):
        (problem,) = check(tmp_path).problems
        assert f"train: {count} unusable photos, first: photo {path}" in problem
        first.unlink(missing_ok=True)


def test_deep_finds_damage_that_header_and_end_do_not_show(tmp_path):
    official_set(tmp_path)
    path = tmp_path / "WIDER_train" / "images" / next(iter(PHOTOS))
    data = path.read_bytes()
    scan = data.rfind(b"\xff\xc4")  # the last Huffman table is damaged
    path.write_bytes(data[: scan + 4] + b"\xff" * 40 + data[scan + 44 :])
    assert not check(tmp_path).problems
    assert check(tmp_path, deep=True).problems


def test_the_fingerprint_follows_the_valid_boxes_not_the_layout(tmp_path):
    invalid = (3, 3, 20, 20, 0, 0, 0, 1)
    official_set(tmp_path / "one")
    retinaface_set(tmp_path / "two")
    official_set(tmp_path / "three", photos={n: [*rows, invalid] for n, rows in PHOTOS.items()})
    official_set(tmp_path / "four", photos={**PHOTOS, "0--Parade/a.jpg": [(10, 20, 30, 25)]})
    tables = [check(tmp_path / name).table for name in ("one", "two", "three", "four")]
    one, two, three, four = (table["fingerprint"][0] for table in tables)
    assert one == two == three != four
    assert tables[2]["faces"].tolist() == [3]


def test_one_set_without_splits_is_reported_once(tmp_path):
    official_set(tmp_path / "x")
    (tmp_path / "x" / "WIDER_train" / "images").rename(tmp_path / "images")
    write_text(tmp_path / "bbx_gt.txt", official_text(PHOTOS))
    assert len(check(tmp_path).table) == 1


def run_script(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    environment = {"PYTHONPATH": str(SCRIPT.parents[1]), "PATH": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_script_ends_with_a_verdict_and_its_exit_code(tmp_path):
    official_set(tmp_path)
    good = run_script("--data", tmp_path)
    assert good.returncode == 0, good.stderr
    assert good.stdout.splitlines()[-1].startswith("ready: a subset")
    assert good.stdout.count("not found: no val photos") == 1 and "insightface" in good.stdout
    bad = run_script("--data", tmp_path / "nowhere")
    assert bad.returncode == 2 and not bad.stdout
    assert bad.stderr.startswith("error: data folder") and bad.stderr.count("--download") == 1
    write_text(tmp_path / "train" / "label.txt", landmark_text(PHOTOS) + "1 2 3\n")
    malformed = run_script("--data", tmp_path)
    assert malformed.returncode == 2
    assert malformed.stderr.splitlines()[-1].startswith("error: ")


@pytest.fixture
def internet(tmp_path, monkeypatch):
    """torchvision's downloaders, serving archives of a tiny set; the fixture's value is a log."""
    official_set(tmp_path / "origin", "train")
    official_set(tmp_path / "origin", "val")
    fetched = []

    def serve(root, name):
        fetched.append(name)
        Path(root).mkdir(parents=True, exist_ok=True)
        folder = tmp_path / "origin" / Path(name).stem
        with zipfile.ZipFile(Path(root) / name, "w") as archive:
            for path in sorted(folder.rglob("*")):
                archive.write(path, path.relative_to(tmp_path / "origin"))

    utils = "torchvision.datasets.utils"
    monkeypatch.setattr(
        f"{utils}.download_file_from_google_drive", lambda _id, root, name, md5: serve(root, name)
    )
    monkeypatch.setattr(f"{utils}.download_url", lambda _url, root, name, md5: serve(root, name))
    return fetched


def test_download_makes_a_set_that_is_ready(tmp_path, internet):
    root = tmp_path / "data" / "widerface"
    download(root)
    assert internet == ["WIDER_train.zip", "WIDER_val.zip", "wider_face_split.zip"]
    assert not check(root).problems
    download(root)
    assert len(internet) == 3, "what is there is not fetched again"
    assert not list(root.glob(".*")), "no partial folder is left"


def test_an_interrupted_unpacking_is_done_again(tmp_path, internet, monkeypatch):
    def fail(_archive, folder):
        Path(folder).mkdir(parents=True)
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("torchvision.datasets.utils.extract_archive", fail)
        with pytest.raises(DataError, match="No space left"):
            download(tmp_path / "data")
    assert not (tmp_path / "data" / "WIDER_train").exists()
    download(tmp_path / "data")
    assert not check(tmp_path / "data").problems


def test_an_archive_placed_by_hand_is_used(tmp_path, internet, monkeypatch):
    download(tmp_path / "first")
    (tmp_path / "second").mkdir()
    for archive in (tmp_path / "first").glob("*.zip"):
        archive.rename(tmp_path / "second" / archive.name)
    monkeypatch.setattr(
        "torchvision.datasets.utils.check_integrity", lambda path, md5=None: Path(path).is_file()
    )
    download(tmp_path / "second")
    assert len(internet) == 3 and not check(tmp_path / "second").problems


def test_a_failed_download_is_one_clear_line(tmp_path, monkeypatch):
    def refuse(*_arguments):
        raise RuntimeError("quota\nexceeded for this file.")

    monkeypatch.setattr("torchvision.datasets.utils.download_file_from_google_drive", refuse)
    with pytest.raises(DataError) as caught:
        download(tmp_path / "data")
    message = str(caught.value)
    assert "WIDER_train.zip: quota exceeded" in message and "by hand" in message
    assert "\n" not in message
