"""Precision–recall curves that others published, as WIDER FACE's eval_tools.zip carries them."""

from pathlib import Path

import numpy as np

from featherface.evaluation.curves import make_curve
from featherface.structures import Curve

FOLDER = Path("eval_tools/plot/baselines/Val/setting_int")
SETTINGS = ("easy", "medium", "hard")
MOST = 3  # of the published detectors, the best: more lines say less


def published_curves(data: Path) -> dict[str, dict[str, Curve]]:
    """{detector: {setting: Curve}} of the best MOST detectors whose curves lie under `data`.

    Each is <FOLDER>/<detector>/wider_pr_info_<detector>_<setting>_val.mat with `pr_cruve` (T, 2):
    recall, precision. Files that are not there or of another form are left out.
    """
    found = {}
    for folder in sorted((data / FOLDER).glob("*")):
        curves = {name: _read(folder, name) for name in SETTINGS}
        known = {name: curve for name, curve in curves.items() if curve is not None}
        if len(known) == len(SETTINGS):
            found[f"{folder.name} (published)"] = known
    order = sorted(found, key=lambda name: -found[name]["hard"].ap)
    return {name: found[name] for name in order[:MOST]}


def _read(folder: Path, setting: str) -> Curve | None:
    from scipy.io import loadmat

    path = folder / f"wider_pr_info_{folder.name}_{setting}_val.mat"
    try:
        points = np.asarray(loadmat(path)["pr_cruve"], float)
    except (OSError, KeyError, ValueError, NotImplementedError):
        return None
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        return None
    return _as_curve(points[:, 0], points[:, 1])


def _as_curve(recall: np.ndarray, precision: np.ndarray) -> Curve:
    """A curve to draw; its AP is the area under the monotone envelope."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    ap = float(np.sum(np.diff(recall, prepend=0.0).clip(min=0) * envelope))
    empty = make_curve(np.zeros(0), np.zeros(0, bool), 1, score_range=(0.0, 1.0))
    return Curve(empty.scores, empty.true, empty.thresholds, recall, precision, ap, ap, 1)
