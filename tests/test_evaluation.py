"""WIDER FACE evaluation: against the golden values, a plain reference, and properties."""

import json
import os
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from featherface.errors import DataError
from featherface.evaluation import (
    EvaluationWarning,
    evaluate_widerface,
    precision_recall,
    precision_recall_boxes,
    published_curves,
    read_submission,
    write_submission,
)
from featherface.structures import Detections

SHARED = Path(__file__).parents[2] / "shared"
GOLDEN = SHARED / "golden"
SETTINGS = ("easy", "medium", "hard")
seeds = st.integers(0, 2**32 - 1)
quick = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def cell(items, columns=1):
    """A MATLAB cell, nested as the official files are."""
    array = np.empty((len(items), columns), dtype=object)
    for row, item in enumerate(items):
        array[row, 0] = item
    return array


def write_ground_truth(folder, truths, kept):
    """truths: {event: {stem: (F, 4) x y w h}}; kept: {setting: {stem: 0-based numbers}}."""
    files = {
        "event_list": cell(list(truths)),
        "file_list": cell([cell(list(images)) for images in truths.values()]),
        "face_bbx_list": cell([cell(list(images.values())) for images in truths.values()]),
    }
    savemat(folder / "wider_face_val.mat", files)
    for setting, numbers in kept.items():
        lists = [
            cell([np.asarray(numbers[stem], np.uint16).reshape(-1, 1) + 1 for stem in images])
            for images in truths.values()
        ]
        savemat(folder / f"wider_{setting}_val.mat", {"gt_list": cell(lists)})
    return folder


def random_case(seed, images=6):
    """Faces, kept numbers and detections, near faces and anywhere, some of tied scores."""
    rng = np.random.default_rng(seed)
    truths = {"0--Parade": {}, "1--Handshaking": {}}
    kept = {name: {} for name in SETTINGS}
    found = {}
    # probabilities; logits; and crowded ones, where the ends of the rescaling show
    slope, shift = [(1, 0), (4, -1), (0.004, 3), (0.004, -2)][int(rng.integers(4))]
    for index in range(images):
        stem = f"{index % 2}_image_{index}"
        count = int(rng.integers(1, 9))
        faces = np.c_[rng.integers(0, 60, (count, 2)), rng.integers(4, 40, (count, 2))]
        truths[list(truths)[index % 2]][stem] = faces.astype(np.int32)
        hard = np.flatnonzero(rng.random(count) < 0.8)
        for share, name in zip((0.4, 0.7, 1.0), SETTINGS, strict=True):
            kept[name][stem] = hard[rng.random(len(hard)) <= share]
        near = np.repeat(faces, 3, axis=0) + rng.normal(0, 3, (3 * count, 4))
        far = np.c_[rng.uniform(0, 60, (5, 2)), rng.uniform(4, 40, (5, 2))]
        boxes = np.concatenate([near, far])[: int(rng.integers(0, 3 * count + 6))]
        scores = slope * rng.integers(1, 40, len(boxes)) / 40 + shift
        found[stem] = np.c_[boxes, scores].round(5)
    return truths, kept, found


