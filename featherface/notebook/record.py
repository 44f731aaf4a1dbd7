"""results/v2/notebook_config.json: what a run through the notebook was made with."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from featherface.data.widerface import fingerprint, read_split
from featherface.distributed import pick_device
from featherface.errors import DataError
from featherface.files import commit, sha256, versions, write_text
from featherface.notebook.display import explained, note, show_table
from featherface.notebook.sessions import RECORD, Session, shipped


def write_record(current: Session) -> dict[str, Any]:
    """All settings, versions, seed, commit, data fingerprint, and how to open the session again."""
    record = {
        "session": {
            "mode": current.mode,
            "settings": current.settings,
            "demo_photos": list(current.drawn or (400, 40)),
        },
        "mode_chosen_because": current.reason,
        "seed": current.config.seed,
        "settings": current.config.as_dict(),
        "teacher_settings": None if _given(current) else current.teacher_config.as_dict(),
        "data": {"folder": current.data.as_posix(), "splits": _splits(current)},
        "weights": _weights(current),
        "device": str(pick_device(current.config.device)),
        "versions": versions(),
        "commit": commit(),
    }
    write_text(RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return record


@explained("the record")
def show_record(current: Session) -> None:
    """Write the record and show where, its content folded."""
    record = write_record(current)
    rows = [
        {"what": name, "value": json.dumps(value, ensure_ascii=False)}
        for name, value in record.items()
    ]
    note(f"Written: `{RECORD}`.")
    show_table(pd.DataFrame(rows), "what it says (click)", fold=True)


def _given(current: Session) -> bool:
    """Whether the teacher's weights were there, not trained by this notebook."""
    return current.teacher.parent != Path(current.teacher_config.save_folder)


def _splits(current: Session) -> dict[str, Any]:
    splits = {}
    for split in ("train", "val"):
        try:
            photos = read_split(current.data, split)
        except DataError:
            continue
        faces = sum(len(photo.boxes) for photo in photos)
        splits[split] = {"photos": len(photos), "faces": faces, "fingerprint": fingerprint(photos)}
    return splits


def _weights(current: Session) -> dict[str, Any]:
    """{role: file and SHA-256} of the weights that are there by now."""
    paths = {"teacher": current.teacher, "trained": current.final, "shipped": shipped()}
    found = {}
    for name, path in paths.items():
        if path.is_file():
            shown = path.name if path.is_absolute() else path.as_posix()
            found[name] = {"file": shown, "sha256": sha256(path)}
    return found
