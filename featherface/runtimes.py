"""Face detection with OpenVINO, ncnn, LiteRT (TensorFlow Lite) or torch.export's programs.

Runs the files of `scripts/export.py --format`. Only a .pt2 file needs torch.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from featherface.config import DISPLAY_SCORE, NMS_IOU
from featherface.errors import CheckpointError, ConfigError, MissingExtraError
from featherface.face_detector import Arrays, FaceDetector
from featherface.images import network_input
from featherface.onnx_detector import check_threads, fit_inside

# image (1, 3, H, W) → boxes (1, A, 4), scores (1, A), landmarks (1, A, 5, 2), as export.network.Raw
Network = Callable[[np.ndarray], tuple[np.ndarray, ...]]


class RuntimeDetector(FaceDetector):
    """Finds faces with an exported V1 or V2 in other runtimes; interface and results of Detector.

    weights: an .xml, .param, .tflite or .pt2 file of `scripts/export.py --format`. Its description
        is the .json file of the same name, its weights are the .bin file, where it has one.
    device: auto or cpu.
    score_threshold: faces must score more, 0..1.  iou_threshold: of NMS, 0..1.
    max_side: larger images are shrunk to this long side first, pixels; None: never. A model of one
        fixed size shrinks larger images in any case.
    second_look: see images of more than 640 pixels again at long side 640, see FaceDetector.
    threads: CPU threads of one run; None: the runtime's choice. Not for .pt2 files: PyTorch's
        threads are those of the process.
    A pickled detector opens its file again where it is loaded. Use one detector per thread.
    Raises CheckpointError for the file, ConfigError for invalid settings and MissingExtraError
    where the runtime is not installed.
    """

    def __init__(
        self,
        weights: str | os.PathLike,
        device: str = "auto",
        score_threshold: float = DISPLAY_SCORE,
        iou_threshold: float = NMS_IOU,
        max_side: int | None = None,
        *,
        second_look: bool = True,
        threads: int | None = None,
    ) -> None:
        super().__init__(score_threshold, iou_threshold, max_side, second_look)
        self.path, self.threads, self.device = Path(weights), threads, "cpu"
        if str(device) not in ("auto", "cpu"):
            raise ConfigError(f"device must be auto or cpu for {self.path.name}; got {device!r}")
        self.facts = _read_facts(self.path)
        self.size: tuple[int, int] | None = None
        if self.facts["size"] != "any":
            height, width = self.facts["size"].split("x")
            self.size = int(height), int(width)
        self._network = open_network(self.path, threads)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the network, which cannot be pickled."""
        return {**vars(self), "path": self.path.resolve(), "_network": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._network = open_network(self.path, self.threads)

    @property
    def architecture(self) -> str:
        return f"FeatherFace{self.facts['architecture'].upper()}"

    def _facts(self) -> str:
        return f"{self.architecture}, {self.path.name}, size={self.facts['size']}"

    def _fit(self, image: np.ndarray) -> np.ndarray:
        image = super()._fit(image)
        return image if self.size is None else fit_inside(image, *self.size)

    def _run(self, pictures: list[np.ndarray], size: tuple[int, int]) -> list[Arrays]:
        images = (network_input([picture], *(self.size or size)) for picture in pictures)
        return [self._choose(*(part[0] for part in self._network(image))) for image in images]


def open_network(path: Path, threads: int | None = None) -> Network:
    """Open a file in the runtime of its suffix.

    Raises CheckpointError for a file that the runtime does not load, and MissingExtraError.
    """
    check_threads(threads)
    suffix = path.suffix.lower()
    if suffix not in OPENERS:
        raise CheckpointError(f"{path}: not a file of {', '.join(OPENERS)}")
    for part in (path, *([path.with_suffix(".bin")] if suffix in TWO_FILES else [])):
        if not part.is_file():
            raise CheckpointError(f"{part}: no such file; scripts/export.py --format makes it")
    try:
        return OPENERS[suffix](path, threads)
    except ModuleNotFoundError as error:
        raise MissingExtraError(path.name, error) from error
    except ConfigError:
        raise
    except Exception as error:  # the runtimes' errors share no class
        raise CheckpointError(f"{path}: not loaded: damaged, cut short or not supported") from error


def _openvino(path: Path, threads: int | None) -> Network:
    import openvino

    # without the hint, a processor that has bfloat16 may compute in it, and boxes move
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    network = openvino.Core().compile_model(str(path), "CPU", options)

    def run(image: np.ndarray) -> tuple[np.ndarray, ...]:
        found = network({"image": image})
        return found["boxes"], found["scores"], found["landmarks"]

    return run


def _ncnn(path: Path, threads: int | None) -> Network:
    import ncnn

    network = ncnn.Net()
    options = network.opt
    options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
    options.use_bf16_storage = False
    if threads is not None:
        options.num_threads = threads
    if network.load_param(str(path)) or network.load_model(str(path.with_suffix(".bin"))):
        raise ValueError("load_param or load_model failed")

    def run(image: np.ndarray) -> tuple[np.ndarray, ...]:
        extractor = network.create_extractor()
        extractor.input("in0", ncnn.Mat(image[0]))
        return tuple(np.array(extractor.extract(f"out{part}")[1])[None] for part in range(3))

    return run


def _litert(path: Path, threads: int | None) -> Network:
    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(str(path), num_threads=threads)
    network.allocate_tensors()
    given = network.get_input_details()[0]["index"]
    wanted = [part["index"] for part in network.get_output_details()]

    def run(image: np.ndarray) -> tuple[np.ndarray, ...]:
        network.set_tensor(given, image)
        network.invoke()
        return tuple(network.get_tensor(index) for index in wanted)

    return run


def _pt2(path: Path, threads: int | None) -> Network:
    import torch

    if threads is not None:
        raise ConfigError("threads: call torch.set_num_threads, which is for the whole process")
    network = torch.export.load(path).module()

    def run(image: np.ndarray) -> tuple[np.ndarray, ...]:
        with torch.inference_mode():
            return tuple(part.numpy() for part in network(torch.from_numpy(image)))

    return run


OPENERS: dict[str, Callable[[Path, int | None], Network]] = {
    ".xml": _openvino,
    ".param": _ncnn,
    ".tflite": _litert,
    ".pt2": _pt2,
}
TWO_FILES = (".xml", ".param")  # with the weights in a .bin file


def _read_facts(path: Path) -> dict[str, str]:
    """The description that scripts/export.py wrote; CheckpointError without one."""
    file = path.with_suffix(".json")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        if facts["format"].startswith("featherface/"):
            return facts
    except (OSError, ValueError, TypeError, KeyError):
        pass
    raise CheckpointError(
        f"{file}: no description of {path.name}: scripts/export.py --format writes both"
    )
