"""The notebook's steps: session, training process, messages, and one run from top to bottom."""

import argparse
import io
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from tiny_sets import draw_squares

from featherface.checkpoint import FORMAT, write_file
from featherface.cli import add_config_flags
from featherface.config import PRESETS, TrainConfig
from featherface.errors import ConfigError, TrainingError
from featherface.models.networks import FeatherFaceV1, FeatherFaceV2
from featherface.notebook import display, measure, performance, process, sessions, training
from featherface.notebook.execute import NOTEBOOK, run_notebook
from featherface.notebook.networks import count_macs, network_table
from featherface.notebook.published import published_curves

ROOT = Path(__file__).resolve().parents[1]
TINY = {"image_size": 64, "epochs": 1, "batch_size": 4, "num_workers": 0, "bn_batches": 2,
        "validate_photos": 2, "device": "cpu"}  # fmt: skip
EPOCHS = 25  # enough to be stopped and killed on the way
SHORT_SPEED = "compare_speed(session, engines=['eager'], rounds=1)"  # ONNX takes a minute more
WAIT = 90  # seconds, for a process to start or end on a busy machine


@pytest.fixture()
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was displayed: (mark, plain text)."""
    seen: list[tuple[str, str]] = []

    def record(content: object, *, metadata: dict | None = None, **_: object) -> None:
        text = content["text/plain"] if isinstance(content, dict) else repr(content)
        seen.append(((metadata or {}).get("featherface", ""), text))

    monkeypatch.setattr(display, "display", record)
    return seen


@pytest.fixture()
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, as if the kernel had just been started."""
    before = Path.cwd()
    monkeypatch.setenv("FEATHERFACE_ROOT", str(tmp_path))
    monkeypatch.setenv("FEATHERFACE_HEADLESS", "1")
    monkeypatch.delenv("FEATHERFACE_MODE", raising=False)
    monkeypatch.setattr(sessions, "_current", None)
    monkeypatch.setattr(training, "LOOK_EVERY", 0.3)
    yield tmp_path
    os.chdir(before)


@pytest.mark.parametrize(
    ("wanted", "complete", "cuda", "mode", "reason"),
    [
        ("auto", True, True, "full", "complete"),
        ("auto", False, True, "quick", "WIDER FACE is not complete"),
        ("auto", True, False, "quick", "no CUDA"),
        ("quick", True, True, "quick", "asked for"),
        ("full", False, False, "full", "asked for"),
    ],
)
def test_mode(wanted, complete, cuda, mode, reason):
    chosen, why = sessions.choose_mode(wanted, complete=complete, cuda=cuda)
    assert chosen == mode and reason in why


def test_an_unknown_mode_is_refused():
    with pytest.raises(ConfigError, match="MODE must be one of auto, quick, full"):
        sessions.choose_mode("fast", complete=True, cuda=True)


def test_quick_mode_leaves_the_shipped_weights_alone(work):
    current = sessions.open_session("quick")
    assert Path.cwd() == work
    assert current.run == Path("results/v2/quick_run")
    assert current.config.epochs == 5 and current.config.temperature == 1.0
    assert current.deployed == sessions.SHIPPED_WEIGHTS
    full = sessions.open_session("full")
    assert full.run == Path("weights/v2") and full.config.epochs == 400
    assert (full.config.temperature, full.config.alpha) == (1.0, 0.7)


def test_the_environment_decides_where_the_cell_does_not(work, monkeypatch):
    monkeypatch.setenv("FEATHERFACE_MODE", "full")
    assert sessions.open_session("auto").mode == "full"
    assert sessions.open_session("quick").mode == "quick"


def test_a_setting_that_does_not_exist_is_named(work):
    with pytest.raises(ConfigError, match="no such setting: epoch;"):
        sessions.open_session("quick", settings={"epoch": 3})


