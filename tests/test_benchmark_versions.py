"""Two commits' training speed: which checkout runs, with which flags, and what is left behind."""

import subprocess

import pytest

from featherface.benchmark import versions, versions_speed
from featherface.errors import ConfigError, TrainingError
from featherface.files import git

# In place of the real one: says its speed at once, and what it was called with.
SCRIPT = """
import os, pathlib, sys
import where
words = [word for word in sys.argv[1:] if word != "--overwrite"]
flags = dict(zip(words[::2], words[1::2]))
if "--broken" in words:
    sys.exit("torch is loud\\nerror: no such data\\n")
folder = pathlib.Path(flags["--save-folder"])
folder.mkdir(parents=True, exist_ok=True)
speed = where.SPEED * int(os.environ.get("WORLD_SIZE", 1)) + float(flags.get("--extra", 0))
(folder / "training_log.csv").write_text(f"epoch,images_per_second\\n1,0.5\\n2,{speed}\\n")
with open(r"CALLS", "a") as file:
    file.write(" ".join(words) + "\\n")
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository whose first commit trains at 5 images/s and whose second one at 10."""
    root, calls = tmp_path / "repository", tmp_path / "calls.txt"
    (root / "scripts").mkdir(parents=True)
    (root / "scripts/train_v2.py").write_text(SCRIPT.replace("CALLS", str(calls)))
    git(tmp_path, "init", "--quiet", str(root))
    for speed in (5, 10):
        (root / "where.py").write_text(f"SPEED = {speed}\n")
        git(root, "add", ".")
        git(
            root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", f"{speed}"
        )
    monkeypatch.setattr(versions, "CHECKOUT", root)
    return root, calls


def measured(**options):
    given = {"against": "HEAD~1", "teacher_model": "v1.pth", "rounds": 2, "photos": 32}
    return versions_speed("data", **given | options)


def test_each_commit_runs_its_own_files_with_the_same_flags(checkout):
    root, calls = checkout
    table = measured(flags="--lr 0.5", flags_here="--extra 2")
    assert table.columns.tolist() == ["round", "before", "here", "ratio"]
    assert table["before"].tolist() == [5, 5] and table["here"].tolist() == [12, 12]
    assert table["ratio"].tolist() == pytest.approx([2.4, 2.4])
    said = [line.split(" --save-folder ")[0].split() for line in calls.read_text().splitlines()]
    assert ["--extra" in line for line in said] == [False, True, True, False], "in turn first"
    common = [line[: line.index("--extra")] if "--extra" in line else line for line in said]
    assert all(line == common[0] for line in common)
    assert {"--limit", "32", "--lr", "0.5"} <= set(common[0])
    assert git(root, "worktree", "list").count("\n") == 0, "the other checkout is gone"


def test_processes_are_of_the_run_here(checkout):
    table = measured(rounds=1, processes=2)
    assert table["before"].item() == 5 and table["here"].item() == 20


def test_what_cannot_be_compared_is_named(checkout):
    root, _ = checkout
    with pytest.raises(ConfigError, match=r"files of commit 'nosuch': .*nosuch"):
        measured(against="nosuch")
    with pytest.raises(TrainingError, match=r"train_v2\.py of HEAD~1: no such data$"):
        measured(flags="--broken 1")
    with pytest.raises(ConfigError, match="No closing quotation"):
        measured(flags_here="--extra '2")
    assert git(root, "worktree", "list").count("\n") == 0


def test_a_folder_without_history_is_no_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "CHECKOUT", tmp_path)
    with pytest.raises(ConfigError, match="git does not give the files"):
        measured()
    with pytest.raises(subprocess.SubprocessError):
        git(tmp_path, "rev-parse", "HEAD")
