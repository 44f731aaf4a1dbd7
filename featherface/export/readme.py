"""The README beside exported files: how to use them, and what this export measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from featherface.config import DISPLAY_SCORE, KEEP_TOP_K, MEAN_BGR, NMS_IOU, PRE_NMS_TOP_K

_USE = """\
## Use

```python
from featherface import Detector, OnnxDetector   # OnnxDetector needs no PyTorch

faces = OnnxDetector("{onnx}").detect("photo.jpg")
faces = Detector("{package}").detect("photo.jpg")
faces.boxes, faces.scores, faces.landmarks       # (K, 4) x1 y1 x2 y2, (K,), (K, 5, 2), in pixels
```
"""
_ALONE = """Without this project, with ONNX Runtime alone:

```python
import cv2, numpy as np, onnxruntime

session = onnxruntime.InferenceSession("{onnx}", providers=["CPUExecutionProvider"])
boxes, scores, landmarks = session.run(None, {{
    "image": cv2.imread("photo.jpg"),                    # {shape} uint8 BGR, {sides}
    "score_threshold": np.array({score}, np.float32),    # optional, as is iou_threshold
}})
```
"""
_PROCESSING = """\
## Before and after the network

Input: BGR, 0–255, minus {mean}, padded on the right and below with that colour to multiples of
32. Then: faces that score over {score}, the best {top}, NMS at IoU {iou}, at most {keep}. The
end-to-end form does all of it; the raw form reads `image` (B, 3, H, W) float32 and gives `boxes`
(B, A, 4), `scores` (B, A) and `landmarks` (B, A, 5, 2) of all anchors, decoded, in pixels.
Landmarks: left eye, right eye, nose, left and right mouth corner, as seen in the image.
"""


def readme(
    *,
    title: str,
    files: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    metrics: Mapping[str, Any],
    evaluations: Sequence[Mapping[str, Any]],
    size: tuple[int, int] | None = None,
) -> str:
    """The text. files: name, bytes, holds, kind of each; facts: what was exported, and on what
    machine; metrics: what `export` measured; evaluations: those recorded in the weights file;
    size: height and width of the ONNX files, None: any."""
    parts = [f"# {title}", "", *_lines(facts), ""]
    parts += ["| file | bytes | holds |", "|---|---|---|"]
    parts += [f"| `{item['name']}` | {item['bytes']:,} | {item['holds']} |" for item in files]
    parts += ["", *_use({str(item["kind"]): str(item["name"]) for item in files}, size)]
    mean = "/".join(f"{value:g}" for value in MEAN_BGR)
    parts += ["", _PROCESSING.format(mean=mean, score=DISPLAY_SCORE, iou=NMS_IOU,
                                     top=f"{PRE_NMS_TOP_K:,}", keep=KEEP_TOP_K)]  # fmt: skip
    parts += ["## Measured by this export", "", *_parity(metrics["parity"])]
    parts += ["", *_speed(metrics["speed"], str(facts["machine"]))]
    if metrics.get("int8"):
        parts += ["", *_int8(metrics["int8"], compared=bool(metrics.get("average_precision")))]
    parts += ["", *_precision(metrics.get("average_precision") or (), evaluations)]
    return "\n".join(parts).replace("\n\n\n", "\n\n").rstrip() + "\n"


def _use(names: Mapping[str, str], size: tuple[int, int] | None) -> list[str]:
    """How to use the file that serves most; names: by kind."""
    whole = next((names[kind] for kind in ("end_to_end", "int8", "fp16") if kind in names), None)
    lines = [_USE.format(onnx=whole or names["raw"], package=names["package"])]
    if not whole:
        return lines
    shape = f"({size[0]}, {size[1]}, 3)" if size else "(H, W, 3)"
    sides = f"exactly {size[0]}×{size[1]}" if size else "any size"
    return [*lines, _ALONE.format(onnx=whole, score=DISPLAY_SCORE, shape=shape, sides=sides)]


def _lines(facts: Mapping[str, Any]) -> list[str]:
    return [f"- {name}: {value}" for name, value in facts.items()]


def _parity(parity: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What each file's check against the trained network gave."""
    lines = [f"Against the trained network in PyTorch, on {parity['pictures']['count']} pictures "
             f"({parity['pictures']['from']}, {parity['pictures']['sizes']}):", ""]  # fmt: skip
    for name, values in parity.items():
        if name == "pictures":
            continue
        if "boxes" in values:
            lines.append(
                f"- `{name}`, all anchors: boxes within {values['boxes']:.1e} px, scores within "
                f"{values['scores']:.1e}, landmarks within {values['landmarks']:.1e} px"
            )
            continue
        low = values["score_threshold"] < DISPLAY_SCORE
        about = f"`{name}`: " + (
            f"no face in these pictures; over a score of {values['score_threshold']:.2g}: "
            if low
            else ""
        )
        if not values["faces"]:
            lines.append(f"- {about}no face in both, {values['in_one_only']} in one only")
            continue
        lines.append(
            f"- {about}{values['faces']} faces in both, {values['in_one_only']} in one only, "
            f"box IoU at least {values['smallest_iou']:.6f}, scores within "
            f"{values['score_difference']:.1e}"
        )
    return lines


