"""The wheel finds faces without the checkout and PyTorch; type checkers see its public names."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
import venv
import zipfile
from pathlib import Path
from subprocess import CompletedProcess

import cv2
import numpy as np
import pytest

import featherface
from featherface import commands
from featherface.commands import COMMANDS, face_table

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ("torch", "torchvision", "pandas", "matplotlib", "scipy", "onnx", "onnxscript")
PROGRAM = """
import featherface as ff

detector = ff.OnnxDetector(threads=1)
faces = detector.detect("photo.jpg")
reveal_type(detector)
reveal_type(faces[0])
reveal_type(faces.boxes)
reveal_type(faces.to_json())
reveal_type(ff.draw("photo.jpg", faces))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the content of the wheel."""
    pytest.importorskip("hatchling", reason="hatchling (extra dev) builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def run_light(installed: Path, folder: Path, *words: object, code: str = "") -> CompletedProcess:
    """Run the command, or code, in another folder, without the libraries of the extra train."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({TRAINING}))\n"
    code = code or "from featherface.commands import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", hide + code, *map(str, words)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_wheel_finds_faces_without_torch(installed, tmp_path):
    done = run_light(installed, tmp_path, "detect", ROOT / "docs/astronaut.jpg")
    assert done.returncode == 0, done.stderr
    head, face, total, drawn = done.stdout.splitlines()[1:]
    assert head.split() == ["file", "score", "x1", "y1", "x2", "y2"]
    assert face.split() == [str(ROOT / "docs/astronaut.jpg"), "0.99", "179", "62", "270", "175"]
    assert total.startswith("1 face in 1 file")
    assert (tmp_path / drawn.removeprefix("drawn: ")).is_file()
    code = "import featherface as ff; ff.OnnxDetector(); print(ff.__file__)"
    assert run_light(installed, tmp_path, code=code).stdout.startswith(str(installed))


@pytest.mark.parametrize("words", ["train v2", "export", "detect {} --engine torch", "evaluate"])
def test_a_missing_extra_is_named_in_one_line(words, installed, tmp_path):
    (tmp_path / "data/widerface/images").mkdir(parents=True)
    (tmp_path / "data/widerface/bbx_gt.txt").write_text("a.png\n1\n8 8 16 16 0 0 0 0 0 0\n")
    cv2.imwrite(str(tmp_path / "data/widerface/images/a.png"), np.zeros((64, 64, 3), np.uint8))
    done = run_light(installed, tmp_path, *words.format(ROOT / "docs/astronaut.jpg").split())
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "pip install 'featherface[train]'" in line


def test_a_name_that_needs_torch_says_so(installed, tmp_path):
    done = run_light(installed, tmp_path, code="import featherface as ff; ff.Detector")
    assert "featherface.Detector needs torch" in done.stderr.splitlines()[-1]


def test_help_is_quick(installed, tmp_path):
    code = (
        "import atexit; from featherface.commands import main\n"
        "slow = ('numpy', 'cv2', 'onnxruntime', 'http.server')\n"
        "atexit.register(lambda: print([name for name in slow if name in sys.modules]))\n"
        "main()"
    )
    done = run_light(installed, tmp_path, "--help", code=code)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "invalid choice: 'nothing'"),
        (["train"], "usage: featherface train"),
        (["train", "v3"], "featherface train --help lists all flags"),
        (["detect"], "featherface detect --help lists all flags"),
        (["detect", "a.jpg", "--engine", "onnx", "--weights", "a.pth"], "--engine onnx cannot run"),
        (["detect", "a.jpg", "--weights", "a.onnx", "--engine", "torch"], "--engine torch cannot"),
        (["demo", "--port", "99999"], "port 99999 cannot be opened"),
    ],
)
def test_wrong_words_are_explained(words, said, monkeypatch, capsys, tmp_path):
    (tmp_path / "index.html").touch()
    monkeypatch.setattr(commands, "PAGE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["featherface", *words])
    with pytest.raises(SystemExit) as stop:
        commands.main()
    assert stop.value.code == (0 if words == ["train"] else 2)
    assert said in "".join(capsys.readouterr())


def test_the_table_of_faces_is_short():
    rows = [["film.mp4", frame, 0.5, 1.4, 2.0, 3.0, "", *[0] * 10, ""] for frame in range(23)]
    head, first, *_, last = face_table(rows).splitlines()
    assert head.split()[:3] == ["file", "frame", "score"]
    assert first.split() == ["film.mp4", "0", "0.50", "1", "2", "3"]
    assert last == "… and 3 more"


def test_demo_serves_the_page(tmp_path):
    (tmp_path / "index.html").write_text("the page")
    code = (
        "import sys; from pathlib import Path; from featherface import commands\n"
        "commands.PAGE = Path(sys.argv.pop())\n"
        "commands.main()"
    )
    command = [sys.executable, "-c", code, "demo", "--port", "0", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        address = server.stdout.readline().split()[0]
        with urllib.request.urlopen(address) as answer:
            assert answer.read() == b"the page"
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0


def test_the_wheel_holds_each_shipped_file_once(installed):
    from featherface.detector import SHIPPED_WEIGHTS
    from featherface.onnx_detector import SHIPPED_GRAPH

    for source in (SHIPPED_WEIGHTS, SHIPPED_GRAPH):
        assert source.is_relative_to(ROOT)  # a checkout uses its own
        (copy,) = installed.rglob(source.name)
        assert copy.read_bytes() == source.read_bytes()
    modules = {path.relative_to(ROOT) for path in (ROOT / "featherface").rglob("*.py")}
    assert all((installed / module).is_file() for module in modules)
    assert (installed / "featherface/py.typed").is_file()


def test_type_checkers_see_every_public_name(installed, tmp_path):
    """mypy --strict on a user's program, in an environment with the wheel and numpy alone."""
    venv.create(tmp_path / "venv", symlinks=True)
    (packages,) = (tmp_path / "venv").glob("lib/*/site-packages")
    (packages / "numpy").symlink_to(Path(np.__file__).parent)
    (packages / "featherface").symlink_to(installed / "featherface")
    names = [f"reveal_type(ff.{name})\n" for name in featherface.__all__]
    (tmp_path / "program.py").write_text(PROGRAM + "".join(names))
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", "venv/bin/python"]
    done = subprocess.run([*mypy, "program.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    detector, faces, boxes, text, picture, *types = re.findall(r'type is "(.*)"', done.stdout)
    assert detector == "featherface.onnx_detector.OnnxDetector"
    assert faces == "featherface.structures.Detections"
    assert boxes == picture and boxes.startswith("numpy.ndarray")
    assert text == "str"
    assert len(types) == len(names) and "Any" not in types
