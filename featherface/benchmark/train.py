"""Where the time of a distillation step goes: its parts, one after the other, on one batch."""

import time
from collections.abc import Callable, Iterator
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
from featherface.data.loader import EpochSampler, worker_count
from featherface.data.mixing import mix
from featherface.data.widerface import read_split
from featherface.detector import normalise
from featherface.distributed import pick_device
from featherface.models.networks import FeatherFaceV1, FeatherFaceV2
from featherface.structures import Batch
from featherface.training.optim import Averages, make_optimizer
from featherface.training.step import (
    DistillationStep,
    Teacher,
    autocast,
    compile_networks,
    make_teacher,
    worth_compiling,
)

COLUMNS = ["part", "seconds", "images_per_second"]


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
    bench = Bench(config, device, next(iter(loader)), steps=steps)
    batches, workers = _endless(loader, sampler), worker_count(config.num_workers)
    rows = bench.rows(rounds) + _loader_rows(bench, batches, rounds, workers=workers)
    return pd.DataFrame(rows, columns=COLUMNS)


class Bench:
    """One distillation step on one batch, cut into its parts."""

    def __init__(
        self, config: TrainConfig, device: torch.device, batch: Batch, *, steps: int
    ) -> None:
        self.config, self.device, self.batch = config, device, batch
        layout: dict[str, Any] = {"device": device, "memory_format": torch.channels_last}
        teacher = cast(FeatherFaceV1, v1_or_untrained(config.teacher_model).to(**layout))
        model = FeatherFaceV2().to(**layout)
        model.set_drop_prob(config.dropblock_prob / 2)  # the mean of the ramp
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step = DistillationStep(model, Teacher(teacher), config)
        self.step.trained.to(device).train()
        self.optimizer = make_optimizer(self.step.trained, config)
        self.ema = Averages(model, config.ema_decay)
        self.state: dict[str, Any] = {}
        if worth_compiling(config.compile, device, steps=steps):
            compile_networks([model, teacher], device)
        self.step.teacher = make_teacher(teacher, config, device=device, steps=steps)

    def parts(self) -> dict[str, Callable[[], None]]:
        """Return the parts of a step in their order; each needs those before it."""
        return {
            "to the device": self._move,
            "mixing": self._mix,
            "teacher": self._teach,
            "student forward": self._forward,
            "losses": self._losses,
            "backward": self._backward,
            "optimizer": self._optimise,
        }

    def _move(self) -> None:
        images, targets = self.batch
        self.state["pixels"] = normalise(images.to(self.device, non_blocking=True))
        self.state["targets"] = targets.to(self.device, non_blocking=True)

    def _mix(self) -> None:
        """MixUp, CutMix or neither, each as often as in training."""
        names = ("pixels", "targets")
        given = [self.state[name] for name in names]
        mixed = mix(self.config, *given, generator=self.generator)
        self.state |= zip(names, mixed, strict=True)

    def _teach(self) -> None:
        with autocast(self.config, self.device):
            self.state["teacher"] = self.step.teacher(self.state["pixels"])

    def _forward(self) -> None:
        with autocast(self.config, self.device):
            self.state["student"] = self.step.student(self.state["pixels"])

    def _losses(self) -> None:
        size, state = self.config.image_size, self.state
        anchors = make_anchors(size, size, self.device)
        with autocast(self.config, self.device):
            self.state["loss"] = self.step.losses(
                state["student"], state["teacher"], state["targets"], anchors
            )["loss"]

    def _backward(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.state["loss"].backward()

    def _optimise(self) -> None:
        parameters = self.step.trained.parameters()
        torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        self.optimizer.step()
        self.ema.update(self.step.model)

    def run(self) -> None:
        """Run the whole step."""
        for work in self.parts().values():
            work()

    def rows(self, rounds: int) -> list[dict[str, Any]]:
        """Return a row per part, and one for the whole step."""
        seconds: dict[str, list[float]] = {name: [] for name in self.parts()}
        for _ in range(rounds + 1):
            for name, work in self.parts().items():
                seconds[name].append(timed(work, self.device))
        taken = {name: float(np.median(values[1:])) for name, values in seconds.items()}
        taken["step"] = sum(taken.values())
        return [_row(name, value, len(self.batch.images)) for name, value in taken.items()]


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that `work` takes, with the device's work finished."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _row(part: str, seconds: float, images: int) -> dict[str, Any]:
    return {"part": part, "seconds": seconds, "images_per_second": images / seconds}


def _loader_rows(
    bench: Bench, batches: Iterator[Batch], rounds: int, *, workers: int
) -> list[dict[str, Any]]:
    """Measure the loader alone, and the step while the loader works, as in training."""
    images = len(next(batches).images)  # the loader's processes have started

    def load() -> None:
        for _ in range(rounds):
            bench.batch = next(batches)

    def train() -> None:
        for _ in range(rounds):
            bench.batch = next(batches)
            bench.run()

    names = (f"loader alone ({workers} processes)", "step and loader")
    works = (load, train)
    return [
        _row(name, timed(work, bench.device) / rounds, images)
        for name, work in zip(names, works, strict=True)
    ]


def _endless(loader: Any, sampler: EpochSampler) -> Iterator[Batch]:
    for epoch in count():
        sampler.set_epoch(epoch)
        yield from loader


def summary_line(table: pd.DataFrame, device: torch.device | str) -> str:
    """Say in one sentence what the table of `train_speed` shows."""
    step = table.loc[table["part"] == "step", "seconds"].iloc[0]
    parts = table[~table["part"].str.contains("step|loader")]
    slowest = parts.loc[parts["seconds"].idxmax()]
    return (
        f"{table.iloc[-1]['images_per_second']:.1f} images/s on {device}; {slowest['part']} takes "
        f"{100 * slowest['seconds'] / step:.0f} % of a step"
    )
