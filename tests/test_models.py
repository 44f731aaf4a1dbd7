"""Both networks: exact sizes, one output form, any image size, the original's numbers."""

import numpy as np
import pytest
import torch
from conftest import shared

from featherface.anchors import make_anchors
from featherface.checkpoint import load_model
from featherface.detector import normalise
from featherface.models.necks import Fusion
from featherface.models.networks import FeatherFaceV1, FeatherFaceV2
from featherface.structures import Predictions

NETWORKS = [FeatherFaceV1, FeatherFaceV2]


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("network", "total", "parts"),
    [
        (FeatherFaceV1, 592_371, (213_072, 11_528, 112_606, 2_040, 232_965, 13_920, 6_240)),
        (FeatherFaceV2, 256_156, (213_072, 5_732, 26_068, 868, 6_192, 1_056, 3_168)),
    ],
)
def test_parameter_counts_are_exact(network, total, parts):
    model = network()
    names = ("backbone", "backbone_attention", "neck", "neck_attention")
    names += ("context", "shuffle", "heads")
    assert parameters(model) == total
    assert tuple(parameters(getattr(model, name)) for name in names) == parts


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (33, 47), (64, 96), (100, 31)])
def test_any_size_gives_all_anchors(network, height, width):
    with torch.inference_mode():
        predictions = network().eval()(torch.randn(2, 3, height, width))
    assert isinstance(predictions, Predictions)
    count = len(make_anchors(height, width))
    assert [tuple(part.shape) for part in predictions] == [
        (2, count, 4),
        (2, count, 2),
        (2, count, 10),
    ]
    assert all(torch.isfinite(part).all() for part in predictions)


@pytest.mark.parametrize("network", NETWORKS)
def test_batched_equals_single(network):
    model, images = network().eval(), torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        together, alone = model(images), model(images[1:2])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1:2], b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_parameter_has_a_path_to_the_outputs(network):
    model = network()
    sum(part.square().mean() for part in model(torch.randn(2, 3, 64, 64))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    # at a 64-pixel image a gate's ReLU can be dead, but not many
    still = [name for name, p in model.named_parameters() if not p.grad.any()]
    assert len(still) <= 0.04 * len(list(model.parameters())), still


def test_fusion_is_normalised_over_all_weights_given_or_not():
    fusion, x = Fusion(3), torch.ones(1, 1, 2, 2)
    torch.testing.assert_close(fusion(x, x, x), x * 3 / 3.0001)
    # V1's P5 gives two maps to three weights; the third only scales the others down
    torch.testing.assert_close(fusion(x, x), x * 2 / 3.0001)


def test_dropblock_works_in_training_only_and_has_no_parameters():
    model = FeatherFaceV2()
    images = torch.randn(2, 3, 128, 128)

    @torch.no_grad()
    def difference() -> float:
        first, second = (model(images).class_logits for _ in range(2))
        return float((first - second).abs().max())

    model.train()
    assert difference() == 0
    model.set_drop_prob(0.3)
    assert difference() > 0
    model.eval()
    assert difference() == 0
    assert parameters(model) == 256_156


@pytest.mark.parametrize("case", ["a", "b"])
def test_v1_reproduces_the_original_network(case):
    model = load_model(shared("weights", "featherface_v1_592371.pth"))
    golden = np.load(shared("golden", "v1_reference.npz"))
    rgb = torch.tensor(golden[f"{case}_image_bgr"][..., ::-1].copy())
    with torch.inference_mode():
        predictions = model(normalise(rgb.permute(2, 0, 1)[None]))
    for name, value in predictions._asdict().items():
        np.testing.assert_allclose(value[0].numpy(), golden[f"{case}_{name}"], atol=1e-4, rtol=0)


def fill(model: torch.nn.Module) -> torch.nn.Module:
    """Weights from a formula: the same on every machine and version."""
    with torch.no_grad():
        for number, (name, p) in enumerate(model.named_parameters()):
            wave = torch.sin(torch.arange(p.numel(), dtype=torch.float64) * 0.37 + number)
            wave = wave.view_as(p)
            if p.ndim > 1:
                p.copy_(wave * (1.5 / p[0].numel()) ** 0.5)
            else:
                p.copy_(0.1 * wave if name.endswith("bias") else 1 + 0.2 * wave)
    return model.eval()


@pytest.mark.parametrize(
    ("network", "expected"),
    [  # V1's printed by the code that reproduces the original network (the golden test above)
        (
            FeatherFaceV1,
            (
                (0.5522, 0.3607, 0.2418, 0.4069, 0.2878, -0.2724, 0.3752),
                (0.6271, 0.2466, -0.4745, -0.3168, 0.0859, 0.5135, 0.3871),
                (0.652, 0.1127, -0.3084, -0.5632, -0.2544, 0.2789, 0.3521),
            ),
        ),
        (
            FeatherFaceV2,
            (
                (0.2582, 0.3223, -0.0847, -0.2017, -0.125, 0.0615, 0.1777),
                (0.2711, 0.2992, 0.2107, 0.042, -0.2926, -0.2498, 0.1881),
                (0.2623, 0.2524, 0.0681, -0.1081, -0.1037, -0.1345, 0.1667),
            ),
        ),
    ],
)
def test_what_the_networks_compute_does_not_change(network, expected):
    """Guards the computation where the original's weights are not at hand."""
    image = (torch.arange(3 * 40 * 56) % 251).view(1, 3, 40, 56).float() - 120
    with torch.inference_mode():
        predictions = fill(network())(image)
    for part, numbers in zip(predictions, expected, strict=True):
        shown = [*part[0, [0, 17, -1], :2].flatten().tolist(), float(part.abs().mean())]
        assert shown == pytest.approx(numbers, abs=2e-4)
