"""Where the time of a training step goes, and how near it is to what the machine can do.

A part's bound is the longer of its operations and its bytes at the roofs of the device
(featherface.benchmark.roofline). A share of it above 1 says that operations were fused.
"""

import math
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from featherface.anchors import make_anchors
from featherface.benchmark.paired import one_thread
from featherface.benchmark.roofline import counted, measured_roofs, median, timed
from featherface.benchmark.speed import v1_or_untrained
from featherface.config import TrainConfig
from featherface.data.annotations import Photo
from featherface.data.cache import PhotoCache, build_cache, make_batches
from featherface.data.loader import EpochSampler, FaceDataset, worker_count
from featherface.data.mixing import mix
from featherface.data.widerface import read_split
from featherface.detector import normalise
from featherface.distributed import pick_device
from featherface.files import write_text
from featherface.images import open_photo, read_window
from featherface.models.networks import FeatherFaceV2
from featherface.structures import Batch
from featherface.training.optim import make_ema
from featherface.training.step import (
    DistillationStep,
    TorchTeacher,
    autocast,
    compile_networks,
    is_wanted,
    make_optimizer,
    make_teacher,
    trial_of,
)

LOADING_PHOTOS = 32  # that decoding and augmenting are measured on
COLUMNS = "part seconds images_per_second gflop mb bound achieved gib".split()


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
    """A row a part of a distillation step, then the step and the step with its loader.

    Columns: part; seconds a batch (median of `rounds`, after one that is not counted); images/s;
    gflop and mb an image; bound: the images/s that the measured roofs allow; achieved: the share of
    it; gib: the most device memory while the part ran (CUDA). `decode` and `augment` are of one
    process alone: in training as many run beside the step as `--num-workers` says, and with a cache
    nothing is decoded again. `settings`: any of TrainConfig. `steps`: length of the run that is
    meant, by which `auto` settings decide. Raises DataError if `data` has no training photos.
    """
    config = TrainConfig(image_size=image_size, batch_size=batch_size, data=str(data), **settings)
    device = pick_device(config.device)
    chosen = read_split(data, limit=photos)
    cache = build_cache(chosen, config, device, progress=False)
    loader, sampler = make_batches(chosen, config, device, cache)
    batch = next(iter(loader))
    bench = Bench(config, device, batch, steps=steps)
    roofs = measured_roofs(device, config)
    table = _loading_rows(chosen, config, cache, device)
    table += bench.rows(rounds, roofs)
    table.append(_whole_row(bench, _endless(loader, sampler), rounds))
    return pd.DataFrame(table, columns=COLUMNS)