@pytest.mark.parametrize("settings", [{"epochs": "3"}, {"epochs": 2.5}, {"lr": True}])
def test_a_setting_of_another_kind_is_named(work, settings):
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} must be of type") as caught:
        sessions.open_session("quick", settings=settings)
    (line,) = caught.value._render_traceback_()  # what IPython shows instead of the traceback
    assert line.startswith("Not done: opening the session: SETTINGS")
    sessions.open_session("quick", settings={"lr": 1})


def test_a_teacher_named_in_the_settings_is_the_teacher(work):
    current = sessions.open_session("quick", settings={"teacher_model": "elsewhere/v1.pth"})
    assert current.teacher == Path("elsewhere/v1.pth")


def test_a_damaged_record_does_not_stop_the_session(work):
    (work / "results/v2").mkdir(parents=True)
    (work / "results/v2/notebook_config.json").write_text('{"session": {"mode": "quick"}}')
    assert sessions.session().mode == "quick"


def test_real_photographs_are_used_where_there_are_some(work):
    draw_squares(work / "data/widerface", train=3, val=2)
    current = sessions.open_session("quick")
    assert current.drawn is None and current.data == Path("data/widerface")
    assert current.protocol == "vga"


def test_after_a_restart_the_session_is_found_again(work, monkeypatch, shown):
    from featherface.notebook.record import write_record

    first = sessions.open_session("quick", settings={"epochs": 3}, demo_photos=(2, 1))
    write_record(first)
    record = json.loads((work / "results/v2/notebook_config.json").read_text())
    assert record["settings"]["epochs"] == 3 and record["versions"]["torch"]
    assert str(work) not in json.dumps(record["data"])
    monkeypatch.setattr(sessions, "_current", None)
    again = sessions.session()
    assert again is not first and again.config == first.config and again.drawn == (2, 1)


@pytest.mark.parametrize("model", ["v1", "v2"])
def test_flags_give_the_config_back(model):
    config = PRESETS[model].replace(epochs=3, lr=2e-3, num_workers=-1, seed=7, limit=9)
    parser = argparse.ArgumentParser()
    add_config_flags(parser, PRESETS[model])
    given = vars(parser.parse_args(process.config_flags(config)))
    assert PRESETS[model].replace(**given) == config


def tiny_config(work: Path, **changes: object) -> TrainConfig:
    draw_squares(work / "data", train=8, val=2)
    torch.manual_seed(0)
    content = {"format": FORMAT, "architecture": "v1", "model": FeatherFaceV1().state_dict()}
    write_file(work / "v1.pth", content)
    small = {"image_size": 64, "batch_size": 4, "num_workers": 0, "device": "cpu"}
    places = {"data": str(work / "data"), "teacher_model": str(work / "v1.pth")}
    places["save_folder"] = str(work / "run")
    return TrainConfig(**{**small, **places, "teacher_engine": "torch", **changes})


def wait_for(config: TrainConfig, *, epochs: int = 0, state: str = "") -> process.Status:
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        status = process.look(config)
        if (epochs and status.epoch >= epochs) or status.state == state:
            return status
        time.sleep(0.2)
    raise AssertionError(f"still {process.look(config)}")


def test_a_run_is_followed_stopped_killed_and_resumed(work, shown):
    """Everything is read from files: nothing here depends on who started the process."""
    config = tiny_config(work, epochs=EPOCHS)
    folder = work / "run"
    assert process.look(config).state == "none"
    process.start(config)
    with pytest.raises(TrainingError, match="trains here already"):
        process.start(config)
    wait_for(config, epochs=1)
    assert process.stop(folder) and not process.stop(folder)
    stopped = process.look(config)
    assert stopped.state == "stopped" and stopped.resumable, stopped
    process.start(config, resume=True)
    wait_for(config, epochs=stopped.epoch + 1)
    found = process.find_process(folder)
    if found is not None:
        os.kill(found.pid, signal.SIGKILL)
        killed = wait_for(config, state="failed")
        assert "without a word" in killed.line and killed.resumable
        process.start(config, resume=True)
    wait_for(config, state="finished")
    log = process.read_table(folder)
    assert log["epoch"].tolist() == list(range(1, EPOCHS + 1))
    assert process.look(config.replace(lr=0.5)).state == "other"


