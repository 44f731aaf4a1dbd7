"""The training loop, one for V1 and V2."""

import itertools
import tempfile
import time
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn
from tqdm.auto import tqdm

from featherface.config import TrainConfig
from featherface.data.loader import make_loader
from featherface.data.mixing import mix
from featherface.data.prepare import fingerprint
from featherface.errors import TrainingError
from featherface.preprocess import normalise
from featherface.structures import Batch
from featherface.training.log import TrainingLog
from featherface.training.photos import training_photos
from featherface.training.run import Run
from featherface.training.schedule import dropblock_probability
from featherface.training.stopping import GracefulStop
from featherface.training.validation import Validator

CHECK_EVERY = 10  # steps between looks at the loss: a look makes a GPU wait


def checkpoint_path(config: TrainConfig, what: int | str) -> Path:
    """…/FeatherFaceV2_epoch_10.pth, …_last.pth (to resume from), …_best.pth, …_final.pth."""
    part = f"epoch_{what}" if isinstance(what, int) else what
    return Path(config.save_folder) / f"FeatherFace{config.model.upper()}_{part}.pth"


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
    TrainingError where another run lies in the folder, unless `overwrite`, which removes it.
    """
    prepare_folder(config, keep=resume is not None, overwrite=overwrite)
    torch.manual_seed(config.seed)
    photos = training_photos(config)
    loader, sampler = make_loader(photos, config)
    validator = Validator(config) if config.validate_every else None
    faces = sum(len(photo.boxes) for photo in photos)
    data = {"photos": len(photos), "faces": faces, "fingerprint": fingerprint(photos)}
    run = Run(config, steps_per_epoch=len(loader), data=data, start=resume is None)
    log = TrainingLog(Path(config.save_folder) / "training_log.csv")
    if resume:
        run.resume(resume)
        log.resume_from(run.epoch)
    total = config.epochs * run.steps_per_epoch
    tqdm.write(
        f"{config.model}: {len(photos):,} photos, {faces:,} faces, {config.epochs} epochs of "
        f"{run.steps_per_epoch} steps on {run.device}, from epoch {run.epoch}"
    )
    if validator:
        tqdm.write(f"validation: {validator.description}")
    with (
        GracefulStop() as stop,
        tqdm(total=total, initial=round(run.progress * total), unit="step", disable=not progress)
        as bar,
    ):  # fmt: skip
        while run.epoch < config.epochs:
            sampler.set_epoch(run.epoch, start=run.batch * config.batch_size)
            train_one_epoch(run, loader, stop, bar)
            due = (run.epoch + 1) % (config.validate_every or 1) == 0
            scores = {}
            if validator and (due or run.epoch + 1 == config.epochs):
                run.save(checkpoint_path(config, "last"))  # measuring can take long
                scores = _validate(run, validator)
            log.add(_finish_epoch(run) | scores)
            run.save(checkpoint_path(config, "last"))
            if run.epoch % config.save_every == 0:
                run.save(checkpoint_path(config, run.epoch))
    sampler.set_epoch(config.epochs)
    _estimate_batch_norms(run, loader)
    final = checkpoint_path(config, "final")
    run.save_weights(final)
    return final


def _estimate_batch_norms(run: Run, loader: Iterable[Batch]) -> None:
    """Mean and variance of every batch norm for the averaged weights, over fresh batches.

    Running averages with V1's momentum of 0.01 need some 500 steps to forget their start.
    """
    if run.config.model == "v2":
        run.averaged_model.set_drop_prob(0.0)  # type: ignore[operator]
    batches = itertools.islice(loader, run.config.bn_batches)
    if run.config.bn_batches:
        pixels = (normalise(images.to(run.device)) for images, _ in batches)
        update_bn(pixels, run.averaged_model)


def prepare_folder(config: TrainConfig, *, keep: bool, overwrite: bool) -> None:
    """Make the save folder, see that it can be written to, and that no run lies there.

    With `overwrite` the run that lies there goes, all but its final weights, which stay until
    there are new ones. TrainingError without; OSError if the folder cannot be written to.
    """
    folder = Path(config.save_folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    last = checkpoint_path(config, "last")
    if keep or not last.exists():
        return
    if not overwrite:
        raise TrainingError(
            f"{last}: a run lies here; go on with --resume, or start anew with --overwrite or in "
            "another --save-folder"
        )
    name = last.name.removesuffix("last.pth")
    for old in (*folder.glob(f"{name}epoch_*.pth"), checkpoint_path(config, "best"), last):
        old.unlink(missing_ok=True)


def train_one_epoch(run: Run, loader: Iterable[Batch], stop: GracefulStop, bar: tqdm) -> None:
    """From batch `run.batch` to the end of the epoch; saves and raises when asked to stop."""
    config = run.config
    started = time.monotonic() - run.seconds
    run.step.trained.train()
    amp = config.amp == "auto" and run.device.type == "cuda" and torch.cuda.is_bf16_supported()
    for images, targets in loader:
        if config.model == "v2":
            run.model.set_drop_prob(dropblock_probability(config, run.progress))  # type: ignore[operator]
        pixels = normalise(images.to(run.device, non_blocking=True))
        targets = targets.to(run.device, non_blocking=True)
        if run.progress < 1 - config.clean_share:
            pixels, targets = mix(
                pixels,
                targets,
                mixup_alpha=config.mixup_alpha,
                mixup_prob=config.mixup_prob,
                cutmix_prob=config.cutmix_prob,
            )
        with torch.autocast("cuda", torch.bfloat16) if amp else nullcontext():
            losses = run.step(pixels, targets)
        _update(run, losses)
        run.batch += 1
        run.seconds = time.monotonic() - started
        bar.update()
        if run.batch % CHECK_EVERY == 0 or run.batch == run.steps_per_epoch:
            _show(run, bar)
        if stop.requested:
            run.save(checkpoint_path(config, "last"))
            bar.close()
            tqdm.write(f"stopped and saved {checkpoint_path(config, 'last')}; go on with --resume")
            raise KeyboardInterrupt


def _update(run: Run, losses: dict[str, Tensor]) -> None:
    """One optimizer step, and the running sums of every loss term."""
    run.optimizer.zero_grad(set_to_none=True)
    losses["loss"].backward()
    if run.config.clip_norm:
        torch.nn.utils.clip_grad_norm_(run.step.trained.parameters(), run.config.clip_norm)
    run.optimizer.step()
    run.scheduler.step()
    if run.ema:
        run.ema.update_parameters(run.model)
    for name, value in losses.items():
        run.sums[name] = run.sums.get(name, 0.0) + value.detach()


def _show(run: Run, bar: tqdm) -> None:
    """Loss and speed on the bar; a loss that is no number ends the run before it is saved."""
    mean = float(run.sums["loss"]) / run.batch
    if not torch.isfinite(torch.tensor(mean)):
        raise TrainingError(
            f"the loss became {mean} in epoch {run.epoch + 1}, step {run.batch}; resume from the "
            "last checkpoint with a lower --lr, or look at the data with scripts/prepare_data.py"
        )
    speed = run.batch * run.images_per_step / run.seconds
    bar.set_postfix_str(f"epoch {run.epoch + 1}, loss {mean:.3f}, {speed:.1f} images/s")


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
        run.save_weights(checkpoint_path(run.config, "best"), {"validation": note})
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
    }
    run.epoch, run.batch, run.sums, run.seconds = run.epoch + 1, 0, {}, 0.0
    return row
