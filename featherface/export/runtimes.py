"""Export to other runtimes: OpenVINO, ncnn, LiteRT (TensorFlow Lite) and torch.export's programs.

Each file computes the raw form: image (1, 3, H, W) float32, BGR minus mean → boxes, scores and
landmarks of all anchors. `runtimes.RuntimeDetector` reads it.
"""

import json
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherface.checkpoint import build_model, read_file
from featherface.detector import Detector
from featherface.errors import ConfigError, ExportError, MissingExtraError
from featherface.export.graph import Size, facts
from featherface.export.network import Raw, deployed
from featherface.export.parity import face_parity, of_sizes, pictures
from featherface.files import atomic_path, check_writable, sha256, versions, write_text
from featherface.images import padded_size
from featherface.runtimes import RuntimeDetector

BOX_LIMIT, SCORE_LIMIT = 0.5, 0.01  # pixels; what an exported file may differ in from the network
FIXED = (640, 640)  # size of the formats that have one size, if none is given
NAMES = ("image", "boxes", "scores", "landmarks")


def export_runtime(
    weights: str | os.PathLike,
    out: str | os.PathLike,
    *,
    runtime: str,
    size: Size | None = None,
    photos: str = "",
) -> tuple[list[Path], dict[str, float]]:
    """Write a trained V1 or V2 for another runtime; return the files and the measured parity.

    runtime: openvino, ncnn, tflite or pt2. size: height and width, multiples of 32; None: any size
    for openvino, 640×640 for the others. photos: a folder of photos to compare on; "": drawn
    pictures. Parity holds the faces in both and in one only at score 0.5, and the largest
    differences of boxes (pixels) and scores.
    Raises CheckpointError for the weights, ConfigError for settings, DataError for photos,
    MissingExtraError without the converter, and ExportError where the file is not converted or
    finds other faces than the trained network; then nothing is written.
    """
    if runtime not in WRITERS:
        raise ConfigError(f"runtime must be one of {', '.join(WRITERS)}; got {runtime!r}")
    if size is None and runtime != "openvino":
        size = FIXED
    if size is not None and size != padded_size(*size):
        raise ConfigError(f"--format {runtime} needs a size of multiples of 32; got {size}")
    model = build_model(read_file(weights), weights)
    check_writable(out)
    sized = of_sizes(pictures(photos), size)
    with tempfile.TemporaryDirectory() as folder:
        tag = f"_{size[0]}x{size[1]}" if size else ""
        stem = Path(folder) / f"featherface_{model.name}_deployment_{runtime}{tag}"
        made = _write(model, stem, runtime, size)
        description = facts(architecture=str(model.name), form="raw", size=size)
        description["source_sha256"] = sha256(weights)
        text = json.dumps({**description, "versions": versions()}, indent=2) + "\n"
        write_text(stem.with_suffix(".json"), text)
        parity = check(model, made[0], sized)
        files = [*made[1:], made[0], stem.with_suffix(".json")]
        for file in files:
            with atomic_path(Path(out) / file.name) as temporary:
                shutil.copyfile(file, temporary)
    return [Path(out) / file.name for file in files], parity


def _write(model: nn.Module, stem: Path, runtime: str, size: Size | None) -> list[Path]:
    """Convert; return the written files, first the one that a detector opens."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return WRITERS[runtime](model, stem, size)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"--format {runtime}", error) from error


def check(model: nn.Module, file: Path, sized: list[Any]) -> dict[str, float]:
    """Compare the faces of a file with the trained network's; ExportError where they differ."""
    trained, found = (
        Detector(model, second_look=False),
        RuntimeDetector(file, second_look=False),
    )
    parity = face_parity(trained, found, sized, exact=False)
    near = parity["box_difference"] <= BOX_LIMIT and parity["score_difference"] <= SCORE_LIMIT
    if parity["in_one_only"] or not near:
        raise ExportError(f"{file.name} finds other faces than the trained network: {parity}")
    return parity


def _network(model: nn.Module, size: Size | None) -> tuple[nn.Module, torch.Tensor]:
    """The raw form for one size or any, and an input to follow through it."""
    network = Raw(deployed(model, exact=size is not None)).eval()
    return network, torch.zeros(1, 3, *(size or (97, 161)))


def _openvino(model: nn.Module, stem: Path, size: Size | None) -> list[Path]:
    import openvino

    network, example = _network(model, size)
    shape = list(example.shape) if size else [-1, 3, -1, -1]
    converted = openvino.convert_model(network, example_input=example, input=shape)
    for port, name in zip((*converted.inputs, *converted.outputs), NAMES, strict=True):
        port.get_tensor().set_names({name})
    made = stem.with_suffix(".xml")
    openvino.save_model(converted, made, compress_to_fp16=False)
    return [made, made.with_suffix(".bin")]


def _ncnn(model: nn.Module, stem: Path, size: Size | None) -> list[Path]:
    """By way of TorchScript, which pnnx reads; ncnn's ONNX reader lacks operators of the graph."""
    import pnnx

    network, example = _network(model, size)
    folder = stem.with_suffix("")
    folder.mkdir()
    torch.jit.save(torch.jit.trace(network, example), folder / "raw.pt")
    shape = ",".join(str(side) for side in example.shape)
    command = [pnnx.EXEC_PATH, "raw.pt", f"inputshape=[{shape}]f32", "fp16=0"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    made = [stem.with_suffix(suffix) for suffix in (".param", ".bin")]
    for file in made:
        written = folder / f"raw.ncnn{file.suffix}"
        if not written.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ExportError(f"pnnx did not convert the network: {last}")
        written.rename(file)
    return made


def _tflite(model: nn.Module, stem: Path, size: Size | None) -> list[Path]:
    import litert_torch

    network, example = _network(model, size)
    made = stem.with_suffix(".tflite")
    litert_torch.convert(network, (example,)).export(str(made))
    return [made]


def _pt2(model: nn.Module, stem: Path, size: Size | None) -> list[Path]:
    network, example = _network(model, size)
    program = torch.export.export(network, (example,))
    for node in program.graph.nodes:  # the paths of this machine, half of the file
        for key in ("stack_trace", "nn_module_stack"):
            node.meta.pop(key, None)
    program.example_inputs = None
    made = stem.with_suffix(".pt2")
    torch.export.save(program, made)
    return [made]


WRITERS: dict[str, Callable[[nn.Module, Path, Size | None], list[Path]]] = {
    "openvino": _openvino,
    "ncnn": _ncnn,
    "tflite": _tflite,
    "pt2": _pt2,
}
