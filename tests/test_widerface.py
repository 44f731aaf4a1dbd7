"""Both annotation formats and every layout are found and read; what is malformed is named."""

import time
from dataclasses import replace

import numpy as np
import pytest
from conftest import shared
from tiny_sets import (
    PHOTOS,
    landmark_text,
    make_photo,
    official_set,
    official_text,
    retinaface_set,
    write_photo,
    write_text,
)

from featherface.data.annotations import Photo, write_annotations
from featherface.data.widerface import (
    find_dataset,
    fingerprint,
    read_annotations,
    read_split,
    read_unlabelled,
)
from featherface.errors import DataError


def corners(rows):
    return np.array([(x, y, x + w, y + h) for x, y, w, h in rows], np.float32).reshape(-1, 4)


@pytest.mark.parametrize("make", [official_set, retinaface_set])
def test_both_layouts_give_the_same_boxes(tmp_path, make):
    make(tmp_path)
    photos = read_split(tmp_path)
    assert [photo.name for photo in photos] == list(PHOTOS)
    for photo in photos:
        assert photo.path.is_file()
        np.testing.assert_array_equal(photo.boxes, corners(PHOTOS[photo.name]))
        assert photo.boxes.dtype == np.float32
        assert photo.landmarks.shape == (len(photo.boxes), 5, 2)
        assert photo.landmark_mask.all() == (make is retinaface_set)


def test_landmarks_are_read_as_points(tmp_path):
    retinaface_set(tmp_path)
    point = read_split(tmp_path)[0].landmarks[0, 1]  # a third of the way along 10, 20, 30 × 24
    np.testing.assert_allclose(point, (20, 28))


def test_the_annotation_with_landmarks_is_preferred(tmp_path):
    official_set(tmp_path)
    label = write_text(tmp_path / "train" / "label.txt", landmark_text(PHOTOS))
    assert find_dataset(tmp_path) == (tmp_path / "WIDER_train" / "images", label)


def test_a_label_file_without_landmarks_is_not_preferred(tmp_path):
    official = official_set(tmp_path, "val")
    write_text(tmp_path / "val" / "label.txt", "# 0--Parade/a.jpg\n10 20 30 24\n")
    assert find_dataset(tmp_path, "val").annotation == official


def test_retinaface_val_rows_hold_boxes_only(tmp_path):
    path = write_text(tmp_path / "label.txt", "# e/a.jpg\n10 20 30 24\n1 2 3 4\n# e/b.jpg\n")
    first, second = read_annotations(path, tmp_path)
    np.testing.assert_array_equal(first.boxes, corners([(10, 20, 30, 24), (1, 2, 3, 4)]))
    assert not first.landmark_mask.any()
    assert len(second.boxes) == 0


def test_the_format_is_told_by_content_not_by_name(tmp_path):
    path = write_text(tmp_path / "bbx_gt.txt", landmark_text(PHOTOS))
    assert read_annotations(path, tmp_path)[0].landmark_mask.all()
    path = write_text(tmp_path / "label.txt", official_text(PHOTOS))
    assert len(read_annotations(path, tmp_path)[1].boxes) == 2


@pytest.mark.parametrize("name", ["bbx_gt.txt", "label.txt"])
def test_one_folder_without_splits(tmp_path, name):
    (tmp_path / "images").mkdir()
    write_text(tmp_path / name, official_text(PHOTOS))
    assert find_dataset(tmp_path, "train") == find_dataset(tmp_path, "val")
    assert len(read_split(tmp_path)) == 2


def test_minus_one_masks_a_landmark_even_amid_annotated_faces(tmp_path):
    text = landmark_text({"a.jpg": [(0, 0, 6, 6)]}) + landmark_text(
        {"b.jpg": [(0, 0, 6, 6)]}, annotated=False
    )
    first, second = read_annotations(write_text(tmp_path / "label.txt", text), tmp_path)
    assert first.landmark_mask.all()  # visibility 0 and 1 are both annotated
    assert not second.landmark_mask.any()


def test_faces_without_size_and_invalid_faces_are_dropped(tmp_path):
    rows = [(5, 5, 0, 9), (5, 5, 9, 0), (5, 5, 9, 9, 0, 0, 0, 1), (5, 5, 9, 9, 0, 0, 0, 0, 1, 1)]
    path = write_text(tmp_path / "gt.txt", official_text({"a.jpg": rows, "b.jpg": rows[-1:]}))
    first, second = read_annotations(path, tmp_path)
    np.testing.assert_array_equal(first.boxes, [(5, 5, 14, 14)])
    np.testing.assert_array_equal(second.boxes, [(5, 5, 14, 14)])


