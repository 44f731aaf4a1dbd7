"""Comparing recipes: photos held out, equal budgets, runs that are not repeated."""

import numpy as np
import pandas as pd
import pytest

from featherface.config import TrainConfig
from featherface.errors import ConfigError, DataError
from featherface.plots import plot_ablation
from featherface.training import ablation
from featherface.training.engine import held_out_photos, training_photos
from tests.tiny_sets import draw_squares


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw_squares(tmp_path_factory.mktemp("data"), train=8, val=2)


def names(photos) -> list[str]:
    return [photo.name for photo in photos]


def test_held_out_photos_are_no_training_photos_whatever_the_seed(data):
    config = TrainConfig(data=str(data), hold_out=0.25)
    kept, learnt = names(held_out_photos(config)), names(training_photos(config))
    assert len(kept) == 2 and len(learnt) == 6 and not set(kept) & set(learnt)
    assert names(held_out_photos(config.replace(seed=5))) == kept
    everything = config.replace(hold_out=0.0)
    assert len(training_photos(everything)) == 8 and not held_out_photos(everything)


def test_unlabelled_photos_join_the_training_photos_only(data):
    folder = data / "WIDER_val" / "images"
    config = TrainConfig(data=str(data), hold_out=0.25, unlabelled=str(folder))
    marks = [photo.labelled for photo in training_photos(config)]
    assert marks == [True] * 6 + [False] * 2
    assert all(photo.labelled for photo in held_out_photos(config))
    same = config.replace(unlabelled=str(data / "WIDER_train" / "images"))
    added = [photo for photo in training_photos(same) if not photo.labelled]
    kept_out = {photo.path for photo in held_out_photos(config)}
    assert len(added) == 6 and not kept_out & {photo.path for photo in added}, "no way back in"
    with pytest.raises(ConfigError, match="V1 has none"):
        training_photos(config.replace(model="v1", init="scratch"))


@pytest.fixture
def table_of_runs(data, tmp_path, monkeypatch):
    """run_ablation on tiny data, with training left out; returns (run, configs trained)."""
    trained: list[TrainConfig] = []

    def train(config, **_):
        trained.append(config)
        return "weights"

    monkeypatch.setattr(ablation, "train", train)
    monkeypatch.setattr(ablation, "_detect", lambda *_: {})
    monkeypatch.setattr(
        ablation,
        "_measure",
        lambda *_: {m: float(len(trained)) for m in (*ablation.MEASURES, "landmark_distance")},
    )
    base = TrainConfig(data=str(data), hold_out=0.25, batch_size=2, save_folder=str(tmp_path))

    def run(variants, seeds, changes=(), **options):
        return ablation.run_ablation(
            base.replace(**dict(changes)),
            **{"out": tmp_path / "a.csv", "images": 13} | options,
            variants=variants,
            seeds=seeds,
        )

    return run, trained


def test_every_run_sees_the_same_number_of_images(table_of_runs, data):
    run, trained = table_of_runs
    folder = str(data / "WIDER_val" / "images")
    table = run(["base", "T 4", "unlabelled"], [0], unlabelled=folder)
    assert [config.epochs for config in trained] == [2, 2, 2]  # 13 / 6 and 13 / 8 photos
    assert table["images"].tolist() == [12, 12, 16]
    assert [config.temperature for config in trained] == [1.0, 4.0, 1.0]
    assert trained[2].unlabelled == folder and not trained[0].unlabelled


def test_runs_in_the_table_are_not_repeated(table_of_runs):
    run, trained = table_of_runs
    run(["base"], [0])
    table = run(["base", "labels only"], [0, 1])
    assert len(trained) == 4 and len(table) == 4
    assert table[["variant", "seed"]].drop_duplicates().shape == (4, 2)


def test_another_budget_does_not_go_into_the_same_table(table_of_runs):
    run, trained = table_of_runs
    run(["T 2"], [0])
    with pytest.raises(ConfigError, match=r"T 2 saw 12 images.*another budget \(30\).*--out"):
        run(["T 4"], [0], images=30)
    assert len(trained) == 1


