"""Training speed of this checkout against another commit: short runs of both, in turn."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from tqdm.auto import tqdm

from featherface.errors import ConfigError, TrainingError
from featherface.files import CHECKOUT, git

EPOCHS = 2  # the last one is reported: the first starts processes and warms memory up


def versions_speed(
    data: str | Path,
    *,
    against: str,
    teacher_model: str | Path,
    image_size: int = 320,
    batch_size: int = 16,
    photos: int = 160,
    rounds: int = 5,
    processes: int = 1,
    flags: str = "",
    flags_here: str = "",
) -> pd.DataFrame:
    """Images a second of scripts/train_v2.py here and at the commit `against`, by the clock.

    Each round runs both, in turn first, for two epochs of the first `photos` photos with the same
    settings, and takes the last epoch's images/s from training_log.csv. processes: of the run
    here, by torch.distributed.run. flags: of train_v2.py, for both; flags_here: for the run here
    alone. `auto` settings decide by the few steps of these runs: name those that a long run would
    take (on a CPU --teacher-engine onnx). Paths in flags are relative to where this is run.

    One row a round: round, before, here (images/s), ratio. Raises ConfigError where there is no
    such commit or flags cannot be split, TrainingError with a run's last line if it fails.
    """
    common = ["--data", str(Path(data).resolve()), "--epochs", str(EPOCHS), "--limit", str(photos)]
    common += ["--teacher-model", str(Path(teacher_model).resolve()), "--overwrite"]
    common += ["--image-size", str(image_size), "--batch-size", str(batch_size)]
    common += _words(flags)
    more = _words(flags_here)
    rows = []
    with checked_out(against) as other, TemporaryDirectory() as folder:
        runs = {
            "before": lambda: _images_per_second(
                against, other, common, save_folder=Path(folder) / "before"
            ),
            "here": lambda: _images_per_second(
                "this checkout",
                CHECKOUT,
                common + more,
                save_folder=Path(folder) / "here",
                processes=processes,
            ),
        }
        for number in tqdm(range(rounds), unit="pair"):
            order = list(runs) if number % 2 == 0 else list(runs)[::-1]
            speed = {name: runs[name]() for name in order}
            ratio = speed["here"] / speed["before"]
            rows.append({"round": number, **{name: speed[name] for name in runs}, "ratio": ratio})
    return pd.DataFrame(rows)


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A temporary folder with the files of that commit. ConfigError if there is none."""
    with TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        try:
            git(CHECKOUT, "worktree", "add", "--detach", str(tree), commit)
        except OSError as error:
            raise ConfigError(f"git cannot be run ({error}): nothing to compare with") from error
        except subprocess.SubprocessError as error:
            said = str(getattr(error, "stderr", "") or error).strip().rpartition("\n")[2]
            raise ConfigError(
                f"{CHECKOUT}: git does not give the files of commit {commit!r}: {said}"
            ) from error
        try:
            yield tree
        finally:
            with suppress(OSError, subprocess.SubprocessError):  # the files go in any case
                git(CHECKOUT, "worktree", "remove", "--force", str(tree))


def _words(flags: str) -> list[str]:
    try:
        return shlex.split(flags)
    except ValueError as error:
        raise ConfigError(f"flags {flags!r}: {error}") from error


def _images_per_second(
    name: str, root: Path, flags: list[str], *, save_folder: Path, processes: int = 1
) -> float:
    """Of the last epoch of a run of the train_v2.py below `root`, which errors call `name`."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(processes)]
    command = [
        *launcher,
        str(root / "scripts/train_v2.py"),
        *flags,
        "--save-folder",
        str(save_folder),
    ]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    run = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    try:
        stderr = run.communicate()[1]
    except BaseException:  # torchrun passes a SIGTERM on, and would not live to pass on a SIGKILL
        run.terminate()
        run.communicate()
        raise
    if run.returncode:
        said = [line for line in stderr.splitlines() if line.startswith("error: ")]
        said = said or stderr.strip().splitlines()[-1:] or ["no message"]
        raise TrainingError(f"train_v2.py of {name}: {said[0].removeprefix('error: ')}")
    return float(pd.read_csv(save_folder / "training_log.csv")["images_per_second"].iloc[-1])
