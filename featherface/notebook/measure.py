"""Sections 7 and 9: average precision, agreement and calibration of V1 and V2."""

from typing import Any

import pandas as pd

from featherface.config import DISPLAY_SCORE, EVALUATION_SCORE
from featherface.errors import ConfigError, DataError
from featherface.evaluation import Curve, Evaluation, calibration_summary, compare, reliability
from featherface.evaluation.curves import setting_of_most_faces
from featherface.evaluation.run import detect_photos
from featherface.evaluation.sets import EvaluationSet, find_evaluation_set, precision_recall_boxes
from featherface.notebook.display import explained, note, show_figure, show_table
from featherface.notebook.faces import detectors
from featherface.notebook.published import published_curves
from featherface.notebook.sessions import Session, make_drawn_set
from featherface.plots import (
    plot_consistency,
    plot_precision_recall,
    plot_reliability,
)

SMALLEST = 16.0  # pixels: the smallest anchor; drawn faces below it are not asked for
QUICK_PHOTOS = 160  # real ones to measure on in quick mode
AGREEMENT = ("agreement", "score_correlation", "iou_median", "landmark_distance_median")
WANTED_AP = 0.5  # of a quick run, faces of SMALLEST and more


@explained("the evaluation")
def evaluate(current: Session) -> None:
    """AP of every detector on photographs that none was trained on, and the curves."""
    results = _measured(current)
    found = current.evaluated
    assert found is not None
    title = f"{found.description}, {current.protocol_text}, faces that score over 0.02"
    show_table(ap_table(current, results), f"AP in percent (exact): {title}", digits=1)
    curves: dict[str, dict[str, Curve]] = {n: dict(r.curves) for n, r in results.items()}
    if found.ground_truth and found.count == found.total:
        curves |= published_curves(current.data)
    else:
        note("A subset or drawn photographs: these numbers compare detectors, no more than that.")
    panels = [name for name in next(iter(curves.values())) if name != "small"]
    shown = {name: {p: lines[p] for p in panels if p in lines} for name, lines in curves.items()}
    figure = plot_precision_recall(shown, title=f"{title}; AP exact", exact=True)
    show_figure(figure, current.results / "precision_recall.png")
    _judge(current, results)


def _judge(current: Session, results: dict[str, Evaluation]) -> None:
    """Whether a quick run has learned what it can, and what to do if not."""
    if current.mode != "quick" or "V2, this run" not in results:
        return
    ap = ap_above(current, "V2, this run")
    faces = f"faces of {SMALLEST:.0f} px and more: AP {ap:.2f}"
    if ap >= WANTED_AP:
        note(f"V2 of this run, all {faces}, after {current.config.epochs} epochs.")
        return
    more = 3 * current.config.epochs
    note(
        f"V2 of this run, all {faces}, under {WANTED_AP}: {current.config.epochs} epochs of this "
        f'recipe were too few; set SETTINGS = {{"epochs": {more}}} in the first cell.'
    )


def ap_above(current: Session, name: str, smallest: float = SMALLEST) -> float:
    """Exact AP of all faces of at least `smallest` pixels (square root of the box area)."""
    assert current.evaluated is not None
    faces = {photo.name: photo.with_ignored() for photo in current.evaluated.photos}
    result = precision_recall_boxes(
        current.found[name],
        {photo: part.boxes for photo, part in faces.items()},
        ignored={photo: part.ignore for photo, part in faces.items()},
        min_size=smallest,
    )
    return result.curves["all"].ap_exact


def ap_table(current: Session, results: dict[str, Evaluation]) -> pd.DataFrame:
    """A row a detector, a column a setting with its number of faces, in percent."""
    rows = []
    for name, result in results.items():
        above = {f"all from {SMALLEST:.0f} px": 100 * ap_above(current, name)}
        columns = {f"{s} ({c.faces:,} faces)": 100 * c.ap_exact for s, c in result.curves.items()}
        rows.append({"detector": name, **columns, **above})
    return pd.DataFrame(rows).round(1)


def _measured(current: Session) -> dict[str, Evaluation]:
    """Detections and AP of every detector that is there; measured once a session."""
    if current.measured:
        return current.measured
    make_drawn_set(current)
    current.evaluated = found = evaluation_set(current)
    available = detectors(current, score_threshold=EVALUATION_SCORE)
    if not available:
        raise ConfigError("no weights to evaluate: see section 2")
    for name, detector in available.items():
        current.found[name] = detect_photos(
            detector,
            found.photos,
            protocol=current.protocol,
            progress=not current.headless,
            label=name,
        )
        current.measured[name] = found.evaluate(current.found[name])
    return current.measured


def evaluation_set(current: Session) -> EvaluationSet:
    """The val photographs; in quick mode at most QUICK_PHOTOS of them."""
    found = find_evaluation_set(current.data, "val")
    return found.sample(QUICK_PHOTOS) if current.mode == "quick" else found


def _pair(current: Session) -> tuple[str, str]:
    """The teacher and the V2 to compare it with. DataError where one is missing."""
    _measured(current)
    others = [name for name in current.found if name != "V1"]
    if "V1" not in current.found or not others:
        raise DataError(
            "V1 and V2 are both needed to compare them: put V1's weights as section 2 says, or run "
            "section 5"
        )
    return "V1", others[0]


@explained("the agreement of V1 and V2")
def compare_detections(current: Session) -> None:
    """Do both find the same faces, with the same scores? By photograph and by size."""
    first, second = _pair(current)
    shown = {
        name: {photo: faces[faces.scores > DISPLAY_SCORE] for photo, faces in found.items()}
        for name, found in current.found.items()
    }
    frame, summary = compare(shown[first], shown[second])
    title = f"{first} and {second}, faces that score over {DISPLAY_SCORE}"
    show_figure(
        plot_consistency(frame, summary, names=(first, second), title=title),
        current.results / "consistency.png",
    )
    rows = [{"measure": name, "value": value} for name, value in summary.items()]
    show_table(pd.DataFrame(rows), f"all figures of the comparison ({len(rows)})", fold=True)
    current.add(second, {f"{name}_with_v1": summary[name] for name in AGREEMENT})


@explained("the calibration of V1 and V2")
def show_calibration(current: Session) -> None:
    """Is a score of 0.8 right in 8 of 10 cases? And which score gives few false faces?"""
    results = _measured(current)
    diagrams, rows = {}, []
    for name, result in results.items():
        said = calibration_summary(result)
        if not said["detections"]:
            continue
        diagrams[name] = reliability(result.curves[setting_of_most_faces(result)])
        error = said["expected_calibration_error"]
        current.add(name, {"calibration_error": error})
        row: dict[str, Any] = {"detector": name, "error": error}
        for precision, point in said["thresholds"].items():
            row[f"score for precision {precision}"] = point["threshold"] if point else None
            row[f"recall there ({precision})"] = point["recall"] if point else None
        rows.append(row)
    if not rows:
        raise DataError("no detector found anything, so there is nothing to calibrate")
    show_table(pd.DataFrame(rows), "expected calibration error, and the score to ask for")
    show_figure(plot_reliability(diagrams), current.results / "calibration.png")
