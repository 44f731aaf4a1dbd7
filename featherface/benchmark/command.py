"""`scripts/benchmark.py speed`: read its flags, measure, write the table and the plot."""

from pathlib import Path

import pandas as pd
from torch import nn

from featherface.benchmark.plot import plot_speed_against_ap
from featherface.benchmark.speed import speed
from featherface.benchmark.untrained import v1_or_untrained
from featherface.checkpoint import load_model
from featherface.errors import ConfigError, DataError
from featherface.export import parse_size
from featherface.files import check_writable, write_text
from featherface.plots import save_figure
from featherface.provenance import versions

TABLE, PLOT = "performance_comparison.csv", "speed_ap.png"
SHOWN = ["detector", "engine", "what", "height", "width", "threads", "median", "low", "high",
         "ratio_to_v1"]  # fmt: skip


def compare_speed(
    *,
    v1: str,
    v2: str,
    peers: str,
    data: str,
    sizes: str,
    threads: str,
    engines: str,
    out: str,
    rounds: int,
) -> pd.DataFrame:
    """Measure and write; all lists are comma-separated. ConfigError for what cannot be read."""
    check_writable(out)
    networks: dict[str, nn.Module] = {"V1": v1_or_untrained(v1), "V2": load_model(v2)}
    shapes = [size for size in map(parse_size, _parts(sizes)) if size]
    if not shapes:
        raise ConfigError("give at least one size, such as --sizes 640x640")
    table = speed(
        networks,
        peers=_files(peers),
        sizes=shapes,
        threads=_counts(threads),
        engines=_parts(engines),
        rounds=rounds,
        data=data,
    )
    if not Path(v1).is_file():  # untrained weights: its time is right, its AP is not
        table.loc[table["detector"] == "V1", [c for c in table if c.startswith("ap_")]] = None
    used = versions()
    table["software"] = ", ".join(
        f"{name} {used[name]}" for name in ("torch", "onnxruntime", "python") if name in used
    )
    folder = Path(out)
    text = table.to_csv(index=False, lineterminator="\n", float_format="%.5g")
    write_text(folder / TABLE, text)
    print(table[SHOWN].round(3).to_string(index=False))
    print(f"written: {folder / TABLE}")
    try:
        figure = plot_speed_against_ap(table, title="640×640, one thread, ONNX Runtime")
    except DataError as error:
        print(f"no plot: {error}")
    else:
        save_figure(figure, folder / PLOT, dpi=110)
        print(f"written: {folder / PLOT}")
    return table


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _counts(text: str) -> list[int]:
    """ "1,2" → [1, 2]."""
    parts = _parts(text)
    if not parts or not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"--threads must be whole numbers from 1, such as 1,2; got {text!r}")
    return [int(part) for part in parts]


def _files(text: str) -> list[Path]:
    """The ONNX files named, or those in the folders named."""
    found = []
    for path in map(Path, _parts(text)):
        inside = sorted(path.glob("*.onnx")) if path.is_dir() else [path]
        if not inside:
            raise ConfigError(f"{path}: no ONNX file in this folder")
        found += inside
    return found
