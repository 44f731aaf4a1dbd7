"""The training loop of V1 and V2, in one process or several."""

import itertools
import math
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn
from tqdm.auto import tqdm

from featherface.config import STRIDES, TrainConfig
from featherface.data.annotations import Photo
from featherface.data.cache import build_cache, make_batches
from featherface.data.loader import EpochSampler, FaceLoader, images_per_step
from featherface.data.mixing import mix
from featherface.data.widerface import read_split, read_unlabelled
from featherface.detector import normalise
from featherface.distributed import (
    any_process,
    average_gradients,
    process_group,
    seed_device,
    this_machine,
    wait_for_all,
)
from featherface.errors import ConfigError, TrainingError
from featherface.losses import Distillation
from featherface.models.networks import FeatherFaceV2
from featherface.structures import Batch
from featherface.training.state import (
    ProgressFile,
    Run,
    checkpoint_path,
    own_folder,
    prepare_folder,
    resumed_config,
)
from featherface.training.step import (
    autocast,
    compile_networks,
    errors_explained,
    worth_compiling,
)
from featherface.training.validation import Validator

CHECK_EVERY = 10  # steps between readings of the loss, for which the host waits for a GPU


def train(
    config: TrainConfig,
    *,
    photos: Sequence[Photo] | None = None,
    criterion: type[Distillation] | None = None,
    resume: Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
    log: str = "",
) -> Path:
    """Train as the config says and return the path of the final weights.

    photos: train on these instead of those of the config. criterion: a subclass of Distillation
    instead of the recipe's. resume: a checkpoint to continue from, to the same result. overwrite:
    replace the run in the folder. progress: show a bar. log: "tensorboard" writes event files too.

    Rank 0 writes config.json, checkpoints, training_log.csv and progress.json to the save folder.
    On Ctrl-C, SIGTERM or SIGHUP the state is saved to …_last.pth and KeyboardInterrupt is raised.
    Raises TrainingError if the folder holds another run, ConfigError if another process trains it.
    """
    if resume:
        resumed_config(resume, config.as_dict())  # raises ConfigError for another config
    with process_group(config.device) as worker:
        folder = Path(config.save_folder).resolve()
        continued = resume is not None and resume.parent.resolve() == folder
        allowed = continued or (overwrite and not resume)
        with (
            own_folder(config, run_allowed=allowed) if worker.first else nullcontext(),
            ProgressFile(config, write=worker.first, log=log) as status,
            errors_explained(config),
        ):
            wait_for_all()
            torch.manual_seed(config.seed)
            seed_device(config.seed + worker.rank, worker.device)
            photos = training_photos(config) if photos is None else photos
            batch = images_per_step(len(photos), config.batch_size, worker.processes)
            check_batch(batch // worker.processes, config)  # before decoding
            bar = progress and worker.first
            machine = this_machine()
            cache = build_cache(photos, config, worker.device, progress=bar, machine=machine)
            loader, sampler = make_batches(photos, config, worker.device, cache, shard=worker.shard)
            validator = Validator(config, photos) if config.validate_every else None
            run = Run(config, photos, status, steps_per_epoch=len(loader), worker=worker,
                      criterion=criterion, initialise=resume is None)  # fmt: skip
            if resume:
                run.resume(resume)
            run.print0(f"{run.description}, photos: {cache or 'read again in each epoch'}")
            if validator:
                run.print0(f"validation: {validator.description}")
            if worth_compiling(config.compile, run.device, steps=config.epochs * len(loader)):
                teacher = run.step.teacher
                by_torch = [teacher.model] if teacher and not teacher.session else []
                compile_networks([run.model, *by_torch], run.device)
            wait_for_all()  # no process can fail in its set-up now, or still reads the old run
            if worker.first:
                prepare_folder(config, keep=continued)
            wait_for_all()
            train_all_epochs(run, loader, sampler, validator, progress=bar)
            finish(run, loader, sampler)
    return checkpoint_path(config, "final")


def check_batch(images: int, config: TrainConfig) -> None:
    """Raise ConfigError if a batch norm would see a single value per channel.

    images: per process and step. The coarsest map has (image_size / 32)² positions.
    """
    part = images // config.accumulate
    if part * (config.image_size // STRIDES[-1]) ** 2 < 2:
        raise ConfigError(
            f"--image-size {config.image_size} with {part} image per process and part of a step: "
            "batch norms need two; use a larger --image-size or --batch-size"
        )


def training_photos(config: TrainConfig) -> list[Photo]:
    """Read the labelled photos of the train split, then the unlabelled ones.

    Raises ConfigError if V1 is given unlabelled photos: without a teacher they teach nothing.
    """
    photos = read_split(config.data, "train", config.training_dataset, limit=config.limit)
    if not config.unlabelled:
        return photos
    if config.model == "v1":
        raise ConfigError("--unlabelled needs a teacher, and V1 has none: leave it out")
    return photos + read_unlabelled(config.unlabelled)


def train_all_epochs(
    run: Run,
    loader: FaceLoader,
    sampler: EpochSampler,
    validator: Validator | None,
    *,
    progress: bool,
) -> None:
    """Train from where the run is to its last epoch; validate, log and save after each."""
    config, total = run.config, run.config.epochs * run.steps_per_epoch
    done = round(run.progress * total)
    last = checkpoint_path(config, "last")
    with (
        first_signal_caught() as signals,
        tqdm(total=total, initial=done, unit="step", disable=not progress) as bar,
    ):
        while run.epoch < config.epochs:
            sampler.set_epoch(run.epoch, start=run.batch * config.batch_size)
            train_one_epoch(run, loader, signals, bar)
            due = (run.epoch + 1) % (config.validate_every or 1) == 0
            scores = {}
            if validator and (due or run.epoch + 1 == config.epochs):
                run.save(last)  # validation can take long
                run.status.write("validating", run)
                scores = validate(run, validator) if run.worker.first else {}
            run.finish_epoch(scores)
            if run.epoch % config.save_every == 0:  # first: a killed run goes back to …_last.pth
                run.save(checkpoint_path(config, run.epoch))
            run.save(last)


def train_one_epoch(run: Run, loader: FaceLoader, signals: list[int], bar: tqdm) -> None:
    """Train from batch `run.batch` to the end of the epoch; save and raise after a signal."""
    waiting = time.monotonic()
    started = waiting - run.seconds
    run.step.trained.train()
    for batch in loader:
        run.waited += time.monotonic() - waiting
        train_step(run, batch)
        run.batch += 1
        due = run.batch % CHECK_EVERY == 0 or run.batch == run.steps_per_epoch
        loss = mean_loss(run) if due else None  # before reading the clock: it waits for the device
        run.seconds = time.monotonic() - started
        bar.update()
        if loss is not None:
            speed = run.batch * run.images_per_step / run.seconds
            bar.set_postfix_str(f"epoch {run.epoch + 1}, loss {loss:.3f}, {speed:.1f} images/s")
            run.status.write("training", run, loss=loss, images_per_second=speed)
        if any_process(bool(signals)):
            last = checkpoint_path(run.config, "last")
            run.save(last)
            run.status.write("training", run)
            bar.close()
            run.print0(f"stopped and saved; continue with --resume {last}")
            raise KeyboardInterrupt
        waiting = time.monotonic()


def train_step(run: Run, batch: Batch) -> None:
    """Mix the batch, compute its losses and update the weights."""
    config = run.config
    if isinstance(run.model, FeatherFaceV2):
        run.model.set_drop_prob(config.dropblock_prob * run.progress)
    pixels = normalise(batch.images.to(run.device, non_blocking=True))  # (B, 3, S, S) float32
    targets = batch.targets.to(run.device, non_blocking=True)
    if run.progress < 1 - config.clean_share:
        pixels, targets = mix(config, pixels, targets, stream=run.worker.rank)
    with autocast(config, run.device):
        losses = run.step(pixels, targets)
    update(run, losses)


def update(run: Run, losses: dict[str, Tensor]) -> None:
    """Take one optimizer step and add the loss terms to the sums of the epoch."""
    parameters = list(run.step.trained.parameters())
    run.optimizer.zero_grad(set_to_none=True)
    losses["loss"].backward()
    average_gradients(parameters)
    if run.config.clip_norm:
        torch.nn.utils.clip_grad_norm_(parameters, run.config.clip_norm)
    run.optimizer.step()
    run.scheduler.step()
    if run.ema:
        run.ema.update(run.model)
    for name, value in losses.items():
        run.sums[name] = run.sums.get(name, 0.0) + value.detach()


def mean_loss(run: Run) -> float:
    """Return the mean loss of this epoch so far. Raises TrainingError if it is not finite."""
    mean = float(run.sums["loss"]) / run.batch
    if not math.isfinite(mean):
        raise TrainingError(
            f"the loss became {mean} in epoch {run.epoch + 1}, step {run.batch}; resume from the "
            "last checkpoint with a lower --lr, or check the data with scripts/prepare_data.py"
        )
    return mean


def validate(run: Run, validator: Validator) -> dict[str, float]:
    """Measure AP; keep the weights with the highest so far as …_best.pth."""
    scores = validator(run.averaged_model)
    named = (f"{name.removeprefix('val_')} {value:.3f}" for name, value in scores.items())
    tqdm.write(f"epoch {run.epoch + 1}: {', '.join(named)}")
    if scores["val_ap"] > run.best_ap:
        run.best_ap = scores["val_ap"]
        note = {**scores, "on": validator.description}
        notes = {"epoch": run.epoch + 1, "validation": note}  # this epoch is done as well
        run.save_weights(checkpoint_path(run.config, "best"), notes)
    return scores


def finish(run: Run, loader: FaceLoader, sampler: EpochSampler) -> None:
    """Re-estimate the batch norms of the averaged weights and write the final weights.

    Running averages with V1's momentum of 0.01 need about 500 steps to forget their start. The
    batches are those of epochs after the last one, as many as `bn_batches` says.
    """
    if isinstance(run.averaged_model, FeatherFaceV2):
        run.averaged_model.set_drop_prob(0.0)
    if run.config.bn_batches:
        fresh = _batches_from(run.config.epochs, loader, sampler)
        batches = itertools.islice(fresh, run.config.bn_batches * run.worker.processes)
        pixels = (normalise(images.to(run.device)) for images, _ in batches)
        update_bn(pixels, run.averaged_model)
    final = checkpoint_path(run.config, "final")
    if run.worker.first:
        run.save_weights(final)
    wait_for_all()
    run.print0(f"done: {final}")


def _batches_from(epoch: int, loader: Iterable[Batch], sampler: EpochSampler) -> Iterator[Batch]:
    """Yield the batches of this epoch and those after it, without end."""
    for number in itertools.count(epoch):
        sampler.set_epoch(number)
        yield from loader


def end_signals() -> list[signal.Signals]:
    """SIGTERM, and SIGHUP where it exists, without those that this process ignores (nohup)."""
    names = ("SIGTERM", "SIGHUP")
    known = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def first_signal_caught() -> Iterator[list[int]]:
    """Yield a list to which the first Ctrl-C, SIGTERM or SIGHUP is added; a second interrupts."""
    caught: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    main = threading.current_thread() is threading.main_thread()  # no other may handle signals
    numbers = (signal.SIGINT, *end_signals()) if main else ()
    previous = [signal.signal(number, handle) for number in numbers]
    try:
        yield caught
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