def test_invalid_faces_stand_apart_from_the_others(tmp_path):
    invalid, flat = (1, 2, 30, 40, 0, 0, 0, 1), (1, 2, 0, 40, 0, 0, 0, 1)
    rows = {"a.jpg": [invalid, (5, 5, 9, 9), flat], "b.jpg": [(3, 3, 4, 4)], "c.jpg": [invalid]}
    path = write_text(tmp_path / "gt.txt", official_text(rows))
    first, second, third = read_annotations(path, tmp_path)
    for photo, count in ((first, 1), (second, 1), (third, 0)):
        assert len(photo.boxes) == len(photo.landmarks) == len(photo.landmark_mask) == count
    assert first.ignored_boxes.tolist() == third.ignored_boxes.tolist() == [[1, 2, 31, 42]]
    assert second.ignored_boxes.shape == (0, 4)
    faces = first.with_ignored()
    assert faces.boxes.tolist() == [[5, 5, 14, 14], [1, 2, 31, 42]]
    assert faces.ignore.tolist() == [False, True]
    assert (faces.landmarks.shape, faces.landmark_mask.tolist()) == ((2, 5, 2), [[False] * 5] * 2)


def test_the_format_with_landmarks_has_no_invalid_faces(tmp_path):
    points = " ".join(["1"] * 15)  # the eighth column is a coordinate there, not a flag
    path = write_text(tmp_path / "label.txt", f"# a.jpg\n5 5 9 9 {points} 0.5\n")
    (photo,) = read_annotations(path, tmp_path)
    assert (len(photo.boxes), len(photo.ignored_boxes)) == (1, 0)


@pytest.mark.parametrize("zeros", ["0 0 0 0 0 0 0 0 0 0 \n", ""])
def test_a_photo_without_a_face_is_kept(tmp_path, zeros):
    text = f"a.jpg\n0\n{zeros}b.jpg\n1\n1 2 3 4 0 0 0 0 0 0\nc.jpg\n0\n{zeros}"
    photos = read_annotations(write_text(tmp_path / "gt.txt", text), tmp_path)
    assert [len(photo.boxes) for photo in photos] == [0, 1, 0]


def test_windows_line_ends_blank_ends_and_spaces_in_names(tmp_path):
    path = tmp_path / "gt.txt"
    path.write_bytes("\ufeffmy photo.jpg\r\n1\r\n1 2 3 4\r\n\r\n".encode())
    (photo,) = read_annotations(path, tmp_path)
    assert photo.name == "my photo.jpg"
    np.testing.assert_array_equal(photo.boxes, [(1, 2, 4, 6)])


def test_a_written_annotation_is_read_back(tmp_path):
    first = make_photo(tmp_path / "a b/x.jpg", boxes=((10, 10, 40, 50), (60, 5, 80, 30)))
    mask = first.landmark_mask.copy()
    mask[1, 2] = False
    faces = first.boxes, first.landmarks, mask
    first = Photo(first.path, "a b/x.jpg", *faces, ignored_boxes=first.boxes[:1] + 3)
    empty = make_photo(tmp_path / "y.jpg")
    write_annotations(tmp_path / "label.txt", [first, empty])
    read, other = read_annotations(tmp_path / "label.txt", tmp_path)
    assert (read.name, other.name, len(other.boxes)) == ("a b/x.jpg", "y.jpg", 0)
    np.testing.assert_array_equal(read.boxes, first.boxes)
    np.testing.assert_array_equal(read.ignored_boxes, first.ignored_boxes)
    np.testing.assert_array_equal(read.landmark_mask, mask)
    np.testing.assert_allclose(read.landmarks[mask], first.landmarks[mask], atol=0.006)


@pytest.mark.parametrize("name", [" a.jpg", "a\nb.jpg", "\udce9.jpg"])
def test_a_name_that_an_annotation_cannot_hold_is_refused(tmp_path, name):
    photo = make_photo(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="rename the file"):
        write_annotations(tmp_path / "label.txt", [replace(photo, name=name)])
    assert not (tmp_path / "label.txt").exists()


