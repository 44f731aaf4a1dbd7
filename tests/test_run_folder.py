"""What a run leaves in its folder survives kills, damage and a second run."""

import multiprocessing
import os

import pytest
import torch
from tiny_runs import equal, prepare, tiny_config, trained

from featherface.checkpoint import read_file, write_file
from featherface.errors import CheckpointError, ConfigError, TrainingError
from featherface.files import locked
from featherface.models.context import DeformableConv
from featherface.training import engine
from featherface.training.state import Run, checkpoint_path, newest_intact


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The config of a finished run of two epochs."""
    root = prepare(tmp_path_factory.mktemp("folder"))
    config = tiny_config(root, root / "run")
    engine.train(config, progress=False)
    return config


def test_a_flipped_bit_is_noticed_anywhere(tmp_path):
    path = tmp_path / "w.pth"
    write_file(path, {"format": "featherface/1", "model": {"w": torch.arange(4000.0)}})
    whole = bytearray(path.read_bytes())
    for position in range(4000, 16_000, 1931):  # in the tensor's bytes
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(CheckpointError, match="damaged"):
            read_file(path)


def test_a_damaged_last_state_gives_way_to_the_newest_numbered_one(finished, tmp_path, capsys):
    run = tiny_config(tmp_path, tmp_path)
    for part in ("last", 1, 2):
        source = checkpoint_path(finished, part)
        os.link(source, checkpoint_path(run, part))
    assert newest_intact(run) == checkpoint_path(run, "last")
    content = bytearray(checkpoint_path(finished, "last").read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint_path(run, "last").unlink()
    checkpoint_path(run, "last").write_bytes(content)
    os.utime(checkpoint_path(run, 1), (2e9, 2e9))  # a copied folder has other times
    assert newest_intact(run) == checkpoint_path(run, 2)
    assert "damaged" in capsys.readouterr().out
    for number in (1, 2):
        checkpoint_path(run, number).unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        newest_intact(run)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 99},
        {"batch": -1},
        {"optimizer": {}},
        {"scheduler": None},
        {"rng_of_processes": None},
        {"log": []},
        {"log": [{"epoch": 1, "loss": 1.0}, {"epoch": 1, "loss": 1.0}]},
        {"log": [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": "low"}]},
    ],
    ids=str,
)
def test_an_edited_state_is_refused_in_one_line(finished, tmp_path, change):
    path = tmp_path / "edited.pth"
    write_file(path, read_file(checkpoint_path(finished, "last")) | change)
    photos = engine.training_photos(finished)
    run = Run(finished, photos, steps_per_epoch=4, initialise=False)
    with pytest.raises(TrainingError, match="does not fit this run"):
        run.resume(path)


def test_a_run_killed_before_its_last_state_loses_no_numbered_file(tmp_path, monkeypatch):
    config = tiny_config(prepare(tmp_path), tmp_path / "run").replace(save_every=1)
    whole = trained(config.replace(save_folder=str(tmp_path / "whole")))

    class Killed(BaseException):
        pass

    def save(run, path, unbroken=Run.save):
        if path.name.endswith("_last.pth") and run.epoch == 2:
            raise Killed
        unbroken(run, path)

    monkeypatch.setattr(Run, "save", save)
    with pytest.raises(Killed):
        trained(config)
    monkeypatch.undo()
    left = tmp_path / "run" / f".FeatherFaceV2_last.{'0' * 32}.pth"  # of a killed write
    left.touch()
    assert equal(trained(config, resume=newest_intact(config)), whole)
    assert checkpoint_path(config, 1).exists() and checkpoint_path(config, 2).exists()
    assert not left.exists()


def _hold(folder, ready):
    with locked(folder):
        ready.send(True)
        ready.recv()


def test_two_runs_in_one_folder_are_refused_until_the_first_is_dead(finished, tmp_path):
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path, theirs))
    process.start()
    assert ours.recv()
    with pytest.raises(ConfigError, match="another process"):
        engine.train(finished.replace(save_folder=str(tmp_path)), progress=False)
    process.kill()
    process.join()
    with locked(tmp_path):
        pass


def test_nan_offsets_do_not_crash_the_process():
    layer, images = DeformableConv(2, 2), torch.rand(1, 2, 8, 8, requires_grad=True)
    torch.nn.init.zeros_(layer.offset.weight)
    results = []
    for value in (0.0, float("nan")):
        torch.nn.init.constant_(layer.offset.bias, value)
        results.append(layer(images))
        results[-1].sum().backward()
    assert torch.equal(*results)


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"batch_size": 2, "accumulate": 2}])
def test_one_value_per_channel_is_refused(finished, tmp_path, changes):
    config = finished.replace(image_size=32, save_folder=str(tmp_path), **changes)
    with pytest.raises(ConfigError, match="batch norms need two"):
        engine.train(config, progress=False)
