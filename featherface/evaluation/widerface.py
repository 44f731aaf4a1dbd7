"""WIDER FACE average precision: easy, medium and hard, as the official evaluation computes them.

Yang et al., "WIDER FACE: A Face Detection Benchmark", CVPR 2016. `evaluate_widerface` gives the
numbers of its eval_tools to the last bit (1,000 thresholds), and the exact ones.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featherface.errors import DataError
from featherface.evaluation.curves import Evaluation, make_curves, match_detections
from featherface.evaluation.submission import Found, gather, image_stem, name_some
from featherface.structures import Curve

SETTINGS = ("easy", "medium", "hard")


@dataclass(frozen=True)
class GroundTruth:
    """The annotation of n images.

    stems, events: n names; boxes: n arrays (F, 4) float64 x, y, w, h in pixels; kept: for each
    setting n arrays (F,) bool, the faces to find.
    """

    stems: list[str]
    events: list[str]
    boxes: list[np.ndarray]
    kept: dict[str, list[np.ndarray]]

    def subset(self, images: Iterable[str]) -> "GroundTruth":
        """Select images, in the order of the whole. DataError for an unknown one, or for none."""
        wanted = {image_stem(name) for name in images}
        unknown = wanted.difference(self.stems)
        if unknown:
            raise DataError(f"images not in the ground truth: {name_some(sorted(unknown))}")
        if not wanted:
            raise DataError("the subset of images to evaluate is empty: give at least one image")
        rows = [row for row, stem in enumerate(self.stems) if stem in wanted]
        parts: list[list] = [self.stems, self.events, self.boxes, *self.kept.values()]
        stems, events, boxes, *masks = ([part[row] for row in rows] for part in parts)
        return GroundTruth(stems, events, boxes, dict(zip(self.kept, masks, strict=True)))


def read_ground_truth(folder: str | os.PathLike) -> GroundTruth:
    """Read the four files from `folder`, or from its subfolder ground_truth.

    Raises DataError if a file is missing, cannot be read, or disagrees with the others.
    """
    root = Path(folder)
    if (root / "ground_truth").is_dir():
        root = root / "ground_truth"
    path = root / "wider_face_val.mat"
    events, files, boxes = _read(path, "event_list", "file_list", "face_bbx_list")
    try:
        names = [str(event.item()) for event in events.flat]
        counts = [cell.size for cell in files.flat]
        truth = GroundTruth(
            stems=[str(name.item()) for name in _inner(files)],
            events=list(np.repeat(names, counts)),
            boxes=[box.astype(np.float64).reshape(-1, 4) for box in _inner(boxes)],
            kept={},
        )
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not in the official nested form: {error}") from error
    if len(truth.boxes) != len(truth.stems):
        raise DataError(f"{path} has {len(truth.stems)} images but boxes for {len(truth.boxes)}")
    for setting in SETTINGS:
        truth.kept[setting] = _read_kept(root / f"wider_{setting}_val.mat", truth)
    return truth


def _read_kept(path: Path, truth: GroundTruth) -> list[np.ndarray]:
    """The masks (F,) bool of the kept faces, one per image."""
    lists = _inner(*_read(path, "gt_list"))
    if len(lists) != len(truth.boxes):
        raise DataError(f"{path} lists {len(lists)} images, wider_face_val.mat {len(truth.boxes)}")
    masks = []
    for stem, boxes, numbers in zip(truth.stems, truth.boxes, lists, strict=True):
        indices = np.asarray(numbers).ravel().astype(np.int64) - 1
        if not ((indices >= 0) & (indices < len(boxes))).all():
            raise DataError(f"{path} keeps a box that image {stem} does not have: use other files")
        masks.append(np.isin(np.arange(len(boxes)), indices))
    return masks


def _read(path: Path, *variables: str) -> list[Any]:
    from scipy.io import loadmat  # slow to import

    if not path.is_file():
        files = ", ".join(f"wider_{name}_val.mat" for name in ("face", *SETTINGS))
        raise DataError(f"{path} is missing: the folder needs {files} of the official eval_tools")
    try:
        content = loadmat(path, variable_names=variables)
        return [content[name] for name in variables]
    except KeyError as error:
        raise DataError(f"{path} has no variable {error}: get the official file again") from error
    except Exception as error:  # damaged files raise many kinds (zlib, struct, …)
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{path} cannot be read ({reason}): get the official file again") from error


def _inner(cell: np.ndarray) -> list[np.ndarray]:
    """The contents of a cell of cells (one inner cell per event), in order."""
    return [content for event in cell.flat for content in event.flat]


def evaluate_widerface(
    predictions: Found,
    ground_truth_dir: str | os.PathLike,
    images: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Compute average precision on the WIDER FACE validation set, or on some of its images.

    predictions: {image: (K, 5) x, y, w, h, score, or Detections} with names matched by their stem,
    or a submission folder or zip; scores in any range, rows in any order.
    ground_truth_dir: folder of the four official .mat files, or one with them in ground_truth/.
    images: names of a subset; only its images, faces and detections count. None: all 3,226.

    Returns {"easy": {"ap", "ap_exact", "faces"}, "medium": …, "hard": …, "images": n}: AP in 0..1,
    NaN if a subset has no such face. Raises DataError for malformed predictions or ground truth;
    an EvaluationWarning names images without prediction, which count as without detections.
    """
    return precision_recall(predictions, ground_truth_dir, images).as_dict()