def _speed(rows: Sequence[Mapping[str, Any]], machine: str) -> list[str]:
    """The table of times."""
    if not rows:
        return []
    forwards = [row["network"] for row in rows if row["what"] == "forward"]
    decoded = ", which the raw form decodes and PyTorch here does not" if len(forwards) > 1 else ""
    lines = [f"Time on one thread, milliseconds of CPU time, {rows[0]['size']} (height × width), "
             f"all in turn in one process, {rows[0]['rounds']} rounds, {machine}. Forward: "
             f"prepared pixels to all anchors{decoded}:", ""]  # fmt: skip
    lines += ["| what | network | median | smallest–largest | × PyTorch |", "|---|---|---|---|---|"]
    return lines + [
        f"| {row['what']} | {row['network']} | {row['median']:.1f} | {row['min']:.1f}–"
        f"{row['max']:.1f} | {row['ratio']:.2f} |"
        for row in rows
    ]


def _int8(facts: Mapping[str, Any], *, compared: bool) -> list[str]:
    """What is 8-bit, and whether it is faster. compared: AP was measured, too."""
    precision = "" if compared else "AP against float is measured with `--data` only. "
    if facts["ratio"] is None:
        speed = "Its speed was not measured (`--rounds`)."
    else:
        verdict = "faster" if facts["ratio"] < 0.98 else "not faster"
        speed = (f"On this machine it is {verdict} than float: {facts['ratio']:.2f}× its time, "
                 "picture to faces. Processors without VNNI may differ.")  # fmt: skip
    return [
        f"INT8: {facts['layers']} convolutions compute in 8 bits, {facts['left']} that were worth "
        f"it by size stay in float for accuracy. Calibrated on {facts['calibrated_on']}, on which "
        "the parity above is measured too; there the scores that matter change by "
        f"{facts['score_error']:.4f} on average. {precision}{speed}"
    ]


def _precision(
    measured: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]
) -> list[str]:
    """AP measured by the export, and AP that the weights file carries."""
    lines = []
    if measured:
        lines += [f"Exact AP in percent on {measured[0]['on']}:", ""]
        lines += _table(
            [(row["network"], row["protocol"], row["ap"]) for row in measured], "network"
        )
    if evaluations:
        lines += [
            "",
            "Recorded in the weights file (`scripts/evaluate.py --record`), exact AP:",
            "",
        ]
        rows = [(part["description"], part["protocol"], _settings(part)) for part in evaluations]
        lines += _table(rows, "photographs")
    return lines or ["AP: not measured here (`--data`), none recorded in the weights file."]


def _settings(part: Mapping[str, Any]) -> dict[str, float]:
    """{setting: exact AP in percent} of a recorded evaluation."""
    return {
        name: 100 * value["ap_exact"]
        for name, value in part.items()
        if isinstance(value, Mapping) and "ap_exact" in value
    }


def _table(rows: Sequence[tuple[Any, Any, Mapping[str, float]]], first: str) -> list[str]:
    settings = list(dict.fromkeys(name for *_, ap in rows for name in ap))
    lines = [f"| {first} | size | {' | '.join(settings)} |", "|---" * (2 + len(settings)) + "|"]
    for name, protocol, ap in rows:
        values = " | ".join(f"{ap[s]:.2f}" if s in ap else "" for s in settings)
        lines.append(f"| {name} | {protocol} | {values} |")
    return lines