def plain_average_precision(truths, kept, found):
    """The protocol in straight loops, as design notes and the usual evaluator have it."""
    every = [row[4] for rows in found.values() for row in rows]
    low, high = min([1.0, *every]), max([0.0, *every])
    thresholds = [1 - (step + 1) / 1000 for step in range(1000)]
    hits, proposals, faces = [0] * 1000, [0] * 1000, 0
    for stem, boxes in ((s, b) for images in truths.values() for s, b in images.items()):
        faces += len(kept[stem])
        taken, state = set(), []  # a row a detection: score, hits so far, is proposal
        rows = sorted(found.get(stem, []), key=lambda row: -row[4])
        for x, y, w, h, score in rows:
            best, best_iou = -1, -1.0
            for number, (gx, gy, gw, gh) in enumerate(np.asarray(boxes, float)):
                wide = min(x + w, gx + gw) - max(x, gx) + 1
                high_ = min(y + h, gy + gh) - max(y, gy) + 1
                inside = wide * high_ if wide > 0 and high_ > 0 else 0.0
                # corners first: (x + w) − x differs from w in the last bit
                area = ((x + w) - x + 1) * ((y + h) - y + 1)
                face = ((gx + gw) - gx + 1) * ((gy + gh) - gy + 1)
                iou = inside / (face + area - inside)
                if iou > best_iou:
                    best, best_iou = number, iou
            dropped = best_iou >= 0.5 and best not in kept[stem]
            if best_iou >= 0.5 and not dropped:
                taken.add(best)
            rescaled = (score - low) / (high - low) if high > low else 1.0
            state.append((rescaled, len(taken), not dropped))
        for index, threshold in enumerate(thresholds):
            above = [entry for entry in state if entry[0] >= threshold]
            if above:
                hits[index] += above[-1][1]
                proposals[index] += sum(entry[2] for entry in above)
    if not faces:
        return float("nan")
    recall = [0.0] + [hit / faces for hit in hits] + [1.0]
    precision = [0.0] + [h / p if p else 0.0 for h, p in zip(hits, proposals, strict=True)] + [0.0]
    for index in range(len(precision) - 2, -1, -1):
        precision[index] = max(precision[index], precision[index + 1])
    steps = [i for i in range(len(recall) - 1) if recall[i + 1] != recall[i]]
    return float(np.sum([(recall[i + 1] - recall[i]) * precision[i + 1] for i in steps]))


def test_golden_average_precision():
    expected, archive = GOLDEN / "expected_ap.json", GOLDEN / "widerface_predictions.zip"
    truth = SHARED / "widerface" / "ground_truth"
    for path in (expected, archive, truth):
        if not path.exists():
            pytest.skip(f"shared data is absent: {path}")
    result = evaluate_widerface(archive, truth)
    values = json.loads(expected.read_text())
    for setting, faces in zip(SETTINGS, (7211, 13319, 31958), strict=True):
        assert result[setting]["ap"] == pytest.approx(values[setting], abs=1e-9)
        assert result[setting]["faces"] == faces
        assert 0 < result[setting]["ap_exact"] - values[setting] < 0.005
    assert result["images"] == 3226


@quick
@given(seed=seeds)
def test_equals_the_plain_reference_to_the_last_bit(tmp_path, seed):
    truths, kept, found = random_case(seed)
    result = evaluate_widerface(found, write_ground_truth(tmp_path, truths, kept))
    for setting in SETTINGS:
        expected = plain_average_precision(truths, kept[setting], found)
        assert np.array_equal(result[setting]["ap"], expected, equal_nan=True)


def boxes_ap(*arguments, **options):
    """AP by size of any annotated boxes."""
    return precision_recall_boxes(*arguments, **options).as_dict()


def test_half_an_overlap_is_a_match_with_a_pixel_added_to_every_side():
    truths = {"a": np.array([[0, 0, 9, 9]])}
    assert boxes_ap({"a": [[0, 0, 9, 4, 1]]}, truths)["all"]["ap"] == 1  # 50 / 100
    assert boxes_ap({"a": [[0, 0, 9, 3.999, 1]]}, truths)["all"]["ap"] == 0


@quick
@given(seed=seeds)
def test_oracle(tmp_path, seed):
    truths, kept, _ = random_case(seed)
    # boxes far apart, so that no other face overlaps one better than itself
    truths = {
        event: {stem: boxes + np.arange(len(boxes))[:, None] * [99, 0, 0, 0] for stem, boxes in i}
        for event, i in ((event, images.items()) for event, images in truths.items())
    }
    found = {
        stem: np.c_[boxes, np.ones(len(boxes))]
        for images in truths.values()
        for stem, boxes in images.items()
    }
    result = evaluate_widerface(found, write_ground_truth(tmp_path, truths, kept))
    for setting in SETTINGS:
        if result[setting]["faces"]:
            assert result[setting]["ap"] >= 0.999
            assert result[setting]["ap_exact"] >= 0.999
        else:
            assert np.isnan([result[setting][name] for name in ("ap", "ap_exact")]).all()


