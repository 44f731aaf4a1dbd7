"""The synthetic set: reproducible, in both official formats, varied, never half-written."""

import json
import os
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from featherface.data import demo, demo_person
from featherface.data.demo import make_demo
from featherface.data.demo_person import Light, Person, View, draw_head
from featherface.data.demo_scene import Face, make_photo
from featherface.errors import DataError

TINY = {"val": 1, "size": 128, "progress": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photographs include a crowd (3), an empty place (5) and a large portrait (7)."""
    return make_demo(tmp_path_factory.mktemp("demo") / "set", train=8, val=1, progress=False)


def read_boxes(root: Path, split: str) -> dict[str, np.ndarray]:
    """Name to (F, 10) rows of bbx_gt.txt, read as strictly as the official format is written."""
    path = root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt"
    lines = path.read_text().splitlines()
    found, at = {}, 0
    while at < len(lines):
        name, count = lines[at], int(lines[at + 1])
        rows = [[int(v) for v in row.split(" ")] for row in lines[at + 2 : at + 2 + max(count, 1)]]
        assert all(len(row) == 10 for row in rows)
        if count == 0:
            assert rows == [[0] * 10]
        found[name] = np.array(rows[:count], np.int64).reshape(count, 10)
        at += 2 + max(count, 1)
    return found


def read_labels(root: Path, split: str) -> dict[str, np.ndarray]:
    """Name to (F, 20) rows of label.txt."""
    text = (root / f"WIDER_{split}" / "label.txt").read_text()
    found = {}
    for block in text.split("# ")[1:]:
        name, *rows = block.splitlines()
        found[name] = np.array([row.split(" ") for row in rows], np.float64).reshape(-1, 20)
    return found


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first = files(make_demo(tmp_path / "a", train=1, seed=3, **TINY))
    again = files(make_demo(tmp_path / "b", train=1, seed=3, **TINY))
    other = files(make_demo(tmp_path / "c", train=1, seed=4, **TINY))
    assert first == again
    images = [content for name, content in first.items() if name.endswith(".jpg")]
    assert len(set(images)) == 2
    assert not set(images) & set(other.values())


def test_a_smaller_set_is_the_beginning_of_a_larger_one(tmp_path: Path) -> None:
    small = files(make_demo(tmp_path / "small", train=1, **TINY))
    large = files(make_demo(tmp_path / "large", train=2, **TINY))
    for name, content in small.items():
        if name.endswith(".jpg"):
            assert large[name] == content
        elif name.endswith(".txt"):
            assert large[name].startswith(content)


def test_threads_draw_the_same_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(cores: int) -> list[bytes]:
        monkeypatch.setattr(cv2, "getNumberOfCPUs", lambda: cores)
        photos = demo._photos("train", 4, 0, 128, False)
        return [photo.jpeg for photo in photos]

    assert drawn(1) == drawn(4)


def test_annotations_agree_and_name_every_image(folder: Path) -> None:
    for split, count in (("train", 8), ("val", 1)):
        boxes, labels = read_boxes(folder, split), read_labels(folder, split)
        assert list(boxes) == list(labels) and len(boxes) == count
        images = folder / f"WIDER_{split}" / "images"
        assert {p.relative_to(images).as_posix() for p in images.rglob("*.jpg")} == set(boxes)
        for name, rows in boxes.items():
            np.testing.assert_array_equal(rows[:, :4], labels[name][:, :4])


def test_boxes_are_inside_their_image(folder: Path) -> None:
    for name, rows in read_boxes(folder, "train").items():
        height, width = cv2.imread(str(folder / "WIDER_train" / "images" / name)).shape[:2]
        assert max(width, height) <= 640 * 1.16
        assert (rows[:, :2] >= 0).all() and (rows[:, 2:4] > 0).all()
        assert (rows[:, 0] + rows[:, 2] <= width).all()
        assert (rows[:, 1] + rows[:, 3] <= height).all()
        assert (rows[:, 4] <= 2).all() and (rows[:, 8] <= 2).all()
        assert np.isin(rows[:, [5, 6, 7, 9]], (0, 1)).all()


def test_landmarks_are_in_their_box_in_order(folder: Path) -> None:
    rows = np.concatenate(list(read_labels(folder, "train").values()))
    triples = rows[:, 4:19].reshape(-1, 5, 3)
    missing = (triples == -1).all(axis=(1, 2))
    assert missing.any() and not missing.all()
    points, flags = triples[~missing][:, :, :2], triples[~missing][:, :, 2]
    assert np.isin(flags, (0.0, 1.0)).all() and (flags == 0).mean() > 0.5
    corner, size = rows[~missing, None, :2], rows[~missing, None, 2:4]
    inside = ((points >= corner - 1) & (points <= corner + size + 1)).all(axis=2)
    assert inside.mean() > 0.95
    assert (points[:, 0, 0] < points[:, 1, 0]).all()  # the left eye is left in the image
    assert (points[:, 3, 0] < points[:, 4, 0]).all()


def test_faces_of_all_sizes_a_crowd_and_an_empty_place(folder: Path) -> None:
    boxes = read_boxes(folder, "train")
    heights = np.concatenate([rows[:, 3] for rows in boxes.values()])
    assert heights.min() <= 12 and heights.max() >= 120
    counts = {name.split("/")[0]: len(rows) for name, rows in boxes.items()}
    assert counts["3--Crowd"] >= 20
    assert counts["4--Places"] == 0


@pytest.mark.parametrize("yaw, roll", [(0, 0), (35, 0), (-35, 20)])
def test_landmarks_are_where_the_face_is_painted(yaw: float, roll: float) -> None:
    """The projected eyes are dark against the cheeks, on the head and in the box."""
    rng = np.random.default_rng(5)
    person, light = Person(rng), Light(rng)
    looks = {"hair_parts": 0, "glasses": "none", "eye_open": 1.0}
    vars(person).update(looks | {"yaw": yaw, "pitch": 0, "roll": roll})
    head = draw_head(person, light, (100.3, 90.6), 90)
    grey = head.colours.mean(axis=2)
    at = np.round(head.landmarks - (head.x, head.y)).astype(int)
    eyes = [grey[y - 3 : y + 4, x - 3 : x + 4].min() for x, y in at[:2]]
    cheeks = [grey[y + 12 : y + 16, x - 2 : x + 3].mean() for x, y in at[:2]]
    assert max(eyes) < 0.6 * min(cheeks)
    assert (head.alpha[at[:, 1], at[:, 0]] > 0.9).all() and not head.hidden.any()
    assert (head.landmarks > head.box[:2]).all() and (head.landmarks < head.box[2:]).all()


def test_landmarks_are_on_the_skin() -> None:
    rng = np.random.default_rng(5)
    view = View((-110, -110, 110, 110), (0, 0), 100, 1)  # pixels; 100 per head unit
    for person in (Person(rng) for _ in range(8)):
        points = person.landmarks()
        column, row = np.int64(points[:, :2].T * 100 + 110)
        _, skin = demo_person._skin(person, view)
        assert np.abs(points[:, 2] - skin[row, column]).max() < 0.015  # head units


def test_what_a_person_wears_hides_landmarks() -> None:
    rng = np.random.default_rng(5)
    person, light = Person(rng), Light(rng)
    vars(person).update({"yaw": 0, "pitch": 0, "roll": 0, "hair_parts": 0, "glasses": "sun"})
    assert draw_head(person, light, (50, 50), 40).hidden.tolist() == [True] * 2 + [False] * 3
    person.glasses = "clear"
    assert not draw_head(person, light, (50, 50), 40).hidden.any()
    person.yaw = 75
    assert draw_head(person, light, (50, 50), 40).hidden.tolist()[1] is True  # the far eye


def test_a_finished_set_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_demo(tmp_path / "set", train=1, **TINY)
    before = files(root)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(demo, "make_photo", fail)
    assert make_demo(root, train=1, **TINY) == root
    assert files(root) == before


def test_other_settings_need_force(tmp_path: Path) -> None:
    root = make_demo(tmp_path / "set", train=0, **TINY)
    with pytest.raises(DataError, match=r"other settings.*train 0.*--force"):
        make_demo(root, train=1, **TINY)
    make_demo(root, train=1, force=True, **TINY)
    assert json.loads((root / "demo.json").read_text())["train"] == 1
    assert len(read_boxes(root, "train")) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_a_set_of_another_painter_is_replaced(tmp_path: Path) -> None:
    root = make_demo(tmp_path / "set", train=0, **TINY)
    wanted = json.loads((root / "demo.json").read_text())
    (root / "demo.json").write_text(json.dumps(wanted | {"version": 1}))
    make_demo(root, train=0, **TINY)
    assert json.loads((root / "demo.json").read_text()) == wanted


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_no_demo_set_is_left_alone(tmp_path: Path, force: bool) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="no demo set"):
        make_demo(tmp_path / "mine", train=1, force=force, **TINY)
    assert files(tmp_path) == {"mine/thesis.txt": b"years of work"}


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(index: int, **settings: int) -> object:
        if index == 1:
            raise KeyboardInterrupt
        return make_photo(index, **settings)

    monkeypatch.setattr(demo, "make_photo", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_demo(tmp_path / "set", train=2, **TINY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [{"train": -1}, {"seed": -1}, {"size": 32}])
def test_settings_out_of_range_are_refused(tmp_path: Path, bad: dict[str, int]) -> None:
    with pytest.raises(DataError, match=next(iter(bad))):
        make_demo(tmp_path / "set", **{"train": 1, **TINY, **bad})
    assert not (tmp_path / "set").exists()


def test_a_face_without_landmarks_is_written_with_minus_ones() -> None:
    face = Face(
        box=(3, 4, 5, 6),
        landmarks=None,
        hidden=np.zeros(5, bool),
        attributes=(2, 0, 0, 0, 1, 0),
    )
    assert demo.label_row(face) == "3 4 5 6 " + "-1.0 " * 15 + "0.20"
    assert demo.box_rows([face]) == ["1", "3 4 5 6 2 0 0 0 1 0"]
    assert demo.box_rows([]) == ["0", "0 0 0 0 0 0 0 0 0 0"]


def test_sigterm_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    monkeypatch.setattr(demo, "_write_split", ended)
    monkeypatch.setattr("sys.argv", ["demo", "--data", str(tmp_path / "set")])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(KeyboardInterrupt):
            demo.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert list(tmp_path.iterdir()) == []
