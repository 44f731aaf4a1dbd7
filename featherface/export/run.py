"""One export: build every form, check it against the trained network, measure, then write."""

import io
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import torch
from onnx import ModelProto
from PIL import Image
from torch import nn

from featherface.anchors import decode_boxes, decode_landmarks, make_anchors
from featherface.benchmark.paired import alternate, one_thread, ratio
from featherface.checkpoint import FORMAT, build_model, read_file, write_file
from featherface.config import (
    ANCHOR_SIZES,
    DISPLAY_SCORE,
    EVALUATION_SCORE,
    KEEP_TOP_K,
    MEAN_BGR,
    NMS_IOU,
    PAD_MULTIPLE,
    PRE_NMS_TOP_K,
    STRIDES,
    VARIANCES,
)
from featherface.data.demo_scene import make_photo
from featherface.data.widerface import photos_in
from featherface.detector import Detector
from featherface.errors import CheckpointError, ConfigError, ExportError
from featherface.evaluation import compare
from featherface.evaluation.run import detect_photos
from featherface.evaluation.sets import EvaluationSet, find_evaluation_set
from featherface.export.graph import FORMS, OPSET, Size, build, check_settings, open_model
from featherface.export.int8 import Quantised, quantise
from featherface.files import atomic_path, check_writable, commit, sha256, versions, write_text
from featherface.images import fit_long_side, network_input, padded_size, read_image
from featherface.onnx_detector import OnnxDetector
from featherface.structures import LANDMARK_NAMES

# long sides of the pictures that parity is measured on, pixels
SIDES = (
    *(33, 64, 97, 150, 200, 256, 300, 320, 333, 400),
    *(480, 500, 512, 555, 600, 640, 700, 800, 1024, 1280),
)
BOX_LIMIT = 0.01  # pixels: what rounding may move a box of the raw form
SCORE_LIMIT = 1e-4
IOU_LIMIT = 0.999  # of the same face by Detector and by the end-to-end form
V1_SCORE_LIMIT = 2e-4  # deformable sampling rounds differently
_DRAWN = 480  # pixels, about the long side of a drawn picture
_LARGEST_CALIBRATION = 640  # pixels, long side