@quick
@given(seed=seeds)
def test_order_of_images_and_of_detections_does_not_matter(tmp_path, seed):
    truths, kept, found = random_case(seed)
    rng = np.random.default_rng(seed)
    folder = write_ground_truth(tmp_path, truths, kept)
    names = rng.permutation(list(found))
    shuffled = {str(name): rng.permutation(found[name], axis=0) for name in names}
    first = evaluate_widerface(found, folder)
    np.testing.assert_equal(evaluate_widerface(shuffled, folder), first)


@quick
@given(seed=seeds)
def test_a_false_positive_under_all_others_changes_nothing_above_it(tmp_path, seed):
    truths, kept, found = random_case(seed)
    folder = write_ground_truth(tmp_path, truths, kept)
    before = precision_recall(found, folder).curves
    stem = next(iter(found))
    more = {**found, stem: np.vstack([found[stem], [900, 900, 10, 10, -9]])}
    after = precision_recall(more, folder).curves
    for setting in SETTINGS:
        old, new = before[setting], after[setting]
        assert np.array_equal(new.thresholds[:-1], old.thresholds)
        assert np.array_equal(new.precision[:-1], old.precision)
        assert np.array_equal(new.recall[:-1], old.recall, equal_nan=True)
        assert np.array_equal(new.ap_exact, old.ap_exact, equal_nan=True)


@quick
@given(seed=seeds)
def test_subset_equals_the_other_images_removed(tmp_path, seed):
    truths, kept, found = random_case(seed)
    folder = write_ground_truth(tmp_path, truths, kept)
    chosen = ["0_image_2", "1_image_3.jpg", "1--Handshaking/1_image_5"]
    stems = {"0_image_2", "1_image_3", "1_image_5"}
    part = evaluate_widerface(found, folder, images=chosen)
    fewer = {
        event: {stem: boxes for stem, boxes in images.items() if stem in stems}
        for event, images in truths.items()
    }
    (tmp_path / "part").mkdir(exist_ok=True)
    alone = evaluate_widerface(
        {stem: found[stem] for stem in stems},
        write_ground_truth(tmp_path / "part", fewer, kept),
    )
    np.testing.assert_equal(part, alone)


@pytest.fixture
def case(tmp_path):
    truths, kept, found = random_case(7)
    (tmp_path / "ground_truth").mkdir()
    write_ground_truth(tmp_path / "ground_truth", truths, kept)
    by_event = {
        f"{event}/{stem}": found[stem] for event, images in truths.items() for stem in images
    }
    return tmp_path, by_event


def test_submission_folder_and_zip_equal_memory(case):
    root, found = case
    write_submission(root / "out", found)
    names = {path.relative_to(root / "out").as_posix() for path in (root / "out").rglob("*.txt")}
    assert names == {f"{name}.txt" for name in found}
    with zipfile.ZipFile(root / "out.zip", "w") as archive:
        for name in names:
            archive.write(root / "out" / name, f"upload/{name}")
    expected = evaluate_widerface(found, root)
    assert evaluate_widerface(root / "out", root) == expected
    assert evaluate_widerface(str(root / "out.zip"), root) == expected
    assert all(result["ap"] > 0 for result in (expected[setting] for setting in SETTINGS))


def test_written_rows_are_sorted_and_keep_decimals(tmp_path):
    top = np.nextafter(np.float32(1), np.float32(0))  # the largest score below 1
    rows = np.array([[1.25, 2.5, 10.125, 20, 0.1], [3, 4, 5, 6, 1], [0, 0, 9, 9, top]])
    write_submission(tmp_path, {"0--Parade/a.png": rows, "b": Detections()})
    text = (tmp_path / "0--Parade" / "a.txt").read_text()
    assert text.splitlines()[:3] == ["a.png", "3", "3.000 4.000 5.000 6.000 1"]
    read = read_submission(tmp_path)
    assert np.allclose(read["0--Parade/a"], rows[[1, 2, 0]])
    assert np.float32(read["0--Parade/a"][1, 4]) == top
    assert (tmp_path / "b.txt").read_text() == "b.jpg\n0\n"
    assert read["b"].shape == (0, 5)


