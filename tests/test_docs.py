"""The documents say what is true: examples print what is written, names and flags exist."""

import doctest
import os
import re
import runpy
import sys
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest

from featherface import Detector, draw

ROOT = Path(__file__).parent.parent
FOLDERS = ("", "data", "docs", "results", "weights")
DOCUMENTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))
# Their names and flags are those of earlier versions.
HISTORY = [ROOT / "docs/experiments.md", ROOT / "CHANGELOG.md"]
CURRENT = [path for path in DOCUMENTS if path not in HISTORY]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S)


@pytest.mark.parametrize("path", [p for p in CURRENT if _blocks(p)], ids=_name)
def test_examples_print_what_is_written(path, monkeypatch):
    """An example is a session with >>>, or a program whose output follows each `# -> `."""
    monkeypatch.chdir(ROOT)
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


def _help(script: Path, *words: str) -> str:
    """What `script words --help` prints, run in this process."""
    arguments = mock.patch.object(sys, "argv", [str(script), *words, "--help"])
    with arguments, mock.patch.dict(os.environ), redirect_stdout(StringIO()) as text:
        with pytest.raises(SystemExit):
            runpy.run_path(str(script), run_name="__main__")
    return text.getvalue()


@cache
def _flags(script: Path) -> frozenset[str]:
    words = ("speed", "train") if script.stem == "benchmark" else ("",)
    text = "".join(_help(script, *word.split()) for word in words)
    return frozenset(re.findall(r"--[a-z][\w-]*", text))


@pytest.mark.parametrize("path", CURRENT, ids=_name)
def test_flags_are_known(path):
    """A flag after a script's name is that script's; others are of any script named here."""
    scripts = re.findall(r"(?:scripts|experiments)/\w+\.py", path.read_text())
    other = _flags(ROOT / "scripts/train_v2.py") | {"--nproc-per-node", "--help"}
    other = other.union(*(_flags(ROOT / script) for script in scripts))
    for line in path.read_text().replace("\\\n", " ").splitlines():
        before, *commands = re.split(r"((?:scripts|experiments)/\w+\.py)([^`#]*)", line)
        named = [(before, other)]
        for script, arguments, after in zip(*[iter(commands)] * 3, strict=True):
            named += [(arguments, _flags(ROOT / script)), (after, other)]
        for text, known in named:
            unknown = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) - known
            assert not unknown, f"{sorted(unknown)} in: {line}"
