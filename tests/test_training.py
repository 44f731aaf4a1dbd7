"""The loop: what it writes, that it learns, resumes to the same result, and stops well."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_targets
from tiny_runs import equal, prepare, tiny_config, trained

from featherface.checkpoint import load_model, read_file, write_file
from featherface.config import TrainConfig
from featherface.distributed import random_state, set_random_state
from featherface.errors import CheckpointError, ConfigError, DataError, TrainingError
from featherface.files import sha256
from featherface.losses import Distillation
from featherface.training import engine
from featherface.training import step as build
from featherface.training.optim import Averages, make_scheduler
from featherface.training.state import ProgressFile, Run, clear_folder, resumed_config
from featherface.training.step import DistillationStep
from featherface.training.validation import Validator


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Photos with one or two bright squares as faces, eight and four, and a teacher."""
    return prepare(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data(root) -> Path:
    return root / "data"


@pytest.fixture(scope="module")
def teacher(root) -> Path:
    return root / "v1.pth"


@pytest.fixture
def config(root, tmp_path) -> TrainConfig:
    return tiny_config(root, tmp_path / "run")


def interrupting(monkeypatch, steps: int, number: int = signal.SIGINT) -> None:
    """Make training send itself a signal after so many steps."""
    update, done = engine.update, []

    def wrapped(run: Run, losses) -> None:
        update(run, losses)
        done.append(1)
        if len(done) == steps:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(engine, "update", wrapped)


def test_a_run_writes_its_files_and_a_row_an_epoch(config):
    final = engine.train(config, progress=False)
    names = {path.name for path in final.parent.iterdir()}
    assert names == {
        "FeatherFaceV2_epoch_1.pth",
        "FeatherFaceV2_epoch_2.pth",
        "FeatherFaceV2_last.pth",
        "FeatherFaceV2_final.pth",
        "training_log.csv",
        "config.json",
        "progress.json",
    }
    log = pd.read_csv(final.parent / "training_log.csv")
    assert log["epoch"].tolist() == [1, 2]
    terms = {"loss", "task", "class", "box", "landmark", "feature", "distill"}
    terms |= {"distill_class", "distill_box", "distill_landmark"}
    assert terms | {"lr", "images_per_second", "seconds", "loader_share"} <= set(log.columns)
    mixed = 0.3 * log["task"] + 0.7 * log["distill"] + 0.1 * log["feature"]
    np.testing.assert_allclose(log["loss"], mixed, rtol=1e-3)
    content = read_file(final)
    assert content["config"]["seed"] == 0 and content["epoch"] == 2
    assert (content["data"]["photos"], content["data"]["faces"]) == (8, 12)
    assert "optimizer" not in content and final.stat().st_size < 1_400_000
    json.dumps(content["versions"])
    assert load_model(final).name == "v2"


def status_of(config: TrainConfig) -> dict:
    return json.loads((Path(config.save_folder) / "progress.json").read_text())


def test_progress_tells_another_process_where_the_run_is(config, monkeypatch):
    states, write = [], ProgressFile.write

    def watched(self, *arguments, **options):
        write(self, *arguments, **options)
        states.append(status_of(config))

    monkeypatch.setattr(ProgressFile, "write", watched)
    monkeypatch.setattr(Validator, "__call__", lambda self, model: {"val_ap": 0.5})
    engine.train(config.replace(validate_every=2), progress=False)
    assert [(each["state"], each["epoch"], each["step"]) for each in states] == [
        ("starting", 0, 0),
        *(("training", 0, 4), ("training", 1, 0), ("training", 1, 4)),
        *(("validating", 1, 4), ("training", 2, 0), ("done", 2, 0)),
    ]
    last = states[-1]
    assert (last["epochs"], last["steps"], last["pid"], last["error"]) == (2, 4, os.getpid(), "")
    assert last["loss"] > 0 and last["images_per_second"] > 0
    assert states[0]["updated"] <= last["updated"] <= time.time()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupting(patch, 2)
        engine.train(config, overwrite=True, progress=False)
    assert (states[-1]["state"], states[-1]["step"]) == ("stopped", 2)


def test_photos_and_criterion_are_seams_for_experiments(config):
    """A run on other photos, with another weight of the class KL, without a setting for either."""
    photos = engine.training_photos(config)[:4]

    class LabelsOnly(Distillation):
        def anchor_weight(self, student, teacher, selected):
            return torch.zeros_like(teacher)

    final = engine.train(
        config.replace(epochs=1), photos=photos, criterion=LabelsOnly, progress=False
    )
    assert read_file(final)["data"]["photos"] == 4
    log = pd.read_csv(Path(config.save_folder) / "training_log.csv")
    assert log["distill_class"].tolist() == [0.0] and log["distill_box"].item() > 0
    last = engine.checkpoint_path(config, "last")
    for path in (final, last):
        assert read_file(path)["criterion"] == f"{__name__}.{LabelsOnly.__qualname__}"
    options = {"photos": photos, "resume": last, "progress": False}
    refused = r"another criterion \(.*\.LabelsOnly; now featherface\.losses\.Distillation\)"
    with pytest.raises(ConfigError, match=refused) as caught:
        engine.train(config.replace(epochs=1), **options)
    assert "\n" not in str(caught.value)
    engine.train(config.replace(epochs=1), criterion=LabelsOnly, **options)
    with pytest.raises(ConfigError, match="V1 has none"):
        v1 = config.replace(model="v1", init="scratch")
        engine.train(v1, criterion=LabelsOnly, overwrite=True, progress=False)


def test_one_seed_gives_one_result_with_or_without_workers(config):
    first = trained(config)
    assert equal(first, trained(config.replace(save_folder=config.save_folder + "2")))
    workers = config.replace(num_workers=2, save_folder=config.save_folder + "3")
    assert equal(first, trained(workers))
    other = config.replace(seed=1, save_folder=config.save_folder + "4")
    assert not equal(first, trained(other))


MIXED = {"mixup_prob": 0.5, "cutmix_prob": 1.0, "dropblock_prob": 0.4}  # every batch is mixed
CACHED = {"cache": "ram"}


@pytest.mark.parametrize(  # inside, at the end of, and after the first epoch
    ("steps", "changes"), [(3, MIXED), (4, CACHED), (6, {}), (6, MIXED | CACHED)]
)
def test_interrupted_and_resumed_is_bit_identical(config, monkeypatch, steps, changes):
    config = config.replace(**changes)
    expected = trained(config.replace(save_folder=config.save_folder + "_whole"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupting(patch, steps)
        engine.train(config, progress=False)
    last = engine.checkpoint_path(config, "last")
    assert equal(expected, trained(config, resume=last))
    whole = pd.read_csv(Path(config.save_folder + "_whole") / "training_log.csv")
    log = pd.read_csv(Path(config.save_folder) / "training_log.csv")
    timing = ["seconds", "images_per_second", "loader_share"]
    pd.testing.assert_frame_equal(log.drop(columns=timing), whole.drop(columns=timing))


def test_the_student_learns_and_the_teacher_does_not_change(config, monkeypatch):
    steady = config.replace(
        epochs=12, lr=5e-3, mixup_prob=0.0, cutmix_prob=0.0, dropblock_prob=0.0, save_every=100
    )
    teachers = []
    make = build.make_teacher

    def kept(*arguments, **options):
        teachers.append(make(*arguments, **options))
        return teachers[-1]

    monkeypatch.setattr(build, "make_teacher", kept)
    engine.train(steady, progress=False)
    log = pd.read_csv(Path(config.save_folder) / "training_log.csv")
    assert log["class"].iloc[-3:].mean() < 0.6 * log["class"].iloc[0]
    (used,) = teachers
    assert equal(used.model.state_dict(), load_model(config.teacher_model).state_dict())


def test_a_step_changes_every_tensor_the_optimizer_owns(config):
    torch.manual_seed(0)
    run = Run(config.replace(weight_decay=0.0), steps_per_epoch=4)  # it would change all weights
    before = {name: p.detach().clone() for name, p in run.step.trained.named_parameters()}
    before_teacher = {k: v.clone() for k, v in run.step.teacher.model.state_dict().items()}
    owned = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in run.step.trained.parameters()}
    assert any("projections" in name for name in before)
    targets = make_targets([(4, 4, 40, 40)], [(20, 20, 60, 60), (2, 2, 20, 20)])
    run.step.trained.train()
    for _ in range(4):
        engine.update(run, run.step(torch.randn(2, 3, 64, 64) * 50, targets))
    still = [
        name for name, p in run.step.trained.named_parameters() if torch.equal(before[name], p)
    ]
    assert still == []
    assert equal(before_teacher, run.step.teacher.model.state_dict())


def test_the_teacher_sees_the_images_that_the_student_sees_and_teaches_all_of_it(config):
    torch.manual_seed(0)
    run = Run(config.replace(feature_weight=0.0), steps_per_epoch=4)
    step, seen = run.step, []
    teacher, student = step.teacher, step.student

    class Watched:
        model = teacher.model

        def __call__(self, images):
            seen.append(images)
            return teacher(images)

    def watched(images):
        seen.append(images)
        return student(images)

    step.teacher, step.student = Watched(), watched
    run.step.trained.train()
    images = torch.randn(2, 3, 64, 64) * 50
    losses = step(images, make_targets([(4, 4, 40, 40)], []))
    assert len(seen) == 2 and all(torch.equal(part, images) for part in seen)
    losses["distill"].backward()
    named = dict(run.model.named_parameters())
    assert not [name for name, p in named.items() if p.grad is None]
    for part in ("boxes", "classes", "landmarks"):
        taught = [p.grad.any() for name, p in named.items() if f"heads.{part}" in name]
        assert any(taught), f"the teacher teaches no {part}"
    assert all(p.grad is None for p in teacher.model.parameters())


def test_the_loop_mixes_images_and_faces_together_and_ramps_dropblock(config, monkeypatch):
    plain, steps, drops = [], [], []
    mixed = config.replace(mixup_prob=0.0, cutmix_prob=1.0, clean_share=0.5, dropblock_prob=0.2)
    mix = engine.mix

    def watched(config, images, targets, **options):
        plain.append((images, targets))
        return mix(config, images, targets, **options)

    call = DistillationStep.__call__

    def recording(self, images, targets):
        steps.append((images, targets))
        drops.append(self.trained["model"].drop.p)
        return call(self, images, targets)

    monkeypatch.setattr(engine, "mix", watched)
    monkeypatch.setattr(DistillationStep, "__call__", recording)
    engine.train(mixed, progress=False)
    assert len(steps) == 8 and len(plain) == 4, "the last half is clean"
    for (images, targets), (pixels, faces) in zip(plain, steps, strict=False):
        width = targets.boxes.shape[1]
        assert faces.boxes.shape[1] == 2 * width
        assert faces.face_count == 2 * targets.face_count > 0
        assert pixels.shape == images.shape and not torch.equal(pixels, images)
    assert drops == pytest.approx([0.2 * step / 8 for step in range(8)])


def test_backbone_starts_as_asked(config, teacher):
    torch.manual_seed(0)
    run = Run(config, steps_per_epoch=1)
    source = load_model(teacher).backbone.state_dict()
    assert equal(run.model.backbone.state_dict(), source)
    scratch = Run(config.replace(init="scratch"), steps_per_epoch=1)
    assert not equal(scratch.model.backbone.state_dict(), source)
    with pytest.raises(CheckpointError, match="no such file"):
        Run(config.replace(init="imagenet", backbone_weights="nowhere.tar"), steps_per_epoch=1)


def test_v1_trains_under_the_same_loop(config):
    v1 = config.replace(model="v1", init="scratch", epochs=1)
    final = engine.train(v1, progress=False)
    assert final.name == "FeatherFaceV1_final.pth" and load_model(final).name == "v1"
    with pytest.raises(ConfigError, match="V1 has none"):
        Run(v1.replace(init="teacher"), steps_per_epoch=1)


def test_a_run_can_start_from_weights(config):
    final = engine.train(config.replace(epochs=1), progress=False)
    run = Run(config.replace(weights=str(final)), steps_per_epoch=1)
    assert equal(run.model.state_dict(), load_model(final).state_dict())
    with pytest.raises(ConfigError, match="holds v1"):
        Run(config.replace(weights=config.teacher_model), steps_per_epoch=1)


def test_a_missing_teacher_says_how_to_get_one(config):
    with pytest.raises(CheckpointError, match=r"needs its V1 teacher.*train_v1\.py"):
        engine.train(config.replace(teacher_model="nowhere.pth"), progress=False)


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(config, monkeypatch):
    update = engine.update

    def poison(run: Run, losses) -> None:
        update(run, {name: value * float("nan") for name, value in losses.items()})

    monkeypatch.setattr(engine, "update", poison)
    with pytest.raises(TrainingError, match="the loss became nan"):
        engine.train(config, progress=False)
    names = {path.name for path in Path(config.save_folder).iterdir()}
    assert names == {"config.json", "progress.json"}
    status = status_of(config)
    assert status["state"] == "failed" and status["error"].startswith("the loss became nan")


def test_resume_refuses_what_would_be_another_run(config, teacher):
    engine.train(config.replace(epochs=1), progress=False)
    last = engine.checkpoint_path(config, "last")
    assert resumed_config(last, {"num_workers": 3}).num_workers == 3
    with pytest.raises(ConfigError, match=r"--lr 0\.5 \(was 0\.001\)"):
        resumed_config(last, {"lr": 0.5})
    with pytest.raises(ConfigError, match=r"--epochs 2 \(was 1\)"):
        engine.train(config, resume=last, progress=False)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        resumed_config(last.with_name("none.pth"), {})
    with pytest.raises(TrainingError, match="no training run"):
        resumed_config(teacher, {})
    with pytest.raises(TrainingError, match="no training state"):
        engine.train(config, resume=engine.checkpoint_path(config, "final"), progress=False)


def test_resuming_a_copy_does_not_write_over_another_run(config, tmp_path):
    engine.train(config, progress=False)
    copy = tmp_path / "copy"
    copy.mkdir()
    first = shutil.copy(engine.checkpoint_path(config, 1), copy)
    before = engine.checkpoint_path(config, "final").read_bytes()
    with pytest.raises(TrainingError, match="already holds a run"):
        engine.train(config, resume=Path(first), progress=False)
    assert engine.checkpoint_path(config, "final").read_bytes() == before
    assert equal(
        trained(config.replace(save_folder=str(copy)), resume=Path(first)),
        read_file(engine.checkpoint_path(config, "final"))["model"],
    )


def test_schedule_warms_up_over_at_most_a_tenth_then_falls_to_the_end():
    config = TrainConfig(epochs=20, lr=1.0, min_lr=0.01, warmup_epochs=5)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.lr)
    scheduler, rates = make_scheduler(optimizer, config, 10), []
    for _ in range(200):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert 0 < rates[0] < 0.06 and rates[:21] == sorted(rates[:21])
    assert rates[20] == pytest.approx(1.0) and rates[20:] == sorted(rates[20:], reverse=True)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    long = make_scheduler(optimizer, config.replace(epochs=400), 10)
    assert long._milestones == [50], "the five epochs asked for"


def test_ema_follows_slowly_and_averages_buffers():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    ema = Averages(model, decay=0.9)
    for _ in range(200):
        ema.update(model)
    old = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight += 1.0
        model[1].running_mean += 1.0
        model[1].num_batches_tracked += 5
    ema.update(model)
    torch.testing.assert_close(ema.module[0].weight.detach(), old + 0.1)
    torch.testing.assert_close(ema.module[1].running_mean, torch.full((2,), 0.1))
    assert int(ema.module[1].num_batches_tracked) == 5


def test_validation_picks_the_best_weights_by_ap(config, data, monkeypatch):
    config = config.replace(validate_every=1, validate_photos=3, epochs=3)
    given = iter([0.2, 0.7, 0.5])
    seen = []

    def validate(validator, model) -> dict[str, float]:
        seen.append(len(validator.photos.photos))
        return {"val_ap": next(given)}

    monkeypatch.setattr(engine.Validator, "__call__", validate)
    engine.train(config, progress=False)
    log = pd.read_csv(Path(config.save_folder) / "training_log.csv")
    assert log["val_ap"].tolist() == [0.2, 0.7, 0.5] and seen == [3, 3, 3]
    best = read_file(engine.checkpoint_path(config, "best"))
    assert best["epoch"] == 2 and best["validation"]["val_ap"] == 0.7
    assert "3 of 4 images" in best["validation"]["on"], "a subset is called a subset"
    assert load_model(engine.checkpoint_path(config, "best")).name == "v2"


def test_validation_measures_the_weights_in_use(config):
    run = Run(config, steps_per_epoch=4)
    scores = Validator(config)(run.averaged_model)
    assert set(scores) <= {f"val_ap{name}" for name in ("", "_all", "_small", "_medium", "_large")}
    assert scores["val_ap"] == scores["val_ap_all"] and 0 <= scores["val_ap"] < 0.5
    assert run.model.training, "measuring must leave the network as it was"
    with pytest.raises(DataError):
        Validator(config.replace(data=config.save_folder))


def test_the_best_so_far_counts_only_for_the_same_measure(config, monkeypatch):
    given = iter([0.7, 0.2, 0.2, 0.2, 0.2])
    monkeypatch.setattr(engine.Validator, "__call__", lambda self, model: {"val_ap": next(given)})
    config = config.replace(validate_every=1)
    engine.train(config, progress=False)
    best, first = (engine.checkpoint_path(config, name) for name in ("best", 1))
    again = config.replace(validate_photos=3)
    engine.train(config, resume=first, progress=False)
    assert read_file(best)["epoch"] == 1
    engine.train(again, resume=first, progress=False)
    assert read_file(best)["epoch"] == 2 and "3 of 4" in read_file(best)["validation"]["on"]
    best.unlink()
    engine.train(config, resume=first, progress=False)
    assert read_file(best)["validation"]["val_ap"] == 0.2


def test_unlabelled_photos_are_not_validated_on(config, data):
    val = config.replace(unlabelled=str(data / "WIDER_val/images"), validate_every=1)
    with pytest.raises(
        ConfigError, match=r"4 photos to validate on are also trained on.*WIDER_val"
    ):
        engine.train(val, progress=False)


def test_validation_on_the_training_photos_is_refused(config, data, tmp_path):
    plain = tmp_path / "plain"
    (plain / "images").mkdir(parents=True)
    (plain / "images" / "0--Squares").symlink_to(data / "WIDER_train/images/0--Squares")
    annotation = data / "wider_face_split/wider_face_train_bbx_gt.txt"
    (plain / "bbx_gt.txt").write_text(annotation.read_text())
    same = config.replace(data=str(plain), validate_every=1, limit=1)
    with pytest.raises(ConfigError, match=r"1 photos.*also trained on.*--validate-every") as caught:
        engine.train(same, progress=False)
    assert "\n" not in str(caught.value) and not list(Path(config.save_folder).glob("*.pth"))
    assert Validator(config, engine.training_photos(config)).photos.count == 4


def test_weights_that_come_with_the_project_are_kept_beside_the_new_ones(config, capsys):
    engine.train(config.replace(epochs=1), progress=False)
    final = engine.checkpoint_path(config, "final")
    kept = engine.checkpoint_path(config, f"final_{sha256(final)[:8]}")
    for other in final.parent.glob("*[!l].pth"):
        other.unlink()  # as in a fresh clone: weights alone
    shipped = final.read_bytes()
    engine.train(config.replace(epochs=1, seed=1), progress=False)
    assert str(kept) in capsys.readouterr().out
    assert kept.read_bytes() == shipped
    assert not equal(read_file(kept)["model"], read_file(final)["model"])
    engine.train(config.replace(epochs=1, seed=2), overwrite=True, progress=False)
    assert kept.read_bytes() == shipped and len(list(final.parent.glob("*final_*"))) == 1
    last = engine.checkpoint_path(config, "last")
    moved = Path(config.save_folder).with_name("moved")
    moved.mkdir()
    shutil.copy(kept, moved / final.name)
    engine.train(config.replace(epochs=1, seed=2, save_folder=str(moved)), resume=last)
    assert (moved / kept.name).read_bytes() == shipped, "by a resumed run, too"
    for foreign in (b"a", b"a", b"b"):
        for other in moved.glob("*_last.pth"):
            other.unlink()
        (moved / final.name).write_bytes(foreign)
        clear_folder(config.replace(save_folder=str(moved)))
    assert len(list(moved.glob("*final_*"))) == 3, "no copy twice"


def test_batch_norms_get_as_many_batches_as_were_asked_for(config, monkeypatch):
    seen = []
    estimate = engine.update_bn
    monkeypatch.setattr(engine, "update_bn", lambda images, model: estimate(listed(images), model))

    def listed(images):
        seen.extend(images)
        return seen

    engine.train(config.replace(epochs=1, bn_batches=6), progress=False)  # an epoch has four
    assert len(seen) == 6
    assert not torch.equal(seen[0], seen[4]), "the next epoch's, not the same ones again"


def test_a_run_is_not_replaced_by_accident(config, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupting(patch, 5, signal.SIGTERM)
        engine.train(config, progress=False)
    assert engine.checkpoint_path(config, 1).exists()
    with pytest.raises(TrainingError, match=r"already holds a run.*--resume.*--overwrite"):
        engine.train(config, progress=False)
    lost = config.replace(teacher_model="nosuch.pth")
    with pytest.raises(CheckpointError, match="nosuch"):
        engine.train(lost, overwrite=True, progress=False)
    assert engine.checkpoint_path(config, 1).exists(), "it goes only when the new one can start"
    log = Path(config.save_folder) / "training_log.csv"
    assert log.exists()
    with monkeypatch.context() as patch:
        patch.setattr(engine, "train_all_epochs", lambda *_, **__: not log.exists() or 1 / 0)
        engine.train(config.replace(epochs=1, save_every=5), overwrite=True, progress=False)
    engine.train(config.replace(epochs=1, save_every=5), overwrite=True, progress=False)
    assert not engine.checkpoint_path(config, 1).exists(), "the old run's checkpoints must go"
    with pytest.raises(TrainingError, match="already holds a run"):
        engine.train(config, progress=False)


def test_resuming_on_other_photos_is_refused(config):
    engine.train(config.replace(epochs=1), progress=False)
    last = engine.checkpoint_path(config, "last")
    with pytest.raises(ConfigError, match=r"other photos \(8 photos.*now 4 photos"):
        photos = engine.training_photos(config)[:4]
        engine.train(config.replace(epochs=1), photos=photos, resume=last, progress=False)


def test_resuming_with_another_teacher_is_refused(config, tmp_path):
    engine.train(config.replace(epochs=1), progress=False)
    last = engine.checkpoint_path(config, "last")
    content = read_file(config.teacher_model)
    write_file(tmp_path / "moved.pth", content)
    same = resumed_config(last, {"teacher_model": str(tmp_path / "moved.pth")})
    engine.train(same, resume=last, progress=False)
    next(iter(content["model"].values())).mul_(1.1)
    write_file(tmp_path / "other.pth", content)
    with pytest.raises(ConfigError, match=r"another teacher \(SHA-256 \w+; now SHA-256 \w+\)"):
        changed = resumed_config(last, {"teacher_model": str(tmp_path / "other.pth")})
        engine.train(changed, resume=last, progress=False)


def test_weights_that_are_no_numbers_are_never_saved(config, monkeypatch):
    update = engine.update

    def poison(run: Run, losses) -> None:
        update(run, losses)
        with torch.no_grad():
            run.model.heads.boxes[0].bias[0] = float("nan")
            run.sums["loss"] = torch.tensor(1.0)  # the loss alone does not show it

    monkeypatch.setattr(engine, "update", poison)
    with pytest.raises(TrainingError, match=r"not a number \(model\."):
        engine.train(config.replace(epochs=1, ema_decay=0.0), progress=False)
    assert list(Path(config.save_folder).glob("*.pth")) == []


def test_interrupted_while_validating_loses_nothing(config, monkeypatch):
    config = config.replace(validate_every=1)
    monkeypatch.setattr(Validator, "__call__", lambda self, model: {"val_ap": 0.0})
    expected = trained(config.replace(save_folder=config.save_folder + "_whole"))

    def impatient(self, model):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Validator, "__call__", impatient)
        engine.train(config, progress=False)
    last = engine.checkpoint_path(config, "last")
    assert equal(expected, trained(config, resume=last))
    log = pd.read_csv(Path(config.save_folder) / "training_log.csv")
    assert log["epoch"].tolist() == [1, 2] and log["val_ap"].tolist() == [0.0, 0.0]
    assert engine.checkpoint_path(config, "best").exists(), "an AP of 0 is still the best so far"


def test_a_folder_that_cannot_be_written_to_is_said_at_once(config, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(engine, "training_photos", lambda *_, **__: pytest.fail("too late"))
    with pytest.raises(OSError):
        engine.train(config.replace(save_folder=str(tmp_path / "file")), progress=False)


def test_the_teacher_must_be_v1(config):
    final = engine.train(config.replace(epochs=1), progress=False)
    with pytest.raises(ConfigError, match="the teacher must be V1"):
        Run(config.replace(teacher_model=str(final)), steps_per_epoch=1)


def test_batch_norms_can_be_estimated_anew_at_the_end(config):
    plain = trained(config.replace(epochs=1))
    again = config.replace(epochs=1, bn_batches=3, save_folder=config.save_folder + "2")
    fresh = trained(again)
    different = {name for name in plain if not torch.equal(plain[name], fresh[name])}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert different and all(name.endswith(statistics) for name in different)
    first = "backbone.stage1.0.1.running_mean"
    assert fresh[first].abs().mean() > plain[first].abs().mean(), "less of the start, which is 0"


def test_the_last_share_of_a_run_is_clean(config, monkeypatch):
    mixed = []

    def mix(config, images, targets, **_):
        mixed.append(len(images))
        return images, targets

    monkeypatch.setattr(engine, "mix", mix)
    engine.train(config.replace(clean_share=0.5), progress=False)  # 2 epochs of 4 steps
    assert len(mixed) == 4


def test_an_old_optimizer_goes_on_as_it_was_and_mps_keeps_its_random_numbers(config, monkeypatch):
    engine.train(config.replace(epochs=1), progress=False)
    last = engine.checkpoint_path(config, "last")
    content = read_file(last)
    assert content["optimizer"]["param_groups"][0]["fused"]
    for group in content["optimizer"]["param_groups"]:
        group["fused"] = None
    write_file(last, content)
    photos = engine.training_photos(config)
    run = Run(config.replace(epochs=1), photos, steps_per_epoch=4, initialise=False)
    run.resume(last)
    assert not run.optimizer.param_groups[0]["fused"], "another kernel rounds otherwise"
    state, device = torch.arange(4, dtype=torch.uint8), torch.device("mps")
    given = []
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state)
    monkeypatch.setattr(torch.mps, "set_rng_state", given.append)
    set_random_state(random_state(device), device)
    assert given == [state]
    set_random_state({"cpu": torch.get_rng_state()}, device)
    assert len(given) == 1, "saved on another device"
