"""Where the time of a distillation step goes: its parts, one after the other, on one batch."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from featherface.anchors import make_anchors
from featherface.benchmark.speed import v1_or_untrained
from featherface.config import TrainConfig
from featherface.data.cache import build_cache, make_batches
from featherface.data.loader import worker_count
from featherface.data.mixing import mix
from featherface.data.widerface import read_split
from featherface.detector import normalise
from featherface.distributed import pick_device
from featherface.models.networks import FeatherFaceV1, FeatherFaceV2
from featherface.structures import Batch
from featherface.training.optim import Averages, make_optimizer
from featherface.training.step import (
    DistillationStep,
    autocast,
    compile_networks,
    make_teacher,
    worth_compiling,
)

Part = Callable[[str], AbstractContextManager]  # name of a part → what to run it in


def train_speed(
    data: str | Path,
    *,
    image_size: int = 640,
    batch_size: int = 32,
    rounds: int = 5,
    photos: int = 256,
    steps: int = 100_000,
    **settings: Any,
) -> pd.DataFrame:
    """Measure each part of a distillation step, the step, and the step with its loader.

    Columns: part; seconds per batch (median of `rounds`, after one that is not counted); images/s.
    `settings`: any of TrainConfig. `steps`: the length of the planned run, by which `auto` settings
    decide. Raises DataError if `data` has no training photos.
    """
    config = TrainConfig(image_size=image_size, batch_size=batch_size, data=str(data), **settings)
    device = pick_device(config.device)
    chosen = read_split(data, limit=photos)
    cache = build_cache(chosen, config, device, progress=False)
    loader, sampler = make_batches(chosen, config, device, cache)

    def endless() -> Iterator[Batch]:
        for epoch in count():
            sampler.set_epoch(epoch)
            yield from loader

    batches, update = endless(), make_update(config, device, steps=steps)
    batch = next(batches)  # the loader's processes have started
    clock = Clock(device)
    for _ in range(rounds + 1):
        update(batch, clock)
    taken = {name: float(np.median(seconds[1:])) for name, seconds in clock.seconds.items()}
    taken["step"] = sum(taken.values())
    alone = f"loader alone ({worker_count(config.num_workers)} processes)"
    with clock(alone):
        for _ in range(rounds):
            next(batches)
    with clock("step and loader"):
        for _ in range(rounds):
            update(next(batches), lambda name: nullcontext())
    taken |= {name: clock.seconds[name][0] / rounds for name in (alone, "step and loader")}
    table = pd.DataFrame({"part": list(taken), "seconds": list(taken.values())})
    return table.assign(images_per_second=len(batch.images) / table["seconds"])


class Clock:
    """Collects the seconds that named parts take, with the device's work finished."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds.setdefault(name, []).append(time.perf_counter() - started)


def make_update(
    config: TrainConfig, device: torch.device, *, steps: int
) -> Callable[[Batch, Part], None]:
    """Return a function that trains V2 on a batch, each part of the step inside `part(name)`."""
    layout: dict[str, Any] = {"device": device, "memory_format": torch.channels_last}
    teacher = cast(FeatherFaceV1, v1_or_untrained(config.teacher_model).to(**layout))
    model = FeatherFaceV2().to(**layout)
    model.set_drop_prob(config.dropblock_prob / 2)  # the mean of the ramp
    engine = make_teacher(teacher, config, device=device, steps=steps)
    step = DistillationStep(model, engine, config)
    step.trained.to(device).train()
    optimizer, ema = make_optimizer(step.trained, config), Averages(model, config.ema_decay)
    generator = torch.Generator().manual_seed(config.seed)
    if worth_compiling(config.compile, device, steps=steps):
        compile_networks([model, teacher], device)

    def update(batch: Batch, part: Part) -> None:
        with part("to the device"):
            pixels = normalise(batch.images.to(device, non_blocking=True))
            targets = batch.targets.to(device, non_blocking=True)
        with part("mixing"):
            pixels, targets = mix(config, pixels, targets, generator=generator)
        with autocast(config, device):
            with part("teacher"):
                taught = step.teacher(pixels)
            with part("student forward"):
                student = step.student(pixels)
            with part("losses"):
                anchors = make_anchors(config.image_size, config.image_size, device)
                loss = step.losses(student, taught, targets, anchors)["loss"]
        with part("backward"):
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        with part("optimizer"):
            torch.nn.utils.clip_grad_norm_(step.trained.parameters(), config.clip_norm)
            optimizer.step()
            ema.update(model)

    return update
