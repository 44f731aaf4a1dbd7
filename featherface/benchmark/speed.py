"""Time, work and size of V1, V2 and other detectors, measured in pairs.

A forward is the network alone on prepared pixels, padded to multiples of 32 where the file takes
any size, to logits and deltas of all anchors. End-to-end goes from a picture in memory to its
faces. On one thread the clock is that thread's CPU time, which other work on the machine disturbs
least; on more it is the wall's.
"""

import io
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pandas as pd
import torch
from onnx import numpy_helper
from onnx.utils import Extractor
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from featherface.checkpoint import load_model
from featherface.config import EVALUATION_SCORE, PRESETS
from featherface.data.demo_scene import make_photo
from featherface.detector import Detector
from featherface.errors import CheckpointError, ConfigError
from featherface.evaluation.run import detect_photos
from featherface.evaluation.sets import EvaluationSet, find_evaluation_set
from featherface.export.graph import Size, build
from featherface.files import versions
from featherface.images import network_input, padded_size, read_image
from featherface.models.networks import FeatherFaceV1
from featherface.onnx_detector import OnnxDetector, open_session
from featherface.peers import UNKNOWN, OnnxPeer

WARM_UP = 3  # rounds that are not counted
DEFAULT_V1 = PRESETS["v2"].teacher_model
SIZES = ((320, 320), (480, 640), (640, 640), (720, 1280))  # height, width
ENGINES = ("eager", "onnx")
KINDS = ("forward", "end-to-end")
SOFTWARE = ("torch", "onnxruntime", "python")
_MULTIPLYING = ("Conv", "ConvTranspose", "Gemm", "MatMul", "DeformConv", "BatchNormalization",
                "PRelu")  # fmt: skip
_GROUP = {"seed": 0, "split": 0, "index": 1, "size": 640}  # a drawn group
Call = Callable[[], object]
Times = dict[Any, np.ndarray]  # key of a call → (rounds,) seconds


def alternate(calls: Mapping[Any, Call], *, rounds: int, cpu_time: bool = False) -> Times:
    """Return the seconds (rounds,) of each call, after WARM_UP rounds.

    cpu_time: of the calling thread instead of the wall clock, which other work on the machine
    disturbs least; right only where the call works in that thread alone.
    """
    clock = time.thread_time if cpu_time else time.perf_counter
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for _ in range(WARM_UP + rounds):
        for name, call in calls.items():
            started = clock()
            call()
            times[name].append(clock() - started)
    return {name: np.array(seconds[WARM_UP:]) for name, seconds in times.items()}


def network_costs(network: nn.Module, height: int, width: int) -> dict[str, int]:
    """Count the parameters, and the macs of one forward in convolutions and linear layers.

    A deformable convolution counts as a plain one of its shape.
    """
    device = next(network.parameters()).device
    with torch.no_grad(), operation_counter() as counter:
        network(torch.zeros(1, 3, height, width, device=device))
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "macs": counter.get_total_flops() // 2,  # an operation is a multiplication or an addition
    }


def operation_counter() -> FlopCounterMode:
    """Return torch's counter, extended to deformable convolutions.

    Two operations per output value, input channel and kernel tap, as for a plain convolution of
    that shape. Its offset and mask convolutions are plain ones; the bilinear sampling (4 more
    multiply-accumulates per input channel and tap, shared by all output channels) is left out, as
    in the published 1.24 G.
    """
    known = {torch.ops.torchvision.deform_conv2d: _deformable}
    return FlopCounterMode(display=False, custom_mapping=known)