class Bench:
    """One distillation step on one batch, cut into its parts."""

    def __init__(
        self, config: TrainConfig, device: torch.device, batch: Batch, *, steps: int
    ) -> None:
        self.config, self.device, self.batch = config, device, batch
        self.images = len(batch.images)
        place: dict[str, Any] = {"device": device, "memory_format": torch.channels_last}
        teacher = v1_or_untrained(config.teacher_model).to(**place)
        model = FeatherFaceV2().to(**place)
        model.set_drop_prob(config.dropblock_prob / 2)  # what the ramp comes to, on average
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step = DistillationStep(model, TorchTeacher(teacher), config)
        self.step.trained.to(device).train()
        self.optimizer = make_optimizer(self.step, config)
        self.ema = make_ema(model, config.ema_decay)
        self.state: dict[str, Any] = {}
        self.counts = {name: counted(work) for name, work in self.parts()}
        self.counts["mixing"] = (math.nan, math.nan)  # differs from batch to batch, and is little
        if is_wanted(config.compile, device, steps=steps):
            trial = trial_of(self.step, config, device)
            compile_networks([model, teacher], lambda: trial(self.images))
        self.step.teacher = make_teacher(teacher, config, device=device, steps=steps)

    def parts(self) -> list[tuple[str, Callable[[], None]]]:
        """What a step does, in this order; each needs those before it."""
        names = "to the device, mixing, teacher, student forward, losses, backward, optimizer"
        works = (
            *(self._move, self._mix, self._teach, self._forward),
            *(self._losses, self._backward, self._optimise),
        )
        return list(zip(names.split(", "), works, strict=True))

    def use(self, batch: Batch) -> None:
        self.batch = batch

    def _move(self) -> None:
        images, targets = self.batch
        self.state["faces"] = int((targets.weight > 0).sum())
        self.state["pixels"] = normalise(images.to(self.device, non_blocking=True))
        self.state["targets"] = targets.to(self.device, non_blocking=True)

    def _mix(self) -> None:
        """MixUp, CutMix or neither, each as often as in training."""
        names = ("pixels", "targets", "faces")
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
                state["student"], state["teacher"], state["targets"], anchors, state["faces"]
            )["loss"]

    def _backward(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.state["loss"].backward()

    def _optimise(self) -> None:
        parameters = self.step.trained.parameters()
        torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        self.optimizer.step()
        self.ema.update_parameters(self.step.trained["model"])

    def run(self) -> None:
        """The whole step."""
        for _, work in self.parts():
            work()

    def rows(self, rounds: int, roofs: tuple[float, float]) -> list[dict[str, Any]]:
        """A row a part, and one for the whole step."""
        seconds: dict[str, list[float]] = {name: [] for name, _ in self.parts()}
        memory = dict.fromkeys(seconds, float("nan"))
        for _ in range(rounds + 1):
            for name, work in self.parts():
                if self.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(self.device)
                seconds[name].append(timed(work, self.device))
                if self.device.type == "cuda":
                    memory[name] = torch.cuda.max_memory_allocated(self.device) / 2**30
        taken = {name: median(values[1:]) for name, values in seconds.items()}
        rows = [
            _row(name, taken[name], self.images, self.counts[name], roofs, memory[name])
            for name in taken
        ]
        known = [done for done in self.counts.values() if not math.isnan(done[0])]
        operations, moved = (sum(done[i] for done in known) for i in (0, 1))
        bounds = sum(_bound(done, roofs) for done in known)
        step = _row("step", sum(taken.values()), self.images, (operations, moved), roofs)
        step |= {"bound": self.images / bounds, "achieved": bounds / sum(taken.values())}
        return [*rows, step | {"gib": max(memory.values())}]


def _row(
    part: str,
    seconds: float,
    images: int,
    done: tuple[float, float] = (float("nan"), float("nan")),
    roofs: tuple[float, float] = (1.0, 1.0),
    gib: float = float("nan"),
) -> dict[str, Any]:
    """done: operations and bytes of the batch. roofs: how many of each a second."""
    bound = _bound(done, roofs)
    return {
        "part": part,
        "seconds": seconds,
        "images_per_second": images / seconds,
        "gflop": done[0] / images / 1e9,
        "mb": done[1] / images / 1e6,
        "bound": images / bound,
        "achieved": bound / seconds,
        "gib": gib,
    }


def _bound(done: tuple[float, float], roofs: tuple[float, float]) -> float:
    """The least seconds that so many operations and bytes take; NaN where they are not known."""
    return float(np.maximum(done[0] / roofs[0], done[1] / roofs[1]))


def _loading_rows(
    photos: list[Photo], config: TrainConfig, cache: PhotoCache | None, device: torch.device
) -> list[dict[str, Any]]:
    """Decoding and augmenting as the loader's processes do; with a cache, as the device does."""
    few = photos[:LOADING_PHOTOS]
    dataset = FaceDataset(few, config)

    def decode() -> None:
        for index, photo in enumerate(few):
            plan, _ = dataset.plan(index, open_photo(photo.path))
            read_window(plan.file, plan.window)

    def both() -> None:
        for index in range(len(few)):
            dataset.sample(index)

    with one_thread():
        decode()
        reading = timed(decode, device)
        whole = timed(both, device)
    scale = config.batch_size / len(few)
    rows = [_row("decode", reading * scale, config.batch_size)]
    if cache is None:
        rest = max(whole - reading, 1e-6)
        return [*rows, _row("augment", rest * scale, config.batch_size)]
    plans = next(iter(make_batches(photos, config, device, cache)[0].plans))  # type: ignore[union-attr]
    size = config.image_size
    times = [
        timed(lambda: cache.render(plans.plans, size=size, device=device), device) for _ in range(4)
    ]
    return [*rows, _row("augment", median(times[1:]), len(plans.plans))]


def _whole_row(bench: Bench, batches: Iterator[Batch], rounds: int) -> dict[str, Any]:
    """The step with a loader beside it, as in training."""

    def steps() -> None:
        for _ in range(rounds):
            bench.use(next(batches))
            bench.run()

    bench.use(next(batches))  # the loader's processes are up
    bench.run()
    seconds = timed(steps, bench.device) / rounds
    workers = worker_count(bench.config.num_workers)
    return _row(f"step and loader ({workers} processes)", seconds, bench.images)


def _endless(loader: Any, sampler: EpochSampler) -> Iterator[Batch]:
    for epoch in count():
        sampler.set_epoch(epoch)
        yield from loader


def summary_line(table: pd.DataFrame, device: torch.device | str) -> str:
    """What the table says, in a sentence."""
    step = table[table["part"] == "step"].iloc[0]
    parts = table[~table["part"].str.contains("step|decode|augment")]
    slowest = parts.loc[parts["seconds"].idxmax()]
    share = 100 * slowest["seconds"] / step["seconds"]
    return (
        f"{table.iloc[-1]['images_per_second']:.1f} images/s on {device}; {slowest['part']} takes "
        f"{share:.0f} % of a step, which reaches {100 * step['achieved']:.0f} % of its bound"
    )


def report(data: str, *, out: str = "", **options: Any) -> None:
    """Print the table of `train_speed` and a sentence; with `out` write it as CSV too."""
    table = train_speed(data, **options)
    print(table.round(3).to_string(index=False))
    print(summary_line(table, pick_device(options.get("device", "auto"))))
    if out:
        write_text(out, table.to_csv(index=False, lineterminator="\n", float_format="%.5g"))
