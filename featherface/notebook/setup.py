"""Sections 1 to 3: the machine, the photos and weights, the settings, and the record of them."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

from featherface.checkpoint import load_model
from featherface.config import PRESETS, TrainConfig
from featherface.data.annotations import Photo
from featherface.data.demo import make_demo
from featherface.data.loader import worker_count
from featherface.data.widerface import HOW_TO_GET, fingerprint, read_split
from featherface.distributed import pick_device
from featherface.drawing import draw
from featherface.errors import DataError, FeatherFaceError
from featherface.files import CHECKOUT, commit, sha256, versions, write_text
from featherface.images import decode, open_photo
from featherface.notebook.display import note
from featherface.notebook.session import REAL_DATA, RECORD, TEACHERS, Session, shipped_weights
from featherface.structures import Detections
from featherface.training.optim import make_scheduler

SAMPLES = 8  # photos to try a detector on


def environment(session: Session) -> pd.DataFrame:
    """List mode, device, cores, commit and versions."""
    device = pick_device(session.config.device)
    rows: dict[str, object] = {
        "mode": f"{session.mode} ({session.reason})",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "CUDA in torch": torch.version.cuda or "no",
        "loader processes": worker_count(-1),
        "commit": commit() or "not a git checkout",
        **versions(),
    }
    return pd.DataFrame({"value": {name: str(value) for name, value in rows.items()}})


def prepare_photos(session: Session) -> None:
    """Synthesise the training photos if there are no real ones; a finished set is kept."""
    if not session.drawn:
        note(f"Photos: `{session.data}`.")
        return
    train, val = session.drawn
    make_demo(session.data, train=train, val=val, progress=False)
    note(
        f"No photos in `{REAL_DATA}`, so {train + val:,} synthetic ones are in `{session.data}`. "
        f"For real ones: `{HOW_TO_GET.removeprefix('get the data with: ')} {REAL_DATA}`."
    )


def annotated(photo: Photo) -> np.ndarray:
    """The photo (H, W, 3) RGB uint8 with its annotated boxes and landmarks drawn."""
    points = np.where(photo.landmark_mask[..., None], photo.landmarks, np.nan).astype(np.float32)
    faces = Detections(photo.boxes, np.ones(len(photo.boxes), np.float32), points)
    return draw(decode(open_photo(photo.path))[..., ::-1], faces, scores=False)


def sample_photos(session: Session, count: int = SAMPLES) -> list[Path]:
    """Photos of the val split to try a detector on, or synthetic ones where no data exist."""
    try:
        return [photo.path for photo in read_split(session.data, "val", limit=count)]
    except DataError:
        root = make_demo(session.results / "photos", train=0, val=count, progress=False)
        return sorted(root.rglob("*.jpg"))


def sample_portrait() -> Path:
    """NASA's portrait of Eileen Collins (public domain): the photo of README."""
    return CHECKOUT / "docs/astronaut.jpg"


def weights_table(session: Session) -> pd.DataFrame:
    """List the weights files: which exist, whether they load, how to get the others."""
    backbone = Path(PRESETS["v2"].backbone_weights)
    rows = [
        ("V2, shipped", shipped_weights(), "detection", "part of the project"),
        ("V1, published", TEACHERS[0], "the teacher", "weights/README.md"),
        ("V1, your own", TEACHERS[1], "the teacher, else", "python scripts/train_v1.py"),
        ("ImageNet backbone", backbone, "--init imagenet", "weights/README.md"),
    ]
    found = [
        {"weights": name, "file": path.as_posix(), "used for": use}
        | {"state": _state(path), "how to get it": "" if path.is_file() else how}
        for name, path, use, how in rows
    ]
    return pd.DataFrame(found).set_index("weights")


def _state(path: Path) -> str:
    if not path.is_file() or path.suffix != ".pth":
        return "exists" if path.is_file() else "missing"
    try:
        model = load_model(path)
    except FeatherFaceError as error:
        return str(error)
    return f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters"


def settings_table(config: TrainConfig, base: TrainConfig) -> pd.DataFrame:
    """List every setting: its value in `base` and in `config`, and what it means."""
    meaning = {item.name: item.metadata["help"] for item in fields(TrainConfig)}
    columns = {"base": base.as_dict(), "this run": config.as_dict(), "meaning": meaning}
    return pd.DataFrame(columns).loc[list(meaning)].astype(str)


def learning_rates(config: TrainConfig, steps_per_epoch: int) -> np.ndarray:
    """The learning rate of each step of a run, (steps,)."""
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=config.lr)
    scheduler = make_scheduler(optimizer, config, steps_per_epoch)
    rates = []
    for _ in range(config.epochs * steps_per_epoch):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return np.array(rates)


def write_record(session: Session) -> dict[str, Any]:
    """Write notebook_config.json into `session.results`: what this run is made with.

    All settings, versions, seed, commit, fingerprint of the data, checksums of the weights, and
    what `current_session` needs to find this session again.
    """
    own = session.teacher_config.as_dict() if session.trains_teacher else None
    record = {
        "session": {
            "mode": session.mode,
            "settings": session.settings,
            "demo_photos": list(session.drawn or (400, 40)),
        },
        "mode_chosen_because": session.reason,
        "seed": session.config.seed,
        "settings": session.config.as_dict(),
        "teacher_settings": own,
        "data": {"folder": session.data.as_posix(), "splits": _splits(session.data)},
        "weights": {
            name: {"file": path.name if path.is_absolute() else path.as_posix()}
            | {"sha256": sha256(path)}
            for name, path in session.weights.items()
        },
        "device": str(pick_device(session.config.device)),
        "versions": versions(),
        "commit": commit(),
    }
    write_text(session.results / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return record


def _splits(data: Path) -> dict[str, Any]:
    """{split: number of photos and faces, fingerprint} of the splits that exist."""
    splits = {}
    for split in ("train", "val"):
        try:
            photos = read_split(data, split)
        except DataError:
            continue
        faces = sum(len(photo.boxes) for photo in photos)
        splits[split] = {"photos": len(photos), "faces": faces, "fingerprint": fingerprint(photos)}
    return splits


def guide(name: str) -> Markdown:
    """A page of docs/, such as "troubleshooting". Raises DataError if it does not exist."""
    path = CHECKOUT / "docs" / f"{name}.md"
    if not path.is_file():
        raise DataError(f"docs/{name}.md does not exist: update the checkout")
    text = path.read_text(encoding="utf-8")
    return Markdown(re.sub(r"\]\((\w+\.md)", r"](../docs/\1", text))  # as seen from notebooks/
