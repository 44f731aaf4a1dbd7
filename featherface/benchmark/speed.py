"""Time, work and size of V1, V2 and other detectors, measured in pairs.

A forward is the network alone on prepared pixels, padded to multiples of 32 where the file takes
any size; V1 and V2 decode all anchors in it in ONNX Runtime (the raw form), but not in PyTorch.
End-to-end goes from a picture in memory to its faces. On one thread the clock is that thread's CPU
time, which other work on the machine disturbs least; on more it is the wall's. ONNX Runtime's
threads do not spin: on two cores that makes times jump between two values.
"""

import io
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pandas as pd
import torch
from onnx import ModelProto, numpy_helper
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from featherface.benchmark.peers import UNKNOWN, OnnxPeer
from featherface.checkpoint import load_model
from featherface.config import PRESETS
from featherface.data.demo_scene import make_photo
from featherface.detector import Detector
from featherface.errors import ConfigError
from featherface.evaluation.run import detect_photos
from featherface.evaluation.sets import EvaluationSet, find_evaluation_set
from featherface.export.graph import Size, build
from featherface.files import versions
from featherface.images import network_input, padded_size, read_image
from featherface.models.networks import FeatherFaceV1
from featherface.onnx_detector import OnnxDetector, open_session

WARM_UP = 3  # rounds that are not counted
Times = dict[str, np.ndarray]  # name → (rounds,) seconds


def alternate(
    calls: Mapping[str, Callable[[], object]], *, rounds: int, cpu_time: bool = False
) -> Times:
    """Return the seconds of each call in each round, after WARM_UP rounds.

    cpu_time: of the calling thread instead of the wall clock, which other work on the machine
    disturbs least; right only where the call works in that thread alone.
    """
    clock = time.thread_time if cpu_time else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(WARM_UP + rounds):
        for name, call in calls.items():
            started = clock()
            call()
            if number >= WARM_UP:
                times[name].append(clock() - started)
    return {name: np.array(seconds) for name, seconds in times.items()}


def ratio(times: Times, name: str, reference: str) -> float:
    """Return the median over the rounds of one time divided by another of the same round."""
    return float(np.median(times[name] / times[reference]))


_MULTIPLYING = ("Conv", "ConvTranspose", "Gemm", "MatMul")


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
    model = onnx.load(os.fspath(path))
    return {"parameters": _weights(model), "bytes": Path(path).stat().st_size}


def _weights(model: ModelProto) -> int:
    sizes = {i.name: numpy_helper.to_array(i).size for i in model.graph.initializer}
    names = {
        name
        for node in model.graph.node
        if node.op_type in (*_MULTIPLYING, "DeformConv", "BatchNormalization", "PRelu")
        for name in node.input
    }
    return sum(sizes.get(name, 0) for name in names)


DEFAULT_V1 = PRESETS["v2"].teacher_model


def v1_or_untrained(path: str) -> nn.Module:
    """Load V1, or make an untrained one, equally fast, if the default file is missing.

    Raises CheckpointError for any other file that is missing or does not hold a network.
    """
    if path != DEFAULT_V1 or Path(path).is_file():
        return load_model(path)
    print(f"{path} is not there: V1 is timed untrained, which takes as long, and has no AP")
    return FeatherFaceV1().eval()


SIZES = ((320, 320), (480, 640), (640, 640), (720, 1280))  # height, width
ENGINES = ("eager", "onnx")
KINDS = ("forward", "end-to-end")
SOFTWARE = ("torch", "onnxruntime", "python")
_GROUP = {"seed": 0, "split": 0, "index": 1, "size": 640}  # a drawn group
Call = Callable[[], object]


