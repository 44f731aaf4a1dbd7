"""Sections 1 to 3: the machine, the data and weights, the settings."""

from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from featherface.checkpoint import load_model
from featherface.config import PRESETS, TrainConfig
from featherface.data.annotations import Photo
from featherface.data.loader import FaceDataset, make_loader, worker_count
from featherface.data.mixing import cutmix, mixup
from featherface.data.widerface import HOW_TO_GET, read_split, verify
from featherface.distributed import pick_device
from featherface.drawing import draw, draw_targets
from featherface.errors import DataError, FeatherFaceError
from featherface.files import commit, versions
from featherface.images import decode, open_photo
from featherface.notebook.display import (
    Live,
    explained,
    note,
    problem,
    show_figure,
    show_pictures,
    show_table,
)
from featherface.notebook.faces import counted
from featherface.notebook.record import write_record
from featherface.notebook.sessions import REAL_DATA, TEACHERS, Session, make_drawn_set, shipped
from featherface.plots import plot_schedule
from featherface.structures import Detections
from featherface.training.engine import training_photos
from featherface.training.optim import make_scheduler


@explained("the environment")
def show_environment(current: Session) -> None:
    """Versions, device, cores, mode."""
    device = pick_device(current.config.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    rows: dict[str, object] = {
        "mode": f"{current.mode} ({current.reason})",
        "device": name,
        "CUDA in torch": torch.version.cuda or "no",
        "CUDA device": "yes" if torch.cuda.is_available() else "none",
        "cores for the loader": worker_count(-1),
        "commit": commit() or "not a git checkout",
        **versions(),
    }
    show_table(pd.DataFrame({"what": rows.keys(), "value": [str(v) for v in rows.values()]}))


@explained("the data")
def prepare_data(current: Session) -> None:
    """Render the drawn set where photographs are missing, then verify what there is."""
    if current.mode == "quick" and current.drawn:
        note(
            f"No photographs in `{REAL_DATA}`, so some are drawn. For the real ones: "
            f"`{HOW_TO_GET.removeprefix('get the data with: ')} {REAL_DATA}`."
        )
        live, count = Live(), f"{sum(current.drawn):,} photographs"
        live.line(f"drawing {count} into {current.data}: a minute or two the first time")
        make_drawn_set(current)
        live.line(f"drawn: {count} in {current.data}")
    report = verify(current.data, progress=not current.headless)
    if report.splits:
        frame = report.to_dataframe()  # the counts of WIDER FACE say nothing of a drawn set
        show_table(frame.drop(columns="of") if current.drawn else frame, f"data in {current.data}")
    for line in report.problems:
        problem("part of the data", line)
    if report.splits and not any(item.faces_with_landmarks for item in report.splits):
        note("No landmark annotation: the teacher alone teaches landmarks.")
    if not current.drawn:
        truth = (current.data / "ground_truth/wider_face_val.mat").is_file()
        note("Official ground truth for easy, medium, hard: " + ("there." if truth else "missing."))


@explained("sample photographs")
def show_photos(current: Session) -> None:
    """Six photographs with their annotated boxes and landmarks."""
    photos = [p for p in read_split(current.data, limit=200) if 1 <= len(p.boxes) <= 12][:6]
    if not photos:
        raise DataError(f"{current.data}: no photograph with 1 to 12 faces to show")
    titles = [f"{p.name.split('/')[0]}: {counted(p.boxes)}" for p in photos]
    pictures = [(title, _annotated(photo)) for title, photo in zip(titles, photos, strict=True)]
    show_pictures(pictures, current.results / "photos.png")


def _annotated(photo: Photo) -> np.ndarray:
    """The photo (H, W, 3) RGB with its boxes and the landmarks that it has."""
    points = np.where(photo.landmark_mask[..., None], photo.landmarks, np.nan).astype(np.float32)
    faces = Detections(photo.boxes, np.ones(len(photo.boxes), np.float32), points)
    return draw(decode(open_photo(photo.path))[..., ::-1], faces, scores=False)


@explained("the weights")
def show_weights(current: Session) -> None:
    """Which weights are there, and how to get the others."""
    teacher, backbone = TEACHERS[0], Path(PRESETS["v2"].backbone_weights)
    rows = [
        ("shipped V2", shipped(), "comes with the project", "detection; start of a backbone"),
        ("published V1", teacher, "weights/README.md, or scripts/train_v1.py", "the teacher"),
        ("V1 of one's own", TEACHERS[1], "python scripts/train_v1.py", "the teacher, else"),
        ("ImageNet backbone", backbone, "weights/README.md", "only for --init imagenet"),
    ]
    found = [
        {"weights": name, "file": path.as_posix(), "state": _state(path), "for": use}
        | {"how to get it": "" if path.is_file() else how}
        for name, path, how, use in rows
    ]
    show_table(pd.DataFrame(found), "weights")
    if current.mode == "quick" and current.teacher not in TEACHERS:
        note("No V1 is here: section 5 trains a small teacher first.")


def _state(path: Path) -> str:
    if not path.is_file():
        return "missing"
    if path.suffix != ".pth":
        return "there"
    try:
        model = load_model(path)
    except FeatherFaceError as error:
        return str(error)
    return f"loads: {type(model).__name__}, {sum(p.numel() for p in model.parameters()):,}"


@explained("the settings")
def show_settings(current: Session) -> None:
    """Every setting: the published recipe's value, this run's, and what it means."""
    rows = []
    for item in fields(TrainConfig):
        value = getattr(current.config, item.name)
        default = getattr(PRESETS["published"], item.name)
        choices = item.metadata["choices"]
        meaning = item.metadata["help"] + (f" ({', '.join(choices)})" if choices else "")
        rows.append({"setting": item.name, "published": str(default), "this run": str(value)}
                    | {"meaning": meaning, "_": value != default})  # fmt: skip
    frame = pd.DataFrame(rows)
    changed = frame[frame["_"]].drop(columns="_")
    show_table(changed, "what this run changes of the published recipe")
    show_table(frame.drop(columns="_"), f"all {len(frame)} settings (click)", fold=True)
    write_record(current)


@explained("the learning-rate schedule")
def show_schedule(current: Session) -> None:
    """Linear warm-up, then a cosine, step by step as the run will take it."""
    config = current.config
    batch = config.batch_size or PRESETS["v2"].batch_size  # 0: found out by the run
    steps = max(1, len(training_photos(config)) // batch)
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=config.lr)
    scheduler = make_scheduler(optimizer, config, steps)
    rates = []
    for _ in range(config.epochs * steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    title = f"{config.epochs} epochs of {steps} steps"
    figure = plot_schedule(
        np.arange(len(rates)), np.array(rates), steps_per_epoch=steps, title=title
    )
    show_figure(figure, current.results / "schedule.png")


@explained("augmented and mixed samples")
def show_samples(current: Session) -> None:
    """What the network sees: four augmented crops, four of MixUp, four of CutMix."""
    config = current.config.replace(batch_size=4, num_workers=0)
    loader, _ = make_loader(FaceDataset(training_photos(config), config))
    images, targets = next(iter(loader))
    generator = torch.Generator().manual_seed(config.seed)
    rows = [("augmented: crop, flip, colours", draw_targets(images.float(), targets))]
    for name, function in (("MixUp", mixup), ("CutMix", partial(cutmix, min_face=config.min_face))):
        mixed = function(images.float(), targets, alpha=1.0, generator=generator)
        rows.append((f"{name} of these (numbers: weight of a face)", draw_targets(*mixed)))
    show_pictures(rows, current.results / "samples.png", columns=1)
    if not config.mixup_prob and not config.cutmix_prob:
        note("MixUp and CutMix are off in this run: a few epochs are too short for them.")