def test_a_crash_says_why_in_one_line(work, shown):
    current = sessions.open_session("quick", settings={**TINY, "save_folder": str(work / "run")})
    broken = current.config.replace(data="nowhere")
    process.start(broken)
    wait_for(broken, state="failed")
    current.config = broken
    training.follow_training(current)
    mark, text = shown[-1]
    assert mark == "problem" and "data folder nowhere does not exist" in text
    assert "Traceback" not in text and "section 5" in text


def test_without_a_checkpoint_there_is_nothing_to_resume(work, shown):
    current = sessions.open_session("quick", settings={**TINY, "save_folder": str(work / "run")})
    process.start(current.config.replace(data="nowhere"))
    wait_for(current.config, state="failed")
    training.resume_training(current)
    mark, text = shown[-1]
    assert mark == "problem" and "run section 5 again" in text


def test_a_place_for_the_page_is_needed_before_anything_runs(tmp_path):
    (tmp_path / "out").write_text("a file")
    cell = nbformat.v4.new_code_cell(f"open({str(tmp_path / 'ran')!r}, 'w')")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "short.ipynb")
    with pytest.raises(ConfigError, match="out is a file"):
        run_notebook(tmp_path / "out", parameters={}, source=tmp_path / "short.ipynb")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "last", ["os._exit(1)", "os.kill(os.getppid(), 2); time.sleep(60)"], ids=["died", "Ctrl-C"]
)
def test_a_kernel_that_ends_is_one_message(tmp_path, last):
    cells = [nbformat.v4.new_markdown_cell("## 1 End"), nbformat.v4.new_code_cell("MODE = 1")]
    cells[1].metadata["tags"] = ["parameters"]
    cells.append(nbformat.v4.new_code_cell(f"import os, time\n{last}"))
    source = tmp_path / "short.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), source)
    with pytest.raises(ConfigError, match="the kernel ended in section 1 End"):
        run_notebook(tmp_path / "out", parameters={"MODE": 2}, source=source)
    assert (tmp_path / "out/short.html").is_file()


def test_following_what_never_started_says_so(work, shown):
    training.follow_training(sessions.open_session("quick"))
    mark, text = shown[-1]
    assert mark == "problem" and "not started; start it in section 5" in text


def test_a_missing_teacher_is_one_message(work, shown):
    current = sessions.open_session("full")
    training.prepare_teacher(current)
    training.start_training(current)
    marks = [text for mark, text in shown if mark == "problem"]
    assert len(marks) == 2 and "scripts/train_v1.py" in marks[0]


def test_every_setting_is_shown_with_its_meaning(work, shown):
    from featherface.notebook.setup import show_settings

    show_settings(sessions.open_session("quick", settings={"seed": 7}))
    texts = [text for _, text in shown]
    for item in fields(TrainConfig):
        assert item.name in texts[1] and item.metadata["help"][:20] in texts[1]
    assert "seed" in texts[0] and "weight_decay" not in texts[0]


def test_missing_data_is_one_message_a_step(work, shown):
    from featherface.notebook.setup import prepare_data, show_photos, show_schedule

    current = sessions.open_session("full")
    for step in (prepare_data, show_photos, show_schedule, measure.evaluate):
        shown.clear()
        step(current)
        problems = [text for mark, text in shown if mark == "problem"]
        assert len(problems) == 1 and "scripts/prepare_data.py" in problems[0], step


def test_a_defect_is_a_message_with_its_traceback_folded(shown):
    with display.explained("dividing"):
        _ = 1 / 0
    assert shown == [
        ("problem", "Not done: dividing: ZeroDivisionError: division by zero "
         "(not foreseen: please report it)")
    ]  # fmt: skip


