"""Kill small training runs at random moments and count what the kills destroy.

python tests/stress_training.py --kills 100    # `make stress`; prints one table

Each chain of up to four SIGKILLs is resumed to its end. After each kill every checkpoint must be
readable and every numbered one up to the epoch of …_last.pth must exist; at the end no temporary
file may be left, and the weights must be those of a run without a kill, to the last bit.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections import Counter
from pathlib import Path

from tiny_runs import equal, prepare, tiny_config

from featherface.checkpoint import read_file
from featherface.config import TrainConfig
from featherface.errors import CheckpointError
from featherface.training import checkpoint_path

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "train_v2.py"
WORKERS = (0, 1, 2)
KILLS_PER_CHAIN = 4
COLUMNS = ("kills", "unreadable", "missing numbered", "left-over files", "other weights")
PATIENCE = 300  # seconds


def start(config: TrainConfig) -> subprocess.Popen:
    """Start or resume the run of the config."""
    folder = Path(config.save_folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder.with_suffix(".json")
    settings.write_text(json.dumps(config.as_dict()))
    flags = ["--resume"] if list(folder.glob("*.pth")) else []
    command = [sys.executable, str(SCRIPT), "--config", str(settings), *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_at_random(process: subprocess.Popen, config: TrainConfig, dice: random.Random) -> bool:
    """Kill the process within two seconds after its first step; False if it ended before."""
    progress = Path(config.save_folder) / "progress.json"
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        if progress.exists():
            values = json.loads(progress.read_text())
            if values["pid"] == process.pid and values["state"] == "training":
                break
        time.sleep(0.02)
    try:
        process.wait(dice.uniform(0, 2))
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True


def damage(config: TrainConfig) -> Counter:
    """Count the unreadable and missing checkpoints that a kill left."""
    found: Counter = Counter()
    for path in Path(config.save_folder).glob("[!.]*.pth"):
        try:
            content = read_file(path)
        except CheckpointError:
            found["unreadable"] += 1
            continue
        if path == checkpoint_path(config, "last"):
            numbered = [checkpoint_path(config, n + 1) for n in range(content["epoch"])]
            found["missing numbered"] += sum(not each.exists() for each in numbered)
    return found


def chain(config: TrainConfig, whole: dict, kills: int, dice: random.Random) -> Counter:
    """Kill a run so many times, let it end, and count the damage."""
    found: Counter = Counter()
    for _ in range(kills):
        if not kill_at_random(start(config), config, dice):
            break
        found += damage(config) + Counter({"kills": 1})
    final = checkpoint_path(config, "final")
    ended = start(config).wait(PATIENCE) == 0
    found["other weights"] += not (ended and equal(read_file(final)["model"], whole))
    found["left-over files"] += len(list(Path(config.save_folder).glob(".*")))
    return found + damage(config)


def main() -> None:
    commands = ArgumentParser(description=__doc__)
    commands.add_argument("--kills", type=int, default=100)
    commands.add_argument("--seed", type=int, default=0)
    args = commands.parse_args()
    dice = random.Random(args.seed)
    found: dict[int, Counter] = {workers: Counter() for workers in WORKERS}
    with tempfile.TemporaryDirectory() as folder:
        root = prepare(Path(folder))
        base = tiny_config(root, root / "whole").replace(epochs=12, teacher_engine="torch")
        if start(base).wait(PATIENCE):
            sys.exit("the run without a kill failed")
        whole = read_file(checkpoint_path(base, "final"))["model"]
        number = 0
        while (missing := args.kills - sum(each["kills"] for each in found.values())) > 0:
            workers = WORKERS[number % len(WORKERS)]
            out = str(root / f"run{number}")
            config = base.replace(num_workers=workers, save_folder=out)
            found[workers] += chain(config, whole, min(missing, KILLS_PER_CHAIN), dice)
            number += 1
    print(f"{'workers':>8}" + "".join(f"{name:>18}" for name in COLUMNS))
    for workers, counts in found.items():
        print(f"{workers:>8}" + "".join(f"{counts[name]:>18}" for name in COLUMNS))
    sys.exit(any(counts[name] for counts in found.values() for name in COLUMNS[1:]))


if __name__ == "__main__":
    main()
