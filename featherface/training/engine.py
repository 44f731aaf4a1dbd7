"""The training loop, one for V1 and V2, in one process or several."""

import itertools
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from featherface.config import TrainConfig
from featherface.data.annotations import Photo
from featherface.data.cache import build_cache, make_batches
from featherface.data.loader import images_per_step
from featherface.data.mixing import mix
from featherface.data.widerface import fingerprint, read_split, read_unlabelled
from featherface.detector import normalise
from featherface.distributed import (
    Process,
    any_process,
    average_gradients,
    joined,
    seed_device,
    this_machine,
    wait_for_all,
)
from featherface.errors import ConfigError, TrainingError
from featherface.losses import Distillation
from featherface.structures import Batch
from featherface.training.optim import dropblock_probability, estimate_batch_norms
from featherface.training.state import (
    ProgressFile,
    Run,
    TrainingLog,
    check_folder,
    checkpoint_path,
    clear_folder,
    log_path,
)
from featherface.training.step import (
    autocast,
    compile_networks,
    is_wanted,
    memory_errors_explained,
    trial_of,
)
from featherface.training.validation import Validator


class GracefulStop:
    """As a context: the first signal sets `requested`; a second one interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "GracefulStop":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


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


CHECK_EVERY = 10  # steps between looks at the loss: a look makes a GPU wait


def train(
    config: TrainConfig,
    *,
    photos: Sequence[Photo] | None = None,
    criterion: type[Distillation] | None = None,
    resume: Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Train as the config says and return the path of the final weights.

    photos: train on these instead of those of the config. criterion: a subclass of Distillation
    instead of the recipe's. resume: a checkpoint to continue from, to the same result. overwrite:
    replace the run in the folder. progress: show a bar.

    Writes checkpoints, training_log.csv and progress.json to `config.save_folder`. On Ctrl-C or
    SIGTERM the state is saved to …_last.pth and KeyboardInterrupt is raised. Raises TrainingError
    if the folder holds another run. Under torchrun only rank 0 writes files and prints.
    """
    with joined(config.device) as process:
        folder = Path(config.save_folder).resolve()
        goes_on = resume is not None and resume.parent.resolve() == folder
        if process.first:
            check_folder(config, run_allowed=goes_on or (overwrite and not resume))
        wait_for_all()
        with ProgressFile(config, write=process.first) as status, memory_errors_explained(config):
            torch.manual_seed(config.seed)
            seed_device(config.seed + process.number, process.device)
            chosen = list(training_photos(config) if photos is None else photos)
            return _train(
                config, chosen, criterion, process, status,
                resume=resume, keep_run=goes_on, progress=progress and process.first,
            )  # fmt: skip


