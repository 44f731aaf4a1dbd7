"""Record short training runs, so that a redesign can prove that it changed nothing.

    python tests/goldens.py --out before.json      # at one commit
    python tests/goldens.py --compare before.json  # at another one, on the same machine

Twelve steps for each kind of run: the rows of training_log.csv without its times, and the SHA-256
of the final weights. Bits depend on the processor and on torch, so the file is not committed.
"""

import argparse
import contextlib
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tiny_runs import prepare, tiny_config

from featherface.checkpoint import FORMAT, load_model, read_file, write_file
from featherface.config import PRESETS
from featherface.models.networks import FeatherFaceV2
from featherface.training.engine import train

ROOT = Path(__file__).resolve().parents[1]
TIMES = ("images_per_second", "seconds", "loader_share")
PLAIN = {"mixup_prob": 0.0, "cutmix_prob": 0.0, "dropblock_prob": 0.0}
MIXED = {"mixup_prob": 0.4, "cutmix_prob": 0.8, "dropblock_prob": 0.3, "mixup_alpha": 1.0}
KINDS = {
    "v1": {"model": "v1", "init": "scratch", **PLAIN},
    "v2": PLAIN,
    "v2 mixed": MIXED,
    "v2 cached": {**PLAIN, "cache": "ram"},
    "v2 batch norms": {**PLAIN, "bn_batches": 3},
    "v2 accumulated": {**PLAIN, "accumulate": 2},
    "v2 validated": {**PLAIN, "validate_every": 1},
}


def golden_config(root: Path, name: str, **changes):
    """Three epochs of four steps at 64 pixels."""
    config = tiny_config(root, root / "runs" / name.replace(" ", "_"))
    return config.replace(epochs=3, save_every=3, warmup_epochs=0.5, lr=2e-3, **changes)


def published_config(root: Path):
    tiny = golden_config(root, "v2 published")
    names = (
        "data teacher_model save_folder image_size batch_size epochs save_every num_workers device"
    )
    return PRESETS["published"].replace(**{n: getattr(tiny, n) for n in names.split()})


def result_of(folder: Path, final: Path) -> dict:
    with (folder / "training_log.csv").open() as file:
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    digest = hashlib.sha256()
    for name, value in sorted(read_file(final)["model"].items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return {"log": rows, "sha256": digest.hexdigest()}


def two_processes(root: Path) -> dict:
    """The plain V2 run by two gloo processes."""
    folder = root / "runs" / "two"
    config = golden_config(root, "two", **PLAIN)
    flags = [f"--{n.replace('_', '-')}={getattr(config, n)}" for n in config_names(config)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               "scripts/train_v2.py", *flags]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return result_of(folder, folder / "FeatherFaceV2_final.pth")


def config_names(config) -> list[str]:
    """The settings that differ from V2's defaults."""
    return [n for n, v in config.as_dict().items() if v != getattr(PRESETS["v2"], n)]


def shipped_outputs() -> str:
    """SHA-256 of the shipped V2's raw outputs for one fixed noise image."""
    model = load_model(ROOT / "weights/v2/FeatherFaceV2_final.pth")
    image = torch.rand(1, 3, 160, 192, generator=torch.Generator().manual_seed(0)) * 255 - 115
    with torch.no_grad():
        outputs = model(image)
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in outputs)).hexdigest()


def record() -> dict:
    torch.set_num_threads(1)
    results: dict = {"shipped": {"sha256": shipped_outputs()}}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        root = prepare(Path(folder))
        torch.manual_seed(3)
        content = {"format": FORMAT, "architecture": "v2", "model": FeatherFaceV2().state_dict()}
        write_file(root / "v2.pth", content)
        for name, changes in KINDS.items():
            config = golden_config(root, name, **changes)
            results[name] = result_of(Path(config.save_folder), train(config, progress=False))
        config = published_config(root)
        results["v2 published"] = result_of(Path(config.save_folder), train(config, progress=False))
        results["v2 two processes"] = two_processes(root)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--compare", type=Path)
    arguments = parser.parse_args()
    results = record()
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))
    if not arguments.compare:
        return 0
    before = json.loads(arguments.compare.read_text())
    for name, result in results.items():
        same = before.get(name) == result
        same_losses = before.get(name, {}).get("log") == result.get("log")
        verdict = "equal" if same else ("losses equal" if same_losses else "DIFFERENT")
        print(f"{name:20} {verdict}")
    return 0 if results == before else 1


if __name__ == "__main__":
    sys.exit(main())
