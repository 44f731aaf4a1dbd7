"""Reading and writing weights: the only module that calls torch.load and torch.save.

A FeatherFace checkpoint is a dict with `format`, `architecture` ("v1" or "v2"), `model` (a state
dict), optionally `ema` (the averaged weights, used if present), and what training needs to
continue. Bare state dicts of V1 and V2 load too, with this project's names or, for V1, with the
original project's, with or without `module.` and operation counts; in .pth files and in
safetensors files. .pth files are read with weights_only=True: they carry data but not code.
"""

import io
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherface.errors import CheckpointError, printable
from featherface.files import atomic_path
from featherface.models.networks import FeatherFaceV1, FeatherFaceV2

FORMAT = "featherface/1"
ARCHITECTURES: dict[str, type[nn.Module]] = {"v1": FeatherFaceV1, "v2": FeatherFaceV2}

# The original project's names and ours, in the order of application.
_ORIGINAL_NAMES = (
    (r"^body\.", "backbone."),
    (r"^bacbkbone_(\d)_cbam\.", r"backbone_attention.\1."),
    (r"^bif_cbam_(\d)\.", r"neck_attention.\1."),
    (r"\.ChannelGate\.mlp\.1\.", ".channel.reduce."),
    (r"\.ChannelGate\.mlp\.3\.", ".channel.expand."),
    (r"\.SpatialGate\.spatial\.", ".spatial."),
    (r"^bifpn\.", "neck."),
    (r"\.p4_w1$", ".fuse_p4_down.weight"),
    (r"\.p3_w1$", ".fuse_p3.weight"),
    (r"\.p4_w2$", ".fuse_p4.weight"),
    (r"\.p5_w2$", ".fuse_p5.weight"),
    (r"\.conv4_up\.", ".node_p4_down."),
    (r"\.conv3_up\.", ".node_p3."),
    (r"\.conv4_down\.", ".node_p4."),
    (r"\.conv5_down\.", ".node_p5."),
    (r"\.(depthwise|pointwise)_conv\.conv\.", r".\1."),
    (r"\.p3_down_channel\.", ".lateral.0."),
    (r"\.p4_down_channel\.", ".lateral.1."),
    (r"\.p5_down_channel\.", ".lateral.2."),
    (r"\.p4_down_channel_2\.", ".lateral_up.0."),
    (r"\.p5_down_channel_2\.", ".lateral_up.1."),
    (r"\.(lateral|lateral_up)\.(\d)\.0\.conv\.", r".\1.\2.0."),
    (r"^ssh1\.", "context.0."),
    (r"^ssh2\.", "context.1."),
    (r"^ssh3\.", "context.2."),
    (r"\.conv3X3\.", ".near."),
    (r"\.conv5X5_1\.", ".shared."),
    (r"\.conv5X5_2\.", ".middle."),
    (r"\.conv7X7_2\.", ".far.0."),
    (r"\.conv7x7_3\.", ".far.1."),
    (r"\.offset_conv\.", ".offset."),
    (r"\.modulator_conv\.", ".mask."),
    (r"\.regular_conv\.", "."),
    (r"^ssh1_cs\.(\d)\.", lambda m: f"shuffle.0.layers.{int(m[1]) - 1}."),
    (r"^ssh2_cs\.(\d)\.", lambda m: f"shuffle.1.layers.{int(m[1]) - 1}."),
    (r"^ssh3_cs\.(\d)\.", lambda m: f"shuffle.2.layers.{int(m[1]) - 1}."),
    (r"^ClassHead\.(\d)\.conv1x1\.", r"heads.classes.\1."),
    (r"^BboxHead\.(\d)\.conv1x1\.", r"heads.boxes.\1."),
    (r"^LandmarkHead\.(\d)\.conv1x1\.", r"heads.landmarks.\1."),
)
# "linear" layers of the original's channel gate are 1×1 convolutions here
_LINEAR = re.compile(r"\.channel\.(reduce|expand)\.weight$")


def read_file(path: str | os.PathLike, hint: str = "") -> dict[str, Any]:
    """Load a checkpoint file onto the CPU. CheckpointError says what is wrong with a bad file."""
    file = Path(path)
    if not file.exists():
        raise CheckpointError(f"{file}: no such file{'; ' + hint if hint else ''}")
    if file.is_dir():
        raise CheckpointError(f"{file}: is a folder; give the weights file itself")
    if file.stat().st_size == 0:
        raise CheckpointError(f"{file}: the file is empty; copy or download it again")
    if file.suffix == ".safetensors":
        return dict(_read_safetensors(file))
    _check_sums(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, IndexError, TypeError) as error:
        reason = "not a PyTorch file, or it holds more than tensors and plain data"
        raise CheckpointError(f"{file}: not loaded: {reason}") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{file}: the file is damaged or cut short ({file.stat().st_size:,} bytes); "
            "copy or download it again"
        ) from error
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{file}: holds a {type(content).__name__}, not weights")
    return dict(content)


def _check_sums(file: Path) -> None:
    """Compare the checksums in the file with its content: torch.load does not look at them."""
    if not zipfile.is_zipfile(file):
        return  # PyTorch's format until 1.5 has no checksums
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (
        zipfile.BadZipFile,
        OSError,
        EOFError,
        ValueError,
        NotImplementedError,
        zlib.error,
    ) as error:
        raise CheckpointError(f"{file}: the file is damaged ({error}); copy it again") from error
    if damaged:
        raise CheckpointError(
            f"{file}: the file is damaged: the checksum of {printable(damaged)} in it is wrong; "
            "copy or download it again"
        )


