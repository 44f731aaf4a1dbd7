"""How the teacher answers: by torch, or on a CPU by ONNX Runtime, which is several times faster.

Torch's CPU kernel of the deformable convolution (V1's context modules) is what takes the time.
"""

import hashlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import DropBlock2d
from tqdm.auto import tqdm

from featherface.anchors import make_anchors
from featherface.checkpoint import load_backbone, load_model
from featherface.config import TrainConfig
from featherface.distributed import random_state, set_random_state, with_shared_norms
from featherface.errors import ConfigError, TrainingError
from featherface.losses import RECIPES, Distillation, multibox
from featherface.models.networks import FeatherFaceV1, FeatherFaceV2
from featherface.structures import Predictions, Target

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


class Step(Protocol):
    """`trained` owns every parameter that the optimizer updates; "loss" is what is minimised.

    faces: how many the targets hold at most, padding not counted, if known: see anchors.match.
    """

    trained: nn.ModuleDict

    def __call__(
        self, images: Tensor, targets: Target, faces: int | None = None
    ) -> dict[str, Tensor]: ...


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager:
    """The precision to run a step in, as the config's `amp` says.

    V1 on a CPU is always float32: its deformable convolution knows no bfloat16 there.
    """
    if config.model == "v1" and device.type == "cpu":
        return nullcontext()
    on_cuda = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if config.amp == "bf16" or (config.amp == "auto" and on_cuda):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def _task(
    predictions: Predictions,
    targets: Target,
    anchors: Tensor,
    config: TrainConfig,
    faces: int | None,
) -> tuple[dict[str, Tensor], Tensor]:
    return multibox(
        predictions,
        targets,
        anchors,
        box_weight=config.box_weight,
        landmark_weight=config.landmark_weight,
        faces=faces,
    )


def _anchors(images: Tensor) -> Tensor:
    return make_anchors(images.shape[2], images.shape[3], images.device)


class SupervisedStep:
    """Labels only."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.config = config
        self.trained = nn.ModuleDict({"model": model})

    def student(self, images: Tensor) -> Answer:
        """The network's answer, with gradient, for (B, 3, H, W); its features are not needed."""
        return Answer(self.trained["model"](images), [])

    def __call__(
        self, images: Tensor, targets: Target, faces: int | None = None
    ) -> dict[str, Tensor]:
        config = self.config
        answer = in_parts(self.student, images, config.accumulate, self.trained["model"])
        terms, _ = _task(answer.predictions, targets, _anchors(images), config, faces)
        return {"loss": terms["task"], **terms}


class DistillationStep:
    """total = (1 − α)·task + α·distill + λ·feature; teacher and student see the same images."""

    def __init__(
        self,
        model: nn.Module,
        teacher: Teacher,
        config: TrainConfig,
        criterion: type[Distillation] | None = None,
    ) -> None:
        self.config = config
        self.teacher = teacher
        distillation = (criterion or RECIPES[config.recipe])(
            model.feature_channels,  # type: ignore[arg-type]
            teacher.model.feature_channels,  # type: ignore[arg-type]
            temperature=config.temperature,
            box_weight=config.box_weight,
            landmark_weight=config.landmark_weight,
        )
        self.trained = nn.ModuleDict({"model": model, "criterion": distillation})

    def student(self, images: Tensor) -> Answer:
        """The student's answer, with gradient, for (B, 3, H, W)."""
        student = self.trained["model"]
        features = student.forward_features(images)  # type: ignore[operator]
        answer = Answer(student.forward_head(features), features)  # type: ignore[operator]
        return answer if self.config.feature_weight else answer._replace(features=[])

    def __call__(
        self, images: Tensor, targets: Target, faces: int | None = None
    ) -> dict[str, Tensor]:
        parts = self.config.accumulate
        teacher = _joined([self.teacher(part) for part in images.chunk(parts)])
        student = in_parts(self.student, images, parts, self.trained["model"])
        return self.losses(student, teacher, targets, _anchors(images), faces)

    def losses(
        self,
        student: Answer,
        teacher: Answer,
        targets: Target,
        anchors: Tensor,
        faces: int | None = None,
    ) -> dict[str, Tensor]:
        """The named terms of both answers to the same images, and their total "loss"."""
        config = self.config
        terms, selected = _task(student.predictions, targets, anchors, config, faces)
        terms |= self.trained["criterion"](
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


def in_parts(
    network: Callable[[Tensor], Answer], images: Tensor, parts: int, model: nn.Module
) -> Answer:
    """The answer for (B, 3, H, W), with the memory that the gradient needs of one part at a time.

    Gradient accumulation by checkpointing (arXiv 1604.06174): each part is computed again in the
    backward pass, so that the loss is that of the whole batch. Its sums over anchors and its
    correlation over the batch have no meaning in parts. Batch norms see one part at a time; their
    running statistics take each part once.
    """
    if parts == 1:
        return network(images)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), running_statistics_kept(model)

    answers = [
        checkpoint(network, part, use_reentrant=False, context_fn=contexts)
        for part in images.chunk(parts)
    ]
    return _joined(answers)