@pytest.mark.parametrize(
    ("changes", "protocol", "message"),
    [
        ({"image_size": 320}, "vga", r"base is of image_size=640.*image_size=320.*--out"),
        ({"batch_size": 3}, "vga", "batch_size=3"),
        ({}, "original", "protocol=original"),
        ({"teacher_model": "other.pth"}, "vga", "teacher=other"),
        ({"limit": 5}, "vga", r"photos=\w+, and runs of"),
    ],
)
def test_runs_of_another_kind_do_not_go_into_the_same_table(
    table_of_runs, changes, protocol, message
):
    run, trained = table_of_runs
    run(["base"], [0])
    for names in (["base", "T 4"], ["T 4"]):
        with pytest.raises(ConfigError, match=message):
            run(names, [0], changes=changes, protocol=protocol)
    assert len(trained) == 1


def test_a_variant_of_the_same_name_must_be_the_same(table_of_runs, data):
    run, trained = table_of_runs
    folder = data / "WIDER_val" / "images"
    run(["unlabelled"], [0], unlabelled=str(folder))
    with pytest.raises(ConfigError, match=r"unlabelled is of unlabelled=.*images, and"):
        run(["unlabelled"], [0], unlabelled=str(folder.parent))
    assert len(trained) == 1


def test_a_table_that_does_not_tell_its_kind_is_read_but_not_added_to(table_of_runs, tmp_path):
    run, trained = table_of_runs
    out = tmp_path / "a.csv"
    table = run(["base"], [0])
    table.drop(columns="setup").to_csv(out, index=False)
    assert len(ablation.read_table(out)) == 1
    with pytest.raises(ConfigError, match="base is of an untold kind"):
        run(["T 4"], [0])
    assert len(trained) == 1


def test_wrong_input_is_refused_before_any_run(table_of_runs, tmp_path):
    run, trained = table_of_runs
    with pytest.raises(DataError, match="nowhere"):
        run(["base", "unlabelled"], [0], unlabelled=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="--images must be 1 or more"):
        run(["base"], [0], images=0)
    with pytest.raises(ConfigError, match=r"a\.png"):
        run(["base"], [0], out=tmp_path / "a.png")
    assert not trained and not list(tmp_path.glob("a.*"))


def test_an_unknown_variant_is_refused_before_any_run(table_of_runs):
    run, trained = table_of_runs
    with pytest.raises(ConfigError, match="no variant 'T 9'"):
        run(["base", "T 9"], [0])
    assert not trained


def test_variants_are_settings_that_exist_and_differ_from_the_base():
    base = TrainConfig().replace(**ablation.BASE)
    for name, changes in ablation.VARIANTS.items():
        assert (base.replace(**changes) == base) == (name == "base"), name


def test_summary_pairs_the_seeds():
    rows = [("base", 0, 50.0), ("base", 1, 60.0), ("better", 0, 55.0), ("better", 1, 63.0),
            ("once", 1, 61.0)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["variant", "seed", "ap_all"])
    for name in (*ablation.MEASURES[1:], "landmark_distance"):
        table[name] = 1.0
    summary = ablation.summarise(table)
    assert summary.index.tolist() == ["once", "better", "base"]
    assert summary.loc["better", ["ap_all", "spread", "difference"]].tolist() == [59.0, 4.0, 4.0]
    assert summary.loc["once", "difference"] == 1.0  # against base's same seed
    assert len(plot_ablation(table).axes[0].collections) == 2
    assert np.isnan(ablation.summarise(table[table["variant"] == "once"])["difference"]).all()


@pytest.mark.parametrize(("text", "message"), [("", "cannot be read"), ("a,b\n1,2\n", "variant")])
def test_another_file_than_a_table_of_runs_is_refused(table_of_runs, tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        table_of_runs[0](["base"], [0])
    assert "a.csv" in str(caught.value) and not table_of_runs[1]
