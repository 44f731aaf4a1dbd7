"""Section 10: the files to deploy, made by scripts/export.py, and a check that they agree."""

import subprocess
import sys
from pathlib import Path

import pandas as pd

from featherface.detector import Detector
from featherface.errors import ConfigError, DataError, FeatherFaceError
from featherface.evaluation import compare
from featherface.files import CHECKOUT
from featherface.notebook.display import explained, note, show_table, show_text
from featherface.notebook.faces import sample_folder
from featherface.notebook.sessions import Session
from featherface.structures import Detections

PACKAGE, GRAPH = "featherface_v2_deployment.pth", "featherface_v2_deployment.onnx"
CONTENTS = {
    PACKAGE: "weights, settings, pre- and post-processing, figures; for PyTorch",
    GRAPH: "a picture in, its faces out, for ONNX Runtime: no PyTorch needed",
    "README.md": "how to use them, with the figures that the export measured",
}


@explained("the export")
def export(current: Session) -> None:
    """Run scripts/export.py on the V2 to deploy, list what it wrote, show its README folded."""
    script = CHECKOUT / "scripts/export.py"
    if not script.is_file():
        raise ConfigError("scripts/export.py is not in this checkout: get a newer one to export")
    command = [sys.executable, str(script), "--weights", str(current.deployed)]
    command += ["--out", current.results.as_posix(), "--form", "end_to_end"]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if result.returncode:
        said = [line for line in result.stderr.splitlines() if line.strip()] or ["no message"]
        raise ConfigError(f"{said[-1].removeprefix('error: ')} (scripts/export.py)")
    note(f"Exported `{current.deployed}`.")
    rows = [
        {"file": name, "MB": (current.results / name).stat().st_size / 1e6, "holds": holds}
        for name, holds in CONTENTS.items()
        if (current.results / name).is_file()
    ]
    show_table(pd.DataFrame(rows), f"written to {current.results}", digits=3)
    readme = current.results / "README.md"
    show_text(readme.read_text(encoding="utf-8"), f"{readme} (click)")


@explained("the parity of the exported files")
def check_export(current: Session) -> None:
    """The trained weights, the package and the ONNX file on the same photographs."""
    if not any((current.results / name).is_file() for name in (PACKAGE, GRAPH)):
        raise ConfigError("nothing is exported yet: run the cell above")
    photos = sorted(path for path in Path(sample_folder(current)).rglob("*.jpg"))
    trained = Detector(current.deployed).detect_batch(photos)
    if not any(len(faces) for faces in trained):
        raise DataError("no face found in the sample photographs, so nothing to compare")
    rows: list[dict[str, object]] = []
    for name in (PACKAGE, GRAPH):
        try:
            found = _detect(current.results / name, photos)
        except (FeatherFaceError, ImportError) as error:
            rows.append({"file": name, "verdict": str(error)})
            continue
        rows.append({"file": name, **_agreement(trained, found)})
    show_table(
        pd.DataFrame(rows), f"against the trained weights, {len(photos)} photographs", digits=6
    )


def _detect(path: Path, photos: list[Path]) -> list[Detections]:
    if not path.is_file():
        raise DataError("not there: see the cell above")
    if path.suffix == ".pth":
        return Detector(path).detect_batch(photos)
    from featherface.onnx_detector import OnnxDetector

    return OnnxDetector(path).detect_batch(photos)


def _agreement(expected: list[Detections], found: list[Detections]) -> dict[str, object]:
    """Faces in both, in one only, the smallest IoU and the largest difference of the scores."""
    frame, summary = compare(expected, found)
    pairs = frame[frame["status"] == "matched"]
    same = not summary["missed"] and not summary["extra"]
    return {
        "verdict": "the same faces" if same else "different faces",
        "in both": summary["matched"],
        "in one only": summary["missed"] + summary["extra"],
        "smallest IoU": float(pairs["iou"].astype(float).min()),
        "largest score difference": float((pairs["score_a"] - pairs["score_b"]).abs().max()),
    }