@contextmanager
def running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Batch norms leave their running averages and counts alone inside, in training mode too.

    By a momentum of 0: without their buffers they would keep other tensors for the gradient.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
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


def _joined(answers: list[Answer]) -> Answer:
    """The answers for the parts of a batch as one."""
    if len(answers) == 1:
        return answers[0]
    predictions = zip(*(answer.predictions for answer in answers), strict=True)
    features = zip(*(answer.features for answer in answers), strict=True)
    return Answer(
        Predictions(*(torch.cat(parts) for parts in predictions)),
        [torch.cat(parts) for parts in features],
    )


TEACHER_HINT = (
    "the student needs its V1 teacher: put the published V1 weights there, or train one with "
    "scripts/train_v1.py, or name another file with --teacher-model (see weights/README.md)"
)


def make_model(config: TrainConfig, teacher: nn.Module | None) -> nn.Module:
    """The network to train, started from `weights`, or its backbone as `init` says."""
    if config.model == "v1":
        model: nn.Module = FeatherFaceV1()
    else:
        model = FeatherFaceV2()
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
        model.backbone.load_state_dict(teacher.backbone.state_dict())  # type: ignore[union-attr]
    return model


def make_step(
    config: TrainConfig,
    *,
    device: torch.device,
    steps: int,
    criterion: type[Distillation] | None = None,
) -> Step:
    """V1 supervised, or V2 distilled from the teacher file that the config names, on the device.

    steps: of the whole run. criterion: instead of the recipe's; ConfigError for V1, which has none.
    """
    if criterion and config.model == "v1":
        raise ConfigError("a criterion of distillation needs a teacher, and V1 has none")
    teacher = None if config.model == "v1" else load_teacher(config)
    model = make_model(config, teacher)
    model = with_shared_norms(model, config, device)
    model = _placed(model, device)
    if teacher is None:
        return SupervisedStep(model, config)
    engine = make_teacher(_placed(teacher, device), config, device=device, steps=steps)
    step = DistillationStep(model, engine, config, criterion)
    step.trained.to(device)
    return step


def load_teacher(config: TrainConfig) -> nn.Module:
    """The V1 that the config names. Raises ConfigError for another network."""
    teacher = load_model(config.teacher_model, TEACHER_HINT)
    if teacher.name != "v1":
        raise ConfigError(f"{config.teacher_model}: holds {teacher.name}; the teacher must be V1")
    return teacher


