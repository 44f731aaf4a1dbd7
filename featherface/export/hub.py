"""A folder for the Hugging Face Hub: weights as safetensors and a model card of what was measured.

No figure of the card is typed by hand: AP comes from the evaluations recorded in the weights file
(evaluate --record) or from an evaluation.json of exactly this file.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featherface.checkpoint import build_model, read_file, write_safetensors
from featherface.errors import ConfigError
from featherface.files import check_writable, commit, sha256, versions, write_text

TAGS = ["face-detection", "facial-landmarks", "knowledge-distillation", "pytorch", "safetensors"]
CARD = """\
# FeatherFace {network}

A face detector with {parameters:,} parameters: boxes, scores and five landmarks per face
(Electronics 2025, 14(3), 517).

```python
import featherface as ff   # pip install 'featherface[train]'

detector = ff.Detector("model.safetensors")
print(detector.detect("photo.jpg"))
```

## Average precision

{table}

AP is in percent, exact (each score is a threshold). A subset of WIDER FACE is not WIDER FACE's AP.

## Training

{training}

## Terms

The code has the {licence} licence. Weights that were trained on WIDER FACE are for research use, as
its photographs are. The model finds faces and identifies nobody. Fairness across groups of people
has not been measured.

Made by `featherface hub` from `{source}` (SHA-256 {sha256}), {versions}, commit {commit}.
"""


@dataclass(frozen=True)
class Measured:
    """One AP in percent, with its setting (such as hard) and the conditions."""

    ap: float
    setting: str
    data: str
    protocol: str
    faces: int


def write_hub_folder(
    weights: str | os.PathLike,
    out: str | os.PathLike,
    *,
    evaluation: str | os.PathLike = "",
    licence: str = "mit",
) -> list[Path]:
    """Write model.safetensors and README.md, the model card, into `out`; return their paths.

    evaluation: an evaluation.json of these weights, in addition to what is recorded in the file.
    Raises CheckpointError for the weights, and ConfigError for an evaluation of another file.
    """
    content, digest = read_file(weights), sha256(weights)
    model = build_model(content, weights)
    records = list(content.get("evaluations") or [])
    if evaluation:
        records.append(read_evaluation(evaluation, digest))
    check_writable(out)
    files = [Path(out) / "model.safetensors", Path(out) / "README.md"]
    measured = [value for record in records for value in _measured(record)]
    network = str(getattr(model, "name", "")).upper()
    used = {name: version for name, version in versions().items() if name in ("torch", "python")}
    text = CARD.format(
        network=network,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        table=_table(measured),
        training=_training(content),
        licence=licence,
        source=Path(weights).name,
        sha256=digest[:16],
        versions=", ".join(f"{name} {version}" for name, version in used.items()),
        commit=commit() or "unknown",
    )
    write_safetensors(files[0], model)
    write_text(files[1], _front_matter(network, measured, licence) + text)
    return files


def read_evaluation(path: str | os.PathLike, digest: str) -> dict[str, Any]:
    """Read an evaluation.json as a recorded evaluation of the file with this SHA-256.

    Raises ConfigError if it is no evaluation.json, or does not hold this file.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        sources, detectors = record["sources"], record["detectors"]
        name = next((key for key in sources if sources[key].get("sha256") == digest), None)
        found = detectors[name] if name is not None else {}
        about = {"description": record["description"], "protocol": record["protocol"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: not an evaluation.json of this project: {error}") from error
    if name is None:
        raise ConfigError(
            f"{path}: measures other weights: none of {', '.join(sources)} has the SHA-256 "
            f"{digest[:16]}; evaluate this file first"
        )
    return {**found, **about}


def _measured(record: Mapping[str, Any]) -> list[Measured]:
    parts = {name: part for name, part in record.items() if isinstance(part, Mapping)}
    return [
        Measured(round(100 * part["ap_exact"], 2), name, record["description"],
                 record["protocol"], part["faces"])
        for name, part in parts.items()
        if part.get("ap_exact") is not None
    ]  # fmt: skip


def _table(measured: list[Measured]) -> str:
    if not measured:
        return "Not measured."
    rows = [f"| {m.data} | {m.protocol} | {m.setting} | {m.faces:,} | {m.ap:.2f} |"
            for m in measured]  # fmt: skip
    return "\n".join(["| photographs | protocol | setting | faces | AP |", "|---" * 5 + "|", *rows])


def _training(content: Mapping[str, Any]) -> str:
    data, config = content.get("data"), content.get("config")
    before = len(content.get("history") or [])
    if not data or not config:
        return "The weights file holds no record of its training."
    return (
        f"The last run: {data['photos']:,} photographs with {data['faces']:,} annotated faces, "
        f"{config['epochs']} epochs, batch size {config['batch_size']}, {config['image_size']} "
        f"pixels, learning rate {config['lr']:g}. Runs before it: {before}."
    )


def _front_matter(network: str, measured: list[Measured], licence: str) -> str:
    """The YAML that the Hub reads: licence, tags, and a metric for each AP."""
    import yaml

    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for value in measured:
        metric = {"type": "average_precision", "name": f"AP {value.setting}", "value": value.ap}
        results.setdefault((value.data, value.protocol), []).append(metric)
    card: dict[str, Any] = {
        "license": licence,
        "library_name": "featherface",
        "pipeline_tag": "object-detection",
        "tags": TAGS,
    }
    if results:
        card["model-index"] = [{"name": f"FeatherFace {network}", "results": [
            {"task": {"type": "object-detection", "name": "face detection"},
             "dataset": {"type": "wider_face" if data.startswith("WIDER FACE") else "other",
                         "name": f"{data}, protocol {protocol}"},
             "metrics": metrics}
            for (data, protocol), metrics in results.items()
        ]}]  # fmt: skip
    text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{text}---\n\n"
