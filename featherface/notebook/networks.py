"""Section 4: what V1 and V2 cost, counted on the networks themselves."""

from typing import Any

import pandas as pd
import torch
from torch import nn

from featherface.benchmark.speed import operation_counter
from featherface.models.networks import FeatherFaceV1, FeatherFaceV2
from featherface.notebook.display import explained, note, show_figure, show_table
from featherface.notebook.sessions import Session
from featherface.plots import plot_networks

SIZE = 640  # pixels, the side that multiply-accumulates are counted at
PARTS = {
    "backbone": "backbone (MobileNetV1 ×0.25)",
    "backbone_attention": "attention on the backbone",
    "neck": "BiFPN",
    "neck_attention": "attention on the BiFPN",
    "context": "context (SSH)",
    "shuffle": "channel shuffle",
    "heads": "heads",
}
HEADINGS = {
    "v1_parameters": "V1 parameters",
    "v2_parameters": "V2 parameters",
    "v1_macs": "V1 multiply-accumulates",
    "v2_macs": "V2 multiply-accumulates",
}


@explained("V1 against V2")
def show_networks(current: Session) -> None:
    """Parameters and multiply-accumulates by part, compression, and a figure."""
    frame = network_table()
    shown = frame.drop(columns="key").rename(columns=HEADINGS)
    show_table(shown, f"by part; multiply-accumulates of one image of {SIZE}×{SIZE}")
    total = frame.sum(numeric_only=True)
    v1, v2 = total["v1_parameters"], total["v2_parameters"]
    note(
        f"V1 {v1:,.0f} parameters, V2 {v2:,.0f}: **{v1 / v2:.2f}× smaller, "
        f"{100 * (1 - v2 / v1):.1f} % fewer parameters**. {total['v1_macs'] / 1e9:.2f} G against "
        f"{total['v2_macs'] / 1e9:.3f} G multiply-accumulates: "
        f"{total['v1_macs'] / total['v2_macs']:.2f}× less work."
    )
    show_figure(plot_networks(frame), current.results / "networks.png")


def network_table(size: int = SIZE) -> pd.DataFrame:
    """A row a part: key, part, v1_parameters, v2_parameters, v1_macs, v2_macs (of one image)."""
    networks: dict[str, nn.Module] = {"v1": FeatherFaceV1(), "v2": FeatherFaceV2()}
    macs = {name: count_macs(network, size) for name, network in networks.items()}
    rows = []
    for key, title in PARTS.items():
        row: dict[str, Any] = {"key": key, "part": title}
        for name, network in networks.items():
            part = network.get_submodule(key)
            row[f"{name}_parameters"] = sum(p.numel() for p in part.parameters())
        row |= {f"{name}_macs": counts[key] for name, counts in macs.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def count_macs(network: nn.Module, size: int = SIZE) -> dict[str, int]:
    """{part: multiply-accumulates} of one forward of a (1, 3, size, size) image.

    Of convolutions, deformable ones too, and linear layers. Gates, norms, fusion and activations,
    under 2 % of the work, are not counted, as is the custom.
    """
    with torch.no_grad(), operation_counter() as counter:
        network.eval()(torch.zeros(1, 3, size, size))
    counts = counter.get_flop_counts()
    name = type(network).__name__
    return {
        key: sum(
            sum(operations.values())
            for module, operations in counts.items()
            if _is_part(module.removeprefix(f"{name}."), key, network)
        )
        // 2  # an operation is a multiplication or an addition
        for key in PARTS
    }


def _is_part(module: str, key: str, network: nn.Module) -> bool:
    """The part itself, or, where it is a list that never runs as a whole, its members."""
    if isinstance(network.get_submodule(key), nn.ModuleList):
        return module.count(".") == 1 and module.startswith(f"{key}.")
    return module == key
