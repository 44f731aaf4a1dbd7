"""Running out of memory: said in one line, and avoided by a batch that fits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm.auto import tqdm

from featherface.config import TrainConfig
from featherface.data.places import free_bytes
from featherface.devices import random_state, set_random_state
from featherface.errors import TrainingError
from featherface.structures import Target
from featherface.training.answers import RememberingTeacher
from featherface.training.steps import Step, autocast

LARGEST_BATCH = 512  # images of a process that `--batch-size auto` tries
LARGEST_ON_CPU = 32  # more brings a CPU no speed
ROOM = 0.8  # share of the free memory that a batch may take
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
            f"{config.batch_size or 'auto'} and --accumulate {config.accumulate}: lower the first, "
            "or raise the second (batch norms alone see the parts), or keep the photos elsewhere "
            "(--cache ram)"
        ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is torch's or its CPU allocator's word for it."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    text = str(error).lower()
    return any(words in text for words in OUT_OF_MEMORY)


def largest_batch(step: Callable[[int], None], *, least: int = 1, most: int = LARGEST_BATCH) -> int:
    """The largest of least, 2·least, 4·least … up to `most` for which `step` finds memory.

    TrainingError if not even the first does. `step` runs one training step of so many images.
    """
    found, size = 0, least
    while size <= most:
        try:
            step(size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        found, size = size, 2 * size
    if not found:
        raise TrainingError(
            f"not even a batch of {least} fits into memory: lower --image-size, or keep the photos "
            "elsewhere (--cache ram or none)"
        )
    return found


def kept_bytes(run: Callable[[], None]) -> int:
    """Bytes of the different tensors that autograd keeps while `run` runs."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(kept.values())


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


def fitting_batch(device: torch.device, trial: Callable[[int], None], *, photos: int) -> int:
    """The batch size that memory has room for: a power of two, at most the number of photos.

    trial: runs one training step of so many images. On CUDA by trying ever larger ones; on a CPU,
    where the system would end the process instead, from what one image keeps for its gradient.
    Of one process: several would wait for each other in vain (`shared_batch` refuses them).
    """
    if device.type == "cuda":
        most = min(LARGEST_BATCH, photos)
        size = largest_batch(lambda count: _with_room(trial, count, device), most=most)
    else:
        each = 2 * max(1, kept_bytes(lambda: trial(1)))  # and the gradients beside
        most = min(LARGEST_ON_CPU, photos, int(ROOM * free_bytes(device)) // each)
        size = 2 ** max(0, most.bit_length() - 1)
    tqdm.write(f"--batch-size auto: {size}")
    return size


def _with_room(trial: Callable[[int], None], images: int, device: torch.device) -> None:
    """A trial that also runs out of memory where it leaves less than ROOM asks for."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before, free = torch.cuda.memory_allocated(device), free_bytes(device)
    trial(images)
    taken = torch.cuda.max_memory_reserved(device) - before
    torch.cuda.empty_cache()
    if taken > ROOM * free:
        raise torch.cuda.OutOfMemoryError("not enough room left")


def trial_of(step: Step, config: TrainConfig, device: torch.device) -> Callable[[int], None]:
    """A function that runs one training step of so many images and leaves no trace.

    Gradients, running statistics and random numbers are as before it, also when it fails.
    """

    def trial(images: int) -> None:
        step.trained.train()
        buffers = [value.clone() for value in step.trained.buffers()]
        random = random_state(device)
        teacher = getattr(step, "teacher", None)
        if isinstance(teacher, RememberingTeacher):
            step.teacher = teacher.teacher  # type: ignore[attr-defined]
        try:
            pixels, targets = example_batch(config, images, device)
            with autocast(config, device):
                losses = step(pixels, targets, faces=images * FACES)
            losses["loss"].backward()
        finally:
            if teacher is not None:
                step.teacher = teacher  # type: ignore[attr-defined]
            step.trained.zero_grad(set_to_none=True)
            set_random_state(random, device)
            for value, before in zip(step.trained.buffers(), buffers, strict=True):
                value.copy_(before)

    return trial
