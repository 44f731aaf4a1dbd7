"""A training step of V1 and of V2: supervised, distilled, and the teacher."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import DropBlock2d
from tqdm.auto import tqdm

from featherface.anchors import make_anchors
from featherface.checkpoint import load_backbone, load_model
from featherface.config import TrainConfig
from featherface.distributed import rank_and_size, sync_batch_norms
from featherface.errors import ConfigError, TrainingError
from featherface.losses import RECIPES, Distillation, multibox
from featherface.models.networks import FeatherFaceV1, FeatherFaceV2
from featherface.onnx_detector import open_session
from featherface.onnx_export import export_onnx
from featherface.structures import Predictions, Target

WORTH_EXPORTING = 200  # steps: exporting the teacher takes about ten seconds
WORTH_COMPILING = 2_000  # steps: compiling takes a minute or two
OPSET = 20  # V1's deformable convolution needs 19
TEACHER_HINT = (
    "the student needs its V1 teacher: put the published V1 weights there, or train one with "
    "scripts/train_v1.py, or name another file with --teacher-model (see weights/README.md)"
)
LOADER_DIED = re.compile("DataLoader worker .*(killed by signal|exited unexpectedly)")
# in messages of CUDA, cuBLAS, cuDNN and the CPU's allocator
OUT_OF_MEMORY = re.compile(r"out of memory|(can't allocate|not enough) memory|alloc_failed")
Network = FeatherFaceV1 | FeatherFaceV2


class Outputs(NamedTuple):
    """Outputs of a network for images (B, 3, H, W)."""

    predictions: Predictions
    features: list[Tensor]  # the maps that the heads read: P3, P4, P5

    @classmethod
    def of(cls, tensors: list[Tensor]) -> "Outputs":
        """Divide predictions and features that are in one list."""
        return cls(Predictions(*tensors[:3]), tensors[3:])


def outputs_of(network: Network, images: Tensor) -> Outputs:
    features = network.forward_features(images)
    return Outputs(network.forward_head(features), features)


class Teacher:
    """V1 without gradient, run by torch on the device of its parameters, or by ONNX Runtime.

    onnx_size: run ONNX Runtime, on the CPU, for square images of this side. Torch's CPU kernel of
    V1's deformable convolution takes five times as long.
    """

    def __init__(self, model: Network, *, onnx_size: int | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.session = None
        if onnx_size:
            exported = export_teacher(self.model, onnx_size)
            self.session = open_session(exported, threads=torch.get_num_threads())

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        if self.session is None:
            # float32 on a CPU: torchvision's deformable convolution has no bfloat16 there
            with torch.autocast("cpu", enabled=False):
                return outputs_of(self.model, images)
        pixels = np.ascontiguousarray(images.numpy())
        return Outputs.of([torch.from_numpy(p) for p in self.session.run(None, {"images": pixels})])


class _WithFeatures(nn.Module):
    """A network to export: its predictions, then its features."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Outputs:
        return outputs_of(self.model, images)


def export_teacher(model: Network, size: int) -> bytes:
    """Export the network, with its features, for batches of images (B, 3, size, size)."""
    exported = export_onnx(
        _WithFeatures(model),
        torch.zeros(2, 3, size, size, device=next(model.parameters()).device),
        inputs=["images"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=65536)}},
        opset=OPSET,
    )
    return exported.SerializeToString()


def make_teacher(
    model: Network, config: TrainConfig, *, device: torch.device, steps: int
) -> Teacher:
    """Run the teacher in `config.teacher_engine`; auto: ONNX Runtime in long runs on a CPU.

    steps: of the whole run, so that a resumed run decides alike. Raises ConfigError if ONNX Runtime
    is asked for on another device.
    """
    engine = config.teacher_engine
    if engine == "auto":
        engine = "onnx" if device.type == "cpu" and steps >= WORTH_EXPORTING else "torch"
    if engine == "onnx" and device.type != "cpu":
        raise ConfigError(f"--teacher-engine onnx is for the CPU; on {device} use torch")
    return Teacher(model, onnx_size=config.image_size if engine == "onnx" else None)


def load_teacher(config: TrainConfig) -> FeatherFaceV1:
    """Load the V1 that the config names. Raises ConfigError for another network."""
    teacher = load_model(config.teacher_model, TEACHER_HINT)
    if not isinstance(teacher, FeatherFaceV1):
        raise ConfigError(f"{config.teacher_model}: holds {teacher.name}; the teacher must be V1")
    return teacher


