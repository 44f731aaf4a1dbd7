"""scripts/train_v1.py and train_v2.py as a user types them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny_sets import draw_squares

from featherface import cli
from featherface.checkpoint import FORMAT, read_file, write_file
from featherface.config import V1, V2, TrainConfig
from featherface.errors import ConfigError
from featherface.models.networks import FeatherFaceV1
from featherface.training import checkpoint_path, command

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
SHIPPED = SCRIPTS.parent / "weights" / "v2" / "FeatherFaceV2_final.pth"


def run(script: str, *arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    options = {"encoding": "utf-8", **options}
    return subprocess.run(command, capture_output=True, timeout=120, **options)


@pytest.fixture
def run_here(monkeypatch, capsys):
    """train_v2.py in this process, which has torch already: exit code and what it said."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["train_v2.py", *map(str, arguments)])
        code = 0
        try:
            cli.run(lambda: command.train_command(V2, ""))
        except SystemExit as end:
            code = int(end.code or 0)
        out, errors = capsys.readouterr()
        return code, out + errors if code == 0 else errors

    return call


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Path:
    """A folder with a tiny data set and a teacher."""
    root = tmp_path_factory.mktemp("ready")
    draw_squares(root / "data", train=4, val=2)
    torch.manual_seed(0)
    state = FeatherFaceV1().state_dict()
    content = {"format": FORMAT, "architecture": "v1", "model": state}
    write_file(root / "v1.pth", content)
    return root


def tiny(ready: Path, out: Path) -> list[object]:
    return [
        *("--data", ready / "data", "--save-folder", out, "--device", "cpu"),
        *("--image-size", 64, "--batch_size", 2, "--num_workers", 0),
    ]


@pytest.mark.parametrize(("script", "defaults"), [("train_v1.py", V1), ("train_v2.py", V2)])
def test_help_lists_every_setting_with_its_default(script, defaults):
    # a console that cannot print α must not end the run
    console = {"PYTHONIOENCODING": "cp1252", "COLUMNS": "200"}
    result = run(script, "--help", env={**os.environ, **console}, encoding="cp1252")
    assert result.returncode == 0, result.stderr
    for item in fields(TrainConfig):
        if item.name == "model":
            continue
        assert f"--{item.name.replace('_', '-')} " in result.stdout
        default = getattr(defaults, item.name)
        if default != "":
            assert f"(default: {default})" in result.stdout, item.name


def test_train_resume_and_train_again(ready, tmp_path, run_here):
    flags = [*tiny(ready, tmp_path), "--teacher-model", ready / "v1.pth"]
    first = run("train_v2.py", *flags, "--epochs", 2, "--save_every", 1)
    assert first.returncode == 0, first.stderr
    assert f"done: {tmp_path / 'FeatherFaceV2_final.pth'}" in first.stdout
    assert len(pd.read_csv(tmp_path / "training_log.csv")) == 2
    code, said = run_here(*flags, "--epochs", 2)
    assert code == 2 and "--overwrite" in said
    code, said = run_here("--resume", tmp_path / "FeatherFaceV2_epoch_1.pth")
    assert code == 0, said
    (tmp_path / "moved").mkdir()
    moved = shutil.copy(tmp_path / "FeatherFaceV2_epoch_1.pth", tmp_path / "moved")
    code, said = run_here("--resume", moved)
    assert code == 0 and f"done: {tmp_path / 'moved' / 'FeatherFaceV2_final.pth'}" in said
    code, said = run_here("--resume", *flags, "--weights", ready / "v1.pth")
    assert code == 2 and "leave out --weights" in said
    code, said = run_here("--resume", *flags, "--lr", 0.5)
    assert code == 2 and "--lr 0.5 (was 0.002)" in said


@pytest.mark.parametrize("network", ["v1", "v2"])
def test_a_quick_run_has_a_folder_of_its_own_but_a_resumed_one_keeps_its(
    ready, tmp_path, monkeypatch, network
):
    seen = []
    monkeypatch.setattr(command, "train", lambda config, **options: seen.append((config, options)))
    monkeypatch.setattr(command, "resumed_config", lambda path, explicit: V2.replace(**explicit))
    monkeypatch.setattr(command, "newest_intact", lambda config: checkpoint_path(config, "last"))
    last = tmp_path / "FeatherFaceV2_last.pth"
    for flags in (["--quick"], ["--quick", "--resume"], ["--quick", "--resume", str(last)]):
        monkeypatch.setattr(sys, "argv", [f"train_{network}.py", *flags])
        command.train_command({"v1": V1, "v2": V2}[network], "")
    folder = Path(f"weights/{network}_quick")
    (trial, _), (_, again), (resumed, _) = seen
    assert Path(trial.save_folder) == folder and (trial.epochs, trial.lr) == (5, 2e-3)
    assert again["resume"] == folder / f"FeatherFace{network.upper()}_last.pth"
    assert Path(resumed.save_folder) == tmp_path