def write_file(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Save atomically: the old file stays until the new one is on the disk."""
    packed = io.BytesIO()  # if the disk is full, writing bytes says so, torch.save does not
    torch.save(dict(content), packed)
    with atomic_path(path) as temporary:
        temporary.write_bytes(packed.getbuffer())


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file}: not a complete safetensors file: {error}") from error


def write_safetensors(path: str | os.PathLike, model: nn.Module) -> None:
    """Save the weights of V1 or V2 as a safetensors file, which `load_model` reads; atomic."""
    from safetensors.torch import save

    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(state, {"format": "pt"}))


def is_checkpoint(content: Mapping[str, Any]) -> bool:
    return str(content.get("format", "")).startswith("featherface/")


def plain_state(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a bare or wrapped state dict without DataParallel's prefix and profilers' counts."""
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping):
        return {}
    return {
        str(key).removeprefix("module."): value
        for key, value in state.items()
        if isinstance(value, Tensor)
        and str(key).split(".")[-1] not in ("total_ops", "total_params")
    }


def rename_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the original project's V1 state dict to this project's names; drop nothing."""
    renamed = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in _ORIGINAL_NAMES:
            name = re.sub(pattern, replacement, name)
        if _LINEAR.search(name) and value.ndim == 2:
            value = value[:, :, None, None]  # (out, in) → (out, in, 1, 1)
        renamed[name] = value
    return renamed


def _load_strict(model: nn.Module, state: Mapping[str, Tensor], file: Path, name: str) -> None:
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    extra = sorted(state.keys() - own.keys())
    shapes = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if missing or extra or shapes:
        example = (missing or extra or sorted(shapes))[0]
        raise CheckpointError(
            f"{file}: not weights of {name}: {len(missing)} tensors are missing, {len(extra)} are "
            f"unknown, {len(shapes)} have another shape (for example {example})"
        )
    check_finite(state, str(file))
    model.load_state_dict(state, strict=True)


def check_finite(state: Mapping[str, Tensor], name: str) -> None:
    """Raise CheckpointError if a tensor of `state` has NaN or infinite values. name: for the error.

    Such weights find no face, and V1's deformable convolutions may crash on them.
    """
    damaged = [key for key, value in state.items() if not value.isfinite().all()]
    if damaged:
        raise CheckpointError(
            f"{name}: {len(damaged)} of {len(state)} tensors have NaN or infinite values (for "
            f"example {damaged[0]}): the training diverged; use an earlier checkpoint"
        )


def build_model(content: Mapping[str, Any], path: str | os.PathLike) -> nn.Module:
    """Build the network of a checkpoint's content, in eval mode; strict."""
    file = Path(path)
    if is_checkpoint(content):
        name = str(content.get("architecture"))
        if name not in ARCHITECTURES:
            raise CheckpointError(
                f"{file}: unknown network {name!r}; known: {', '.join(ARCHITECTURES)}"
            )
        state = plain_state(content.get("ema") or content.get("model") or {})
    else:
        name, state = "v1", plain_state(content)
        if "heads.boxes.0.weight" in state:
            unlike = {name: len(network().state_dict().keys() ^ state.keys())
                      for name, network in ARCHITECTURES.items()}  # fmt: skip
            name = min(unlike, key=lambda name: unlike[name])
        elif any(key.startswith("body.stage1") for key in state):
            state = rename_original(state)
        else:
            kind = "an ImageNet backbone" if "fc.weight" in state else "of another project"
            raise CheckpointError(
                f"{file}: the weights are {kind}; give a FeatherFace checkpoint, a state dict of "
                "V1 or V2, or an original V1 state dict"
            )
    model = ARCHITECTURES[name]()
    _load_strict(model, state, file, f"FeatherFace {name.upper()}")
    return model.eval()


def load_model(path: str | os.PathLike, hint: str = "") -> nn.Module:
    """Load V1 or V2 in eval mode from a checkpoint, a deployment package, a state dict (.pth or
    .safetensors) or an original V1 file.

    Averaged weights are used if the file has them. Raises CheckpointError for a missing, empty,
    damaged or foreign file; `hint` is added to the error for a missing one.
    """
    return build_model(read_file(path, hint), path)


def load_backbone(model: nn.Module, path: str | os.PathLike) -> None:
    """Load the backbone of V1 or V2 from an ImageNet checkpoint, or from any V1 or V2.

    An ImageNet classifier is left out; CheckpointError if anything else does not fit.
    """
    hint = (
        "get mobilenetV1X0.25_pretrain.tar as weights/README.md says, name a V1 or V2 checkpoint "
        "instead, or train with --init scratch (or, for V2, --init teacher)"
    )
    content = read_file(path, hint)
    state = plain_state(content)
    if "stage1.0.0.weight" in state:
        backbone = {k: v for k, v in state.items() if k not in ("fc.weight", "fc.bias")}
    else:
        backbone = build_model(content, path).get_submodule("backbone").state_dict()
    _load_strict(
        model.get_submodule("backbone"), backbone, Path(path), "the MobileNetV1 ×0.25 backbone"
    )
