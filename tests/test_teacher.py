"""The two engines that a teacher can run in."""

import pytest
import torch
from torch.optim.swa_utils import update_bn

from featherface.config import TrainConfig
from featherface.errors import ConfigError
from featherface.models.networks import FeatherFaceV1
from featherface.training import step
from featherface.training.step import WORTH_EXPORTING, Teacher, make_teacher

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> FeatherFaceV1:
    """V1 whose deformable convolutions have offsets, and whose maps do not fade: fresh ones do."""
    torch.manual_seed(3)
    model = FeatherFaceV1()
    for name, parameter in model.named_parameters():
        if "offset" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    update_bn([torch.randn(8, 3, 64, 64) * 60], model)
    return model.eval()


@pytest.fixture(scope="module")
def exported(network) -> Teacher:
    return Teacher(network, onnx_size=64)


@pytest.mark.parametrize("count", [1, 3])
def test_onnx_answers_as_torch(network, exported, count):
    images = torch.randn(count, 3, 64, 64).mul(60).to(memory_format=torch.channels_last)
    ours, theirs = exported(images), Teacher(network)(images)
    for name in theirs.predictions._fields:
        got, wanted = getattr(ours.predictions, name), getattr(theirs.predictions, name)
        torch.testing.assert_close(got, wanted, atol=5e-4, rtol=1e-4, msg=name)
    assert [part.shape for part in ours.features] == [part.shape for part in theirs.features]
    for got, wanted in zip(ours.features, theirs.features, strict=True):
        torch.testing.assert_close(got, wanted, atol=5e-4, rtol=1e-4)
    assert not theirs.predictions.class_logits.requires_grad
    assert theirs.features[0].std() > 0.1  # there was something to compare


def test_short_runs_on_a_cpu_do_not_wait_for_an_export(network, monkeypatch):
    made = []
    monkeypatch.setattr(step, "export_teacher", lambda model, size: made.append(size) or b"")
    monkeypatch.setattr(step, "open_session", lambda model, threads: "session")
    config = TrainConfig(image_size=96)
    short = make_teacher(network, config, device=CPU, steps=WORTH_EXPORTING - 1)
    assert short.session is None and not made
    long = make_teacher(network, config, device=CPU, steps=WORTH_EXPORTING)
    assert long.session == "session" and made == [96]
    torch_one = config.replace(teacher_engine="torch")
    assert make_teacher(network, torch_one, device=CPU, steps=10**6).session is None


def test_onnx_teacher_is_for_the_cpu(network):
    with pytest.raises(ConfigError, match="onnx is for the CPU"):
        config = TrainConfig(teacher_engine="onnx")
        make_teacher(network, config, device=torch.device("cuda"), steps=1)