def digest_of(model: nn.Module) -> str:
    """Return the SHA-256 of a network's weights, hexadecimal."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class SupervisedStep:
    """Learn from labels only: the named losses of a batch, of which "loss" is minimised.

    `trained` owns every parameter that the optimizer updates, `model` among them.
    """

    teacher: Teacher | None = None
    criterion: Distillation | None = None

    def __init__(self, model: Network, config: TrainConfig) -> None:
        self.config, self.model = config, model
        self.trained = nn.ModuleDict({"model": model})

    def student(self, images: Tensor) -> Outputs:
        """Compute predictions with gradient for images (B, 3, H, W); no features."""
        return Outputs(self.model(images), [])

    def __call__(self, images: Tensor, targets: Target) -> dict[str, Tensor]:
        student = in_parts(self.student, images, self.config.accumulate, self.model)
        anchors = make_anchors(images.shape[2], images.shape[3], images.device)
        terms, _ = _task(student.predictions, targets, anchors, self.config)
        return {"loss": terms["task"], **terms}


class DistillationStep:
    """Learn from labels and the teacher: loss = (1 − α)·task + α·distill + λ·feature.

    Teacher and student see the same images. criterion: the class of the distillation terms.
    """

    def __init__(
        self,
        model: Network,
        teacher: Teacher,
        config: TrainConfig,
        criterion: type[Distillation] | None = None,
    ) -> None:
        self.config, self.model, self.teacher = config, model, teacher
        self.criterion = (criterion or RECIPES[config.recipe])(
            model.feature_channels,
            teacher.model.feature_channels,
            temperature=config.temperature,
            box_weight=config.box_weight,
            landmark_weight=config.landmark_weight,
        )
        self.trained = nn.ModuleDict({"model": model, "criterion": self.criterion})

    def student(self, images: Tensor) -> Outputs:
        """Compute the student's outputs with gradient for images (B, 3, H, W)."""
        outputs = outputs_of(self.model, images)
        return outputs if self.config.feature_weight else outputs._replace(features=[])

    def __call__(self, images: Tensor, targets: Target) -> dict[str, Tensor]:
        parts = self.config.accumulate
        teacher = _concatenate([self.teacher(part) for part in images.chunk(parts)])
        student = in_parts(self.student, images, parts, self.model)
        anchors = make_anchors(images.shape[2], images.shape[3], images.device)
        return self.losses(student, teacher, targets, anchors)

    def losses(
        self, student: Outputs, teacher: Outputs, targets: Target, anchors: Tensor
    ) -> dict[str, Tensor]:
        """Return the named terms of both networks' outputs for the same images, and "loss"."""
        config = self.config
        terms, selected = _task(student.predictions, targets, anchors, config)
        terms |= self.criterion(
            student.predictions,
            teacher.predictions,
            student.features,
            teacher.features if config.feature_weight else [],
            anchors=anchors,
            selected=selected,
        )
        loss = (
            (1 - config.alpha) * terms["task"]
            + config.alpha * terms["distill"]
            + config.feature_weight * terms["feature"]
        )
        return {"loss": loss, **terms}


def _task(
    predictions: Predictions, targets: Target, anchors: Tensor, config: TrainConfig
) -> tuple[dict[str, Tensor], Tensor]:
    weights = {"box_weight": config.box_weight, "landmark_weight": config.landmark_weight}
    return multibox(predictions, targets, anchors, **weights)


Step = SupervisedStep | DistillationStep


def make_model(config: TrainConfig, teacher: Network | None) -> Network:
    """Build the network to train, from `config.weights` or with a backbone as `init` says."""
    model = FeatherFaceV1() if config.model == "v1" else FeatherFaceV2()
    if config.weights:
        start = load_model(config.weights)
        if start.name != config.model:
            raise ConfigError(
                f"{config.weights}: holds {start.name}, but {config.model} is trained"
            )
        model.load_state_dict(start.state_dict())
    elif config.init == "imagenet":
        load_backbone(model, config.backbone_weights)
    elif config.init == "teacher":
        if teacher is None:
            raise ConfigError("--init teacher needs a teacher; V1 has none: imagenet or scratch")
        model.backbone.load_state_dict(teacher.backbone.state_dict())
    return model