def test_messages_name_no_place_of_this_machine(shown):
    with display.explained("reading"):
        raise ValueError(f"{ROOT}/data/a.jpg and {Path.home()}/b.jpg")
    assert "ValueError: data/a.jpg and ~/b.jpg" in shown[0][1]
    with display.explained("importing"):
        from featherface.config import nothing  # noqa: F401
    assert str(ROOT) not in shown[1][1] and "cannot import name 'nothing'" in shown[1][1]


def test_the_costs_are_the_published_ones():
    table = network_table()
    total = table.sum(numeric_only=True)
    assert total["v1_parameters"] == 592_371 and total["v2_parameters"] == 256_156
    assert total["v1_macs"] == pytest.approx(1.24e9, rel=5e-3)
    assert total["v2_macs"] == pytest.approx(0.411e9, rel=2e-3)
    for network in (FeatherFaceV1(), FeatherFaceV2()):
        parts = sum(count_macs(network, 64).values())
        assert 0 < parts < 2e7


def test_figures_stay_small():
    figure = Figure(figsize=(9, 6))
    figure.subplots().imshow(np.random.default_rng(0).random((600, 900, 3)))
    content = display.png(figure, most=300_000)
    assert len(content) <= 300_000
    assert Image.open(io.BytesIO(content)).format == "PNG"


def test_the_comparison_holds_what_was_measured(work, shown):
    current = sessions.open_session("quick")
    performance.compare_speed(current, sizes=[(32, 64)], engines=["eager"], rounds=2)
    assert "only its forward is timed" in shown[-1][1]
    current.add("V2, shipped", {"calibration_error": 0.05})
    performance.write_comparison(current)
    table = pd.read_csv(work / "results/v2/performance_comparison.csv").set_index("what")
    assert table.loc["forward", "detector"].tolist() == ["V1", "V2"]
    assert table.loc["end-to-end", "detector"] == "V2"
    assert (table.loc["forward", ["height", "width"]] == [32, 64]).all(axis=None)
    quality = table.loc["quality"].set_index("detector")
    assert quality["parameters"].tolist() == [592_371, 256_156]
    assert quality.loc["V2, shipped", "calibration_error"] == 0.05


def test_published_curves_are_read_where_they_are(tmp_path):
    from scipy.io import savemat

    folder = tmp_path / "eval_tools/plot/baselines/Val/setting_int/Other"
    folder.mkdir(parents=True)
    for setting in ("easy", "medium", "hard"):
        points = np.array([[0.0, 1.0], [0.5, 1.0], [1.0, 0.5]])
        savemat(folder / f"wider_pr_info_Other_{setting}_val.mat", {"pr_cruve": points})
    curves = published_curves(tmp_path)
    assert list(curves) == ["Other (published)"]
    assert curves["Other (published)"]["hard"].ap == pytest.approx(0.75)
    assert published_curves(tmp_path / "nothing") == {}


def test_it_runs_from_top_to_bottom(work):
    """On a tiny drawn set; what it should leave is there, and every cell has said something."""
    parameters = {"MODE": "quick", "SETTINGS": TINY, "DEMO_PHOTOS": (8, 4)}
    quick = NOTEBOOK.read_text().replace("compare_speed(session)", SHORT_SPEED)
    assert SHORT_SPEED in quick
    (work / "copy.ipynb").write_text(quick)
    result = run_notebook(work / "out", parameters=parameters, source=work / "copy.ipynb")
    assert result.problems == ()
    executed = nbformat.read(result.notebook, as_version=4)
    for cell in executed.cells:
        if cell.cell_type != "code":
            continue
        tagged = {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", ()))
        assert tagged or cell.outputs, cell.source
        assert not [output for output in cell.outputs if output.output_type == "error"]
    assert result.page.stat().st_size < 2e6
    assert "No description has been provided" not in result.page.read_text()
    made = ["performance_comparison.csv", "notebook_config.json", "training.png"]
    made += ["quick_run/FeatherFaceV2_final.pth", "quick_run/training_log.csv"]
    made += ["featherface_v2_deployment.pth", "featherface_v2_deployment.onnx", "README.md"]
    for name in made:
        assert (work / "results/v2" / name).is_file(), name