def _placed(model: nn.Module, device: torch.device) -> nn.Module:
    """On the device, with the channels last in memory: as the photos come, and faster."""
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def make_optimizer(step: Step, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; biases, norms and fusion weights are not decayed."""
    parameters = [p for p in step.trained.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.lr,
        # one kernel for all of them; a resumed run goes on with what its checkpoint says
        fused=True if all(p.device.type in ("cuda", "cpu") for p in parameters) else None,
    )


WORTH_COMPILING = 2_000  # steps: compiling takes a minute or two


def parts_of(model: nn.Module) -> list[nn.Module]:
    """The parts of V1 or V2 that are called as modules, but DropBlock.

    Its probability is a number that changes at every step; a graph with it would be compiled anew
    each time.
    """
    parts: list[nn.Module] = []
    for child in model.children():
        parts += child if isinstance(child, nn.ModuleList) else [child]
    return [part for part in parts if not isinstance(part, DropBlock2d)]


def is_wanted(setting: str, device: torch.device, *, steps: int) -> bool:
    """Whether `--compile` says so; auto: on CUDA, in a run of many steps."""
    return setting == "on" or (
        setting == "auto" and device.type == "cuda" and steps >= WORTH_COMPILING
    )


def compile_networks(models: Iterable[nn.Module], trial: Callable[[], None]) -> bool:
    """Compile the models in place and run the trial, which uses them.

    Where that fails the models are as before, one line says why, and False comes back.
    """
    parts = [part for model in models for part in parts_of(model)]
    for part in parts:
        part.compile(dynamic=False)
    try:
        trial()
    except Exception as error:  # compilers fail in many ways
        if is_out_of_memory(error):
            raise
        for part in parts:
            part._compiled_call_impl = None
        tqdm.write(f"going on without torch.compile, which fails here: {_one_line(error)}")
        return False
    return True


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    return f"{type(error).__name__}: {text[:160]}"


OUT_OF_MEMORY = (  # the CPU allocator, CUDA, cuBLAS, cuDNN
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)
FACES = 32  # of each image in a trial, more than most have


@contextmanager
def memory_errors_explained(config: TrainConfig) -> Iterator[None]:
    """One clear TrainingError in place of torch's pages when there is no memory left."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory at {config.image_size}×{config.image_size} with --batch-size "
            f"{config.batch_size} and --accumulate {config.accumulate}: lower the first, "
            "or raise the second (batch norms alone see the parts), or keep the photos elsewhere "
            "(--cache ram)"
        ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is torch's or its CPU allocator's word for it."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    text = str(error).lower()
    return any(words in text for words in OUT_OF_MEMORY)


def example_batch(config: TrainConfig, images: int, device: torch.device) -> tuple[Tensor, Target]:
    """Noise with FACES faces an image, for trials: (B, 3, S, S) as the networks read it."""
    size = config.image_size
    pixels = torch.randn(images, 3, size, size, device=device).mul_(50)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    side = torch.linspace(0.05, 0.5, FACES, device=device) * size
    boxes = torch.stack((side / 4, side / 4, side / 4 + side, side / 4 + side), dim=-1)
    boxes = boxes.expand(images, -1, -1).contiguous()  # (B, FACES, 4)
    mask = torch.zeros(images, FACES, 5, dtype=torch.bool, device=device)
    points = torch.zeros(images, FACES, 5, 2, device=device)
    weight = torch.ones(images, FACES, device=device)
    return pixels, Target(boxes, points, mask, mask[..., 0], weight)


def trial_of(step: Step, config: TrainConfig, device: torch.device) -> Callable[[int], None]:
    """A function that runs one training step of so many images and leaves no trace.

    Gradients, running statistics and random numbers are as before it, also when it fails.
    """

    def trial(images: int) -> None:
        step.trained.train()
        buffers = [value.clone() for value in step.trained.buffers()]
        random = random_state(device)
        try:
            pixels, targets = example_batch(config, images, device)
            with autocast(config, device):
                losses = step(pixels, targets, faces=images * FACES)
            losses["loss"].backward()
        finally:
            step.trained.zero_grad(set_to_none=True)
            set_random_state(random, device)
            for value, before in zip(step.trained.buffers(), buffers, strict=True):
                value.copy_(before)

    return trial
