"""Export: build each form, check it against the trained network, then write files and README."""

import os
import platform
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto
from torch import nn

from featherface.checkpoint import FORMAT, build_model, read_file, write_file
from featherface.config import (
    ANCHOR_SIZES,
    DISPLAY_SCORE,
    KEEP_TOP_K,
    MEAN_BGR,
    NMS_IOU,
    PAD_MULTIPLE,
    PRE_NMS_TOP_K,
    STRIDES,
    VARIANCES,
)
from featherface.detector import Detector
from featherface.errors import CheckpointError, ConfigError
from featherface.export.graph import FORMS, OPSET, Size, build, check_settings, open_model
from featherface.export.int8 import Quantised, quantise
from featherface.export.parity import face_parity, for_calibration, of_sizes, pictures, raw_parity
from featherface.files import atomic_path, check_writable, commit, sha256, versions, write_text
from featherface.onnx_detector import OnnxDetector
from featherface.structures import LANDMARK_NAMES

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
    """Return the content of the deployment file: tensors and plain data, readable by `load_model`.

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
    """Return the AP that evaluate.py --record has written into a weights file."""
    return list(checkpoint.get("evaluations") or [])


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

One run finds faces up to about 600 pixels. Detector and OnnxDetector see a picture of more than 640
pixels again at long side 640 and merge both. Without this project, shrink the picture or do so too.
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
    if metrics.get("int8"):
        parts += ["", *_int8_lines(metrics["int8"])]
    parts += ["", *_precision(evaluations)]
    return "\n".join(parts).replace("\n\n\n", "\n\n").rstrip() + "\n"


def _use(names: Mapping[str, str], size: tuple[int, int] | None) -> list[str]:
    """Show how to use the most complete file; names: by kind."""
    whole = next((names[kind] for kind in ("end_to_end", "int8") if kind in names), None)
    lines = [_USE.format(onnx=whole or names["raw"], package=names["package"])]
    if not whole:
        return lines
    shape = f"({size[0]}, {size[1]}, 3)" if size else "(H, W, 3)"
    sides = f"exactly {size[0]}×{size[1]}" if size else "any size"
    return [*lines, _ALONE.format(onnx=whole, score=DISPLAY_SCORE, shape=shape, sides=sides)]


def _lines(facts: Mapping[str, Any]) -> list[str]:
    return [f"- {name}: {value}" for name, value in facts.items()]


def _parity(parity: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Describe how far each file is from the trained network."""
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


def _int8_lines(facts: Mapping[str, Any]) -> list[str]:
    return [
        f"INT8: {facts['layers']} convolutions compute in 8 bits; {facts['left']} others, large "
        f"enough to be worth it, stay in float for accuracy. Calibrated on "
        f"{facts['calibrated_on']}; the scores that matter change by {facts['score_error']:.4f} "
        "on average there. Its AP and time: `scripts/evaluate.py`, `scripts/benchmark.py speed`."
    ]


def _precision(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tabulate the AP recorded in the weights file."""
    if not evaluations:
        return ["AP: none recorded in the weights file (`scripts/evaluate.py --record`)."]
    rows = [(part["description"], part["protocol"], _settings(part)) for part in evaluations]
    title = "Recorded in the weights file (`scripts/evaluate.py --record`), exact AP in percent:"
    return [title, "", *_table(rows, "photographs")]


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


HOLDS = {
    "package": "weights, settings, pre- and post-processing, metrics; read with weights_only=True",
    "end_to_end": "ONNX, end to end: a picture in, its faces out",
    "raw": "ONNX, raw: prepared pixels in, all anchors out, decoded; any batch",
    "int8": "ONNX, end to end, INT8 where it pays",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Choices of an export.

    size: height, width; None: any. photos: a folder of photos to check and calibrate on; "": drawn
    pictures.
    """

    forms: tuple[str, ...] = FORMS
    size: Size | None = None
    opset: int = OPSET
    int8: bool = False
    photos: str = ""

    def check(self, model: nn.Module) -> None:
        """ConfigError for what cannot work, before any of it takes time."""
        for form in self.forms:
            check_settings(model, form=form, size=self.size, opset=self.opset)
        if not (self.forms or self.int8):
            raise ConfigError(f"nothing to export: give a form, {' or '.join(FORMS)}")
        if self.int8 and self.size is not None:
            raise ConfigError("INT8 is made for any size: leave --size out")


@dataclass
class Exported:
    """The models by kind, and each figure that was measured."""

    models: dict[str, ModelProto] = field(default_factory=dict)
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
        whole = made.models.get("end_to_end") or build(model, opset=settings.opset)
        made.quantised = quantise(whole, for_calibration(photos))
        made.models["int8"] = made.quantised.model
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
    """Return each figure of the README, as plain data."""
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
        found = OnnxDetector(path, device="cpu", second_look=False)
        exact = kind == "end_to_end"
        parity[path.name] = face_parity(
            Detector(model, second_look=False), found, sized, exact=exact
        )
    return {"parity": parity}


def _int8(made: Exported, settings: Settings) -> dict[str, Any]:
    """Count the layers that compute in 8 bits, and what that changes."""
    assert made.quantised
    return {
        "layers": len(made.quantised.layers),
        "left": len(made.quantised.left),
        "score_error": made.quantised.score_error,
        "calibrated_on": "a folder of photos" if settings.photos else "drawn pictures",
    }


def _tag(kinds: Iterable[str], size: Size | None) -> str:
    """Return the suffix of a run's README: "" where the run makes the end-to-end form for
    any size, else "_640x640", "_raw", …: such a run adds files to those of another."""
    if "end_to_end" in kinds and size is None:
        return ""
    parts = [] if "end_to_end" in kinds else list(kinds)
    return "".join(f"_{part}" for part in [*parts, *([f"{size[0]}x{size[1]}"] if size else [])])


def _keeps(path: Path, content: Mapping[str, Any]) -> bool:
    """Return True if the package of these weights exists already."""
    try:
        return read_file(path)["source"]["sha256"] == content["source"]["sha256"]
    except (CheckpointError, KeyError, TypeError):
        return False


def _facts(model: nn.Module, weights: str | os.PathLike, settings: Settings) -> dict[str, Any]:
    """Return the first lines of the README."""
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
    """Return the processor's name."""
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
        write_file(package_path, content)
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
