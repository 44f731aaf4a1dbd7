"""One export: build every form, check it against the trained network, measure, then write."""

import os
import platform
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto
from torch import nn

import featherface.export.measure as measure
from featherface.checkpoint import build_model, read_file
from featherface.detector import Detector
from featherface.errors import CheckpointError, ConfigError
from featherface.evaluation.sets import find_evaluation_set
from featherface.export.graph import FORMS, OPSET, Size, build, check_settings, open_model
from featherface.export.int8 import Quantised, quantise
from featherface.export.package import package, write_package
from featherface.export.readme import readme
from featherface.files import atomic_path, check_writable, sha256, write_text
from featherface.onnx_detector import OnnxDetector
from featherface.provenance import commit, versions

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
    photos = measure.pictures(settings.photos)
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
            made.metrics["average_precision"] = measure.average_precision(both, found)
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
        made.quantised = quantise(made.whole, measure.for_calibration(photos))
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
    sized = measure.of_sizes(photos, size)
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
            parity[path.name] = measure.raw_parity(model, made.models["raw"], sized, size)
            continue
        found = OnnxDetector(path, device="cpu")
        exact = kind == "end_to_end"
        parity[path.name] = measure.face_parity(Detector(model), found, sized, exact=exact)
    metrics: dict[str, Any] = {"parity": parity, "speed": []}
    if settings.rounds:
        shape = size or SPEED_SIZE
        graphs = {"end_to_end": made.whole, **made.models} if made.whole else made.models
        rows = measure.speed(model, graphs, photos[0], size=shape, rounds=settings.rounds)
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