def precision_recall(
    predictions: Found,
    ground_truth: str | os.PathLike | GroundTruth,
    images: Iterable[str] | None = None,
) -> Evaluation:
    """Compute the same with its curves; arguments and errors are those of `evaluate_widerface`.

    ground_truth: the folder, or the result of `read_ground_truth`, to evaluate many times.
    """
    whole = ground_truth
    if not isinstance(whole, GroundTruth):
        whole = read_ground_truth(whole)
    truth = whole if images is None else whole.subset(images)
    names = [f"{event}/{stem}" for event, stem in zip(truth.events, truth.stems, strict=True)]
    rows = gather(predictions, names, known=whole.stems, key=image_stem)
    kept = {name: np.concatenate(masks) for name, masks in truth.kept.items()}
    return make_curves(match_detections(rows, truth.boxes), kept, images=len(truth.stems))


_PUBLISHED = "eval_tools/plot/baselines/Val/setting_int"


def published_curves(data: str | os.PathLike, *, most: int = 3) -> dict[str, dict[str, Curve]]:
    """Read the precision-recall curves of other detectors that eval_tools.zip contains.

    data: the folder that eval_tools/ is in. Returns {detector: {setting: Curve}} of the `most` best
    detectors on hard; files that are missing or malformed are left out.
    """
    found = {}
    for folder in sorted((Path(data) / _PUBLISHED).glob("*")):
        files = {s: folder / f"wider_pr_info_{folder.name}_{s}_val.mat" for s in SETTINGS}
        try:
            points = {s: np.asarray(_read(file, "pr_cruve")[0]) for s, file in files.items()}
            found[f"{folder.name} (published)"] = {s: _as_curve(p) for s, p in points.items()}
        except (DataError, ValueError, IndexError):
            continue
    best = sorted(found, key=lambda name: -found[name]["hard"].ap)
    return {name: found[name] for name in best[:most]}


def _as_curve(points: np.ndarray) -> Curve:
    """Points (T, 2) recall, precision → a curve to plot; its AP is the area under the envelope."""
    recall, precision = points.astype(float).T
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    ap = float(np.sum(np.diff(recall, prepend=0.0).clip(min=0) * envelope))
    none = np.zeros(0)
    return Curve(none, none.astype(bool), none, recall, precision, ap, ap, faces=1)
