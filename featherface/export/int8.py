"""INT8: static quantisation of the layers where it pays, in the QDQ form of ONNX Runtime.

It pays in layers with many weights: there an 8-bit kernel saves more than turning maps into 8 bits
and back costs, and the file shrinks. Of those layers the ones that move the scores most stay in
float. Activations are uint8 with one range per tensor, weights int8 with one scale per output
channel (as in arXiv 1712.05877). Float constants are stored in 16 bits; ONNX Runtime turns them
into float32 when it loads the file, so that they cost no time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from featherface.errors import ConfigError
from featherface.export.graph import open_model

SMALLEST = 2048  # weights of a layer that is worth quantising
SCORE_ERROR = 0.02  # mean change of the scores that matter that all layers together may make
LARGEST = 450_000  # bytes of the file; what is left below it is spent on accuracy
SEEN = 0.02  # a score that matters: what evaluation looks at
VALUES = "network_values"  # of `end_to_end`: what the network gives to the decoding, (1, 30, N)
_SMALLEST_HALF = 64  # numbers of a constant that is worth storing in 16 bits

Range = tuple[float, float]
Constants = dict[str, np.ndarray]


@dataclass(frozen=True)
class Quantised:
    """The INT8 model and which of its layers are 8-bit."""

    model: ModelProto
    layers: tuple[str, ...]  # names of the convolutions
    left: tuple[str, ...]  # worth it by size, but too far off
    score_error: float  # of `model`: mean change of the scores that matter, calibration pictures


def quantise(
    model: ModelProto,
    pictures: Sequence[np.ndarray],
    *,
    smallest: int = SMALLEST,
    score_error: float = SCORE_ERROR,
    largest: int = LARGEST,
) -> Quantised:
    """Quantise an end-to-end model to INT8 where it pays and costs little accuracy.

    pictures: for calibration, BGR uint8 (H, W, 3), like those of the application.
    smallest: weights that a convolution needs to be considered. score_error: layers stay in float,
    the worst first, until the mean change of the scores is at most this. largest: then layers that
    move the scores most for their weights stay in float, while the file has at most so many bytes.
    Raises ConfigError without pictures or for another form.
    """
    if not pictures:
        raise ConfigError("INT8 needs pictures to calibrate on")
    if VALUES not in {name for node in model.graph.node for name in node.output}:
        raise ConfigError("INT8 is made of the end-to-end form for any size")
    weights = _constants(model)
    worth = [node for node in model.graph.node if _pays(node, weights, smallest)]
    ranges = _ranges(model, worth, pictures)
    expected = _scores(model, pictures)

    def error(made: ModelProto) -> float:
        return _mean_change(expected, _scores(made, pictures))

    alone = {node.name: error(_with_qdq(model, [node], ranges)) for node in worth}
    chosen = sorted(worth, key=lambda node: alone[node.name])
    small = _small(model, chosen, ranges)
    while chosen and error(small) > score_error:
        chosen.pop()
        small = _small(model, chosen, ranges)
    gain = {node.name: alone[node.name] / weights[node.input[1]].size for node in chosen}
    for node in sorted(chosen, key=lambda node: -gain[node.name]):
        rest = [other for other in chosen if other is not node]
        candidate = _small(model, rest, ranges)
        if candidate.ByteSize() <= largest:
            chosen, small = rest, candidate
    names = {node.name for node in chosen}
    return Quantised(
        model=small,
        layers=tuple(node.name for node in worth if node.name in names),
        left=tuple(node.name for node in worth if node.name not in names),
        score_error=error(small),
    )


def _pays(node: NodeProto, weights: dict[str, np.ndarray], smallest: int) -> bool:
    """Return True for a dense convolution with many constant weights."""
    if node.op_type != "Conv" or node.input[1] not in weights:
        return False
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    return groups == 1 and weights[node.input[1]].size >= smallest


def _ranges(
    model: ModelProto, nodes: Sequence[NodeProto], pictures: Sequence[np.ndarray]
) -> dict[str, Range]:
    """Find the range, zero included, of every map that the nodes read or write."""
    names = list(dict.fromkeys(name for node in nodes for name in (node.input[0], node.output[0])))
    seen = {name: (0.0, 0.0) for name in names}
    session = open_model(_with_outputs(model, names))
    for picture in pictures:
        maps = session.run(names, {"image": picture})
        for name, values in zip(names, maps, strict=True):
            low, high = seen[name]
            seen[name] = min(low, float(values.min())), max(high, float(values.max()))
    return seen


def _with_outputs(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """Copy the model with these maps as further outputs."""
    copy = ModelProto.FromString(model.SerializeToString())
    for name in names:
        copy.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return copy


def _scores(model: ModelProto, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Compute the face scores (2, N) of both anchors of each cell, for each picture."""
    session = open_model(_with_outputs(model, [VALUES]))
    values = (session.run([VALUES], {"image": picture})[0] for picture in pictures)
    return [1 / (1 + np.exp(-part[0, :2])) for part in values]


