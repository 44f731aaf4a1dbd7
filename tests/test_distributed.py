"""Two gloo processes against one: the same losses and weights for the same batches.

Batch norms use their running statistics here: over several processes torch shares batch statistics
only on CUDA, and each process's own are not those of the whole batch.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_runs import prepare, tiny_config

from featherface.checkpoint import read_file
from featherface.config import TrainConfig
from featherface.data.cache import SHARED_FOLDER
from featherface.data.loader import EpochSampler
from featherface.distributed import (
    any_process,
    average_gradients,
    gather_states,
    process_group,
    rank_and_size,
    totals,
)
from featherface.errors import ConfigError

WORKER = """
import sys
from pathlib import Path
import torch
from featherface.cli import run
from featherface.checkpoint import read_file
from featherface.training import engine
from featherface.training.state import resumed_config

torch.set_num_threads(1)
if "frozen" in sys.argv:
    torch.nn.BatchNorm2d.train = lambda self, mode=True: torch.nn.Module.train(self, False)
stop = next((int(item[5:]) for item in sys.argv if item.startswith("stop=")), 0)
update, steps = engine.update, []

def watched(run, losses):
    update(run, losses)
    steps.append(1)
    if len(steps) == stop and run.worker.rank == run.worker.processes - 1:
        import os, signal
        os.kill(os.getpid(), signal.SIGTERM)

engine.update = watched

def main():
    from featherface.config import TrainConfig
    if sys.argv[1] == "new":
        config, resume = TrainConfig(**eval(sys.argv[2])), None
    else:
        resume = Path(sys.argv[2])
        config = resumed_config(resume, {})
    engine.train(config, resume=resume, progress=False)

run(main)
"""
FRESH = {
    "mixup_prob": 0.0,
    "cutmix_prob": 0.0,
    "dropblock_prob": 0.0,
}  # their random numbers differ between one process and two


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = prepare(tmp_path_factory.mktemp("tiny"))
    (root / "worker.py").write_text(WORKER)
    return root


def free_port() -> int:
    """One that nothing listens on now."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


