"""The notebook's helpers: session, training process, messages, and one run from top to bottom."""

import json
import os
import runpy
import signal
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from tiny_sets import draw_squares

from featherface import notebook as nb
from featherface.checkpoint import FORMAT, write_file
from featherface.config import PRESETS, TrainConfig
from featherface.errors import ConfigError, DataError, TrainingError
from featherface.models.networks import FeatherFaceV1, FeatherFaceV2
from featherface.notebook import display, process, results, session

ROOT = Path(__file__).resolve().parents[1]
runner = SimpleNamespace(**runpy.run_path(str(ROOT / "scripts/run_notebook.py")))
TINY = {"image_size": 64, "epochs": 1, "batch_size": 4, "num_workers": 0, "bn_batches": 2,
        "validate_photos": 2, "device": "cpu"}  # fmt: skip
EPOCHS = 25  # enough to be stopped and killed on the way
SPEED, SHORT_SPEED = 'engines=["eager", "onnx"], rounds=5', 'engines=["eager"], rounds=1'
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
    monkeypatch.setattr(session, "_current", None)
    monkeypatch.setattr(process, "LOOK_EVERY", 0.3)
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
    chosen, why = session.choose_mode(wanted, complete=complete, cuda=cuda)
    assert chosen == mode and reason in why


def test_an_unknown_mode_is_refused():
    with pytest.raises(ConfigError, match="MODE must be one of auto, quick, full"):
        session.choose_mode("fast", complete=True, cuda=True)


def test_quick_mode_leaves_the_shipped_weights_alone(work):
    current = nb.open_session("quick")
    assert Path.cwd() == work
    assert current.run == current.results == Path("results/v2/quick_run")
    assert current.config.epochs == 5 and current.config.temperature == 1.0
    assert current.deployed == session.SHIPPED_WEIGHTS
    full = nb.open_session("full")
    assert full.run == Path("weights/v2") and full.config.epochs == 400
    assert full.results == Path("results/v2")
    assert (full.config.temperature, full.config.alpha) == (1.0, 0.7)


def test_a_small_teacher_is_trained_like_its_student(work):
    current = nb.open_session("quick", settings={"epochs": 2, "seed": 4})
    teacher = current.teacher_config
    assert current.trains_teacher and teacher.model == "v1" and teacher.mixup_prob == 0
    assert teacher.epochs == 1
    for name in ("seed", "image_size", "batch_size", "lr", "data", "bn_batches"):
        assert getattr(teacher, name) == getattr(current.config, name), name
    assert not nb.open_session("full").trains_teacher


def test_the_environment_decides_where_the_cell_does_not(work, monkeypatch):
    monkeypatch.setenv("FEATHERFACE_MODE", "full")
    assert nb.open_session("auto").mode == "full"
    assert nb.open_session("quick").mode == "quick"


def test_a_setting_that_does_not_exist_is_named(work):
    with pytest.raises(ConfigError, match="no such setting: epoch"):
        nb.open_session("quick", settings={"epoch": 3})


@pytest.mark.parametrize("settings", [{"epochs": "3"}, {"epochs": 2.5}, {"lr": True}])
def test_a_setting_of_another_type_is_named(work, settings):
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} must be of type"):
        nb.open_session("quick", settings=settings)
    nb.open_session("quick", settings={"lr": 1})


def test_a_teacher_named_in_the_settings_is_the_teacher(work):
    current = nb.open_session("quick", settings={"teacher_model": "elsewhere/v1.pth"})
    assert current.teacher == Path("elsewhere/v1.pth") and not current.trains_teacher


def test_a_damaged_record_does_not_stop_the_session(work):
    (work / "results/v2").mkdir(parents=True)
    (work / "results/v2/notebook_config.json").write_text('{"session": {"mode": "quick"}}')
    assert nb.current_session().mode == "quick"


def test_real_photographs_are_used_where_there_are_some(work):
    draw_squares(work / "data/widerface", train=3, val=2)
    current = nb.open_session("quick")
    assert current.drawn is None and current.data == Path("data/widerface")
    assert current.protocol == "vga"


def test_after_a_restart_the_session_is_found_again(work, monkeypatch):
    nb.write_record(nb.open_session("full"))
    os.utime("results/v2/notebook_config.json", (1, 1))
    first = nb.open_session("quick", settings={"epochs": 3}, demo_photos=(2, 1))
    nb.write_record(first)
    record = json.loads((work / "results/v2/quick_run/notebook_config.json").read_text())
    assert record["settings"]["epochs"] == 3 and record["versions"]["torch"]
    assert str(work) not in json.dumps(record["data"])
    monkeypatch.setattr(session, "_current", None)
    again = nb.current_session()
    assert again is not first and again.config == first.config and again.drawn == (2, 1)


