"""Section 9: speed of V1 and V2, and performance_comparison.csv with all that was measured."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from torch import nn

from featherface.benchmark.speed import speed
from featherface.checkpoint import load_model
from featherface.files import versions, write_text
from featherface.models.networks import FeatherFaceV1
from featherface.notebook.display import explained, note, show_figure, show_table
from featherface.notebook.measure import SMALLEST, ap_above
from featherface.notebook.networks import network_table
from featherface.notebook.sessions import Session
from featherface.plots import plot_speed

TABLE = "performance_comparison.csv"
SIZES = ((320, 320), (480, 640), (640, 640))  # height, width
ENGINES = {"eager": "PyTorch", "onnx": "ONNX Runtime"}
LABELS = {
    "parameters": "parameters",
    "macs": "multiply-accumulates at 640×640",
    "agreement_with_v1": "faces that V1 and it both find (share of all)",
    "score_correlation_with_v1": "correlation of their scores",
    "iou_median_with_v1": "IoU of their boxes, median",
    "landmark_distance_median_with_v1": "distance of their landmarks, median (face sizes)",
    "calibration_error": "expected calibration error",
}


@explained("the speed of V1 and V2")
def compare_speed(
    current: Session,
    *,
    sizes: Sequence[tuple[int, int]] = SIZES,
    engines: Sequence[str] = tuple(ENGINES),
    rounds: int = 7,
) -> None:
    """V1 and V2 in turn in PyTorch and in ONNX Runtime, on one thread: milliseconds and ratio.

    sizes: (height, width) in pixels. ONNX Runtime takes a minute more: both are exported for it.
    """
    trained = current.teacher.is_file()
    networks: dict[str, nn.Module] = {
        "V1": load_model(current.teacher) if trained else FeatherFaceV1().eval(),
        "V2": load_model(current.deployed),
    }
    table = speed(networks, sizes=sizes, threads=(1,), engines=engines, rounds=rounds)
    if not trained:  # an untrained network takes as long, but what it finds does not
        table = table[(table["detector"] != "V1") | (table["what"] == "forward")]
    current.times = table
    show_table(_pairs(table), "milliseconds on one CPU thread, median", digits=2)
    show_figure(plot_speed(table), current.results / "speed.png")
    if not trained:
        note("V1 has no weights here, so only its forward is timed: that does not depend on them.")


def _pairs(table: pd.DataFrame) -> pd.DataFrame:
    """A row a kind of time, engine and size: V1, V2 (ms), V2 / V1."""
    rows = []
    for key, part in table.groupby(["what", "engine", "height", "width"], sort=False):
        what, engine, height, width = key
        times = part.set_index("detector")["median"]
        v1, v2 = times.get("V1"), times.get("V2")
        place = {"time": what, "in": ENGINES[engine], "width × height": f"{width}×{height}"}
        ratio = v2 / v1 if v1 and v2 else None
        rows.append({**place, "V1": v1, "V2": v2, "V2 / V1": ratio})
    return pd.DataFrame(rows)


@explained(TABLE)
def write_comparison(current: Session) -> None:
    """All that was measured as one file: a row a time, and one a detector for what it finds."""
    quality = pd.DataFrame(_quality(current))
    parts = [part for part in (current.times, quality) if part is not None and len(part)]
    used = versions()
    names = [name for name in ("torch", "onnxruntime", "python") if name in used]
    software = ", ".join(f"{name} {used[name]}" for name in names)
    frame = pd.concat(parts, ignore_index=True).assign(software=software)
    path = current.results / TABLE
    write_text(path, frame.to_csv(index=False, lineterminator="\n", float_format="%.5g"))
    shown = quality.drop(columns=["engine", "what", "photos", "size"], errors="ignore")
    turned = shown.set_index("detector").T.rename(index=_label)
    turned = turned.rename_axis("measure").rename_axis(columns=None).reset_index()
    show_table(turned, f"what they cost and find, on {_photos(current)}")
    note(f"These and the times are in `{path}`: {len(frame)} rows, {len(frame.columns)} columns.")


def _quality(current: Session) -> list[dict[str, Any]]:
    """A row a detector: cost, exact AP in percent, agreement and calibration, as far as known."""
    total = network_table().sum(numeric_only=True)
    rows = []
    for name in current.measured or ("V1", "V2, shipped"):
        kind = name[:2].lower()
        row: dict[str, Any] = {"detector": name, "engine": "eager", "what": "quality"}
        row |= {cost: int(total[f"{kind}_{cost}"]) for cost in ("parameters", "macs")}
        if name in current.measured:
            curves = current.measured[name].curves
            ap = {setting: curve.ap_exact for setting, curve in curves.items()}
            ap[f"from_{SMALLEST:.0f}_px"] = ap_above(current, name)
            row |= {f"ap_{setting}": round(100 * value, 2) for setting, value in ap.items()}
            row |= {"photos": _photos(current), "size": current.protocol_text}
        rows.append(row | current.compared.get(name, {}))
    return rows


def _photos(current: Session) -> str:
    return current.evaluated.description if current.evaluated else "no photographs"


def _label(column: str) -> str:
    if column.startswith("ap_"):
        return f"AP {column.removeprefix('ap_').replace('_', ' ')} (exact, %)"
    return LABELS[column]