def start(root: Path, processes: int, *arguments: object) -> list[subprocess.Popen]:
    """The worker in so many processes, as torchrun would start them."""
    port = free_port()
    base = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    base |= {"MASTER_PORT": str(port), "PYTHONWARNINGS": "ignore"}
    base |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
    command = [sys.executable, str(root / "worker.py"), *map(str, arguments)]
    return [
        subprocess.Popen(
            command,
            env={**base, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def finish(started: list[subprocess.Popen], code: int = 0) -> list[str]:
    """What each process printed; all must end with `code`."""
    ends = [process.communicate(timeout=300) for process in started]
    for process_, (out, errors) in zip(started, ends, strict=True):
        assert process_.returncode == code, out + errors
    return [out for out, _ in ends]


def log_of(config: TrainConfig) -> pd.DataFrame:
    log = pd.read_csv(Path(config.save_folder) / "training_log.csv")
    return log.drop(columns=["seconds", "images_per_second", "loader_share"])


def weights_of(config: TrainConfig) -> dict[str, torch.Tensor]:
    return read_file(Path(config.save_folder) / "FeatherFaceV2_final.pth")["model"]


def test_two_processes_train_as_one_and_go_on_as_one(root, tmp_path):
    """The same trajectory; stopped by one process's SIGTERM, resumed in one process."""
    config = tiny_config(root, tmp_path / "one").replace(batch_size=4, epochs=3, **FRESH)
    (said,) = finish(start(root, 1, "new", config.as_dict(), "frozen"))
    assert "4 images per step, learning rate up to 0.001" in said
    two = config.replace(save_folder=str(tmp_path / "two"))
    outputs = finish(start(root, 2, "new", two.as_dict(), "frozen", "stop=3"), code=130)
    assert "4 images per step (2 processes of 2), learning rate up to 0.001" in outputs[0]
    assert "stopped and saved" in outputs[0] and outputs[1] == "", "the first speaks alone"
    last = Path(two.save_folder) / "FeatherFaceV2_last.pth"
    state = read_file(last)
    assert (state["epoch"], state["batch"]) == (1, 1)
    finish(start(root, 2, "resume", last, "frozen", "stop=2"), code=130)
    assert read_file(last)["epoch"] == 2
    finish(start(root, 1, "resume", last, "frozen"))
    np.testing.assert_allclose(log_of(two), log_of(config), rtol=2e-4)
    expected = weights_of(config)
    for name, value in weights_of(two).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=2e-5, msg=name)


def test_with_their_own_batch_norms_two_processes_stay_near_one(root, tmp_path):
    """Statistics of two images instead of four: near, but not the same. They share their photos."""
    config = tiny_config(root, tmp_path / "one").replace(batch_size=4, epochs=1, **FRESH)
    config = config.replace(cache="ram")
    (alone,) = finish(start(root, 1, "new", config.as_dict()))
    two = config.replace(save_folder=str(tmp_path / "two"))
    said = finish(start(root, 2, "new", two.as_dict()))[0]
    shares = SHARED_FOLDER.is_dir()  # not everywhere
    assert "shared by" not in alone and ("shared by 2 processes" in said) == shares
    one, other = log_of(config)["loss"].item(), log_of(two)["loss"].item()
    assert one != other and other == pytest.approx(one, rel=0.25)


def test_each_process_has_its_part_of_every_batch():
    whole = EpochSampler(23, batch_size=6, seed=4)
    parts = [EpochSampler(23, batch_size=6, seed=4, shard=(n, 3)) for n in range(3)]
    for start_at in (0, 12):
        for sampler in (whole, *parts):
            sampler.set_epoch(2, start=start_at)
        expected = np.array(list(whole)).reshape(-1, 6, 2)
        found = np.stack([np.array(list(each)).reshape(-1, 2, 2) for each in parts], axis=1)
        assert np.array_equal(found.reshape(expected.shape), expected)
        assert {len(each) for each in parts} == {len(whole) // 3}
    with pytest.raises(ConfigError, match="a batch of 6 cannot be shared by 4 processes"):
        EpochSampler(23, batch_size=6, shard=(0, 4))


def test_alone_nothing_is_exchanged(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    value = torch.ones(2, requires_grad=True)
    assert rank_and_size() == (0, 1) and totals(value)[0] is value
    assert any_process(True) and not any_process(False)
    assert gather_states({"cpu": value}) == [{"cpu": value}]
    value.grad = torch.ones(2)
    average_gradients([value])
    assert value.grad.tolist() == [1, 1]
    with process_group("cpu") as alone:
        assert alone.first and alone.shard == (0, 1) and alone.device.type == "cpu"


def test_torchrun_starts_the_script(root, tmp_path):
    """As the README says; SIGTERM to torchrun saves."""
    script = Path(__file__).resolve().parents[1] / "scripts" / "train_v2.py"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--master-port", str(free_port()), script),
        *("--data", root / "data", "--teacher-model", root / "v1.pth"),
        *("--save-folder", tmp_path / "out", "--image-size", 64, "--batch-size", 4),
        *("--num-workers", 0, "--epochs", 3000, "--save-every", 3000, "--device", "cpu"),
        *("--teacher-engine", "torch"),  # without the ten seconds of an export
    ]
    running = subprocess.Popen(
        list(map(str, command)),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    log = tmp_path / "out" / "training_log.csv"
    deadline = time.monotonic() + 240
    while not log.exists() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=120)[0]
    assert log.exists(), said
    assert "2 processes of 2" in said and "stopped and saved" in said
    state = read_file(tmp_path / "out" / "FeatherFaceV2_last.pth")
    assert state["epoch"] >= 1 and len(state["rng_of_processes"]) == 2