def test_a_submission_is_written_with_one_sync_before_anything_is_replaced(tmp_path, monkeypatch):
    old = {f"event/{n}": np.full((1, 5), 1.0) for n in range(9)}
    new = {f"event/{n}": np.full((1, 5), 2.0) for n in range(9)}
    write_submission(tmp_path, old)
    calls = []
    for name in ("sync", "fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1]
        )
    write_submission(tmp_path, new)
    assert calls == ["sync"] + ["replace"] * 9
    assert all(rows[0, 0] == 2 for rows in read_submission(tmp_path).values())
    assert [path.name for path in tmp_path.iterdir()] == ["event"]
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "event" / "0.txt").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("failure", [OSError("no space left"), KeyboardInterrupt()])
def test_a_failure_on_the_way_leaves_the_old_submission(tmp_path, monkeypatch, failure):
    old = {f"event/{n}": np.full((1, 5), 1.0) for n in range(9)}
    write_submission(tmp_path, old)
    real, written = Path.write_text, []

    def fail_at_the_fifth(path, text, **options):
        written.append(path)
        assert path.suffix != ".txt", "what a killed writer leaves must not be read"
        if len(written) == 5:
            real(path, text[: len(text) // 2], **options)
            raise failure
        return real(path, text, **options)

    monkeypatch.setattr(Path, "write_text", fail_at_the_fifth)
    with pytest.raises(type(failure)):
        write_submission(tmp_path, {f"event/{n}": np.full((1, 5), 2.0) for n in range(9)})
    assert len(written) == 5
    assert all(rows[0, 0] == 1 for rows in read_submission(tmp_path).values())
    assert [path.name for path in tmp_path.iterdir()] == ["event"]


@pytest.mark.parametrize("name", ["../a", "/a/b", "0--Parade/../../a"])
def test_names_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(DataError, match="cannot name a prediction file"):
        write_submission(tmp_path / "out", {"b": np.ones((1, 5)), name: np.ones((1, 5))})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg\n2\n1 2 3 4 .5\n", "2 boxes announced but 1 rows"),
        ("a.jpg\n1\n1 2 3 4\n", "line 3 has 4 columns"),
        ("a.jpg\n2\n1 2 3 4\n1 2 3 4 5 6\n", "line 3 has 4 columns"),
        ("a.jpg\n1\n1 2 3 four .5\n", "not a number"),
        ("a.jpg\n1\n1 2 3 4 nan\n", "NaN or infinite"),
        ("a.jpg\nmany\n1 2 3 4 .5\n", "second line must be the number of boxes; it is 'many'"),
        ("a.jpg\n", "second line must be the number of boxes"),
        ("1 2 3 4 .5\n", "first line must be the image's name"),
        ("b.jpg\n1\n1 2 3 4 .5\n", "first line must be the image's name; it is 'b.jpg'"),
    ],
)
def test_malformed_file_is_one_clear_error(tmp_path, text, message):
    (tmp_path / "0--Parade").mkdir()
    (tmp_path / "0--Parade" / "a.txt").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_submission(tmp_path)
    assert "0--Parade/a.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_windows_line_ends_and_blank_lines_are_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a.jpg\r\n1\r\n1 2 3 4 .5\r\n\r\n")
    assert read_submission(tmp_path)["a"].tolist() == [[1, 2, 3, 4, 0.5]]


