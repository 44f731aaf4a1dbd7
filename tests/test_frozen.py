"""What of a network can stay as it starts: blocks of the backbone, the batch norms' statistics."""

import shutil
from pathlib import Path

import pytest
import torch
from tiny_runs import equal, prepare, tiny_config, trained

from featherface.checkpoint import load_model
from featherface.config import TrainConfig
from featherface.errors import ConfigError
from featherface.models.layers import keep_norms
from featherface.models.networks import FeatherFaceV2
from featherface.training import engine
from featherface.training import step as build
from featherface.training.optim import estimate_batch_norms
from featherface.training.state import checkpoint_path


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return prepare(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def config(root, tmp_path) -> TrainConfig:
    return tiny_config(root, tmp_path / "run")


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32).mul(50).contiguous(memory_format=torch.channels_last)


def test_frozen_blocks_stay_and_all_else_learns(config, root):
    config = config.replace(
        frozen_blocks=2, bn_batches=2, ema_decay=0.0, epochs=2, dropblock_prob=0
    )
    start = load_model(root / "v1.pth").backbone.state_dict()
    after = trained(config)
    backbone = {n.removeprefix("backbone."): v for n, v in after.items() if "backbone." in n}
    for name, value in backbone.items():
        frozen = name.startswith(("stage1.0.", "stage1.1."))
        assert frozen == torch.equal(value, start[name]) or "num_batches" in name, name


def test_noise_is_not_frozen(config):
    config = config.replace(frozen_blocks=1, init="scratch")
    with pytest.raises(ConfigError, match="--init scratch is noise"):
        engine.train(config, progress=False)


def test_a_frozen_backbone_gets_no_gradient(config):
    config = config.replace(frozen_blocks=6)
    step = build.make_step(config, device=torch.device("cpu"), steps=1)
    model = step.trained["model"]
    model.train()
    assert isinstance(model, FeatherFaceV2)
    model(images(2)).class_logits.sum().backward()
    assert all(p.grad is None for p in model.backbone.stage1.parameters())
    assert any(p.grad is not None for p in model.backbone.stage2.parameters())
    assert not any(block.training for block in model.backbone.stage1)
    assert model.backbone.stage2.training


def test_batch_norms_are_estimated_as_by_torch_where_nothing_is_frozen():
    torch.manual_seed(0)
    ours, theirs = FeatherFaceV2(), FeatherFaceV2()
    theirs.load_state_dict(ours.state_dict())
    batches = [images(4), images(4)]
    estimate_batch_norms(ours, batches)
    torch.optim.swa_utils.update_bn(batches, theirs)
    assert equal(ours.state_dict(), theirs.state_dict())


def is_statistic(name):
    return "running_" in name or "num_batches" in name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_frozen_norms_keep_their_statistics_and_learn_the_rest(config, tmp_path, accumulate):
    config = config.replace(ema_decay=0.0, bn_batches=0, epochs=2, dropblock_prob=0)
    start = trained(config)  # statistics of its own, unlike those of a network just made
    shutil.copy(checkpoint_path(config, "final"), tmp_path / "start.pth")
    config = config.replace(
        weights=str(tmp_path / "start.pth"),
        frozen_norms="on",
        accumulate=accumulate,
        save_folder=str(tmp_path / "second"),
    )
    after = trained(config)
    assert after.keys() == start.keys()
    for name, value in after.items():
        assert is_statistic(name) == torch.equal(value, start[name]), name


def test_with_frozen_norms_an_image_is_answered_alike_in_any_batch():
    torch.manual_seed(0)
    model, batch = FeatherFaceV2().train(), images(4)

    def spread() -> float:
        return (model(batch).class_logits[:2] - model(batch[:2]).class_logits).abs().max().item()

    assert spread() > 0.01
    keep_norms(model)
    assert spread() < 1e-5
    assert model.training


def test_frozen_norms_need_statistics(config):
    with pytest.raises(ConfigError, match="name weights to start from"):
        engine.train(config.replace(frozen_norms="on"), progress=False)
    with pytest.raises(ConfigError, match="bn_batches"):
        TrainConfig(frozen_norms="on", bn_batches=2)


@pytest.mark.parametrize("blocks", [-1, 7])
def test_the_backbone_has_six_blocks_to_freeze(blocks):
    with pytest.raises(ConfigError, match="frozen_blocks must lie in"):
        TrainConfig(frozen_blocks=blocks)
