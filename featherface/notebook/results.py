"""Sections 4, 7 and 9: costs by part, AP by size, and one file with everything measured."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from featherface.benchmark.speed import operation_counter
from featherface.files import versions, write_text
from featherface.models.networks import FeatherFaceV1, FeatherFaceV2
from featherface.notebook.process import CONFIG_FILE, read_log
from featherface.notebook.session import Session

COMPARISON = "performance_comparison.csv"
FIGURES = "figures.json"
PICTURE = "faces.jpg"  # of section 8
PARTS = {
    "backbone": "backbone (MobileNetV1 ×0.25)",
    "backbone_attention": "attention on the backbone",
    "neck": "BiFPN",
    "neck_attention": "attention on the BiFPN",
    "context": "context (SSH)",
    "shuffle": "channel shuffle",
    "heads": "heads",
}


def network_table(size: int = 640) -> pd.DataFrame:
    """Costs of V1 and V2 by part.

    Columns: part, v1_parameters, v2_parameters, and v1_macs, v2_macs: multiply-accumulates of one
    image of size × size.
    """
    networks: dict[str, nn.Module] = {"v1": FeatherFaceV1(), "v2": FeatherFaceV2()}
    macs = {name: count_macs(network, size) for name, network in networks.items()}
    rows = []
    for key, title in PARTS.items():
        row: dict[str, Any] = {"part": title}
        for name, network in networks.items():
            part = network.get_submodule(key)
            row[f"{name}_parameters"] = sum(p.numel() for p in part.parameters())
        rows.append(row | {f"{name}_macs": counts[key] for name, counts in macs.items()})
    return pd.DataFrame(rows)


def count_macs(network: nn.Module, size: int = 640) -> dict[str, int]:
    """{part: multiply-accumulates} of one forward of a (1, 3, size, size) image.

    Counts convolutions, deformable ones too, and linear layers. Gates, norms, fusion and
    activations, under 2 % of the work, are not counted, as is usual.
    """
    with torch.no_grad(), operation_counter() as counter:
        network.eval()(torch.zeros(1, 3, size, size))
    counts, macs = counter.get_flop_counts(), {}
    for key in PARTS:
        part = f"{type(network).__name__}.{key}"
        # a list of modules never runs as a whole
        names = [part] if part in counts else [f"{part}.{level}" for level in range(3)]
        # an operation is a multiplication or an addition
        macs[key] = sum(sum(counts[name].values()) for name in names) // 2
    return macs


def remember(session: Session, detector: str, **figures: Any) -> None:
    """Keep figures of a detector, for performance_comparison.csv, also after a kernel restart."""
    kept = remembered(session)
    kept.setdefault(detector, {}).update(figures)
    write_text(session.run / FIGURES, json.dumps(kept, indent=1) + "\n")


def remembered(session: Session) -> dict[str, dict[str, Any]]:
    """{detector: figures} that this run has kept."""
    try:
        return dict(json.loads((session.run / FIGURES).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def write_comparison(session: Session, times: pd.DataFrame) -> pd.DataFrame:
    """Write performance_comparison.csv: one row per time, one per detector's quality.

    times: from `compare_speed`. Returns the rows about quality: costs, AP in percent, agreement and
    calibration, as far as `remember` has them.
    """
    total = network_table().sum(numeric_only=True)
    rows = []
    for name, figures in (remembered(session) or {"V1": {}, "V2, shipped": {}}).items():
        kind = name[:2].lower()
        costs = {cost: int(total[f"{kind}_{cost}"]) for cost in ("parameters", "macs")}
        rows.append({"detector": name, "what": "quality", **costs, **figures})
    quality, used = pd.DataFrame(rows), versions()
    names = [name for name in ("torch", "onnxruntime", "python") if name in used]
    table = pd.concat([times, quality], ignore_index=True)
    table["software"] = ", ".join(f"{name} {used[name]}" for name in names)
    text = table.convert_dtypes().to_csv(index=False, lineterminator="\n", float_format="%.5g")
    write_text(session.results / COMPARISON, text)
    return quality.drop(columns="what").set_index("detector").T


def summary(session: Session) -> pd.DataFrame:
    """List what this run gives: AP in percent, times, the files that it wrote, and one picture.

    Column: value; the index says what it is.
    """
    rows = []
    for name, figures in remembered(session).items():
        parts = [f"{k[3:].replace('_', ' ')} {v:.1f}" for k, v in figures.items() if k[:3] == "ap_"]
        rows += [(f"AP of {name}", f"{', '.join(parts)} (percent)")] if parts else []
    for model, folder in (("V1", session.teacher_config.save_folder), ("V2", session.run)):
        log = read_log(Path(folder))
        if len(log):
            minutes = log["seconds"].sum() / 60
            rows.append((f"training of {model}", f"{len(log)} epochs in {minutes:.1f} minutes"))
    table = session.results / COMPARISON
    if table.is_file():
        for row in pd.read_csv(table).query("what == 'forward' and height == 640").itertuples():
            rows.append((f"{row.detector} in {row.engine}", f"{row.median:.1f} ms at 640×640"))
    config = session.run / CONFIG_FILE
    begin = config.stat().st_mtime if config.is_file() else 0.0
    for path in (session.final, *sorted(session.results.iterdir())):
        used = path.suffix in (".pth", ".onnx", ".csv", ".json", ".md", ".png", ".jpg")
        if path.is_file() and used and path.stat().st_mtime >= begin:
            kind = "picture" if path.name == PICTURE else "file"
            rows.append((kind, f"{path.as_posix()} ({path.stat().st_size / 1e3:,.1f} kB)"))
    rows.sort(key=lambda row: row[0] == "picture")  # at the end
    return pd.DataFrame(rows, columns=["what", "value"]).drop_duplicates().set_index("what")