def _train(
    config: TrainConfig,
    photos: list[Photo],
    criterion: type[Distillation] | None,
    process: Process,
    status: ProgressFile,
    *,
    resume: Path | None,
    keep_run: bool,
    progress: bool,
) -> Path:
    images_per_step(len(photos), config.batch_size, process.total)  # before a long decoding
    cache = build_cache(photos, config, process.device, progress=progress, machine=this_machine())
    loader, sampler = make_batches(photos, config, process.device, cache, shard=process.shard)
    validator = Validator(config, photos) if config.validate_every else None
    faces = sum(len(photo.boxes) for photo in photos)
    data = {"photos": len(photos), "faces": faces, "fingerprint": fingerprint(photos)}
    run = Run(
        config,
        steps_per_epoch=len(loader),
        data=data,
        start=resume is None,
        process=process,
        criterion=criterion,
    )
    run.status = status
    log = TrainingLog(log_path(config))
    if resume:
        run.resume(resume)
        log.resume_from(run.epoch)
    run.say(f"{run.description}, photos: {cache or 'read again in each epoch'}")
    if validator:
        run.say(f"validation: {validator.description}")
    if is_wanted(config.compile, run.device, steps=config.epochs * run.steps_per_epoch):
        trial = trial_of(run.step, config, run.device)
        compile_networks(run.networks, lambda: trial(sampler.batch // process.total))
    wait_for_all()  # until no process can fail in its set-up, or still reads what goes
    if process.first and not keep_run:
        kept = clear_folder(config)
        if kept:
            run.say(f"the final weights in the folder are kept as {kept}")
    wait_for_all()
    _epochs(run, loader, sampler, validator, log, progress=progress)
    renew_batch_norms(run, loader, sampler)
    final = checkpoint_path(config, "final")
    if process.first:
        run.save_weights(final)
    wait_for_all()
    run.say(f"done: {final}")
    return final


def _epochs(
    run: Run,
    loader: Iterable[Batch],
    sampler: Any,
    validator: Validator | None,
    log: TrainingLog,
    *,
    progress: bool,
) -> None:
    """From where the run is to its last epoch, with what follows each: AP, a row, checkpoints."""
    config, total = run.config, run.config.epochs * run.steps_per_epoch
    done = round(run.progress * total)
    with (
        GracefulStop() as stop,
        tqdm(total=total, initial=done, unit="step", disable=not progress) as bar,
    ):
        while run.epoch < config.epochs:
            sampler.set_epoch(run.epoch, start=run.batch * config.batch_size)
            train_one_epoch(run, loader, stop, bar)
            due = (run.epoch + 1) % (config.validate_every or 1) == 0
            scores = {}
            if validator and (due or run.epoch + 1 == config.epochs):
                run.status.write("validating", run)
                run.save(checkpoint_path(config, "last"))  # measuring can take long
                scores = _validate(run, validator) if run.process.first else {}
            row = _finish_epoch(run) | scores
            if run.process.first:
                log.add(row)
            run.status.write("training", run)
            run.save(checkpoint_path(config, "last"))
            if run.epoch % config.save_every == 0:
                run.save(checkpoint_path(config, run.epoch))


def train_one_epoch(run: Run, loader: Iterable[Batch], stop: GracefulStop, bar: tqdm) -> None:
    """From batch `run.batch` to the end of the epoch; saves and raises when asked to stop."""
    config = run.config
    started = time.monotonic() - run.seconds
    run.step.trained.train()
    for images, targets in _waited_for(run, loader):
        if config.model == "v2":
            run.model.set_drop_prob(dropblock_probability(config, run.progress))  # type: ignore[operator]
        faces = int((targets.weight > 0).sum())  # here, on the host, without waiting for a GPU
        pixels = normalise(images.to(run.device, non_blocking=True))
        targets = targets.to(run.device, non_blocking=True)
        if run.progress < 1 - config.clean_share:
            stream = run.process.number
            pixels, targets, faces = mix(config, pixels, targets, faces, stream=stream)
        with autocast(config, run.device):
            losses = run.step(pixels, targets, faces)
        _update(run, losses)
        run.batch += 1
        due = run.batch % CHECK_EVERY == 0 or run.batch == run.steps_per_epoch
        loss = _mean_loss(run) if due else None  # before the clock is read: it waits for the device
        run.seconds = time.monotonic() - started
        bar.update()
        if loss is not None:
            speed = run.batch * run.images_per_step / run.seconds
            text = f"epoch {run.epoch + 1}, loss {loss:.3f}, {speed:.1f} images/s"
            bar.set_postfix_str(text)
            run.status.write("training", run, loss=loss, images_per_second=speed)
        if any_process(stop.requested):
            run.save(checkpoint_path(config, "last"))
            run.status.write("training", run)
            bar.close()
            run.say(f"stopped and saved; continue with --resume {checkpoint_path(config, 'last')}")
            raise KeyboardInterrupt


def _waited_for(run: Run, loader: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, and in `run.waited` the seconds that the loop spent waiting for them."""
    batches = iter(loader)
    while True:
        started = time.monotonic()
        batch = next(batches, None)
        run.waited += time.monotonic() - started
        if batch is None:
            return
        yield batch


def _update(run: Run, losses: dict[str, Tensor]) -> None:
    """One optimizer step, and the running sums of every loss term."""
    run.optimizer.zero_grad(set_to_none=True)
    losses["loss"].backward()
    average_gradients(run.step.trained.parameters())
    if run.config.clip_norm:
        torch.nn.utils.clip_grad_norm_(run.step.trained.parameters(), run.config.clip_norm)
    run.optimizer.step()
    run.scheduler.step()
    if run.ema:
        run.ema.update_parameters(run.model)
    for name, value in losses.items():
        run.sums[name] = run.sums.get(name, 0.0) + value.detach()


def _mean_loss(run: Run) -> float:
    """Of the epoch so far. One that is no number ends the run before it is saved."""
    mean = float(run.sums["loss"]) / run.batch
    if not torch.isfinite(torch.tensor(mean)):
        raise TrainingError(
            f"the loss became {mean} in epoch {run.epoch + 1}, step {run.batch}; resume from the "
            "last checkpoint with a lower --lr, or look at the data with scripts/prepare_data.py"
        )
    return mean


def _validate(run: Run, validator: Validator) -> dict[str, float]:
    """AP at the end of an epoch; the weights with the highest so far are kept as …_best.pth."""
    scores = validator(run.averaged_model)
    tqdm.write(
        f"epoch {run.epoch + 1}: "
        + ", ".join(f"{name.removeprefix('val_')} {value:.3f}" for name, value in scores.items())
    )
    if scores["val_ap"] > run.best_ap:
        run.best_ap = scores["val_ap"]
        note = {**scores, "on": validator.description}
        notes = {"epoch": run.epoch + 1, "validation": note}  # this one is done, too
        run.save_weights(checkpoint_path(run.config, "best"), notes)
    return scores


def _finish_epoch(run: Run) -> dict[str, Any]:
    """The epoch's row of the log; the counters go back to the start of an epoch."""
    means = {name: float(value) / run.batch for name, value in run.sums.items()}
    row = {
        "epoch": run.epoch + 1,
        "lr": run.scheduler.get_last_lr()[0],
        **means,
        "images_per_second": run.batch * run.images_per_step / run.seconds,
        "seconds": run.seconds,
        "loader_share": run.waited / run.seconds,
    }
    run.epoch, run.batch, run.sums, run.seconds, run.waited = run.epoch + 1, 0, {}, 0.0, 0.0
    return row


def renew_batch_norms(run: Run, loader: Iterable[Batch], sampler: Any) -> None:
    """Mean and variance of every batch norm for the averaged weights, over fresh batches.

    Running averages with V1's momentum of 0.01 need some 500 steps to forget their start. The
    batches are those of epochs after the run's last one, as many as `bn_batches` wants.
    """
    if run.config.model == "v2":
        run.averaged_model.set_drop_prob(0.0)  # type: ignore[operator]
    if run.config.bn_batches:
        fresh = _batches_from(run.config.epochs, loader, sampler)
        batches = itertools.islice(fresh, run.config.bn_batches * run.process.total)
        pixels = (normalise(images.to(run.device)) for images, _ in batches)
        estimate_batch_norms(run.averaged_model, pixels)


def _batches_from(epoch: int, loader: Iterable[Batch], sampler: Any) -> Iterator[Batch]:
    """Of that epoch and those after it, without end."""
    for number in itertools.count(epoch):
        sampler.set_epoch(number)
        yield from loader