def pictures(folder: str | os.PathLike = "", *, count: int = len(SIDES)) -> list[np.ndarray]:
    """Pictures to check on, (H, W, 3) uint8 RGB: of a folder, or drawn. DataError for a folder
    without photos."""
    if folder:
        photos = photos_in(folder, "--calibration")
        step = max(1, len(photos) // count)
        return [read_image(photo.path) for photo in photos[::step][:count]]
    return [_drawn(index) for index in range(count)]


def _drawn(index: int) -> np.ndarray:
    jpeg = make_photo(seed=0, split=1, index=index, size=_DRAWN).jpeg
    with Image.open(io.BytesIO(jpeg)) as image:
        return read_image(image)


def of_sizes(photos: Sequence[np.ndarray], size: Size | None) -> list[np.ndarray]:
    """The photos in turn with each long side of SIDES, or all on canvases of one size (height,
    width)."""
    if size is not None:
        return [_on_canvas(photo, *size) for photo in photos]
    return [_scaled(photos[i % len(photos)], side) for i, side in enumerate(SIDES)]


def _scaled(photo: np.ndarray, side: int) -> np.ndarray:
    scale = side / max(photo.shape[:2])
    size = tuple(max(1, round(scale * n)) for n in photo.shape[1::-1])
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _on_canvas(photo: np.ndarray, height: int, width: int) -> np.ndarray:
    """The photo cut or repeated at its edges to (height, width, 3)."""
    rows, columns = (max(0, n - m) for n, m in zip((height, width), photo.shape[:2], strict=True))
    grown = cv2.copyMakeBorder(photo, 0, rows, 0, columns, cv2.BORDER_REFLECT)
    return np.ascontiguousarray(grown[:height, :width])


def for_calibration(photos: Sequence[np.ndarray]) -> list[np.ndarray]:
    """(H, W, 3) uint8 BGR, of sizes that are usual."""
    return [
        cv2.cvtColor(fit_long_side(photo, _LARGEST_CALIBRATION), cv2.COLOR_RGB2BGR)
        for photo in photos
    ]


@torch.no_grad()
def raw_parity(
    model: nn.Module, graph: ModelProto, photos: Sequence[np.ndarray], size: Size | None
) -> dict[str, float]:
    """Largest differences over all anchors of all photos: boxes, landmarks (pixels), scores.

    ExportError where they are more than rounding explains.
    """
    session, worst = open_model(graph), {"boxes": 0.0, "scores": 0.0, "landmarks": 0.0}
    for photo in photos:
        height, width = size or padded_size(*photo.shape[:2])
        image = network_input([photo], height, width)
        predictions = model(torch.from_numpy(image))
        anchors = make_anchors(height, width)
        expected = {
            "boxes": decode_boxes(predictions.box_deltas, anchors),
            "scores": predictions.class_logits.softmax(-1)[..., 1],
            "landmarks": decode_landmarks(predictions.landmark_deltas, anchors),
        }
        for name, found in zip(worst, session.run(list(worst), {"image": image}), strict=True):
            difference = float(np.abs(found - expected[name].numpy()).max())
            worst[name] = float(np.maximum(worst[name], difference))  # NaN stays
    limit, box_limit = _limits(model)
    finite = np.isfinite(worst["landmarks"])
    if not (finite and worst["scores"] <= limit and worst["boxes"] <= box_limit):
        raise ExportError(
            f"the raw form differs from the trained network by {worst['scores']:.1e} in scores "
            f"(allowed: {limit:g}), {worst['boxes']:.1e} pixels in boxes (allowed: {box_limit:g}), "
            f"{worst['landmarks']:.1e} in landmarks; --form end_to_end exports the other form alone"
        )
    return worst


def _limits(model: nn.Module) -> tuple[float, float]:
    """What rounding may change: scores, and boxes in pixels.

    V1's deformable convolutions amplify rounding in boxes that nobody would take for a face.
    """
    v1 = getattr(model, "name", "") == "v1"
    return (V1_SCORE_LIMIT, 50 * BOX_LIMIT) if v1 else (SCORE_LIMIT, BOX_LIMIT)


def face_parity(
    expected: Detector, found: OnnxDetector, photos: Sequence[np.ndarray], *, exact: bool
) -> dict[str, float]:
    """Do both find the same faces? Counts, smallest IoU and largest difference of scores.

    Where no face scores enough, those over a lower threshold are compared. A face within rounding
    of the threshold need not be in both. exact: ExportError where they differ by more than rounding
    explains, or where there is nothing to compare.
    """
    before = expected.score_threshold, found.score_threshold
    result = _same_faces(expected, found, photos)
    if not (result["faces"] or result["in_one_only"]):
        expected.score_threshold = found.score_threshold = 0.0
        best = max(max(faces.scores, default=0.0) for faces in expected.detect_batch(photos))
        expected.score_threshold = found.score_threshold = min(EVALUATION_SCORE, float(best) / 2)
        result = _same_faces(expected, found, photos)
        expected.score_threshold, found.score_threshold = before
    agree = result["smallest_iou"] >= IOU_LIMIT or result["box_difference"] <= result["limit"]
    if exact and (result["in_one_only"] or not agree):
        raise ExportError(f"{found.path.name} finds other faces than the trained network: {result}")
    return result


def _same_faces(
    expected: Detector, found: OnnxDetector, photos: Sequence[np.ndarray]
) -> dict[str, float]:
    """`face_parity`'s figures at the thresholds as they are; NaN where no face is in both."""
    first, second = expected.detect_batch(photos), found.detect_batch(photos)
    table, _ = compare(first, second)
    score_limit, box_limit = _limits(expected.model)
    pairs, others = (table[(table["status"] == "matched") == same] for same in (True, False))
    scores = others["score_a"].fillna(others["score_b"]).astype(float)
    changes = [
        np.abs(first[int(row.image)].boxes[row.index_a] - second[int(row.image)].boxes[row.index_b])
        for row in pairs.itertuples()
    ]
    return {
        "faces": len(pairs),
        "in_one_only": int((scores > expected.score_threshold + score_limit).sum()),
        "smallest_iou": float(pairs["iou"].astype(float).min()),
        "score_difference": float((pairs["score_a"] - pairs["score_b"]).astype(float).abs().max()),
        "box_difference": float(np.max(changes)) if changes else float("nan"),
        "limit": box_limit,
        "score_threshold": expected.score_threshold,
    }


def speed(
    model: nn.Module,
    graphs: dict[str, ModelProto],
    photo: np.ndarray,
    *,
    size: Size,
    rounds: int = 15,
) -> list[dict[str, Any]]:
    """A row a network: median, smallest and largest time on one thread, in turn, in milliseconds.

    Of the raw forms, which decode all anchors, and of the trained network in PyTorch, which does
    not: a forward of (1, 3, height, width). Of the others and of Detector: all from a picture
    (height, width, 3) to its faces.
    """
    picture = cv2.cvtColor(_on_canvas(photo, *size), cv2.COLOR_RGB2BGR)
    image = network_input([picture[..., ::-1]], *size)
    detector, tensor = Detector(model), torch.from_numpy(image)
    forwards: dict[str, Callable[[], object]] = {"PyTorch": lambda: model(tensor)}
    complete: dict[str, Callable[[], object]] = {
        "PyTorch": lambda: detector.detect(picture, bgr=True)
    }
    for name, graph in graphs.items():
        session = open_model(graph)
        raw = len(session.get_inputs()[0].shape) == 4
        feed = {"image": image if raw else picture}
        (forwards if raw else complete)[name] = partial(session.run, None, feed)
    rows = []
    with one_thread(), torch.inference_mode():
        for what, calls in (("forward", forwards), ("picture to faces", complete)):
            times = alternate(calls, rounds=rounds, cpu_time=True)
            for name, seconds in times.items():
                low, middle, high = (1000 * np.quantile(seconds, (0, 0.5, 1))).tolist()
                rows.append({"what": what, "network": name, "median": middle, "min": low,
                             "max": high, "ratio": ratio(times, name, "PyTorch")})  # fmt: skip
    return rows


def average_precision(
    detectors: dict[str, Detector | OnnxDetector],
    found: EvaluationSet,
    *,
    protocols: Sequence[str] = ("original", "vga"),
) -> list[dict[str, Any]]:
    """A row a detector and protocol: exact AP in percent by setting."""
    rows = []
    for name, detector in detectors.items():
        detector.score_threshold = EVALUATION_SCORE
        for protocol in protocols:
            faces = detect_photos(
                detector, found.photos, protocol=protocol, progress=False, label=name
            )
            result = found.evaluate(faces)
            ap = {name: 100 * float(curve.ap_exact) for name, curve in result.curves.items()}
            rows.append({"network": name, "protocol": protocol, "on": found.description, "ap": ap})
    return rows


PREPROCESSING = {
    "channels": "BGR",
    "mean_bgr": list(MEAN_BGR),
    "scale": 1.0,
    "layout": "NCHW float32",
    "pad_multiple": PAD_MULTIPLE,
    "padding": "right and below, with the mean colour",
}
POSTPROCESSING = {
    "strides": list(STRIDES),
    "anchor_sizes": [list(sizes) for sizes in ANCHOR_SIZES],
    "variances": list(VARIANCES),
    "score_threshold": DISPLAY_SCORE,
    "iou_threshold": NMS_IOU,
    "pre_nms_top_k": PRE_NMS_TOP_K,
    "keep_top_k": KEEP_TOP_K,
    "landmarks": list(LANDMARK_NAMES),
}


def package(
    model: nn.Module,
    checkpoint: Mapping[str, Any],
    *,
    source: str | os.PathLike,
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of the deployment file: tensors and plain data only, readable by `load_model`.

    checkpoint: what `source` holds (its settings, its data, the runs before it, the files that it
    is the mean of and its recorded evaluations are kept); metrics: what the export measured.
    """
    return {
        "format": FORMAT,
        "kind": "deployment",
        "architecture": str(model.name),
        "model": {name: value.cpu() for name, value in model.state_dict().items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "config": dict(checkpoint.get("config") or {}),
        "data": dict(checkpoint.get("data") or {}),
        "history": list(checkpoint.get("history") or []),
        "mean_of": list(checkpoint.get("mean_of") or []),
        "preprocessing": PREPROCESSING,
        "postprocessing": POSTPROCESSING,
        "evaluations": recorded(checkpoint),
        "metrics": dict(metrics),
        "source": {"file": Path(source).name, "sha256": sha256(source)},
        "versions": versions(),
        "commit": commit(),
    }


def recorded(checkpoint: Mapping[str, Any]) -> list[Any]:
    """The AP that evaluate.py --record has written into a weights file."""
    return list(checkpoint.get("evaluations") or [])


def write_package(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Write the deployment file atomically."""
    write_file(path, content)


_USE = """\
## Use

```python
from featherface import Detector, OnnxDetector   # OnnxDetector needs no PyTorch

faces = OnnxDetector("{onnx}").detect("photo.jpg")
faces = Detector("{package}").detect("photo.jpg")
faces.boxes, faces.scores, faces.landmarks       # (K, 4) x1 y1 x2 y2, (K,), (K, 5, 2), in pixels
```
"""
_ALONE = """Without this project, with ONNX Runtime alone:

```python
import cv2, numpy as np, onnxruntime

session = onnxruntime.InferenceSession("{onnx}", providers=["CPUExecutionProvider"])
boxes, scores, landmarks = session.run(None, {{
    "image": cv2.imread("photo.jpg"),                    # {shape} uint8 BGR, {sides}
    "score_threshold": np.array({score}, np.float32),    # optional, as is iou_threshold
}})
```
"""
_PROCESSING = """\
## Before and after the network

Input: BGR, 0–255, minus {mean}, padded on the right and below with that colour to multiples of
32. Then: faces that score over {score}, the best {top}, NMS at IoU {iou}, at most {keep}. The
end-to-end form does all of it; the raw form reads `image` (B, 3, H, W) float32 and gives `boxes`
(B, A, 4), `scores` (B, A) and `landmarks` (B, A, 5, 2) of all anchors, decoded, in pixels.
Landmarks: left eye, right eye, nose, left and right mouth corner, as seen in the image.
"""


def readme(
    *,
    title: str,
    files: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    metrics: Mapping[str, Any],
    evaluations: Sequence[Mapping[str, Any]],
    size: tuple[int, int] | None = None,
) -> str:
    """The text. files: name, bytes, holds, kind of each; facts: what was exported, and on what
    machine; metrics: what `export` measured; evaluations: those recorded in the weights file;
    size: height and width of the ONNX files, None: any."""
    parts = [f"# {title}", "", *_lines(facts), ""]
    parts += ["| file | bytes | holds |", "|---|---|---|"]
    parts += [f"| `{item['name']}` | {item['bytes']:,} | {item['holds']} |" for item in files]
    parts += ["", *_use({str(item["kind"]): str(item["name"]) for item in files}, size)]
    mean = "/".join(f"{value:g}" for value in MEAN_BGR)
    parts += ["", _PROCESSING.format(mean=mean, score=DISPLAY_SCORE, iou=NMS_IOU,
                                     top=f"{PRE_NMS_TOP_K:,}", keep=KEEP_TOP_K)]  # fmt: skip
    parts += ["## Measured by this export", "", *_parity(metrics["parity"])]
    parts += ["", *_speed(metrics["speed"], str(facts["machine"]))]
    if metrics.get("int8"):
        parts += ["", *_int8_rows(metrics["int8"], compared=bool(metrics.get("average_precision")))]
    parts += ["", *_precision(metrics.get("average_precision") or (), evaluations)]
    return "\n".join(parts).replace("\n\n\n", "\n\n").rstrip() + "\n"


def _use(names: Mapping[str, str], size: tuple[int, int] | None) -> list[str]:
    """How to use the file that serves most; names: by kind."""
    whole = next((names[kind] for kind in ("end_to_end", "int8", "fp16") if kind in names), None)
    lines = [_USE.format(onnx=whole or names["raw"], package=names["package"])]
    if not whole:
        return lines
    shape = f"({size[0]}, {size[1]}, 3)" if size else "(H, W, 3)"
    sides = f"exactly {size[0]}×{size[1]}" if size else "any size"
    return [*lines, _ALONE.format(onnx=whole, score=DISPLAY_SCORE, shape=shape, sides=sides)]


def _lines(facts: Mapping[str, Any]) -> list[str]:
    return [f"- {name}: {value}" for name, value in facts.items()]


def _parity(parity: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What each file's check against the trained network gave."""
    lines = [f"Against the trained network in PyTorch, on {parity['pictures']['count']} pictures "
             f"({parity['pictures']['from']}, {parity['pictures']['sizes']}):", ""]  # fmt: skip
    for name, values in parity.items():
        if name == "pictures":
            continue
        if "boxes" in values:
            lines.append(
                f"- `{name}`, all anchors: boxes within {values['boxes']:.1e} px, scores within "
                f"{values['scores']:.1e}, landmarks within {values['landmarks']:.1e} px"
            )
            continue
        low = values["score_threshold"] < DISPLAY_SCORE
        about = f"`{name}`: " + (
            f"no face in these pictures; over a score of {values['score_threshold']:.2g}: "
            if low
            else ""
        )
        if not values["faces"]:
            lines.append(f"- {about}no face in both, {values['in_one_only']} in one only")
            continue
        lines.append(
            f"- {about}{values['faces']} faces in both, {values['in_one_only']} in one only, "
            f"box IoU at least {values['smallest_iou']:.6f}, scores within "
            f"{values['score_difference']:.1e}"
        )
    return lines


def _speed(rows: Sequence[Mapping[str, Any]], machine: str) -> list[str]:
    """The table of times."""
    if not rows:
        return []
    forwards = [row["network"] for row in rows if row["what"] == "forward"]
    decoded = ", which the raw form decodes and PyTorch here does not" if len(forwards) > 1 else ""
    lines = [f"Time on one thread, milliseconds of CPU time, {rows[0]['size']} (height × width), "
             f"all in turn in one process, {rows[0]['rounds']} rounds, {machine}. Forward: "
             f"prepared pixels to all anchors{decoded}:", ""]  # fmt: skip
    lines += ["| what | network | median | smallest–largest | × PyTorch |", "|---|---|---|---|---|"]
    return lines + [
        f"| {row['what']} | {row['network']} | {row['median']:.1f} | {row['min']:.1f}–"
        f"{row['max']:.1f} | {row['ratio']:.2f} |"
        for row in rows
    ]


def _int8_rows(facts: Mapping[str, Any], *, compared: bool) -> list[str]:
    """What is 8-bit, and whether it is faster. compared: AP was measured, too."""
    precision = "" if compared else "AP against float is measured with `--data` only. "
    if facts["ratio"] is None:
        speed = "Its speed was not measured (`--rounds`)."
    else:
        verdict = "faster" if facts["ratio"] < 0.98 else "not faster"
        speed = (f"On this machine it is {verdict} than float: {facts['ratio']:.2f}× its time, "
                 "picture to faces. Processors without VNNI may differ.")  # fmt: skip
    return [
        f"INT8: {facts['layers']} convolutions compute in 8 bits, {facts['left']} that were worth "
        f"it by size stay in float for accuracy. Calibrated on {facts['calibrated_on']}, on which "
        "the parity above is measured too; there the scores that matter change by "
        f"{facts['score_error']:.4f} on average. {precision}{speed}"
    ]


def _precision(
    measured: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]
) -> list[str]:
    """AP measured by the export, and AP that the weights file carries."""
    lines = []
    if measured:
        lines += [f"Exact AP in percent on {measured[0]['on']}:", ""]
        lines += _table(
            [(row["network"], row["protocol"], row["ap"]) for row in measured], "network"
        )
    if evaluations:
        lines += [
            "",
            "Recorded in the weights file (`scripts/evaluate.py --record`), exact AP:",
            "",
        ]
        rows = [(part["description"], part["protocol"], _settings(part)) for part in evaluations]
        lines += _table(rows, "photographs")
    return lines or ["AP: not measured here (`--data`), none recorded in the weights file."]


def _settings(part: Mapping[str, Any]) -> dict[str, float]:
    """{setting: exact AP in percent} of a recorded evaluation."""
    return {
        name: 100 * value["ap_exact"]
        for name, value in part.items()
        if isinstance(value, Mapping) and "ap_exact" in value
    }


def _table(rows: Sequence[tuple[Any, Any, Mapping[str, float]]], first: str) -> list[str]:
    settings = list(dict.fromkeys(name for *_, ap in rows for name in ap))
    lines = [f"| {first} | size | {' | '.join(settings)} |", "|---" * (2 + len(settings)) + "|"]
    for name, protocol, ap in rows:
        values = " | ".join(f"{ap[s]:.2f}" if s in ap else "" for s in settings)
        lines.append(f"| {name} | {protocol} | {values} |")
    return lines


SPEED_SIZE = (640, 640)  # of a model for any size
HOLDS = {
    "package": "weights, settings, pre- and post-processing, metrics; read with weights_only=True",
    "end_to_end": "ONNX, end to end: a picture in, its faces out",
    "raw": "ONNX, raw: prepared pixels in, all anchors out, decoded; any batch",
    "int8": "ONNX, end to end, INT8 where it pays",
    "fp16": "ONNX, end to end, the network in float16: for GPUs, not timed on a GPU here",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to export. size: height, width; None: any. photos: a folder to check and calibrate on;
    "": drawn pictures. data: a data folder whose val split AP is measured on; "": it is not."""

    forms: tuple[str, ...] = FORMS
    size: Size | None = None
    opset: int = OPSET
    int8: bool = False
    fp16: bool = False
    photos: str = ""
    data: str = ""
    rounds: int = 15  # of the speed measurement; 0: none

    def check(self, model: nn.Module) -> None:
        """ConfigError for what cannot work, before any of it takes time."""
        for form in self.forms:
            check_settings(model, form=form, size=self.size, opset=self.opset)
        if not (self.forms or self.int8 or self.fp16):
            raise ConfigError(f"nothing to export: give a form, {' or '.join(FORMS)}")
        if self.int8 and self.size is not None:
            raise ConfigError("INT8 is made for any size: leave --size out")


@dataclass
class Exported:
    """What a run made: models by kind, and every figure it measured."""

    models: dict[str, ModelProto] = field(default_factory=dict)
    whole: ModelProto | None = None  # the float form that INT8 was made of
    quantised: Quantised | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


def export(
    weights: str | os.PathLike, out: str | os.PathLike, settings: Settings | None = None
) -> Exported:
    """Write the deployment files of a trained V1 or V2 into the folder `out`.

    Nothing is written before everything is built, checked and measured. Raises CheckpointError for
    the weights, ConfigError for settings, DataError for folders, and ExportError where an exported
    model differs from the trained network.
    """
    settings = settings or Settings()
    checkpoint = read_file(weights)
    model = build_model(checkpoint, weights)
    settings.check(model)
    check_writable(out)
    found = find_evaluation_set(settings.data, "val") if settings.data else None
    photos = pictures(settings.photos)
    made = _build(model, settings, photos)
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for kind, graph in made.models.items():
            paths[kind] = Path(folder) / _name(model, kind, settings.size)
            onnx.save(graph, paths[kind])
        made.metrics = _measure(model, made, settings, photos, paths)
        if made.quantised:
            made.metrics["int8"] = _int8(made, settings)
        if found:
            detectors = {kind: OnnxDetector(p, "cpu") for kind, p in paths.items() if kind != "raw"}
            both: dict[str, Any] = {"PyTorch": Detector(model, device="cpu"), **detectors}
            made.metrics["average_precision"] = average_precision(both, found)
        content = package(model, checkpoint, source=weights, metrics=made.metrics)
        facts = _facts(model, weights, settings)
        _write(made, content, facts, paths, Path(out), settings)
    return made


def parse_size(text: str) -> Size | None:
    """ "640x480" → height 640, width 480; "" → None. ConfigError for anything else."""
    if not text:
        return None
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"size must be HEIGHTxWIDTH in pixels, such as 640x480; got {text!r}")
    return int(parts[0]), int(parts[1])


def _build(model: nn.Module, settings: Settings, photos: list[np.ndarray]) -> Exported:
    made, options = Exported(), {"size": settings.size, "opset": settings.opset}
    for form in settings.forms:
        made.models[form] = build(model, form=form, **options)  # type: ignore[arg-type]
    if settings.int8:
        made.whole = made.models.get("end_to_end") or build(model, opset=settings.opset)
        made.quantised = quantise(made.whole, for_calibration(photos))
        made.models["int8"] = made.quantised.model
    if settings.fp16:
        made.models["fp16"] = build(model, half=True, **options)  # type: ignore[arg-type]
    for graph in made.models.values():
        open_model(graph)  # an opset that is too new for this ONNX Runtime is said here
    return made


def _name(model: nn.Module, kind: str, size: Size | None) -> str:
    """featherface_v2_deployment.onnx is the end-to-end form for any size; others say what they
    are."""
    parts = [f"featherface_{model.name}_deployment"]
    parts += [kind] if kind not in ("end_to_end", "package") else []
    parts += [f"{size[0]}x{size[1]}"] if size and kind != "package" else []
    return "_".join(parts) + (".pth" if kind == "package" else ".onnx")


def _measure(
    model: nn.Module,
    made: Exported,
    settings: Settings,
    photos: list[np.ndarray],
    paths: Mapping[str, Path],
) -> dict[str, Any]:
    """Every figure of the README, as plain data."""
    size = settings.size
    sized = of_sizes(photos, size)
    sides = sorted(max(photo.shape[:2]) for photo in sized)
    parity: dict[str, Any] = {
        "pictures": {
            "count": len(sized),
            "from": "a folder of photos" if settings.photos else "drawn",
            "sizes": f"long side {sides[0]} to {sides[-1]} pixels",
        }
    }
    for kind, path in paths.items():
        if kind == "raw":
            parity[path.name] = raw_parity(model, made.models["raw"], sized, size)
            continue
        found = OnnxDetector(path, device="cpu")
        exact = kind == "end_to_end"
        parity[path.name] = face_parity(Detector(model), found, sized, exact=exact)
    metrics: dict[str, Any] = {"parity": parity, "speed": []}
    if settings.rounds:
        shape = size or SPEED_SIZE
        graphs = {"end_to_end": made.whole, **made.models} if made.whole else made.models
        rows = speed(model, graphs, photos[0], size=shape, rounds=settings.rounds)
        about = {"size": f"{shape[0]}×{shape[1]}", "rounds": settings.rounds}
        metrics["speed"] = [{**row, **about} for row in rows]
    return metrics


def _int8(made: Exported, settings: Settings) -> dict[str, Any]:
    """Which layers, and the time as a share of the float end-to-end form's; None: not measured."""
    assert made.quantised
    speed = made.metrics["speed"]
    times = {row["network"]: row["median"] for row in speed if row["what"] == "picture to faces"}
    return {
        "layers": len(made.quantised.layers),
        "left": len(made.quantised.left),
        "score_error": made.quantised.score_error,
        "calibrated_on": "a folder of photos" if settings.photos else "drawn pictures",
        "ratio": times["int8"] / times["end_to_end"] if times else None,
    }


def _tag(kinds: Iterable[str], size: Size | None) -> str:
    """What tells a run's README from the main one: "" where the run makes the end-to-end form for
    any size, else "_640x640", "_raw", …: such a run adds files to those of another."""
    if "end_to_end" in kinds and size is None:
        return ""
    parts = [] if "end_to_end" in kinds else list(kinds)
    return "".join(f"_{part}" for part in [*parts, *([f"{size[0]}x{size[1]}"] if size else [])])


def _keeps(path: Path, content: Mapping[str, Any]) -> bool:
    """Is the package of these weights there already?"""
    try:
        return read_file(path)["source"]["sha256"] == content["source"]["sha256"]
    except (CheckpointError, KeyError, TypeError):
        return False


def _facts(model: nn.Module, weights: str | os.PathLike, settings: Settings) -> dict[str, Any]:
    """What the README says first."""
    used = versions()
    packages = ("featherface", "torch", "onnxruntime", "python")
    return {
        "network": f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} "
        "parameters",
        "weights": f"`{Path(weights).name}`, SHA-256 `{sha256(weights)[:16]}…`",
        "ONNX": f"opset {settings.opset}, image size "
        + (f"{settings.size[0]}×{settings.size[1]}" if settings.size else "any"),
        "made with": ", ".join(f"{name} {used[name]}" for name in packages if name in used)
        + f", commit {commit() or 'unknown'}",
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
    }


def _processor() -> str:
    """The processor's name where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _write(
    made: Exported,
    content: Mapping[str, Any],
    facts: Mapping[str, Any],
    paths: Mapping[str, Path],
    out: Path,
    settings: Settings,
) -> None:
    """The package, the ONNX files and the README, each atomically; a run that only adds files
    leaves what describes the others."""
    package_path = out / f"featherface_{content['architecture']}_deployment.pth"
    tag = _tag(paths, settings.size)
    if not (tag and _keeps(package_path, content)):
        write_package(package_path, content)
    listed = [(package_path, "package")]
    for kind, path in paths.items():
        with atomic_path(out / path.name) as temporary:
            temporary.write_bytes(path.read_bytes())
        listed.append((out / path.name, kind))
    files = [
        {"name": path.name, "bytes": path.stat().st_size, "holds": HOLDS[kind], "kind": kind}
        for path, kind in listed
    ]
    text = readme(
        title=f"FeatherFace {content['architecture'].upper()}, deployment files",
        files=files,
        facts=facts,
        metrics=made.metrics,
        evaluations=content["evaluations"],
        size=settings.size,
    )
    write_text(out / f"README{tag}.md", text)
    made.files = [path for path, _ in listed] + [out / f"README{tag}.md"]