def test_missing_and_empty_sources(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_submission(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no prediction file"):
        read_submission(tmp_path)
    (tmp_path / "a.zip").write_bytes(b"not a zip")
    with pytest.raises(DataError, match="readable zip"):
        read_submission(tmp_path / "a.zip")


def test_empty_file_counts_as_no_detections(case):
    root, found = case
    write_submission(root / "out", found)
    (root / "out" / "0--Parade" / "0_image_0.txt").write_text("")
    with pytest.warns(EvaluationWarning, match="1 prediction files are empty.*0_image_0"):
        result = evaluate_widerface(root / "out", root)
    assert result == evaluate_widerface({**found, "0--Parade/0_image_0": []}, root)


def test_missing_images_and_events_are_named(case):
    root, found = case
    del found["1--Handshaking/1_image_3"]
    with pytest.warns(EvaluationWarning, match="1 of 6 images .* 1--Handshaking/1_image_3"):
        evaluate_widerface(found, root)
    parade = {name: rows for name, rows in found.items() if name.startswith("0--")}
    with pytest.warns(EvaluationWarning, match="3 of 6 images .* all of 1--Handshaking"):
        result = evaluate_widerface(parade, root)
    assert result["images"] == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluate_widerface(parade, root, images=parade)["images"] == 3


def test_unknown_names(case):
    root, found = case
    with pytest.warns(EvaluationWarning, match="1 predictions for unknown images left out: other"):
        result = evaluate_widerface({**found, "0--Parade/other": np.ones((1, 5))}, root)
    assert result == evaluate_widerface(found, root)
    with pytest.raises(DataError, match="no prediction is for an annotated image"):
        evaluate_widerface({"other": np.ones((1, 5))}, root)
    with pytest.raises(DataError, match="not in the ground truth: other"):
        evaluate_widerface(found, root, images=["other", "0_image_0"])
    with pytest.raises(DataError, match="subset of images to evaluate is empty"):
        evaluate_widerface(found, root, images=[])
    with pytest.raises(DataError, match="two predictions for the image 0_image_0"):
        evaluate_widerface({**found, "0_image_0.jpg": []}, root)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.ones((2, 4)), "need 5 columns"),
        (np.ones(5), "need 5 columns"),
        ([[1, 2, 3, 4, np.nan]], "NaN or infinite"),
        ([["a", 2, 3, 4, 5]], "must be numbers"),
    ],
)
def test_malformed_arrays(case, rows, message):
    root, found = case
    with pytest.raises(DataError, match=message):
        evaluate_widerface({**found, "0--Parade/0_image_0": rows}, root)


def test_no_detection_at_all_is_zero(case):
    root, found = case
    result = evaluate_widerface(dict.fromkeys(found, np.zeros((0, 5))), root)
    assert [result[setting]["ap"] for setting in SETTINGS] == [0, 0, 0]
    assert [result[setting]["ap_exact"] for setting in SETTINGS] == [0, 0, 0]


def test_bad_ground_truth(case):
    root, found = case
    folder = root / "ground_truth"
    easy = folder / "wider_easy_val.mat"
    whole = easy.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"junk" * 100):
        easy.write_bytes(damage)
        with pytest.raises(DataError, match=r"wider_easy_val\.mat cannot be read") as caught:
            evaluate_widerface(found, root)
        assert "\n" not in str(caught.value)
    savemat(easy, {"other": 1})
    with pytest.raises(DataError, match="has no variable 'gt_list'"):
        evaluate_widerface(found, root)
    savemat(easy, {"gt_list": cell([cell([np.array([[99]])] * 6)])})
    with pytest.raises(DataError, match="keeps a box that image"):
        evaluate_widerface(found, root)
    savemat(easy, {"gt_list": cell([cell([np.array([[1]])])])})
    with pytest.raises(DataError, match="lists 1 images"):
        evaluate_widerface(found, root)
    easy.unlink()
    with pytest.raises(DataError, match=r"wider_easy_val\.mat is missing"):
        evaluate_widerface(found, root)
    savemat(folder / "wider_face_val.mat", dict.fromkeys(("event_list", "file_list"), 1.0))
    with pytest.raises(DataError, match="has no variable 'face_bbx_list'"):
        evaluate_widerface(found, root)


# plain annotated folders