def test_figures_of_detectors_outlive_the_kernel(work):
    current = nb.open_session("quick")
    nb.remember(current, "V1", ap_all=50.0)
    nb.remember(current, "V1", calibration_error=0.1)
    assert results.remembered(current) == {"V1": {"ap_all": 50.0, "calibration_error": 0.1}}


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
        status = process.status_of(config)
        if (epochs and status.epoch >= epochs) or status.state == state:
            return status
        time.sleep(0.2)
    raise AssertionError(f"still {process.status_of(config)}")


def test_a_run_is_followed_stopped_killed_and_resumed(work):
    """Everything is read from files: nothing here depends on who started the process."""
    config = tiny_config(work, epochs=EPOCHS)
    folder = work / "run"
    assert process.status_of(config).state == "none"
    process.start(config)
    with pytest.raises(TrainingError, match="already trains here"):
        process.start(config)
    wait_for(config, epochs=1)
    assert process.stop(folder) and not process.stop(folder)
    stopped = process.status_of(config)
    assert stopped.state == "stopped" and stopped.resumable, stopped
    process.start(config, resume=True)
    wait_for(config, epochs=stopped.epoch + 1)
    found = process.find_process(folder)
    if found is not None:
        os.kill(found.pid, signal.SIGKILL)
        killed = wait_for(config, state="failed")
        assert "without a message" in killed.line and killed.resumable
        process.start(config, resume=True)
    wait_for(config, state="finished")
    log = process.read_log(folder)
    assert log["epoch"].tolist() == list(range(1, EPOCHS + 1))
    steps = process.read_steps(folder)  # since it was resumed; each epoch ends with a reading
    assert steps["epoch"].iloc[-1] == EPOCHS
    assert steps["loss"].iloc[-1] == pytest.approx(log["loss"].iloc[-1], rel=1e-4)
    assert process.status_of(config.replace(lr=0.5)).state == "other"


PROGRESS = {"epoch": 3, "epochs": 5, "step": 20, "steps": 50, "loss": 1.23456,
            "images_per_second": 7.1, "device_megabytes": 512, "error": "", "pid": 1,
            "updated": 0.0}  # fmt: skip


@pytest.mark.parametrize(
    ("state", "error", "expected", "text"),
    [
        ("stopped", "", "stopped", "stopped after 3 of 5 epochs; it can be resumed"),
        ("failed", "the loss became nan", "failed", "the loss became nan; it can be resumed"),
        ("training", "", "failed", "ended without a message after 3 of 5 epochs"),
        ("done", "", "finished", "finished: 5 epochs"),
    ],
)
def test_the_state_comes_from_the_progress_file(tmp_path, state, error, expected, text):
    config = TrainConfig(save_folder=str(tmp_path), epochs=5)
    for name in ("FeatherFaceV2_last.pth", "FeatherFaceV2_final.pth"):
        (tmp_path / name).write_bytes(b"never read")
    (tmp_path / "run.json").write_text(json.dumps(config.as_dict()))
    (tmp_path / "training.pid").write_text(json.dumps({"pid": os.getpid(), "born": 1.0}))
    progress = PROGRESS | {"state": state, "error": error}
    (tmp_path / "progress.json").write_text(json.dumps(progress))
    status = process.status_of(config)
    assert (status.state, status.resumable) == (expected, expected != "finished")
    assert text in status.line
    assert process.status_of(config.replace(alpha=0.1)).state == "other"
    (tmp_path / "progress.json").write_text('{"state": "tra')  # not written by the trainer
    assert process.status_of(config).state == "failed"


def test_a_running_process_shows_epoch_step_loss_and_speed(tmp_path):
    config = TrainConfig(save_folder=str(tmp_path), epochs=5)
    born = process.psutil.Process().create_time()
    (tmp_path / "training.pid").write_text(json.dumps({"pid": os.getpid(), "born": born}))
    assert process.status_of(config).line.endswith("epoch 1 of 5: starting")
    (tmp_path / "progress.json").write_text(json.dumps(PROGRESS | {"state": "training"}))
    status = process.status_of(config)
    assert status.state == "running" and status.epoch == 3
    assert "epoch 4 of 5, step 20 of 50 (40 %), loss 1.235, 7.1 images/s" in status.line
    assert "about 7 min left, 512 MB on the device" in status.line  # 80 steps of 32 images


def test_losses_by_step_are_those_between_two_readings(tmp_path):
    assert process.read_steps(tmp_path).empty
    losses = [[0, 10, 4.0], [0, 20, 3.0], [0, 25, 2.8], [1, 10, 1.5]]  # means of the epoch so far
    (tmp_path / "progress.json").write_text(json.dumps({"losses": losses, "steps": 25}))
    table = process.read_steps(tmp_path)
    np.testing.assert_allclose(table["loss"], [4.0, 2.0, 2.0, 1.5])
    np.testing.assert_allclose(table["epoch"], [0.4, 0.8, 1.0, 1.4])


