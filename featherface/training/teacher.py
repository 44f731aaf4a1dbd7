"""How the teacher answers: by torch, or on a CPU by ONNX Runtime, which is several times faster.

Torch's CPU kernel of the deformable convolution (V1's context modules) is what takes the time.
"""

import hashlib
import logging
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from featherface.config import TrainConfig
from featherface.errors import ConfigError
from featherface.structures import Predictions

WORTH_EXPORTING = 200  # steps: the export takes ten seconds or so
OPSET = 20  # the deformable convolution needs 19


class Answer(NamedTuple):
    """What the teacher says of a batch: (B, 3, H, W) BGR minus mean."""

    predictions: Predictions
    features: list[Tensor]  # the maps that its heads read: P3, P4, P5


def digest_of(model: nn.Module) -> str:
    """SHA-256 of a network's weights, hexadecimal."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Teacher(Protocol):
    """`model` is the network itself, in eval mode and without gradient."""

    model: nn.Module

    def __call__(self, images: Tensor) -> Answer: ...


class TorchTeacher:
    """The network as it is, on the device of its parameters."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Answer:
        if images.device.type == "cpu":
            # in float32: torchvision's deformable convolution knows no bfloat16 there
            with torch.autocast("cpu", enabled=False):
                return self._answer(images)
        return self._answer(images)

    def _answer(self, images: Tensor) -> Answer:
        features = self.model.forward_features(images)  # type: ignore[operator]
        return Answer(self.model.forward_head(features), features)  # type: ignore[operator]


class OnnxTeacher:
    """The network in ONNX Runtime on the CPU, for square images of one size and any batch."""

    def __init__(self, model: nn.Module, image_size: int) -> None:
        import onnxruntime

        self.model = model.eval().requires_grad_(False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # threads that spin between two runs would take the cores from torch
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "teacher.onnx"
            _export(self.model, image_size, path)
            self.session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )

    def __call__(self, images: Tensor) -> Answer:
        pixels = np.ascontiguousarray(images.numpy())
        outputs = [torch.from_numpy(part) for part in self.session.run(None, {"images": pixels})]
        return Answer(Predictions(*outputs[:3]), outputs[3:])


class _Flat(nn.Module):
    """The answer as one tuple of tensors, which is what can be exported."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.model.forward_features(images)  # type: ignore[operator]
        return (*self.model.forward_head(features), *features)  # type: ignore[operator]


def _export(model: nn.Module, size: int, path: Path) -> None:
    """Write the network as ONNX, with the batch size left open."""
    example = torch.zeros(2, 3, size, size, device=next(model.parameters()).device)
    batch = torch.export.Dim("batch", min=1, max=65536)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Flat(model),
            (example,),
            path,
            input_names=["images"],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes={"images": {0: batch}},
            external_data=False,
            verbose=False,
        )


def make_teacher(
    model: nn.Module, config: TrainConfig, *, device: torch.device, steps: int
) -> Teacher:
    """The engine that the config asks for. `auto`: ONNX Runtime for long runs on a CPU, else torch.

    steps: of the whole run, so that a resumed run chooses the same. ConfigError when ONNX Runtime
    is asked for and cannot run there.
    """
    engine = config.teacher_engine
    if engine == "auto":
        engine = "onnx" if device.type == "cpu" and steps >= WORTH_EXPORTING else "torch"
    if engine == "torch":
        return TorchTeacher(model.to(device))
    if device.type != "cpu":
        raise ConfigError(f"--teacher-engine onnx is for the CPU; on {device} use torch")
    return OnnxTeacher(model, config.image_size)
