"""The wheel finds faces without the checkout and PyTorch; type checkers see its public names."""

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

import featherface

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


def run_light(installed: Path, folder: Path, code: str) -> subprocess.CompletedProcess:
    """Run code in another folder where the libraries of the extra train cannot be imported."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({TRAINING}))\n"
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", hide + code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_wheel_finds_faces_without_torch(installed, tmp_path):
    photo = ROOT / "docs/astronaut.jpg"
    code = f"import featherface as ff; print(ff.__file__, ff.OnnxDetector().detect({str(photo)!r}))"
    done = run_light(installed, tmp_path, code)
    assert "Detections(1 face, score 0.99" in done.stdout, done.stderr
    assert done.stdout.startswith(str(installed))


def test_a_missing_extra_is_named_in_one_line(installed, tmp_path):
    done = run_light(installed, tmp_path, "import featherface as ff; ff.Detector")
    last = done.stderr.strip().splitlines()[-1]
    assert "featherface.Detector needs torch" in last and "'featherface[train]'" in last


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