def test_a_crash_is_one_line(work):
    config = tiny_config(work).replace(data="nowhere")
    process.start(config)
    wait_for(config, state="failed")
    with pytest.raises(TrainingError, match=r"data folder nowhere does not exist.*run section 5"):
        nb.follow_training(config)
    with pytest.raises(TrainingError, match="nothing to resume: data folder nowhere"):
        nb.resume_training(config)


def test_following_a_run_that_never_started_is_an_error(work):
    with pytest.raises(TrainingError, match="V2: not started; run section 5"):
        nb.follow_training(nb.open_session("quick").config)


def test_a_missing_teacher_is_one_message(work):
    with pytest.raises(TrainingError, match=r"scripts/train_v1\.py"):
        nb.start_training(nb.open_session("full").config)


def test_a_place_for_the_page_is_needed_before_anything_runs(tmp_path):
    (tmp_path / "out").write_text("a file")
    cell = nbformat.v4.new_code_cell(f"open({str(tmp_path / 'ran')!r}, 'w')")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "short.ipynb")
    with pytest.raises(ConfigError, match="out is a file"):
        runner.run_notebook(tmp_path / "out", parameters={}, source=tmp_path / "short.ipynb")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [("[1", "not a JSON object"), ('{"epoch": 3}', "no such setting: epoch")],
)
def test_wrong_settings_are_refused_before_anything_is_written(
    tmp_path, monkeypatch, settings, message
):
    flags = ["run_notebook.py", "--settings", settings, "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", flags)
    with pytest.raises(ConfigError, match=message):
        runner.main()
    assert not (tmp_path / "out").exists()


def short_notebook(folder: Path, *code: str) -> Path:
    """A notebook with a section "1 End", a parameter MODE and these cells."""
    cells = [nbformat.v4.new_markdown_cell("## 1 End"), nbformat.v4.new_code_cell("MODE = 1")]
    cells[1].metadata["tags"] = ["parameters"]
    cells += [nbformat.v4.new_code_cell(text) for text in code]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "short.ipynb")
    return folder / "short.ipynb"


@pytest.mark.parametrize(
    "last", ["os._exit(1)", "os.kill(os.getppid(), 2); time.sleep(60)"], ids=["died", "Ctrl-C"]
)
def test_a_kernel_that_ends_is_one_message(tmp_path, last):
    source = short_notebook(tmp_path, f"import os, time\n{last}")
    with pytest.raises(ConfigError, match="the kernel ended in section 1 End"):
        runner.run_notebook(tmp_path / "out", parameters={"MODE": 2}, source=source)
    assert (tmp_path / "out/short.html").is_file()


def test_errors_in_cells_are_messages_and_the_next_cell_runs(work, capsys):
    source = short_notebook(
        work,
        "from featherface import notebook as nb\nnb.open_session('quick')",
        "from featherface.data.widerface import read_split\nread_split('nowhere')",
        "1 / 0",
        "missing_results",
        "nb.plt = __import__('matplotlib.figure').figure.Figure(); nb.plt",
    )
    executed, problems = runner.run_notebook(work / "out", parameters={}, source=source)
    outputs = [output for cell in executed.cells[3:] for output in cell.outputs]
    assert problems == 3 and [o.output_type for o in outputs] == ["display_data"] * 3 + [
        "execute_result"
    ]
    texts = [output.data["text/plain"] for output in outputs]
    assert "nowhere" in texts[0] and "ZeroDivisionError: division by zero" in texts[1]
    assert "run the cells above first" in texts[2]
    assert "traceback" in outputs[1].data["text/html"] and "image/png" in outputs[3].data
    assert "Not done: ZeroDivisionError" in capsys.readouterr().out


def test_without_a_repository_that_can_be_written_to_the_working_folder_stays(work, monkeypatch):
    monkeypatch.delenv("FEATHERFACE_ROOT")
    monkeypatch.setattr(session, "CHECKOUT", work / "site-packages")
    os.chdir(work)
    assert nb.open_session("quick").data == Path("data/demo")
    assert Path.cwd() == work
    (work / "site-packages/notebooks").mkdir(parents=True)
    nb.open_session("quick")
    assert Path.cwd() == work / "site-packages"


def test_a_session_that_cannot_be_opened_ends_the_run(work):
    source = short_notebook(
        work, "from featherface import notebook as nb\nnb.open_session('fast')", "1 / 0"
    )
    with pytest.raises(ConfigError, match="MODE must be one of"):
        runner.run_notebook(work / "out", parameters={}, source=source)