def test_settings_by_size():
    truths = {
        "a.jpg": np.array([[0, 0, 31, 31], [100, 0, 132, 32], [300, 0, 396, 96.0]]),
        "b.jpg": np.array([[0, 0, 97, 97.0], [200, 0, 220, 80]]),  # the last: √(20·80) = 40
        "c.jpg": np.zeros((0, 4)),
    }
    result = precision_recall_boxes(
        {
            "a": [[0, 0, 31, 31, 0.9], [100, 0, 32, 32, 0.8]],
            "b": [[0, 0, 97, 97, 0.7]],
            "c": [[0, 0, 50, 50, 0.75]],  # no face there: false in every setting
        },
        truths,
    )
    faces = {name: curve.faces for name, curve in result.curves.items()}
    assert faces == {"all": 5, "small": 1, "medium": 3, "large": 1}
    assert result.images == 3
    curves = result.curves
    assert curves["small"].true.tolist() == [True, False]
    assert curves["medium"].true.tolist() == [True, False]
    assert curves["large"].true.tolist() == [False, True]
    assert curves["all"].true.tolist() == [True, True, False, True]
    assert curves["large"].ap_exact == pytest.approx(0.5)
    assert curves["medium"].ap_exact == pytest.approx(1 / 3)


def test_min_size_and_ignored_faces_are_neither_wanted_nor_false():
    truths = {"a": np.array([[0, 0, 10, 10], [50, 50, 90, 90.0]]), "b": np.array([[0, 0, 60, 60]])}
    found = {"a": [[0, 0, 10, 10, 0.9], [50, 50, 40, 40, 0.8]], "b": [[0, 0, 60, 60, 0.7]]}
    assert boxes_ap(found, truths)["all"]["faces"] == 3
    result = boxes_ap(found, truths, min_size=16, ignored={"b": np.array([True])})
    assert result["all"] == {"ap": 1.0, "ap_exact": 1.0, "faces": 1}
    assert np.isnan([result["small"][name] for name in ("ap", "ap_exact")]).all()
    none = boxes_ap({"a": [[0, 0, 90, 90, 0.9]]}, {"a": np.array([[0, 0, 90, 90.0]])})["small"]
    assert np.isnan([none["ap"], none["ap_exact"]]).all(), "no face, and no detection counts"


@quick
@given(seed=seeds)
def test_boxes_equal_the_plain_reference(seed):
    truths, _, found = random_case(seed)
    corners = {
        stem: np.c_[boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]
        for images in truths.values()
        for stem, boxes in images.items()
    }
    everything = {stem: range(len(boxes)) for stem, boxes in corners.items()}
    result = boxes_ap(found, corners)
    assert result["all"]["ap"] == plain_average_precision(truths, everything, found)


def test_detections_objects_and_names_in_folders():
    faces = Detections(
        np.array([[0, 0, 40, 40]], np.float32),
        np.array([0.9], np.float32),
        np.zeros((1, 5, 2), np.float32),
    )
    truths = {"x/1.jpg": faces.boxes, "y/1.jpg": faces.boxes + 200}
    result = boxes_ap({"x/1": faces, "y/1": Detections()}, truths)
    assert result["all"]["faces"] == 2
    assert result["all"]["ap_exact"] == pytest.approx(0.5)
    with pytest.raises(DataError, match="no annotated image"):
        boxes_ap({}, {})
    with pytest.raises(DataError, match="annotated boxes must be finite"):
        boxes_ap({}, {"a": np.ones((2, 3))})


def test_evaluation_imports_no_torch():
    import subprocess
    import sys

    code = (
        "import sys, featherface.evaluation, featherface.plots;"
        "sys.exit('torch' in sys.modules or 'scipy.optimize' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_published_curves_are_read(tmp_path):
    folder = tmp_path / "eval_tools/plot/baselines/Val/setting_int/Other"
    folder.mkdir(parents=True)
    for setting in ("easy", "medium", "hard"):
        points = np.array([[0.0, 1.0], [0.5, 1.0], [1.0, 0.5]])
        savemat(folder / f"wider_pr_info_Other_{setting}_val.mat", {"pr_cruve": points})
    (folder.parent / "Damaged").mkdir()
    (folder.parent / "Damaged/wider_pr_info_Damaged_easy_val.mat").write_bytes(b"nothing")
    curves = published_curves(tmp_path)
    assert list(curves) == ["Other (published)"]
    assert curves["Other (published)"]["hard"].ap == pytest.approx(0.75)
    assert published_curves(tmp_path / "nothing") == {}
