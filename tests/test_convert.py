"""Annotations of YOLO, COCO and Pascal VOC become a data folder with the same faces."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from tiny_sets import make_photo, write_photo, write_text

from featherface.data import convert as module
from featherface.data.convert import convert
from featherface.data.widerface import read_split, verify
from featherface.errors import DataError

WIDTH, HEIGHT = 96, 64
BOXES = {"a.jpg": ((10, 20, 40, 44), (50, 5, 70, 25)), "sub/b.jpg": ((1, 2, 9, 11),), "c.jpg": ()}


def tiny(folder):
    """The photos of BOXES with landmarks, on disk in `folder`."""
    return {name: make_photo(folder / name, boxes=boxes) for name, boxes in BOXES.items()}


def yolo_set(root, *, points=True):
    for name, photo in tiny(root / "images").items():
        rows = []
        for (x1, y1, x2, y2), marks in zip(photo.boxes, photo.landmarks, strict=True):
            shares = [(x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT]
            shares += [(x2 - x1) / WIDTH, (y2 - y1) / HEIGHT]
            triples = np.column_stack((marks / (WIDTH, HEIGHT), np.full(5, 2)))
            rows.append(" ".join(map(str, [0, *shares, *(triples.flat if points else ())])))
        if rows:  # YOLO leaves out the file of a photo without objects
            write_text((root / "labels" / name).with_suffix(".txt"), "\n".join(rows) + "\n")
    return root


def coco_set(root):
    content = {"categories": [{"id": 7, "name": "face"}], "images": [], "annotations": []}
    for index, (name, photo) in enumerate(tiny(root / "images").items()):
        image = {"id": index, "file_name": name, "width": WIDTH, "height": HEIGHT}
        content["images"].append(image)
        for (x1, y1, x2, y2), marks in zip(photo.boxes, photo.landmarks, strict=True):
            triples = np.column_stack((marks, np.full(5, 2))).ravel().tolist()
            box = np.array((x1, y1, x2 - x1, y2 - y1)).tolist()
            content["annotations"].append({"id": len(content["annotations"]), "image_id": index,
                                           "category_id": 7, "bbox": box, "iscrowd": 0,
                                           "keypoints": triples})  # fmt: skip
    return write_coco(root / "faces.json", content)


def write_coco(path, content):
    return write_text(path, json.dumps(content))


def voc_set(root):
    for name, photo in tiny(root / "JPEGImages").items():
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        objects = "".join(
            f"<object><name>face</name><difficult>0</difficult><bndbox><xmin>{x1 + 1}</xmin>"
            f"<ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for x1, y1, x2, y2 in photo.boxes
        )
        text = f"<annotation><filename>{name.split('/')[-1]}</filename>{size}{objects}</annotation>"
        write_text((root / "Annotations" / name).with_suffix(".xml"), text)
    return root


MAKERS = {"yolo": yolo_set, "coco": coco_set, "voc": voc_set}


def run(source, out, **options):
    return convert(source, out, progress=False, **options)


@pytest.mark.parametrize("form", MAKERS)
@pytest.mark.parametrize("link", [False, True])
def test_every_format_gives_the_same_data_folder(tmp_path, form, link):
    run(MAKERS[form](tmp_path / "from"), tmp_path / "set" / "train", link=link)
    assert not verify(tmp_path / "set", progress=False).problems
    photos = {photo.name: photo for photo in read_split(tmp_path / "set")}
    wanted = tiny(tmp_path / "again")
    assert photos.keys() == wanted.keys()
    for name, photo in photos.items():
        assert photo.path.is_symlink() == link
        np.testing.assert_allclose(photo.boxes, wanted[name].boxes, atol=0.011)
        assert photo.landmark_mask.all() == (form != "voc" or not len(photo.boxes))
        if form != "voc":
            np.testing.assert_allclose(photo.landmarks, wanted[name].landmarks, atol=0.011)
    assert not [path for path in (tmp_path / "set").iterdir() if path.name.startswith(".")]


def test_supervision_s_yolo_and_voc_exports_are_read(tmp_path):
    sv = pytest.importorskip("supervision")
    write_photo(tmp_path / "photos" / "a.jpg")
    box = np.array([[10.0, 20, 40, 44]])
    faces = sv.Detections(box, class_id=np.zeros(1, int))
    path = str(tmp_path / "photos" / "a.jpg")
    data = sv.DetectionDataset(["face"], [path], {path: faces})
    data.as_yolo(
        str(tmp_path / "y/images"), str(tmp_path / "y/labels"), str(tmp_path / "y/data.yaml")
    )
    data.as_pascal_voc(str(tmp_path / "v/JPEGImages"), str(tmp_path / "v/Annotations"))
    data.as_coco(str(tmp_path / "c/images"), str(tmp_path / "c/faces.json"))
    for source in ("y", "v", "c/faces.json"):
        made = run(tmp_path / source, tmp_path / "out" / source[0], label="face")
        np.testing.assert_allclose(made.photos[0].boxes, box, atol=0.01, err_msg=source)


def test_ignored_hidden_and_other_objects(tmp_path):
    path = coco_set(tmp_path)
    content = json.loads(path.read_text())
    content["categories"].append({"id": 9, "name": "car"})
    first, second, third = content["annotations"]
    first["keypoints"][2] = 0  # not labelled
    second["iscrowd"] = 1
    third["category_id"] = 9
    write_coco(path, content)
    with pytest.raises(DataError, match="It has: car, face"):
        run(path, tmp_path / "out")
    with pytest.raises(DataError, match="no object of class dog; it has: car, face"):
        run(path, tmp_path / "out", label="dog")
    made = run(path, tmp_path / "out", label="face")
    assert made.counts == {"objects of other classes left out": 1}
    photo = read_split(tmp_path / "out")[0]
    assert photo.landmark_mask.tolist() == [[False, True, True, True, True]]
    np.testing.assert_array_equal(photo.ignored_boxes, [BOXES["a.jpg"][1]])


def test_a_turned_photo_is_written_upright(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 96)).save(tmp_path / "images" / "a.jpg", exif=turned)  # shown as 96×64
    write_text(tmp_path / "labels" / "a.txt", "0 0.5 0.5 0.5 0.25\n")
    run(tmp_path, tmp_path / "out")
    photo = read_split(tmp_path / "out")[0]
    with Image.open(photo.path) as image:
        assert image.size == (96, 64) and not image.getexif()
    np.testing.assert_allclose(photo.boxes, [[24, 24, 72, 40]])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0 0.5 0.5 0.5", "a.txt:2: expected a class number and 4 numbers"),
        ("face 0.5 0.5 0.5 0.5", "a.txt:2: expected a class number"),
        ("0 0.5 0.5 nan 0.5", "a.txt:2: expected numbers"),
        ("0 50 30 20 20", "a.txt:2: the box 3840.0"),
        ("0 0.5 0.5 0 0.5", "a.txt:2: the box 48.0 16.0 48.0 48.0 .* is empty"),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line(tmp_path, row, message):
    write_photo(tmp_path / "a.jpg")
    write_text(tmp_path / "a.txt", f"0 0.5 0.5 0.5 0.5\n{row}\n")
    with pytest.raises(DataError, match=message):
        run(tmp_path, tmp_path / "out" / "train")
    assert not list(tmp_path.glob("out/*")), "nothing is left of a failed conversion"


def test_bad_boxes_are_clipped_or_dropped_and_counted(tmp_path):
    write_photo(tmp_path / "a.jpg")
    write_text(tmp_path / "a.txt", "0 0 0.5 0.5 0.5\n0 0.5 0.5 0 0.5\n0 2 2 0.5 0.5\n")
    made = run(tmp_path, tmp_path / "out", drop_bad=True)
    assert sorted(made.counts.values()) == [1, 2]
    np.testing.assert_array_equal(made.photos[0].boxes, [[0, 16, 24, 48]])


def coco_with(changes):
    def make(root):
        path = coco_set(root)
        return write_coco(path, json.loads(path.read_text()) | changes)

    return make


def photo_of(**changes):
    photo = {"id": 0, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT} | changes
    return coco_with({"images": [photo], "annotations": [
        {"image_id": 0, "category_id": 7, "bbox": [1, 2, 3, 4]}]})  # fmt: skip


def voc_without_filename(root):
    write_text(root / "a.xml", "<annotation></annotation>")
    return root


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "nowhere", "does not exist"),
        (lambda root: write_text(root / "a.json", "{"), "a.json: not JSON"),
        (lambda root: write_text(root / "a.json", "[]"), "a.json: not a COCO annotation"),
        (lambda root: write_text(root / "a.csv", "1"), "a.csv: give a COCO file"),
        (lambda root: write_text(root / "a.md", "").parent, "neither .txt nor .xml"),
        (lambda root: write_text(root / "a.txt", "0 1 1 1 1").parent, "a.txt: its photo is not in"),
        (lambda root: write_text(root / "a.xml", "<a>").parent, "a.xml: not XML"),
        (voc_without_filename, "a.xml: no <filename>"),
        (coco_with({"annotations": [{"image_id": 5}]}), r"annotations\[0\]: no photo has the id 5"),
        (coco_with({"annotations": [{"image_id": 0}]}), r"annotations\[0\]: not an object of COCO"),
        (photo_of(file_name="../a.jpg"), "leads out of the folder"),
        (photo_of(file_name="other.jpg"), r"first: other.jpg\) are not found"),
        (photo_of(width=HEIGHT, height=WIDTH), "96×64 pixels, but annotated as 64×96"),
    ],
)
def test_a_wrong_source_is_one_clear_error(tmp_path, make, message):
    with pytest.raises(DataError, match=message) as caught:
        run(make(tmp_path / "from"), tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_the_command_prints_counts_and_keeps_what_exists(tmp_path, monkeypatch, capsys):
    arguments = ["x", str(yolo_set(tmp_path / "from")), str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    module.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ["photos: 3", "photos without a face: 1", "faces: 3",
                         "faces with landmarks: 3"]  # fmt: skip
    with pytest.raises(DataError, match="exists and is not empty"):
        module.main()