def test_messages_name_no_place_of_this_machine(shown):
    display.explain(ValueError(f"{ROOT}/data/a.jpg and {Path.home()}/b.jpg"))
    assert "ValueError: data/a.jpg and ~/b.jpg" in shown[0][1]
    with pytest.raises(ImportError) as caught:
        from featherface.config import nothing  # noqa: F401
    display.explain(caught.value)
    assert str(ROOT) not in shown[1][1] and "cannot import name 'nothing'" in shown[1][1]


def test_every_setting_is_shown_with_its_meaning(work):
    current = nb.open_session("quick", settings={"seed": 7})
    table = nb.settings_table(current.config, PRESETS["published"])
    for item in fields(TrainConfig):
        assert table.loc[item.name, "meaning"] == item.metadata["help"]
    changed = table[table["base"] != table["this run"]]
    assert changed.loc["seed", "this run"] == "7" and "weight_decay" not in changed.index


def test_learning_rates_rise_then_fall():
    rates = nb.learning_rates(PRESETS["quick"], 20)
    top = int(rates.argmax())
    assert len(rates) == 20 * PRESETS["quick"].epochs and 0 < top <= len(rates) / 10
    assert rates.max() == pytest.approx(PRESETS["quick"].lr) and (np.diff(rates[top:]) <= 0).all()


def test_a_missing_guide_is_an_error():
    with pytest.raises(DataError, match=r"docs/nothing\.md does not exist"):
        nb.guide("nothing")


def test_the_costs_are_the_published_ones():
    total = nb.network_table().sum(numeric_only=True)
    assert total["v1_parameters"] == 592_371 and total["v2_parameters"] == 256_156
    assert total["v1_macs"] == pytest.approx(1.24e9, rel=5e-3)
    assert total["v2_macs"] == pytest.approx(0.411e9, rel=2e-3)
    for network in (FeatherFaceV1(), FeatherFaceV2()):
        parts = sum(results.count_macs(network, 64).values())
        assert 0 < parts < 2e7


def test_photos_are_jpegs_and_curves_are_pngs():
    photos, curves = Figure(figsize=(9, 6)), Figure(figsize=(9, 6))
    photos.subplots().imshow(np.random.default_rng(0).random((600, 900, 3)))
    ax = curves.subplots()
    ax.plot([0, 1])
    ax.set_title("a <title>")
    assert display._as_png(photos) is None and display._as_jpeg(curves) is None
    content, _ = display._as_jpeg(photos)
    assert content[:2] == b"\xff\xd8" and len(content) < 200_000
    content, described = display._as_png(curves)
    assert content[:4] == b"\x89PNG" and described == {"alt": "a <title>"}


def test_the_comparison_holds_times_and_quality(work):
    current = nb.open_session("quick")
    nb.remember(current, "V2, shipped", calibration_error=0.05)
    times = pd.DataFrame([{"detector": "V1", "what": "forward", "median": 3.0}])
    assert nb.write_comparison(current, times).loc["calibration_error", "V2, shipped"] == 0.05
    table = pd.read_csv(current.results / "performance_comparison.csv").set_index("what")
    assert table.loc["forward", "median"] == 3 and table.loc["forward", "detector"] == "V1"
    assert table.loc["quality", "parameters"] == 256_156


def test_it_runs_from_top_to_bottom(work):
    """On a tiny synthetic set: it writes what it should, and every cell shows something."""
    parameters = {"MODE": "quick", "SETTINGS": TINY, "DEMO_PHOTOS": (8, 4)}
    text = runner.NOTEBOOK.read_text()
    quick = text.replace(json.dumps(SPEED)[1:-1], json.dumps(SHORT_SPEED)[1:-1])
    assert quick != text
    (work / "copy.ipynb").write_text(quick)
    executed, problems = runner.run_notebook(
        work / "out", parameters=parameters, source=work / "copy.ipynb"
    )
    assert problems == 0
    for cell in executed.cells:
        if cell.cell_type != "code":
            continue
        tagged = {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", ()))
        assert tagged or cell.outputs, cell.source
        assert not [output for output in cell.outputs if output.output_type == "error"]
    page = work / "out/copy.html"
    assert page.stat().st_size < 2e6
    assert "No description has been provided" not in page.read_text()
    made = ["performance_comparison.csv", "notebook_config.json", "precision_recall.png"]
    made += ["FeatherFaceV2_final.pth", "training_log.csv", "faces.jpg"]
    made += ["featherface_v2_deployment.pth", "featherface_v2_deployment.onnx", "README.md"]
    assert [path.name for path in (work / "results/v2").iterdir()] == ["quick_run"]
    gives = nb.summary(nb.current_session())["value"]
    files = " ".join(gives[["file", "picture"]])
    for name in made:
        assert f"results/v2/quick_run/{name}" in files, name
    assert {"AP of V1", "AP of V2, this run", "AP of V2, shipped"} < set(gives.index)
    assert gives.index[-1] == "picture"
