"""Error analysis: groups and errors by hand, and the page."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from featherface.data.annotations import Photo, read_annotations
from featherface.evaluation.errors import find_errors, write_errors
from featherface.structures import Detections

ANNOTATION = """event/a.png
4
10 10 40 40 0 0 0 0 0 0
100 10 20 20 2 0 0 0 1 1
10 100 100 50 0 0 0 0 0 0
200 100 60 60 0 0 0 1 0 0
event/b.png
0
0 0 0 0 0 0 0 0 0 0
"""


@pytest.fixture
def photos(tmp_path) -> list[Photo]:
    """Two photos; in the first three faces, and one flagged invalid."""
    (tmp_path / "event").mkdir()
    for name in "ab":
        Image.new("RGB", (320, 200), "navy").save(tmp_path / f"event/{name}.png")
    (tmp_path / "bbx_gt.txt").write_text(ANNOTATION)
    return read_annotations(tmp_path / "bbx_gt.txt", tmp_path)


def detections(*rows: tuple[float, ...]) -> Detections:
    """Rows x1, y1, x2, y2, score, the best first."""
    table = np.array(rows, np.float32).reshape(-1, 5)
    return Detections(table[:, :4], table[:, 4], np.zeros((len(table), 5, 2), np.float32))


FOUND = {
    "event/a.png": detections(
        (10, 10, 50, 50, 0.9),  # the first face
        (12, 10, 52, 50, 0.8),  # again: a false alarm
        (200, 100, 260, 160, 0.7),  # the invalid one: counts nowhere
        (100, 10, 120, 30, 0.3),  # the second, at a score that is too low
    ),
    "event/b.png": detections((0, 0, 20, 20, 0.6), (50, 50, 70, 70, 0.4)),
}


def test_errors_and_groups_by_hand(photos):
    groups, errors = find_errors(photos, FOUND)
    assert errors[["kind", "photo", "x1", "y1"]].to_numpy().tolist() == [
        ["false alarm", "event/a.png", 12, 10],
        ["false alarm", "event/b.png", 0, 0],
        ["miss", "event/a.png", 100, 10],
        ["miss", "event/a.png", 10, 100],
    ]
    assert errors["score"].tolist() == pytest.approx([0.8, 0.6, 0.3, 0.0])
    assert errors["size"].tolist() == pytest.approx([40, 20, 20, 5000**0.5])
    found = {(row.group, row.value): (row.faces, row.found) for row in groups.itertuples()}
    assert found == {
        ("size", "16–32"): (1, 0),
        ("size", "32–64"): (1, 1),
        ("size", "64–128"): (1, 0),
        ("blur", "clear"): (2, 0.5),
        ("blur", "heavy"): (1, 0),
        ("occlusion", "none"): (2, 0.5),
        ("occlusion", "partial"): (1, 0),
        ("pose", "typical"): (2, 0.5),
        ("pose", "atypical"): (1, 0),
    }
    ap = groups.set_index(["group", "value"])["ap_exact"]
    # both detections in b score higher than the small face; that of the other face is left out
    assert ap["size", "32–64"] == 1 and ap["size", "64–128"] == 0
    assert ap["size", "16–32"] == pytest.approx(1 / 3)


def test_attributes_need_an_annotation_of_them(photos):
    plain = [Photo(p.path, p.name, p.boxes, p.landmarks, p.landmark_mask) for p in photos]
    groups, _ = find_errors(plain, FOUND)
    assert set(groups["group"]) == {"size"}


def test_the_page_holds_its_pictures(photos, tmp_path):
    perfect = {photo.name: detections(*((*box, 0.9) for box in photo.boxes)) for photo in photos}
    detectors = {"V1 & V2": FOUND, "oracle": perfect}
    written = write_errors(tmp_path / "out", photos, detectors, title="<two photos>")
    assert [path.name for path in written] == ["errors.html", "errors_by_group.csv", "errors.csv"]
    page = written[0].read_text()
    assert page.count("<img src='data:image/jpeg;base64,") == 4 and "http" not in page
    assert "V1 &amp; V2" in page and "&lt;two photos&gt;" in page and "No error." in page
    assert "miss, 64–128 px: 1 of 1" in page
    assert pd.read_csv(written[2])["detector"].tolist() == ["V1 & V2"] * 4
    assert set(pd.read_csv(written[1])["detector"]) == {"V1 & V2", "oracle"}
