"""A batch in parts is the whole batch; nothing in a step waits; memory errors are one line."""

from pathlib import Path

import pytest
import torch
from conftest import make_targets
from tiny_runs import equal, prepare, tiny_config, trained
from torch import nn
from waiting import no_waiting

from featherface.anchors import make_anchors, match
from featherface.config import TrainConfig
from featherface.errors import TrainingError
from featherface.training import engine
from featherface.training.state import Run
from featherface.training.step import (
    autocast,
    buffers_kept,
    compile_networks,
    errors_explained,
    make_step,
    worth_compiling,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return prepare(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def config(root, tmp_path) -> TrainConfig:
    return tiny_config(root, tmp_path / "run")


TARGETS = make_targets(
    [(4, 4, 40, 40)], [(20, 20, 60, 60), (2, 2, 20, 20)], [], [(30, 8, 50, 30)], [(5, 9, 33, 40)]
)


def frozen(model: nn.Module) -> None:
    """Batch norms by their running statistics, which do not depend on the batch."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def gradients(config: TrainConfig, parts: int, *, freeze: bool) -> tuple[dict, dict, dict]:
    torch.manual_seed(0)
    step = make_step(config.replace(accumulate=parts), device=CPU, steps=1)
    images = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 50
    step.trained.train()
    if freeze:
        frozen(step.trained)
    losses = step(images, TARGETS)
    losses["loss"].backward()
    return (
        {name: value.item() for name, value in losses.items()},
        {name: p.grad for name, p in step.trained.named_parameters()},
        dict(step.trained.named_buffers()),
    )


@pytest.mark.parametrize("model", ["v1", "v2"])
@pytest.mark.parametrize("recipe", ["improved", "published"])
def test_parts_give_the_loss_and_the_gradient_of_the_whole_batch(config, model, recipe):
    if (model, recipe) == ("v1", "published"):
        pytest.skip("V1 has no feature loss")
    init = "scratch" if model == "v1" else "teacher"
    config = config.replace(model=model, init=init, recipe=recipe)
    whole = gradients(config, 1, freeze=True)
    for parts in (2, 5):
        terms, grads, _ = gradients(config, parts, freeze=True)
        assert terms == pytest.approx(whole[0], rel=1e-5)
        for name, expected in whole[1].items():
            torch.testing.assert_close(grads[name], expected, rtol=1e-3, atol=1e-5)


def test_batch_norms_see_a_part_at_a_time_and_count_it_once(config):
    whole, parts = (gradients(config, n, freeze=False)[2] for n in (1, 5))
    name = "model.backbone.stage1.0.1"
    assert whole[f"{name}.num_batches_tracked"] == 1
    assert parts[f"{name}.num_batches_tracked"] == 5
    moved = parts[f"{name}.running_mean"].abs().sum() / whole[f"{name}.running_mean"].abs().sum()
    assert 3.5 < moved < 4.6, "five steps of a tenth: 1 − 0.9⁵ = 4.1 tenths"


def test_buffers_are_kept_inside():
    norm = nn.BatchNorm2d(3)
    with buffers_kept(norm):
        norm(torch.randn(4, 3, 5, 5))
    assert int(norm.num_batches_tracked) == 0 and not norm.running_mean.any()
    norm(torch.randn(4, 3, 5, 5))
    assert int(norm.num_batches_tracked) == 1 and norm.running_mean.any()


def kept_bytes(run) -> int:
    """Bytes of the different tensors that autograd keeps while `run` runs."""
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(kept.values())


def test_parts_keep_less_for_the_gradient(config):
    kept = []
    for parts in (1, 4):
        changed = config.replace(accumulate=parts)
        step = make_step(changed, device=CPU, steps=1)
        images = torch.randn(5, 3, 64, 64) * 50
        kept.append(kept_bytes(lambda step=step, images=images: step(images, TARGETS)))
    assert kept[1] < 0.6 * kept[0]


def test_a_run_in_parts_learns_and_resumes(config):
    parts = config.replace(accumulate=2)
    expected = trained(parts)
    again = parts.replace(save_folder=parts.save_folder + "2", epochs=2)
    assert equal(expected, trained(again))
    last = engine.checkpoint_path(parts, 1)
    assert equal(expected, trained(parts, resume=last))


def test_nothing_in_a_step_waits_for_the_device(config):
    run = Run(config, steps_per_epoch=4)
    run.step.trained.train()
    images = torch.randn(5, 3, 64, 64) * 50
    for _ in range(2):  # the averages begin with a copy
        with no_waiting():
            losses = run.step(images, TARGETS.with_count(6))
            run.optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            nn.utils.clip_grad_norm_(run.step.trained.parameters(), 1.0)
            run.ema.update(run.model)
        run.optimizer.step()
    with pytest.raises(AssertionError, match="waited for"), no_waiting():
        run.step(images, TARGETS)  # not told how many faces there are


@pytest.mark.parametrize("bound", [6, 7, 500])
def test_matching_with_a_bound_is_matching(bound):
    anchors = make_anchors(64, 64)
    faces = TARGETS._replace(ignore=TARGETS.ignore.clone())
    faces.ignore[1, 0] = True
    for one, two in zip(
        match(faces.with_count(bound), anchors), match(faces, anchors), strict=True
    ):
        assert torch.equal(one, two)


def test_memory_errors_are_one_line_with_a_way_out(config, monkeypatch):
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate\n20 GiB")

    monkeypatch.setattr(engine, "update", full)
    with pytest.raises(TrainingError, match=r"--batch-size 2 .*--accumulate 1.*") as caught:
        engine.train(config, progress=False)
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="shape"), errors_explained(config):
        raise RuntimeError("shapes do not fit: shape")


def test_without_a_compiler_training_says_so_in_one_line(config, monkeypatch, capsys):
    def broken(*_: object) -> None:
        raise OSError("no compiler\nin many lines")

    monkeypatch.setattr(torch, "compile", lambda function: broken)
    expected = trained(config.replace(compile="off"))
    capsys.readouterr()
    found = trained(config.replace(compile="on", save_folder=config.save_folder + "2"))
    said = [line for line in capsys.readouterr().out.splitlines() if "torch.compile" in line]
    assert equal(found, expected)
    reason = "OSError: no compiler in many lines"
    assert said == [f"torch.compile fails here, not used: {reason}"]


def test_what_is_compiled_and_when(config, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch._dynamo.config, "suppress_errors", False)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compiled.append(self))
    model = Run(config, steps_per_epoch=1).model
    compile_networks([model], CPU)
    assert len(compiled) == 11 and model.drop not in compiled
    assert torch._dynamo.config.suppress_errors, "a part that does not compile runs as it is"
    cuda = torch.device("cuda")
    assert worth_compiling("auto", cuda, steps=10**4) and worth_compiling("on", CPU, steps=1)
    assert not worth_compiling("auto", cuda, steps=10)
    assert not worth_compiling("auto", CPU, steps=10**6)


def test_bf16_is_near_float32(config):
    torch.manual_seed(0)
    step = make_step(config, device=CPU, steps=1)
    images = torch.randn(5, 3, 64, 64) * 50
    frozen(step.trained)
    found = []
    for amp in ("off", "bf16"):
        with autocast(config.replace(amp=amp), CPU):
            found.append(step(images, TARGETS)["loss"].item())
    assert found[0] != found[1] and found[1] == pytest.approx(found[0], rel=0.05)


def test_the_fast_path_has_the_losses_of_the_plain_one(config):
    """ONNX Runtime, channels last, a bound on the faces, against torch, contiguous, no bound."""
    pytest.importorskip("onnxruntime")
    images = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 50
    found = {}
    cases = (("torch", torch.contiguous_format, None), ("onnx", torch.channels_last, 6))
    for name, layout, faces in cases:
        torch.manual_seed(0)
        step = make_step(config.replace(teacher_engine=name), device=CPU, steps=1)
        step.trained.to(memory_format=layout).train()
        losses = step(images.contiguous(memory_format=layout), TARGETS.with_count(faces))
        found[name] = {term: value.item() for term, value in losses.items()}
    assert found["onnx"] == pytest.approx(found["torch"], rel=1e-4, abs=1e-6)
