"""The mean of weights files."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import featherface as ff
from featherface.checkpoint import FORMAT, read_file, write_file
from featherface.errors import CheckpointError, ConfigError
from featherface.models.networks import FeatherFaceV1, FeatherFaceV2
from featherface.training.mean import average_weights

SCRIPT = Path(__file__).parents[1] / "scripts" / "average_weights.py"


def written(path, network, architecture="v2", **facts):
    content = {"format": FORMAT, "architecture": architecture, "model": network.state_dict()}
    write_file(path, {**content, **facts})
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    return [
        written(
            folder / f"{n}.pth",
            FeatherFaceV2(),
            config={"seed": n},
            evaluations=[{"easy": 1}],
            validation={"val_ap": 1},
        )
        for n in range(2)
    ]


def test_every_tensor_is_the_mean(pair, tmp_path):
    average_weights(pair, tmp_path / "mean.pth")
    first, second, mean = (read_file(path) for path in (*pair, tmp_path / "mean.pth"))
    for name, value in mean["model"].items():
        expected = (first["model"][name].double() + second["model"][name].double()) / 2
        assert value.dtype == first["model"][name].dtype
        torch.testing.assert_close(value, expected.to(value.dtype))
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in pair]
    assert mean["mean_of"] == [{"file": f"{n}.pth", "sha256": digests[n]} for n in range(2)]
    assert mean["config"] == {"seed": 1}
    assert not mean.keys() & {"evaluations", "validation"}, "those were the last one's"
    loaded = ff.load_model(tmp_path / "mean.pth").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in mean["model"].items())


def test_what_has_no_mean_is_refused(pair, tmp_path):
    other = written(tmp_path / "v1.pth", FeatherFaceV1(), "v1")
    write_file(tmp_path / "notes.pth", {"format": FORMAT})
    with pytest.raises(CheckpointError, match=r"v1\.pth: another network than .*0\.pth"):
        average_weights([pair[0], other], tmp_path / "out.pth")
    with pytest.raises(CheckpointError, match=r"notes\.pth: no weights"):
        average_weights([pair[0], tmp_path / "notes.pth"], tmp_path / "out.pth")
    last = written(tmp_path / "last.pth", FeatherFaceV2(), optimizer={}, ema={})
    with pytest.raises(CheckpointError, match=r"last\.pth: to resume from; give the .*_final"):
        average_weights([pair[0], last], tmp_path / "out.pth")
    with pytest.raises(ConfigError, match="two weights files"):
        average_weights(pair[:1], tmp_path / "out.pth")
    with pytest.raises(ConfigError, match="is a folder; name a file"):
        average_weights(pair, tmp_path)
    with pytest.raises(ConfigError, match=r"notes\.pth is a file"):
        average_weights(pair, tmp_path / "notes.pth" / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_the_script(pair, tmp_path):
    command = [sys.executable, str(SCRIPT), *map(str, pair)]
    run = subprocess.run([*command, "--out", "m.pth"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0 and "mean of 2 networks: m.pth" in run.stdout, run.stderr
    assert ff.load_model(tmp_path / "m.pth").training is False
    run = subprocess.run(
        [*command, "none.pth", "--out", "n.pth"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 2 and "none.pth" in run.stderr and "Traceback" not in run.stderr