MALFORMED = {
    "count is a word": ("a.jpg\nmany\n1 2 3 4\n", 2, "number of faces"),
    "count is missing": ("a.jpg\n", 2, "number of faces"),
    "too few rows": ("a.jpg\n2\n1 2 3 4\n", 3, "1 of its 2 rows"),
    "too many rows": ("a.jpg\n1\n1 2 3 4\n5 6 7 8\n", 4, "name of a photo"),
    "face after count 0": ("a.jpg\n0\n1 2 3 4 0 0 0 0 0 0\n", 3, "count says 0"),
    "short row": ("a.jpg\n2\n1 2 3 4\n1 2 3\n", 4, "a face needs 4 or 10 numbers"),
    "word in a row": ("a.jpg\n2\n1 2 3 4\n1 2 x 4\n", 4, "not a number"),
    "nan": ("a.jpg\n1\n1 2 nan 4\n", 3, "nan, infinity"),
    "overflow": ("a.jpg\n1\n1e39 2 3e38 4\n", 3, "more than 1,000,000"),
    "count of many digits": (f"a.jpg\n{'9' * 4301}\n1 2 3 4\n", 2, "no photo has 999"),
    "listed twice": ("a.jpg\n1\n1 2 3 4\n./a.jpg\n1\n5 6 7 8\n", 4, "again .before: line 1"),
    "twice with landmarks": ("# a.jpg\n1 2 3 4\n# a.jpg\n5 6 7 8\n", 3, "listed again"),
    "name outside": ("../a.jpg\n1\n1 2 3 4\n", 1, "cannot name a photo"),
    "absolute name": ("# /a.jpg\n1 2 3 4\n", 1, "cannot name a photo"),
    "NUL in a name": ("a\0.jpg\n1\n1 2 3 4\n", 1, "cannot name a photo"),
    "shares": ("a.jpg\n2\n9 9 9 9\n0.5 0.25 0.1 0.125\n", 4, "smaller than a pixel"),
    "landmark row of 18": (f"# a.jpg\n{'1 ' * 18}\n", 2, "4 or 19 or 20"),
    "blank line inside": ("# a.jpg\n1 2 3 4\n\n1 2 3 4\n", 3, "a face needs"),
    "no name": ("# a.jpg\n# \n1 2 3 4\n", 2, "name of a photo"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_lines_are_named_with_file_and_number(tmp_path, case):
    text, line, phrase = MALFORMED[case]
    path = write_text(tmp_path / "gt.txt", text)
    with pytest.raises(DataError, match=phrase) as caught:
        read_annotations(path, tmp_path)
    assert f"{path}:{line}:" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_missing_and_binary_annotations(tmp_path):
    with pytest.raises(DataError, match="is empty"):
        read_annotations(write_text(tmp_path / "gt.txt", "\n\n"), tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read_annotations(tmp_path / "none.txt", tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"\xff\xfe\x00\x81" * 9)
    with pytest.raises(DataError, match="cannot be read as text"):
        read_annotations(tmp_path / "weights.bin", tmp_path)


def test_missing_folders_say_how_to_get_the_data(tmp_path):
    with pytest.raises(DataError, match=r"data prepare --download"):
        find_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no val photos.*data prepare --download"):
        find_dataset(tmp_path, "val")
    (tmp_path / "WIDER_val" / "images").mkdir(parents=True)
    with pytest.raises(DataError, match="no val annotation"):
        find_dataset(tmp_path, "val")
    with pytest.raises(DataError, match="split must be one of"):
        find_dataset(tmp_path, "training")


@pytest.mark.parametrize("make", [official_set, retinaface_set])
def test_a_given_annotation_finds_its_photos(tmp_path, make):
    annotation = make(tmp_path / "set", "val")
    for root in (tmp_path / "set", tmp_path / "elsewhere"):  # --data may be anything then
        assert all(photo.path.is_file() for photo in read_split(root, "train", annotation))
    lost = write_text(tmp_path / "other" / "gt.txt", official_text({"x/none.jpg": []}))
    with pytest.raises(DataError, match=r"x/none\.jpg"):
        find_dataset(tmp_path / "set", "train", lost)


def test_limit_takes_the_first_photos(tmp_path):
    official_set(tmp_path)
    assert [photo.name for photo in read_split(tmp_path, limit=1)] == list(PHOTOS)[:1]


def test_a_set_of_full_size_is_read_quickly(tmp_path):
    """159,000 rows take about 0.5 s; a parser of one row at a time takes many times that."""
    many = {f"e/{index}.jpg": [(1, 2, 3, 4)] * 12 for index in range(3_000)}
    path = write_text(tmp_path / "gt.txt", official_text(many))
    started = time.process_time()
    assert sum(len(photo.boxes) for photo in read_annotations(path, tmp_path)) == 36_000
    assert time.process_time() - started < 1.5


def test_unlabelled_photos_are_found_in_all_folders_and_below(tmp_path):
    names = ["a.JPG", "b/c.jpeg", "b/d/e.png", "z.webp", "z.bmp"]
    for name in names:
        write_photo(tmp_path / "one" / name)
    write_photo(tmp_path / "two" / "a.jpg")
    for name in ("one/notes.txt", "one/._a.jpg", "one/b/movie.mp4"):
        write_text(tmp_path / name, "no photo")
    (tmp_path / "one" / "folder.jpg").mkdir()
    photos = read_unlabelled(f"{tmp_path / 'one'}, {tmp_path / 'two'}")
    order = sorted((tmp_path / "one" / name) for name in names)
    assert [photo.path for photo in photos] == [*order, tmp_path / "two" / "a.jpg"]
    assert [photo.name for photo in photos[:2]] == ["one/a.JPG", "one/b/c.jpeg"]
    assert all(photo.path.is_file() and not photo.labelled for photo in photos)
    assert photos[0].boxes.shape == (0, 4) and photos[0].with_ignored().boxes.shape == (0, 4)


def test_unlabelled_names_do_not_depend_on_how_the_folder_is_given(tmp_path, monkeypatch):
    write_photo(tmp_path / "set" / "a.jpg")
    monkeypatch.chdir(tmp_path / "set")
    for given in (".", "../set", str(tmp_path / "set") + "/"):
        assert [photo.name for photo in read_unlabelled(given)] == ["set/a.jpg"]
    assert read_unlabelled("") == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{0}/none", r"none does not exist or is a file; correct"),
        ("{0}/full,{0}/none", r"none does not exist or is a file; correct"),
        ("{0}/empty", r"no photo in .*empty or below it .*\.webp.*; put some there"),
        ("{0}/full/a.jpg", r"a\.jpg does not exist or is a file"),
        ("{0}/full,", r"comma without a folder"),
        (",", r"comma without a folder"),
    ],
)
def test_unlabelled_folders_that_cannot_be_used_are_named(tmp_path, given, message):
    write_photo(tmp_path / "full" / "a.jpg")
    write_text(tmp_path / "empty" / "below" / "notes.txt", "no photo")
    with pytest.raises(DataError, match=message) as caught:
        read_unlabelled(given.format(tmp_path))
    assert "--unlabelled" in str(caught.value) and "\n" not in str(caught.value)


def test_the_fingerprint_tells_unlabelled_photos_from_faceless_ones(tmp_path):
    official_set(tmp_path / "set")
    write_photo(tmp_path / "more" / "a.jpg")
    labelled, extra = read_split(tmp_path / "set"), read_unlabelled(str(tmp_path / "more"))
    faceless = [Photo(p.path, p.name, p.boxes, p.landmarks, p.landmark_mask) for p in extra]
    marks = [fingerprint([*labelled, *photos]) for photos in ([], extra, faceless)]
    assert len(set(marks)) == 3
    assert fingerprint([*extra, *faceless]) == fingerprint([*faceless, *extra])
    # as it was before there were unlabelled photos: logs of old runs stay comparable
    assert marks[0] == OLD_FINGERPRINT


OLD_FINGERPRINT = "652e9ad3cf997c92e7ab60321db1eae47226c83b1b32c31494721db518d2771a"


def test_the_real_subset():
    root = shared("widerface")
    photos = read_split(root, "train")
    assert len(photos) == 661
    assert (
        sum(len(photo.boxes) for photo in photos) == 2_649
    )  # of 2,655 rows 5 are invalid, 1 is −26 wide
    assert sum(len(photo.ignored_boxes) for photo in photos) == 5
    assert all(photo.path.is_file() for photo in photos)
    assert len(read_split(root, "val")) == 160
