"""Crops that come again, and the teacher's answers to them, which are kept."""

from collections import namedtuple
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tiny_runs import equal, prepare, tiny_config, trained

from featherface.config import TrainConfig
from featherface.data.loader import make_loader
from featherface.errors import ConfigError
from featherface.files import write_text
from featherface.structures import Predictions
from featherface.training import build, engine
from featherface.training.answers import RememberingTeacher, check_room_for_answers
from featherface.training.folder import answers_folder, checkpoint_path, clear_folder
from featherface.training.memory import trial_of
from featherface.training.photos import training_photos
from featherface.training.run import Run
from featherface.training.teacher import Answer, TorchTeacher

UNMIXED = {"mixup_prob": 0.0, "cutmix_prob": 0.0, "feature_weight": 0.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return prepare(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def config(root, tmp_path) -> TrainConfig:
    return tiny_config(root, tmp_path / "run").replace(**UNMIXED, replay_epochs=1, epochs=3)


class Counting:
    """A teacher that answers with the image's mean, and counts the images it was shown."""

    def __init__(self, scale: float = 1.0) -> None:
        self.model, self.asked = torch.nn.Linear(1, 1), 0
        torch.nn.init.constant_(self.model.weight, scale)
        torch.nn.init.zeros_(self.model.bias)

    def __call__(self, images: torch.Tensor) -> Answer:
        self.asked += len(images)
        mean = images.mean((1, 2, 3))[:, None, None] * self.model.weight.item()
        return Answer(Predictions(*(mean.expand(-1, 5, n) for n in (4, 2, 10))), [images])


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32).mul(50).contiguous(memory_format=torch.channels_last)


def test_an_image_is_answered_once_in_any_batch_and_any_memory_layout(tmp_path):
    teacher, batch = Counting(), images(3)
    remembering = RememberingTeacher(teacher, tmp_path)
    first = remembering(batch)
    assert teacher.asked == 3
    again = RememberingTeacher(teacher, tmp_path)(batch[[2, 0]].contiguous())
    assert teacher.asked == 3
    torch.testing.assert_close(again.predictions.box_deltas, first.predictions.box_deltas[[2, 0]])
    mixed = torch.cat((images(1), batch[1:2]))
    later = remembering(mixed).predictions
    assert teacher.asked == 4
    mean = mixed.mean((1, 2, 3))[:, None, None].expand(-1, 5, 2)
    torch.testing.assert_close(later.class_logits, mean, atol=2e-3, rtol=1e-3)
    assert [part.shape[-1] for part in later] == [4, 2, 10] and not first.features


def test_new_answers_are_rounded_as_the_kept_ones(tmp_path):
    remembering, batch = RememberingTeacher(Counting(), tmp_path), images(2)
    for got, wanted in zip(
        remembering(batch).predictions, remembering(batch).predictions, strict=True
    ):
        assert torch.equal(got, wanted)


def test_another_teacher_and_a_broken_file_are_asked_anew(tmp_path):
    batch = images(1)
    RememberingTeacher(Counting(), tmp_path)(batch)
    other = Counting(scale=2.0)
    answer = RememberingTeacher(other, tmp_path)(batch).predictions.class_logits
    assert other.asked == 1
    torch.testing.assert_close(answer.mean(), 2 * batch.mean(), atol=2e-3, rtol=1e-3)
    for file in tmp_path.glob("*.npy"):
        file.write_bytes(file.read_bytes()[:100])
    RememberingTeacher(other, tmp_path)(batch)
    assert other.asked == 2
    for file in tmp_path.glob("*.npy"):
        file.write_bytes(b"")
    RememberingTeacher(other, tmp_path)(batch)
    assert other.asked == 3


def test_crops_come_again_after_the_replay_epochs(config):
    config = config.replace(replay_epochs=2)
    loader, sampler = make_loader(training_photos(config), config)

    def epoch(number: int) -> set[bytes]:
        sampler.set_epoch(number)
        return {image.numpy().tobytes() for batch in loader for image in batch.images}

    crops = [epoch(number) for number in range(4)]
    assert crops[0] == crops[2] and crops[1] == crops[3] and not crops[0] & crops[1]


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """How many images V1 was shown, call by call."""
    calls: list[int] = []
    answer = TorchTeacher.__call__

    def counted(self, images):
        calls.append(len(images))
        return answer(self, images)

    monkeypatch.setattr(TorchTeacher, "__call__", counted)
    return calls


def test_batches_made_on_the_device_are_answered_once_too(config, asked):
    trained(config.replace(cache="ram"))
    assert sum(asked) == 8  # photos, not 24


def test_a_replayed_run_asks_its_teacher_once_and_goes_on_to_the_same_result(
    config, tmp_path, monkeypatch, asked
):
    mine = Path(config.save_folder) / "answers" / "mine.txt"
    write_text(mine, "not the run's")
    whole = trained(config)
    assert sum(asked) == 8  # photos, not 24
    assert not answers_folder(config).exists() and mine.exists()

    broken = config.replace(save_folder=str(tmp_path / "broken"))
    finish = engine._finish_epoch

    def fails(run: Run):
        if run.epoch == 1:
            raise KeyboardInterrupt
        return finish(run)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, "_finish_epoch", fails)
        engine.train(broken, progress=False)
    assert len(list(answers_folder(broken).glob("*.npy"))) == 8
    assert equal(whole, trained(broken, resume=checkpoint_path(broken, "last")))
    assert sum(asked) == 16
    write_text(answers_folder(broken) / "old.npy", "")
    clear_folder(broken)
    assert not answers_folder(broken).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixup_prob": 0.5}, r"replay_epochs.*set mixup_prob to 0"),
        ({"cutmix_prob": 0.5, "feature_weight": 0.1}, r"set feature_weight, cutmix_prob to 0"),
        ({"model": "v1"}, r"V1 has none"),
        ({"epochs": 1}, r"must be below epochs; got 1"),
    ],
)
def test_replay_refuses_what_it_cannot_keep(changes, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**{**UNMIXED, **changes}, replay_epochs=1)


def test_replay_is_refused_on_a_gpu_and_where_the_disk_is_too_small(config, monkeypatch):
    with pytest.raises(ConfigError, match=r"for a CPU.*on meta"):
        build.make_step(config, device=torch.device("meta"), steps=1)
    Usage = namedtuple("Usage", "free")
    needed = 8 * (2 * (8 * 8 + 4 * 4 + 2 * 2)) * 16 * 2  # photos, anchors at 64 pixels, float16
    for free, message in ((needed - 1, "lower it"), (needed, "")):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: Usage(free))
        with pytest.raises(ConfigError, match=message) if message else nullcontext():
            Path(config.save_folder).mkdir(exist_ok=True)
            check_room_for_answers(config, photos=8)


def test_a_trial_leaves_no_answers(config):
    step = build.make_step(config, device=torch.device("cpu"), steps=1)
    trial_of(step, config, torch.device("cpu"))(1)
    assert isinstance(step.teacher, RememberingTeacher)
    assert not answers_folder(config).exists()
