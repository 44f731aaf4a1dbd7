"""Networks with lively weights and their ONNX models, each made once for all tests."""

from functools import cache

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional as F

from featherface.checkpoint import ARCHITECTURES
from featherface.config import MEAN_BGR
from featherface.export.graph import OPSET, build


@cache
def network(name: str) -> nn.Module:
    """A V1 or V2 in eval mode whose maps and scores vary from place to place, as trained ones do.

    Its batch norms hold the statistics of blurred noise; no parameter is as it was made.
    """
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = ARCHITECTURES[name]()
        noise = F.interpolate(torch.rand(4, 3, 12, 16), scale_factor=8, mode="bicubic")
        for key, parameter in model.named_parameters():
            if ".fuse_" in key:
                nn.init.uniform_(parameter, 0.2, 1.5)
            elif ".offset." in key or ".mask." in key:
                nn.init.normal_(parameter, 0, 0.05)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
                nn.init.uniform_(module.weight, 0.7, 1.4)
                nn.init.normal_(module.bias, 0, 0.2)
        for convolution in model.heads.classes:
            nn.init.normal_(convolution.weight, 0, 0.1)
            convolution.bias.data.copy_(torch.tensor([0.4, -0.4, 0.4, -0.4]))
        for convolution in (*model.heads.boxes, *model.heads.landmarks):
            nn.init.normal_(convolution.weight, 0, 0.05)
        with torch.no_grad():
            model.train()(255 * noise - 110)
    return model.eval()


@cache
def graph(
    form: str, size: tuple[int, int] | None, name: str = "v2", opset: int = OPSET
) -> onnx.ModelProto:
    """Return the ONNX model of `network(name)`."""
    return build(network(name), form=form, size=size, opset=opset)


@cache
def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Blurred noise, what the networks were tuned on: (height, width, 3) uint8; do not change."""
    noise = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(seed))
    grown = F.interpolate(noise, (height, width), mode="bicubic")[0]
    return (255 * grown.clamp(0, 1)).byte().permute(1, 2, 0).numpy().copy()


def pixels(height: int, width: int, batch: int = 1) -> np.ndarray:
    """(B, 3, H, W) float32: scenes less the mean colour, as the networks read them."""
    pictures = np.stack([scene(height, width, seed) for seed in range(batch)])
    return pictures.transpose(0, 3, 1, 2) - np.float32(MEAN_BGR).reshape(3, 1, 1)


def assert_same_faces(found, expected):
    """The same faces; two whose scores tie within rounding may change places."""
    assert len(found) == len(expected)
    assert found.boxes.dtype == found.scores.dtype == found.landmarks.dtype == np.float32
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    first, second = (
        np.concatenate((faces.boxes, faces.landmarks.reshape(-1, 10)), axis=1)
        for faces in (found, expected)
    )
    if not len(found):
        return
    order = np.abs(first[:, None] - second[None]).max(axis=-1).argmin(axis=1)
    assert len(set(order)) == len(expected)
    np.testing.assert_allclose(found.scores, expected.scores[order], atol=1e-4)
    np.testing.assert_allclose(found.boxes, expected.boxes[order], atol=1e-2)
    np.testing.assert_allclose(found.landmarks, expected.landmarks[order], atol=1e-2)