def _deformable(image: Any, weight: Any, *rest: Any, out_shape: Any, **options: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def file_costs(path: str | os.PathLike) -> dict[str, int]:
    """Count the parameters (of convolutions and products) and bytes of an ONNX file."""
    graph = onnx.load(os.fspath(path)).graph
    sizes = {item.name: numpy_helper.to_array(item).size for item in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in _MULTIPLYING]
    names = {name for node in nodes for name in node.input}
    parameters = sum(sizes.get(name, 0) for name in names)
    return {"parameters": parameters, "bytes": Path(path).stat().st_size}


def v1_or_untrained(path: str) -> nn.Module:
    """Load V1, or make an untrained one, equally fast, if the default file is missing.

    Raises CheckpointError for any other file that is missing or that holds no network.
    """
    if path != DEFAULT_V1 or Path(path).is_file():
        return load_model(path)
    return FeatherFaceV1().eval()


@dataclass
class Candidate:
    """A detector in an engine, and how to time it."""

    name: str
    engine: str
    calls: Callable[[Size, int], dict[str, Call]]  # size, threads → by kind, if it can run so
    costs: dict[str, int]
    evaluated: Any = None  # a detector to measure AP of


def compare_speed(
    networks: dict[str, nn.Module],
    *,
    peers: Sequence[str | Path] = (),
    sizes: Sequence[Size] = SIZES,
    threads: Sequence[int] = (1, 2),
    engines: Sequence[str] = ENGINES,
    rounds: int = 15,
    data: str | Path = "",
) -> pd.DataFrame:
    """Time detectors in pairs: a row per detector, engine, size, threads and kind of time.

    networks: {"V1": …, "V2": …}, trained, in eval mode. peers: ONNX files of other detectors or of
    scripts/export.py. data: a data folder whose val split AP is measured on (long side 640), once
    per detector.
    Columns: detector, engine, what (forward, end-to-end), height, width, threads, clock, median,
    low, high (quartiles, ms), ratio_to_v1 (median over the rounds of the time by that of V1 in ONNX
    Runtime, or in eager mode without), parameters, macs (640×640), bytes, ap_… (percent, exact).
    """
    unknown = set(engines) - set(ENGINES)
    if unknown or not engines:
        raise ConfigError(f"engines must be some of {', '.join(ENGINES)}; got {list(engines)}")
    with tempfile.TemporaryDirectory() as folder, _restored_threads():
        others = [_file(Path(path)) for path in peers]  # first what may not be there
        found = find_evaluation_set(data, "val") if data else None
        candidates = _candidates(networks, engines, Path(folder)) + others
        precision = {c.name: _ap(c, found) for c in candidates if found and c.evaluated}
        rows: list[dict[str, Any]] = []
        for count in threads:
            torch.set_num_threads(count)
            cv2.setNumThreads(count)
            for size in sizes:
                rows += _rows(candidates, size, count, rounds)
    software = ", ".join(f"{n} {v}" for n, v in versions().items() if n in SOFTWARE)
    for row in rows:
        row |= precision.get(str(row["detector"]), {}) | {"software": software}
    return pd.DataFrame(rows)


@contextmanager
def _restored_threads() -> Iterator[None]:
    """Restore the numbers of threads of torch and OpenCV on exit."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def _rows(
    candidates: Sequence[Candidate], size: Size, threads: int, rounds: int
) -> list[dict[str, Any]]:
    """Time all candidates that run at this size; both kinds of time alternate as well."""
    costs = {(c.name, c.engine): c.costs for c in candidates}
    calls = {(c.name, c.engine, kind): call for c in candidates
             for kind, call in c.calls(size, threads).items()}  # fmt: skip
    with torch.inference_mode():
        times = alternate(calls, rounds=rounds, cpu_time=threads == 1)
    clock = {"clock": "cpu" if threads == 1 else "wall", "rounds": rounds}
    rows = []
    for key in sorted(times, key=lambda key: KINDS.index(key[2])):
        name, engine, kind = key
        v1 = times.get(("V1", "onnx", kind), times.get(("V1", "eager", kind)))
        low, median, high = 1000 * np.quantile(times[key], (0.25, 0.5, 0.75))
        rows.append(
            {"detector": name, "engine": engine, "what": kind}
            | {"height": size[0], "width": size[1], "threads": threads, **clock}
            | {"median": median, "low": low, "high": high}
            | {"ratio_to_v1": math.nan if v1 is None else float(np.median(times[key] / v1))}
            | costs[name, engine]
        )
    return rows


@lru_cache(maxsize=1)
def _group() -> np.ndarray:
    with Image.open(io.BytesIO(make_photo(**_GROUP).jpeg)) as drawn:
        return read_image(drawn)


def picture(size: Size) -> np.ndarray:
    """Return a drawn group of people, BGR uint8 (height, width, 3)."""
    shown = cv2.resize(_group(), (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(shown, cv2.COLOR_RGB2BGR)


def prepared(size: Size) -> np.ndarray:
    """Return that picture as V1 and V2 read it, padded: (1, 3, height, width) float32."""
    return network_input([picture(size)[..., ::-1]], *padded_size(*size))


def _candidates(
    networks: dict[str, nn.Module], engines: Sequence[str], folder: Path
) -> list[Candidate]:
    found = []
    for name, network in networks.items():
        costs = network_costs(network, 640, 640)
        if "eager" in engines:
            found.append(_eager(name, network, costs))
        if "onnx" in engines:
            found.append(_exported(name, network, costs, folder / f"{name}.onnx"))
    return found


def _eager(name: str, network: nn.Module, costs: dict[str, int]) -> Candidate:
    detector = Detector(network, device="cpu", second_look=False)

    def calls(size: Size, threads: int) -> dict[str, Call]:
        image, pixels = torch.from_numpy(prepared(size)), picture(size)
        return {
            "forward": lambda: network(image),
            "end-to-end": lambda: detector.detect(pixels, bgr=True),
        }

    return Candidate(name, "eager", calls, costs)


def _exported(name: str, network: nn.Module, costs: dict[str, int], path: Path) -> Candidate:
    """Export once, end to end; the forward is the network inside that graph."""
    graph = build(network)
    onnx.save(graph, path)
    whole = _file(path)
    extractor = Extractor(onnx.shape_inference.infer_shapes(graph))
    inside = extractor.extract_model(["network_image"], ["network_values", "network_cells"])

    def calls(size: Size, threads: int) -> dict[str, Call]:
        image = prepared(size)
        sides = inside.graph.input[0].type.tensor_type.shape.dim
        for dimension, side in zip(sides, image.shape, strict=True):
            dimension.dim_value = side
        session = open_session(inside.SerializeToString(), threads=threads)
        forward = {"forward": lambda: session.run(None, {"network_image": image})}
        return forward | whole.calls(size, threads)

    return Candidate(name, "onnx", calls, whole.costs | costs, whole.evaluated)


def _file(path: Path) -> Candidate:
    """Read an ONNX file: one of scripts/export.py, which has no forward, or another detector's."""
    make: Callable[..., Any] = partial(OnnxDetector, path, "cpu", second_look=False)
    try:
        first = make(threads=1)
    except CheckpointError:
        make = partial(OnnxPeer, path)
        first = make(threads=1)
    detects = getattr(first, "kind", None) is not UNKNOWN

    def calls(size: Size, threads: int) -> dict[str, Call]:
        if first.size not in (None, size):
            return {}
        found: dict[str, Call] = {}
        detector, pixels = make(threads=threads), picture(size)
        if isinstance(detector, OnnxPeer):
            image, _ = detector.prepare(pixels[..., ::-1])
            found["forward"] = lambda: detector.forward(image)
        if detects:
            found["end-to-end"] = lambda: detector.detect(pixels, bgr=True)
        return found

    return Candidate(path.stem, "onnx", calls, file_costs(path), first if detects else None)


def _ap(candidate: Candidate, found: EvaluationSet) -> dict[str, float]:
    """Measure exact AP in percent by setting, photos at long side 640."""
    candidate.evaluated.score_threshold = EVALUATION_SCORE
    faces = detect_photos(
        candidate.evaluated, found.photos, protocol="vga", progress=False, label=candidate.name
    )
    curves = found.evaluate(faces).curves
    return {f"ap_{setting}": 100 * curve.ap_exact for setting, curve in curves.items()}