def test_the_published_preset_is_there_and_flags_win(run_here, monkeypatch):
    seen = []
    monkeypatch.setattr(command, "train", lambda config, **_: seen.append(config))
    flags = ["--preset", "published", "--epochs", 1, "--alpha", 0.6, "--quick", "--seed", 3]
    assert run_here(*flags)[0] == 0
    (config,) = seen
    assert (config.temperature, config.recipe, config.image_size) == (4.0, "published", 160)
    assert (config.dropblock_prob, config.alpha, config.epochs, config.seed) == (0.0, 0.6, 1, 3)


def test_a_config_file_gives_settings_and_flags_win(ready, tmp_path, run_here):
    settings = TrainConfig(
        data=str(ready / "data"), teacher_model=str(ready / "v1.pth"), save_folder=str(tmp_path),
        device="cpu", image_size=64, batch_size=2, num_workers=0, epochs=2, save_every=1,
    )  # fmt: skip
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(settings.as_dict()))
    assert run_here("--config", file, "--epochs", 1)[0] == 0
    stored = read_file(tmp_path / "FeatherFaceV2_final.pth")["config"]
    assert TrainConfig(**stored) == settings.replace(epochs=1)
    assert run_here("--config", file, "--overwrite")[0] == 0
    code, said = run_here("--config", file, "--resume", tmp_path / "FeatherFaceV2_epoch_1.pth")
    assert code == 0, said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"lr": 0.1', "cannot be read as JSON"),
        ("[1]", "must hold a JSON object"),
        ('{"learning_rate": 1}', "no such setting: learning_rate"),
        ('{"lr": "fast"}', "lr must be of type float; got 'fast'"),
        ('{"epochs": true}', "epochs must be of type int; got True"),
        ('{"lr": NaN}', "lr must be finite"),
        ('{"model": "v1"}', "this script trains v2"),
    ],
)
def test_a_wrong_config_file_is_named_with_what_is_wrong(tmp_path, text, message):
    file = tmp_path / "settings.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        command.read_settings(file, "v2")
    assert str(caught.value).startswith(str(file))


def test_v1_trains_from_the_shell(ready, tmp_path):
    result = run("train_v1.py", *tiny(ready, tmp_path), "--init", "scratch", "--epochs", 1)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "FeatherFaceV1_final.pth").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere"], "data folder nowhere does not exist"),
        (["--teacher-model", "nowhere.pth"], "the student needs its V1 teacher"),
        (["--alpha", "2"], "alpha must be at most 1; got 2.0"),
        (["--clip-norm", "-1"], "clip_norm must be at least 0"),
        (["--batch-size", "many"], "argument --batch-size/--batch_size: "),
        (["--warmup-epochs", "-1"], "warmup_epochs must be at least 0"),
        (["--device", "abacus"], "device 'abacus' is not available"),
        (["--resume"], "there is nothing to resume"),
        (["--resume", SHIPPED, "--lr", "9"], "holds weights but no training state"),
        (["--init", "imagenet"], "mobilenetV1X0.25_pretrain.tar"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(ready, tmp_path, monkeypatch, run_here, flags, message):
    monkeypatch.chdir(tmp_path)
    code, said = run_here(*tiny(ready, tmp_path), "--teacher-model", ready / "v1.pth", *flags)
    assert code == 2 and message in said
    assert said.strip().count("\n") == 0


def test_a_signal_to_the_whole_group_saves_first(ready, tmp_path):
    """As `timeout`, batch systems and a terminal's Ctrl-C send it: to the workers as well."""
    flags = [*tiny(ready, tmp_path), "--num-workers", 1, "--epochs", 3000, "--save-every", 3000]
    flags += ["--teacher-engine", "torch"]  # without the ten seconds of an export
    command = [sys.executable, SCRIPTS / "train_v2.py", *flags, "--teacher-model", ready / "v1.pth"]
    process = subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    log = tmp_path / "training_log.csv"
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    state = read_file(tmp_path / "FeatherFaceV2_last.pth")
    assert state["epoch"] >= 1 and "optimizer" in state