def make_step(
    config: TrainConfig,
    *,
    device: torch.device,
    steps: int,
    criterion: type[Distillation] | None = None,
) -> Step:
    """Build the step on the device: V1 supervised, or V2 distilled from the teacher's file.

    steps: of the whole run. criterion: a class instead of the recipe's; ConfigError for V1.
    """
    if criterion and config.model == "v1":
        raise ConfigError("a criterion of distillation needs a teacher, and V1 has none")
    teacher = None if config.model == "v1" else load_teacher(config)
    model = make_model(config, teacher)
    sync_batch_norms(model, config.batch_size // rank_and_size()[1] // config.accumulate, device)
    _to_device(model, device)
    if teacher is None:
        return SupervisedStep(model, config)
    _to_device(teacher, device)
    engine = make_teacher(teacher, config, device=device, steps=steps)
    step = DistillationStep(model, engine, config, criterion)
    step.trained.to(device)
    return step


def _to_device(model: nn.Module, device: torch.device) -> None:
    """Move in place, with the channels last in memory, as the photos are: faster."""
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager:
    """Return the precision of a step as `config.amp` says.

    V1 on a CPU is always float32: its deformable convolution has no bfloat16 there.
    """
    if config.model == "v1" and device.type == "cpu":
        return nullcontext()
    on_cuda = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if config.amp == "bf16" or (config.amp == "auto" and on_cuda):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def in_parts(
    network: Callable[[Tensor], Outputs], images: Tensor, parts: int, model: nn.Module
) -> Outputs:
    """Compute the outputs for (B, 3, H, W) with the gradient's memory of one part at a time.

    Each part is computed again in the backward pass (checkpointing, arXiv 1604.06174), so the loss
    is that of the whole batch: its sums over anchors and its correlation over the batch have no
    meaning in parts. Batch norms see one part at a time and count it once.
    """
    if parts == 1:
        return network(images)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), buffers_kept(model)  # of the first computation, of the second

    computed = [
        checkpoint(network, part, use_reentrant=False, context_fn=contexts)
        for part in images.chunk(parts)
    ]
    return _concatenate(computed)


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restore the buffers at the end: running averages and counts of batch norms."""
    before = [(buffer.data, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for data, value in before:  # `data` hides the change from autograd, which saved the buffer
            data.copy_(value)


def _concatenate(parts: list[Outputs]) -> Outputs:
    """Join the outputs for the parts of a batch."""
    if len(parts) == 1:
        return parts[0]
    tensors = zip(*((*part.predictions, *part.features) for part in parts), strict=True)
    return Outputs.of([torch.cat(each) for each in tensors])


def worth_compiling(setting: str, device: torch.device, *, steps: int) -> bool:
    """Decide as `--compile` says; auto: on CUDA, in a run of many steps."""
    return setting == "on" or (
        setting == "auto" and device.type == "cuda" and steps >= WORTH_COMPILING
    )


def compile_networks(models: Iterable[nn.Module], device: torch.device) -> None:
    """Compile the parts of V1 or V2 in place, at their first call; without a compiler, say so.

    Not DropBlock: its probability changes at every step, and each value would be compiled again.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))
    except Exception as error:  # compilers fail in many ways
        reason = " ".join(str(error).split())[:160]
        return tqdm.write(f"torch.compile fails here, not used: {type(error).__name__}: {reason}")
    torch._dynamo.config.suppress_errors = True  # a part that does not compile runs as it is
    children = [child for model in models for child in model.children()]
    for child in children:
        for part in child if isinstance(child, nn.ModuleList) else [child]:
            if not isinstance(part, DropBlock2d):
                part.compile(dynamic=False)


@contextmanager
def errors_explained(config: TrainConfig) -> Iterator[None]:
    """Raise one clear TrainingError instead of torch's if memory runs out or a loader dies."""
    try:
        yield
    except RuntimeError as error:
        if LOADER_DIED.search(str(error)):
            raise TrainingError(
                "the system ended a process that loads photos, as it does when memory or /dev/shm "
                "is full: resume with fewer --num-workers, or 0"
            ) from None
        if not OUT_OF_MEMORY.search(str(error).lower()):
            raise
        raise TrainingError(
            f"out of memory at {config.image_size}×{config.image_size} with --batch-size "
            f"{config.batch_size} and --accumulate {config.accumulate}: decrease the first, "
            "increase the second (only batch norms see the parts), or keep the photos elsewhere "
            "(--cache ram)"
        ) from None
