"""A training step of V1 and of V2: supervised, distilled, and the teacher."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
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
OUT_OF_MEMORY = (  # messages of the CPU allocator, CUDA, cuBLAS, cuDNN
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)
Network = FeatherFaceV1 | FeatherFaceV2


class Outputs(NamedTuple):
    """Outputs of a network for images (B, 3, H, W)."""

    predictions: Predictions
    features: list[Tensor]  # the maps that the heads read: P3, P4, P5


def outputs_of(network: Network, images: Tensor) -> Outputs:
    features = network.forward_features(images)
    return Outputs(network.forward_head(features), features)


class Teacher(Protocol):
    """`model` is the network itself, in eval mode and without gradient."""

    model: Network

    def __call__(self, images: Tensor) -> Outputs: ...


class TorchTeacher:
    """The teacher run by torch, on the device of its parameters."""

    def __init__(self, model: Network) -> None:
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        if images.device.type == "cpu":
            # float32: torchvision's deformable convolution has no bfloat16 on a CPU
            with torch.autocast("cpu", enabled=False):
                return outputs_of(self.model, images)
        return outputs_of(self.model, images)


class OnnxTeacher:
    """The teacher run by ONNX Runtime on the CPU, for square images of one size.

    Torch's CPU kernel of V1's deformable convolution takes five times as long.
    """

    def __init__(self, model: Network, image_size: int) -> None:
        self.model = model.eval().requires_grad_(False)
        device = next(model.parameters()).device
        exported = export_onnx(
            _Flat(self.model),
            torch.zeros(2, 3, image_size, image_size, device=device),
            inputs=["images"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=65536)}},
            opset=OPSET,
        )
        threads = torch.get_num_threads()
        self.session = open_session(exported.SerializeToString(), threads=threads)

    def __call__(self, images: Tensor) -> Outputs:
        pixels = np.ascontiguousarray(images.numpy())
        outputs = [torch.from_numpy(part) for part in self.session.run(None, {"images": pixels})]
        return Outputs(Predictions(*outputs[:3]), outputs[3:])


class _Flat(nn.Module):
    """Return the outputs as one tuple of tensors, which can be exported."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        predictions, features = outputs_of(self.model, images)
        return (*predictions, *features)


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
    if engine == "torch":
        return TorchTeacher(model.to(device))
    if device.type != "cpu":
        raise ConfigError(f"--teacher-engine onnx is for the CPU; on {device} use torch")
    return OnnxTeacher(model, config.image_size)


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


class Step(Protocol):
    """Compute the named losses of a batch; "loss" is minimised.

    `trained` owns every parameter that the optimizer updates, `model` among them.
    """

    model: Network
    trained: nn.ModuleDict

    @property
    def teacher(self) -> Teacher | None: ...

    def __call__(self, images: Tensor, targets: Target) -> dict[str, Tensor]: ...


class SupervisedStep:
    """Learn from labels only."""

    teacher: Teacher | None = None

    def __init__(self, model: Network, config: TrainConfig) -> None:
        self.config, self.model = config, model
        self.trained = nn.ModuleDict({"model": model})

    def student(self, images: Tensor) -> Outputs:
        """Compute predictions with gradient for images (B, 3, H, W); no features."""
        return Outputs(self.model(images), [])

    def __call__(self, images: Tensor, targets: Target) -> dict[str, Tensor]:
        student = in_parts(self.student, images, self.config.accumulate, self.model)
        terms, _ = _task(student.predictions, targets, _anchors(images), self.config)
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
        self.config, self.model = config, model
        self.teacher: Teacher = teacher
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
        return self.losses(student, teacher, targets, _anchors(images))

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


def _anchors(images: Tensor) -> Tensor:
    return make_anchors(images.shape[2], images.shape[3], images.device)


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
        return nullcontext(), statistics_kept(model)

    return _concatenate(
        [
            checkpoint(network, part, use_reentrant=False, context_fn=contexts)
            for part in images.chunk(parts)
        ]
    )


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Keep the running averages and counts of batch norms unchanged inside, in training mode.

    With a momentum of 0: norms without buffers would save other tensors for the gradient.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    counts = [norm.num_batches_tracked.clone() for norm in norms]  # type: ignore[union-attr]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)  # type: ignore[union-attr]


def _concatenate(parts: list[Outputs]) -> Outputs:
    """Join the outputs for the parts of a batch."""
    if len(parts) == 1:
        return parts[0]
    predictions = zip(*(part.predictions for part in parts), strict=True)
    features = zip(*(part.features for part in parts), strict=True)
    return Outputs(
        Predictions(*(torch.cat(tensors) for tensors in predictions)),
        [torch.cat(tensors) for tensors in features],
    )


def worth_compiling(setting: str, device: torch.device, *, steps: int) -> bool:
    """Decide as `--compile` says; auto: on CUDA, in a run of many steps."""
    return setting == "on" or (
        setting == "auto" and device.type == "cuda" and steps >= WORTH_COMPILING
    )


def compile_networks(models: Iterable[nn.Module], images: Tensor) -> bool:
    """Compile the networks in place and try them on images (B, 3, S, S), without a trace.

    If that fails, the networks are as before, one line says why, and False is returned.
    """
    models = list(models)
    parts = [part for model in models for part in parts_of(model)]
    for part in parts:
        part.compile(dynamic=False)
    try:
        for model in models:
            _try(model, images)
    except Exception as error:  # compilers fail in many ways
        if is_out_of_memory(error):
            raise
        for part in parts:
            part._compiled_call_impl = None
        reason = " ".join(str(error).split())[:160] or "no reason given"
        tqdm.write(f"torch.compile fails here, not used: {type(error).__name__}: {reason}")
        return False
    return True


def parts_of(model: nn.Module) -> list[nn.Module]:
    """Return the parts of V1 or V2 that are called as modules, except DropBlock.

    Its probability changes at every step, and each value would be compiled again.
    """
    parts: list[nn.Module] = []
    for child in model.children():
        parts += child if isinstance(child, nn.ModuleList) else [child]
    return [part for part in parts if not isinstance(part, DropBlock2d)]


def _try(model: nn.Module, images: Tensor) -> None:
    """Run forward and, if it trains, backward; buffers and random numbers stay as they are."""
    buffers = [value.clone() for value in model.buffers()]
    devices = [images.device] if images.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            total = sum(part.float().sum() for part in model(images))
            if isinstance(total, Tensor) and total.requires_grad:
                total.backward()
    finally:
        model.zero_grad(set_to_none=True)
        for value, before in zip(model.buffers(), buffers, strict=True):
            value.copy_(before)


@contextmanager
def memory_errors_explained(config: TrainConfig) -> Iterator[None]:
    """Raise one clear TrainingError instead of torch's text if memory runs out."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory at {config.image_size}×{config.image_size} with --batch-size "
            f"{config.batch_size} and --accumulate {config.accumulate}: decrease the first, "
            "increase the second (only batch norms see the parts), or keep the photos elsewhere "
            "(--cache ram)"
        ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if the error means "out of memory"."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    text = str(error).lower()
    return any(words in text for words in OUT_OF_MEMORY)
