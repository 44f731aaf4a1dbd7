"""Runs write their settings and TensorBoard's files, and are listed and drawn."""

import json
import sys

import pytest
from tiny_runs import prepare, tiny_config

from featherface.errors import DataError
from featherface.training.command import read_settings
from featherface.training.engine import train
from featherface.training.runs import find_runs, main, run_table


def test_a_run_writes_its_settings_and_event_files(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = tiny_config(prepare(tmp_path), tmp_path / "run").replace(epochs=1)
    for overwrite in (False, True):
        train(config, progress=False, log="tensorboard", overwrite=overwrite)
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    settings = read_settings(tmp_path / "run" / "config.json", "v2")
    assert config.replace(**settings) == config
    (record,) = find_runs([tmp_path])
    assert record.state == "done" and record.settings["epochs"] == 1
    board = events.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {"step/loss", "epoch/loss", "epoch/lr"} <= set(board.Tags()["scalars"])
    (value,) = board.Scalars("epoch/loss")
    assert value.step == 1 and value.value == pytest.approx(record.log["loss"][0], rel=1e-4)


def write_run(folder, *, ap="", **settings):
    folder.mkdir(parents=True)
    (folder / "training_log.csv").write_text(
        f"epoch,loss,seconds,val_ap\n1,3.5,1800,\n2,2.5,1800,{ap}\n"
    )
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def test_the_table_shows_what_differs(tmp_path):
    write_run(tmp_path / "a", ap="0.75", lr=0.1, epochs=2, save_folder="a")
    write_run(tmp_path / "b" / "c", lr=0.2, epochs=2, save_folder="c")
    table = run_table(find_runs([tmp_path]))
    assert list(table) == ["state", "epochs", "loss", "AP", "hours", "lr"]
    assert table["lr"].tolist() == [0.1, 0.2] and table["hours"].tolist() == [1, 1]
    assert table["AP"].iloc[0] == 75 and table["AP"].isna().iloc[1]


def test_the_command_prints_and_draws(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "a", ap="0.75", lr=0.1)
    picture = tmp_path / "runs.png"
    monkeypatch.setattr(sys, "argv", ["runs", str(tmp_path), "--plot", str(picture)])
    main()
    assert "75" in capsys.readouterr().out and picture.stat().st_size > 5000
    (tmp_path / "a" / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json: not a JSON object"):
        main()
    (tmp_path / "a" / "training_log.csv").write_text("x\n1\n")
    with pytest.raises(DataError, match="not the log of a run"):
        main()
    with pytest.raises(DataError, match=r"no training_log\.csv in"):
        find_runs([tmp_path / "nowhere"])
