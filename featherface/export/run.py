"""Export: build each form, check it against the trained network, then write files and README."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
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
from featherface.export.int8 import quantise
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


CONTENT = {
    "package": "weights, settings, pre- and post-processing, metrics; read with weights_only=True",
    "end_to_end": "ONNX, end to end: a picture in, its faces out",
    "raw": "ONNX, raw: prepared pixels in, all anchors out, decoded; any batch",
    "int8": "ONNX, end to end, INT8 where it pays",
}
TEMPLATE = Path(__file__).with_name("readme_template.md")
INT8 = (
    "- INT8: {layers} convolutions compute in 8 bits; {left} others, large enough to be worth it, "
    "stay in float for accuracy. On the pictures that it was calibrated on, the same as above, the "
    "scores that matter change by {score_error:.4f} on average."
)


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
        """Raise ConfigError for what cannot work, before any of it takes time."""
        for form in self.forms:
            check_settings(model, form=form, size=self.size, opset=self.opset)
        if not (self.forms or self.int8):
            raise ConfigError(f"nothing to export: give a form, {' or '.join(FORMS)}")
        if self.int8 and self.size is not None:
            raise ConfigError("INT8 is made for any size: leave --size out")


@dataclass
class Exported:
    """The written files, README last, and each figure that was measured."""

    files: list[Path]
    metrics: dict[str, Any]


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
    graphs, metrics = _build(model, settings, photos)
    sized = of_sizes(photos, settings.size)
    sides = [max(photo.shape[:2]) for photo in sized]
    origin = "pictures of a folder" if settings.photos else "drawn pictures"
    metrics["pictures"] = f"{len(sized)} {origin} (long side {min(sides)} to {max(sides)} pixels)"
    with tempfile.TemporaryDirectory() as folder:
        made = {kind: Path(folder) / _name(model, kind, settings.size) for kind in graphs}
        for kind, path in made.items():
            onnx.save(graphs[kind], path)
        metrics["parity"] = _parity(model, made, settings.size, sized)
        content = package(model, checkpoint, source=weights, metrics=metrics)
        files = _write(content, made, Path(out), settings)
    return Exported(files, metrics)


def parse_size(text: str) -> Size | None:
    """Read "640x480" as height 640, width 480; "" → None. Raises ConfigError for other text."""
    if not text:
        return None
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"size must be HEIGHTxWIDTH in pixels, such as 640x480; got {text!r}")
    return int(parts[0]), int(parts[1])


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
        "evaluations": list(checkpoint.get("evaluations") or []),
        "metrics": dict(metrics),
        "source": {"file": Path(source).name, "sha256": sha256(source)},
        "versions": versions(),
        "commit": commit(),
    }


def _build(
    model: nn.Module, settings: Settings, photos: list[np.ndarray]
) -> tuple[dict[str, ModelProto], dict[str, Any]]:
    """Return the models by kind, and what is known of INT8."""
    graphs: dict[str, ModelProto] = {}
    metrics: dict[str, Any] = {}
    for form in settings.forms:
        graphs[form] = build(model, form=form, size=settings.size, opset=settings.opset)
    if settings.int8:
        whole = graphs.get("end_to_end") or build(model, opset=settings.opset)
        made = quantise(whole, for_calibration(photos))
        graphs["int8"] = made.model
        metrics["int8"] = {"layers": len(made.layers), "left": len(made.left),
                           "score_error": made.score_error}  # fmt: skip
    for graph in graphs.values():
        open_model(graph)  # raises for an opset that is too new for this ONNX Runtime
    return graphs, metrics


def _name(model: nn.Module, kind: str, size: Size | None) -> str:
    """Name a file: featherface_v2_deployment.onnx is the end-to-end form for any size."""
    parts = [f"featherface_{model.name}_deployment", *([kind] if kind != "end_to_end" else [])]
    return "_".join(parts + ([f"{size[0]}x{size[1]}"] if size else [])) + ".onnx"


def _parity(
    model: nn.Module, made: Mapping[str, Path], size: Size | None, sized: list[np.ndarray]
) -> dict[str, dict[str, float]]:
    """Compare each file with the trained network, by file name."""
    found = {}
    for kind, path in made.items():
        if kind == "raw":
            found[path.name] = raw_parity(model, onnx.load(path), sized, size)
        else:
            trained = Detector(model, second_look=False)
            file = OnnxDetector(path, "cpu", second_look=False)
            found[path.name] = face_parity(trained, file, sized, exact=kind == "end_to_end")
    return found


def _write(
    content: Mapping[str, Any], made: Mapping[str, Path], out: Path, settings: Settings
) -> list[Path]:
    """Write the package, the ONNX files and the README, each atomically.

    A run without the end-to-end form for any size adds to the files of another run: its README has
    its own name, and the package of the same weights stays.
    """
    main = next(made[kind] for kind in ("end_to_end", "int8", "raw") if kind in made)
    tag = main.stem.partition("deployment")[2]
    files = {"package": out / f"featherface_{content['architecture']}_deployment.pth"}
    files |= {kind: out / path.name for kind, path in made.items()}
    if not (tag and _holds(files["package"], content["source"])):
        write_file(files["package"], content)
    for path in made.values():
        with atomic_path(out / path.name) as temporary:
            temporary.write_bytes(path.read_bytes())
    readme = out / f"README{tag}.md"
    write_text(readme, _readme(content, files, main.name, settings))
    return [*files.values(), readme]


def _holds(path: Path, source: Mapping[str, str]) -> bool:
    """Return True if the package of these weights exists already."""
    try:
        return read_file(path)["source"]["sha256"] == source["sha256"]
    except (CheckpointError, KeyError, TypeError):
        return False


def _readme(
    content: Mapping[str, Any], files: Mapping[str, Path], main: str, settings: Settings
) -> str:
    """Fill in the template. files: by kind; main: the ONNX file that the examples use."""
    text = TEMPLATE.read_text(encoding="utf-8")
    if not {"end_to_end", "int8"} & set(files):
        before, _, after = text.partition("## Use without this project")
        text = before + after[after.index("## ") :]
    used, size, metrics = content["versions"], settings.size, content["metrics"]
    packages = ("featherface", "torch", "onnxruntime", "python")
    rows = [f"| `{path.name}` | {path.stat().st_size:,} | {CONTENT[kind]} |"
            for kind, path in files.items()]  # fmt: skip
    checks = [_check(name, values) for name, values in metrics["parity"].items()]
    if "int8" in metrics:
        checks.append(INT8.format(**metrics["int8"]))
    return Template(text).substitute(
        architecture=content["architecture"].upper(),
        parameters=f"{content['parameters']:,}",
        weights=content["source"]["file"],
        sha256=content["source"]["sha256"][:16],
        opset=settings.opset,
        size=f"{size[0]}×{size[1]}" if size else "any",
        versions=", ".join(f"{name} {used[name]}" for name in packages if name in used),
        commit=content["commit"] or "unknown",
        files="\n".join(rows),
        onnx=main,
        package=files["package"].name,
        shape=f"exactly ({size[0]}, {size[1]}, 3)" if size else "(H, W, 3)",
        mean="/".join(f"{value:g}" for value in MEAN_BGR),
        multiple=PAD_MULTIPLE,
        score=DISPLAY_SCORE,
        candidates=f"{PRE_NMS_TOP_K:,}",
        iou=NMS_IOU,
        keep=KEEP_TOP_K,
        pictures=metrics["pictures"],
        checks="\n".join(checks),
        ap="\n".join(map(_ap, content["evaluations"])) or "none (`scripts/evaluate.py --record`).",
    )


def _check(name: str, values: Mapping[str, float]) -> str:
    """Describe in a line how far a file is from the trained network."""
    if "landmarks" in values:  # the raw form
        line = ("all anchors: boxes within {boxes:.1e} px, scores within {scores:.1e}, landmarks "
                "within {landmarks:.1e} px")  # fmt: skip
    else:
        line = (
            "{faces} faces over a score of {score_threshold:.2g} in both, {in_one_only} in one only"
        )
        if values["faces"]:
            line += ", box IoU at least {smallest_iou:.6f}, scores within {score_difference:.1e}"
    return f"- `{name}`: {line.format(**values)}"


def _ap(evaluation: Mapping[str, Any]) -> str:
    """List a recorded evaluation's exact AP by setting."""
    settings = {name: value for name, value in evaluation.items() if isinstance(value, Mapping)}
    values = [f"{name} {100 * value['ap_exact']:.2f}" for name, value in settings.items()]
    return f"- {evaluation['description']}, {evaluation['protocol']}: {', '.join(values)}"
