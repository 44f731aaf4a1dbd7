"""The training loop, one for V1 and V2, in one process or several."""

import itertools
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
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
    any_process,
    average_gradients,
    joined,
    random_state,
    seed_device,
    set_random_state,
    this_machine,
    wait_for_all,
)
from featherface.errors import ConfigError, TrainingError
from featherface.structures import Batch
from featherface.training.optim import dropblock_probability, estimate_batch_norms
from featherface.training.state import (
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
    fitting_batch,
    is_wanted,
    make_step,
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


HOLD_OUT_SEED = 0  # not the run's: runs of several seeds are compared on the same photos


def training_photos(config: TrainConfig) -> list[Photo]:
    """The labelled photos of the split, then the unlabelled ones, none of them held out.

    ConfigError if V1 is given unlabelled photos: without a teacher they teach nothing.
    """
    photos = _divided(config, held_out=False)
    if not config.unlabelled:
        return photos
    if config.model == "v1":
        raise ConfigError("--unlabelled needs a teacher, and V1 has none: leave it out")
    kept_out = {photo.path.resolve() for photo in held_out_photos(config)}
    unlabelled = read_unlabelled(config.unlabelled)
    return photos + [photo for photo in unlabelled if photo.path.resolve() not in kept_out]


def held_out_photos(config: TrainConfig) -> list[Photo]:
    """The labelled photos that `hold_out` keeps aside: the same for every seed."""
    return _divided(config, held_out=True)


def _divided(config: TrainConfig, *, held_out: bool) -> list[Photo]:
    photos = read_split(config.data, config.split, config.training_dataset, limit=config.limit)
    order = np.random.default_rng(HOLD_OUT_SEED).permutation(len(photos))
    count = round(config.hold_out * len(photos))
    chosen = order[:count] if held_out else order[count:]
    return [photos[index] for index in np.sort(chosen)]


CHECK_EVERY = 10  # steps between looks at the loss: a look makes a GPU wait


def train(
    config: TrainConfig,
    *,
    resume: Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Train as the config says and return the path of the final weights.

    Writes checkpoints and training_log.csv to `config.save_folder`. On Ctrl-C or SIGTERM the state
    is saved to …_last.pth and KeyboardInterrupt is raised; `resume` continues to the same result.
    TrainingError where another run lies in the folder than that of `resume`; without `resume`
    `overwrite` removes it once all else is ready.

    Under torchrun this is one of several processes, of which the first writes and speaks.
    """
    with joined(config.device) as process, memory_errors_explained(config):
        folder = Path(config.save_folder).resolve()
        goes_on = resume is not None and resume.parent.resolve() == folder
        if process.first:
            check_folder(config, run_allowed=goes_on or (overwrite and not resume))
        wait_for_all()
        torch.manual_seed(config.seed)
        seed_device(config.seed + process.number, process.device)
        photos = training_photos(config)
        images_per_step(len(photos), config.batch_size, process.total)  # before a long decoding
        cache = build_cache(
            photos,
            config,
            process.device,
            progress=progress and process.first,
            machine=this_machine(),
        )
        config = _with_batch_size(config, process.device, photos=len(photos))
        loader, sampler = make_batches(photos, config, process.device, cache, shard=process.shard)
        validator = Validator(config, photos) if config.validate_every else None
        faces = sum(len(photo.boxes) for photo in photos)
        data = {"photos": len(photos), "faces": faces, "fingerprint": fingerprint(photos)}
        run = Run(
            config, steps_per_epoch=len(loader), data=data, start=resume is None, process=process
        )
        log = TrainingLog(log_path(config))
        if resume:
            run.resume(resume)
            log.resume_from(run.epoch)
        run.say(f"{run.description}, photos: {cache or 'read anew each epoch'}")
        if validator:
            run.say(f"validation: {validator.description}")
        if is_wanted(config.compile, run.device, steps=config.epochs * run.steps_per_epoch):
            trial = trial_of(run.step, config, run.device)
            compile_networks(run.networks, lambda: trial(sampler.batch // process.total))
        wait_for_all()  # until no process can fail in its set-up, or still reads what goes
        if process.first and not goes_on:
            kept = clear_folder(config)
            if kept:
                run.say(f"the final weights that lie in the folder are kept as {kept}")
        wait_for_all()
        _epochs(run, loader, sampler, validator, log, progress=progress and process.first)
        renew_batch_norms(run, loader, sampler)
        final = checkpoint_path(config, "final")
        if process.first:
            run.save_weights(final)
        wait_for_all()
        run.say(f"done: {final}")
        return final


def _with_batch_size(config: TrainConfig, device: torch.device, *, photos: int) -> TrainConfig:
    """The config with a batch size that fits, where it asks for one."""
    if config.batch_size:
        return config
    random = random_state(device)
    step = make_step(config.replace(batch_size=1), device=device, steps=1)
    size = fitting_batch(device, trial_of(step, config, device), photos=photos)
    set_random_state(random, device)
    return config.replace(batch_size=size)


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
                run.save(checkpoint_path(config, "last"))  # measuring can take long
                scores = _validate(run, validator) if run.process.first else {}
            row = _finish_epoch(run) | scores
            if run.process.first:
                log.add(row)
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
        if any_process(stop.requested):
            run.save(checkpoint_path(config, "last"))
            bar.close()
            run.say(f"stopped and saved; go on with --resume {checkpoint_path(config, 'last')}")
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
