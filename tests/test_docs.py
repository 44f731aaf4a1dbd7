"""The documents say what is true: examples print what is written, names and flags exist."""

import doctest
import os
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from io import StringIO
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from featherface import Detector, draw
from featherface.commands import main
from featherface.data.annotations import Photo
from featherface.data.demo import make_demo
from featherface.data.widerface import read_split

ROOT = Path(__file__).parent.parent
FOLDERS = ("", "data", "docs", "experiments", "results", "weights")
DOCUMENTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))
# Their names and flags are those of earlier versions.
HISTORY = [ROOT / "docs/experiments.md", ROOT / "CHANGELOG.md"]
CURRENT = [path for path in DOCUMENTS if path not in HISTORY]
EXAMPLES = [path for path in CURRENT if path.parent != ROOT / "experiments"]  # those take minutes


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder that looks like the repository with a WIDER FACE of two val photos in data/."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("docs", "results", "weights"):
        (folder / name).symlink_to(ROOT / name)
    data = make_demo(folder / "data/widerface", train=0, val=2, size=160, progress=False)
    write_ground_truth(data, read_split(data, "val"))
    return folder


def write_ground_truth(data: Path, photos: Sequence[Photo]) -> None:
    """The four .mat files of WIDER FACE: every face counts in every setting."""
    events = sorted({photo.name.split("/")[0] for photo in photos})

    def nested(value_of: Callable[[Photo], object]) -> np.ndarray:
        values = [[value_of(p) for p in photos if p.name.startswith(f"{e}/")] for e in events]
        return _cells([_cells(part) for part in values])

    names = {
        "event_list": _cells(events),
        "file_list": nested(lambda photo: Path(photo.name).stem),
        "face_bbx_list": nested(
            lambda photo: np.hstack((photo.boxes[:, :2], photo.boxes[:, 2:] - photo.boxes[:, :2]))
        ),
    }
    folder = data / "ground_truth"
    folder.mkdir()
    savemat(folder / "wider_face_val.mat", names)
    for setting in ("easy", "medium", "hard"):
        kept = nested(lambda photo: np.arange(1, len(photo.boxes) + 1)[:, None])
        savemat(folder / f"wider_{setting}_val.mat", {"gt_list": kept})


def _cells(items: list) -> np.ndarray:
    array = np.empty((len(items), 1), object)
    for row, item in enumerate(items):
        array[row, 0] = item
    return array


@pytest.mark.parametrize("path", [p for p in EXAMPLES if _blocks(p)], ids=_name)
def test_examples_print_what_is_written(path, checkout, monkeypatch):
    """An example is a session with >>>, or a program whose output follows each `# -> `."""
    monkeypatch.chdir(checkout)
    names: dict = {}
    for block in _blocks(path):
        if ">>> " in block:
            test = doctest.DocTestParser().get_doctest(block, names, _name(path), _name(path), 0)
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
            said = StringIO()
            runner.run(test, out=said.write, clear_globs=False)
            assert runner.tries and not runner.failures, said.getvalue()
            names = test.globs
        else:
            with redirect_stdout(StringIO()) as printed:
                exec(block, names)
            assert printed.getvalue().splitlines() == re.findall(r"# -> (.*)$", block, re.M)


@pytest.mark.parametrize("package", ["", ".evaluation", ".export", ".training"])
def test_every_public_name_is_documented(package):
    text = (ROOT / "docs/api.md").read_text()
    names = import_module(f"featherface{package}").__all__
    missing = [name for name in names if not re.search(rf"\b{name}\b", text)]
    assert not missing


def test_the_picture_of_the_readme_shows_what_its_python_draws():
    picture = cv2.imread(str(ROOT / "docs/astronaut_faces.jpg"))[:, :, ::-1]
    faces = Detector().detect(ROOT / "docs/astronaut.jpg")
    difference = np.abs(picture.astype(float) - draw(ROOT / "docs/astronaut.jpg", faces))
    assert difference.mean() < 3


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)#]+)", path.read_text()):
        assert link.startswith("http") or (path.parent / link).exists(), link


@pytest.mark.parametrize("path", CURRENT, ids=_name)
def test_named_files_exist(path):
    own = r"(?<![\w/])(?:scripts|experiments|featherface|docs|notebooks|tests)/[\w./]*\w"
    for name in re.findall(own, path.read_text()):
        assert (ROOT / name).exists(), name


COMMAND = (
    r"((?:scripts|experiments)/\w+\.py|"
    r"featherface (?:train v[12]|detect|evaluate|label|export|hub|runs|benchmark|data \w+|demo)\b)"
)


def _help(command: str) -> str:
    """What `command --help` prints, run in this process."""
    first, *words = command.split()
    arguments = mock.patch.object(sys, "argv", [first, *words, "--help"])
    with arguments, mock.patch.dict(os.environ), redirect_stdout(StringIO()) as text:
        with pytest.raises(SystemExit):
            if first == "featherface":
                main()
            else:
                runpy.run_path(str(ROOT / first), run_name="__main__")
    return text.getvalue()


@cache
def _flags(command: str) -> frozenset[str]:
    words = ("speed", "train") if "benchmark" in command else ("",)
    text = "".join(_help(f"{command} {word}") for word in words)
    return frozenset(re.findall(r"--[a-z][\w-]*", text))


@pytest.mark.parametrize("path", CURRENT, ids=_name)
def test_flags_are_known(path):
    """A flag after a command is that command's; others are of any command named here."""
    text = path.read_text().replace("\\\n", " ")
    known = {"--nproc-per-node", "--logdir", "--help"}.union(_flags("scripts/train_v2.py"))
    known = known.union(*map(_flags, re.findall(COMMAND, text)))
    for line in text.splitlines():
        before, *commands = re.split(COMMAND + r"([^`#]*)", line)
        named = [(before, known)]
        for command, arguments, after in zip(*[iter(commands)] * 3, strict=True):
            named += [(arguments, _flags(command)), (after, known)]
        for words, flags in named:
            unknown = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", words)) - flags
            assert not unknown, f"{sorted(unknown)} in: {line}"