@dataclass
class Candidate:
    """A detector in an engine, and how to time it at a size."""

    name: str
    engine: str
    forward: Callable[[Size, int], Call | None]  # size, threads → a forward; None: not at this size
    complete: Callable[[Size, int], Call | None]
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

    networks: {"V1": …, "V2": …}, trained, in eval mode. peers: ONNX files of other detectors. data:
    a data folder whose val split AP is measured on (long side 640), once per detector.
    Columns: detector, engine, what (forward, end-to-end), height, width, threads, clock, median,
    low, high (quartiles, ms), ratio_to_v1 (median over the rounds of the time by that of V1 in ONNX
    Runtime, or in eager mode without), parameters, macs (640×640), bytes, ap_… (percent, exact).
    """
    unknown = set(engines) - set(ENGINES)
    if unknown or not engines:
        raise ConfigError(f"engines must be some of {', '.join(ENGINES)}; got {list(engines)}")
    with tempfile.TemporaryDirectory() as folder, _restored_threads():
        others = [_peer(Path(path)) for path in peers]  # first what may not be there
        found = find_evaluation_set(data, "val") if data else None
        candidates = _candidates(networks, engines, Path(folder)) + others
        precision = {c.name: _ap(c, found) for c in candidates if found and c.evaluated}
        rows: list[dict[str, Any]] = []
        for count in threads:
            torch.set_num_threads(count)
            cv2.setNumThreads(count)
            for size in sizes:
                times = _times(candidates, size, count, rounds)
                for what in KINDS:
                    rows += _rows(candidates, times, what, size, count)
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


def _times(candidates: Sequence[Candidate], size: Size, threads: int, rounds: int) -> Times:
    """Return {"name|engine|what": seconds of each round}.

    Candidates that do not run at this size are left out. Both kinds alternate too, so that their
    difference is what a picture costs apart from its forward.
    """
    calls: dict[str, Call] = {}
    for candidate in candidates:
        for what, make in zip(KINDS, (candidate.forward, candidate.complete), strict=True):
            call = make(size, threads)
            if call:
                calls[f"{candidate.name}|{candidate.engine}|{what}"] = call
    with torch.inference_mode():
        return alternate(calls, rounds=rounds, cpu_time=threads == 1)


def _rows(
    candidates: Sequence[Candidate], times: Times, what: str, size: Size, threads: int
) -> list[dict[str, Any]]:
    rows = []
    reference = next((key for key in (f"V1|onnx|{what}", f"V1|eager|{what}") if key in times), None)
    for candidate in candidates:
        key = f"{candidate.name}|{candidate.engine}|{what}"
        if key not in times:
            continue
        low, median, high = 1000 * np.quantile(times[key], (0.25, 0.5, 0.75))
        place = {"what": what, "height": size[0], "width": size[1], "threads": threads}
        clock = {"clock": "cpu" if threads == 1 else "wall", "rounds": len(times[key])}
        figures = {"median": median, "low": low, "high": high}
        against = ratio(times, key, reference) if reference else float("nan")
        name = {"detector": candidate.name, "engine": candidate.engine}
        rows.append(name | place | clock | figures | {"ratio_to_v1": against} | candidate.costs)
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
            found.append(_exported(name, network, costs, folder))
    return found


def _eager(name: str, network: nn.Module, costs: dict[str, int]) -> Candidate:
    detector = Detector(network, device="cpu")

    def forward(size: Size, threads: int) -> Call:
        image = torch.from_numpy(prepared(size))
        return lambda: network(image)

    def complete(size: Size, threads: int) -> Call:
        pixels = picture(size)
        return lambda: detector.detect(pixels, bgr=True)

    return Candidate(name, "eager", forward, complete, costs)


def _exported(name: str, network: nn.Module, costs: dict[str, int], folder: Path) -> Candidate:
    """Export both forms for any size; a session fixes the size that is timed."""
    paths = {form: folder / f"{name}_{form}.onnx" for form in ("raw", "end_to_end")}
    for form, path in paths.items():
        onnx.save(build(network, form=form), path)

    def forward(size: Size, threads: int) -> Call:
        image = prepared(size)
        sides = {"batch": 1, "height": image.shape[2], "width": image.shape[3]}
        session = open_session(paths["raw"], threads=threads, sides=sides)
        return lambda: session.run(None, {"image": image})

    def complete(size: Size, threads: int) -> Call:
        detector, pixels = OnnxDetector(paths["end_to_end"], "cpu", threads=threads), picture(size)
        return lambda: detector.detect(pixels, bgr=True)

    own = {**costs, "bytes": paths["end_to_end"].stat().st_size}
    detector = OnnxDetector(paths["end_to_end"], "cpu", threads=1)
    return Candidate(name, "onnx", forward, complete, own, detector)


def _peer(path: Path) -> Candidate:
    """Read another detector's file; one of a fixed size is timed at that size only."""
    first = OnnxPeer(path)

    def forward(size: Size, threads: int) -> Call | None:
        if first.size not in (None, size):
            return None
        peer = OnnxPeer(path, threads=threads)
        image, _ = peer.prepare(picture(size)[..., ::-1])
        return lambda: peer.forward(image)

    def complete(size: Size, threads: int) -> Call | None:
        if first.size not in (None, size) or first.kind is UNKNOWN:
            return None
        peer, pixels = OnnxPeer(path, threads=threads), picture(size)
        return lambda: peer.detect(pixels, bgr=True)

    evaluated = None if first.kind is UNKNOWN else first
    return Candidate(path.stem, "onnx", forward, complete, file_costs(path), evaluated)


def _ap(candidate: Candidate, found: EvaluationSet) -> dict[str, float]:
    """Measure exact AP in percent by setting, photos at long side 640."""
    candidate.evaluated.score_threshold = 0.02
    faces = detect_photos(
        candidate.evaluated, found.photos, protocol="vga", progress=False, label=candidate.name
    )
    curves = found.evaluate(faces).curves
    return {f"ap_{setting}": 100 * curve.ap_exact for setting, curve in curves.items()}