def _mean_change(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Return the mean |difference| over the scores that matter in either."""
    changes = []
    for before, after in zip(expected, found, strict=True):
        matter = np.maximum(before, after) > SEEN
        changes.append(np.abs(before - after)[matter])
    together = np.concatenate(changes)
    return float(together.mean()) if len(together) else 0.0


def _small(model: ModelProto, layers: Sequence[NodeProto], ranges: dict[str, Range]) -> ModelProto:
    """Make the model to write: 8-bit layers, the rest stored in 16 bits, short names."""
    return _shorten_names(_store_in_half(_with_qdq(model, layers, ranges)))


def _with_qdq(
    model: ModelProto, layers: Sequence[NodeProto], ranges: dict[str, Range]
) -> ModelProto:
    """Copy the model with `layers` that read, multiply and write 8-bit numbers."""
    wanted = {node.name for node in layers}
    constants = _constants(model)
    nodes: list[NodeProto] = []
    read: dict[str, str] = {}  # map → its 8-bit version, as the layers read it
    for original in model.graph.node:
        if original.name not in wanted:
            nodes.append(original)
            continue
        node = NodeProto.FromString(original.SerializeToString())
        source, target = node.input[0], node.output[0]
        if source not in read:
            read[source] = f"{source}_read"
            nodes += _round_trip(source, read[source], ranges[source], constants)
        nodes += _weights(node, float(constants[f"{read[source]}_scale"]), constants)
        node.input[0], node.output[0] = read[source], f"{target}_wide"
        nodes.append(node)
        nodes += _round_trip(f"{target}_wide", target, ranges[target], constants)
    return _rebuilt(model, nodes, constants)


def _constants(model: ModelProto) -> Constants:
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def _rebuilt(model: ModelProto, nodes: Sequence[NodeProto], constants: Constants) -> ModelProto:
    """Copy the model with other nodes, and with those of the constants that they use."""
    used = {name for node in nodes for name in node.input}
    kept = [numpy_helper.from_array(value, name) for name, value in constants.items()
            if name in used]  # fmt: skip
    copy, old = ModelProto.FromString(model.SerializeToString()), model.graph
    copy.graph.CopyFrom(helper.make_graph(nodes, old.name, old.input, old.output, kept))
    return copy


def _round_trip(source: str, target: str, span: Range, constants: Constants) -> list[NodeProto]:
    """Return the nodes of source → uint8 → target, which is float again."""
    step = max(span[1] - span[0], 1e-6) / 255
    names = [f"{target}_scale", f"{target}_zero"]
    constants[names[0]] = np.array(step, np.float32)
    constants[names[1]] = np.array(np.clip(round(-span[0] / step), 0, 255), np.uint8)
    return [
        helper.make_node("QuantizeLinear", [source, *names], [f"{target}_q"], f"{target}_q"),
        helper.make_node("DequantizeLinear", [f"{target}_q", *names], [target], f"{target}_d"),
    ]


def _weights(node: NodeProto, step: float, constants: Constants) -> list[NodeProto]:
    """Replace a convolution's weight (O, I, kH, kW) by int8 and its bias (O,) by int32.

    step: of the map that it reads; the bias counts in steps of map times weight.
    """
    weight = constants[node.input[1]]
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    scale = (np.maximum(largest, 1e-9) / 127).astype(np.float32)  # (O,)
    whole = np.rint(weight / scale[:, None, None, None]).clip(-127, 127)
    parts = [(whole.astype(np.int8), scale)]
    if len(node.input) > 2:
        bias = constants[node.input[2]]
        parts.append((np.rint(bias / (scale * step)).astype(np.int32), scale * step))
    nodes = []
    for place, (numbers, factor) in enumerate(parts, start=1):
        base = f"{node.name}_{place}"
        constants[f"{base}_q"], constants[f"{base}_scale"] = numbers, factor
        constants[f"{base}_zero"] = np.zeros(len(factor), numbers.dtype)
        inputs = [f"{base}_q", f"{base}_scale", f"{base}_zero"]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{base}_d"], base, axis=0))
        node.input[place] = f"{base}_d"
    return nodes


def _store_in_half(model: ModelProto) -> ModelProto:
    """Store float constants in 16 bits, cast to float32 by nodes that ONNX Runtime folds."""
    scaling = ("QuantizeLinear", "DequantizeLinear")
    scales = {name for node in model.graph.node if node.op_type in scaling for name in node.input}
    constants, casts = _constants(model), []
    for name, array in _constants(model).items():
        if array.dtype != np.float32 or array.size < _SMALLEST_HALF or name in scales:
            continue
        if np.abs(array).max() <= np.finfo(np.float16).max:  # more would become infinite
            constants[f"{name}_half"] = array.astype(np.float16)
            casts.append(helper.make_node("Cast", [f"{name}_half"], [name], f"{name}_cast", to=1))
            del constants[name]
    return _rebuilt(model, [*casts, *model.graph.node], constants)


def _shorten_names(model: ModelProto) -> ModelProto:
    """Rename values and nodes to numbers, in place: names are a tenth of a small file."""
    graph = model.graph
    fixed = {VALUES, *(item.name for item in (*graph.input, *graph.output))}
    short: dict[str, str] = {"": ""}

    def name(old: str) -> str:
        return old if old in fixed else short.setdefault(old, f"{len(short):x}")

    for node in graph.node:
        node.input[:] = [name(old) for old in node.input]
        node.output[:] = [name(old) for old in node.output]
        node.name = ""
    for item in graph.initializer:
        item.name = name(item.name)
    return model
