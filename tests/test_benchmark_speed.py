"""The comparison of speeds: its table, plot and flags; other detectors' files."""

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from conftest import shared
from exported import assert_same_faces, graph, network
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from featherface.benchmark import command, speed
from featherface.benchmark.speed import DEFAULT_V1, alternate, network_costs
from featherface.errors import CheckpointError, ConfigError, DataError
from featherface.models.networks import FeatherFaceV1, FeatherFaceV2
from featherface.onnx_detector import OnnxDetector
from featherface.peers import RETINAFACE, SCRFD, UNKNOWN, YUNET, OnnxPeer
from featherface.plots import plot_speed_against_ap


def test_calls_alternate_and_the_first_rounds_do_not_count():
    order = []
    times = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=4)
    assert order == ["a", "b"] * 7 and len(times["a"]) == len(times["b"]) == 4


def test_costs_are_the_published_ones():
    assert network_costs(FeatherFaceV1().eval(), 320, 320)["parameters"] == 592_371
    v2 = network_costs(FeatherFaceV2().eval(), 320, 320)
    assert v2["parameters"] == 256_156
    assert v2["macs"] == pytest.approx(0.411e9 / 4, rel=0.02)


@pytest.fixture
def quick(monkeypatch):
    """The benchmark of V2 alone, with models that are made already."""
    monkeypatch.setattr(speed, "build", lambda model: graph("end_to_end", None))
    return {"V2": network("v2")}


def test_the_table(quick):
    threads = torch.get_num_threads()
    table = speed.compare_speed(
        quick, sizes=[(64, 96)], threads=[1, 2], engines=["eager", "onnx"], rounds=2
    )
    assert torch.get_num_threads() == threads
    assert len(table) == 2 * 2 * 2 and (table["median"] > 0).all()
    assert (table["low"] <= table["median"]).all() and (table["median"] <= table["high"]).all()
    assert set(table["what"]) == {"forward", "end-to-end"}
    assert set(table.loc[table["threads"] == 1, "clock"]) == {"cpu"}
    assert set(table["parameters"]) == {256_156}
    with pytest.raises(ConfigError, match="eager, onnx"):
        speed.compare_speed(quick, engines=["tensorrt"])


def test_the_command_writes_table_and_plot(quick, tmp_path, monkeypatch, capsys):
    row = {"detector": "V2", "engine": "onnx", "what": "forward", "height": 640, "width": 640,
           "threads": 1, "median": 10.0, "low": 9.0, "high": 11.0, "ratio_to_v1": 0.25}  # fmt: skip
    rows = pd.DataFrame([row, {**row, "detector": "V1", "median": 40.0, "ratio_to_v1": 1.0}])
    seen = {}
    monkeypatch.setattr("featherface.checkpoint.load_model", lambda path: network("v2"))

    def fake(networks, **options):
        seen.update(options, networks=networks)
        return rows.assign(ap_easy=[90.0, 95.0])

    monkeypatch.setattr(speed, "compare_speed", fake)
    monkeypatch.chdir(tmp_path)  # where V1's default file is not
    options = {"v1": DEFAULT_V1, "v2": "x.pth", "peers": "", "data": "",
               "engines": "onnx", "out": str(tmp_path), "rounds": 3}  # fmt: skip
    command.measure_speed(**options, sizes="640x640, 32x64", threads="1,2")
    assert "V1 was timed untrained" in capsys.readouterr().out
    assert isinstance(seen["networks"]["V1"], FeatherFaceV1)
    assert seen["sizes"] == [(640, 640), (32, 64)] and seen["threads"] == [1, 2]
    written = pd.read_csv(tmp_path / "performance_comparison.csv")
    assert written["ratio_to_v1"].tolist() == [0.25, 1.0]
    assert np.isnan(written["ap_easy"][1])  # V1 had no weights: its AP would be wrong
    assert (tmp_path / "speed_ap.png").stat().st_size > 1000
    for name, value, said in (
        ("sizes", "", "at least one size"),
        ("threads", "none", "whole numbers"),
        ("peers", str(tmp_path / "empty"), "no ONNX file"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        wrong = {**options, "sizes": "64x64", "threads": "1", name: value}
        with pytest.raises(ConfigError, match=said):
            command.measure_speed(**wrong)


def test_what_is_not_there_is_said_before_anything_is_measured(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    options = {"v1": "absent.pth", "v2": "x.pth", "peers": "", "data": "", "engines": "onnx",
               "rounds": 1, "sizes": "64x64", "threads": "1"}  # fmt: skip
    with pytest.raises(CheckpointError, match=r"absent\.pth: no such file"):
        command.measure_speed(**options, out=str(tmp_path))
    with pytest.raises(ConfigError, match=r"cannot write into .*new: .*file is a file"):
        command.measure_speed(**options, out=str(tmp_path / "file/new"))

    def never(*_):
        raise AssertionError("built")

    monkeypatch.setattr(speed, "_candidates", never)
    with pytest.raises(CheckpointError, match="no such file"):
        speed.compare_speed({}, peers=[tmp_path / "none.onnx"])
    with pytest.raises(DataError):
        speed.compare_speed({}, data=tmp_path / "none")


def test_a_forward_reads_a_padded_picture():
    assert speed.prepared((720, 1280)).shape == (1, 3, 736, 1280)
    seen = []
    model = nn.Conv2d(3, 1, 1)
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    speed._eager("V2", model, {}).calls((40, 70), 1)["forward"]()
    assert seen == [(1, 3, 64, 96)]


def test_a_forward_in_onnx_runtime_is_the_network_and_detection_is_the_whole_file(quick, tmp_path):
    calls = speed._exported("V2", network("v2"), {}, tmp_path / "v2.onnx").calls((40, 70), 1)
    assert calls["forward"]()[0].shape == (1, 30, 8 * 12 + 4 * 6 + 2 * 3)
    expected = OnnxDetector(tmp_path / "v2.onnx").detect(speed.picture((40, 70)), bgr=True)
    assert_same_faces(calls["end-to-end"](), expected)


def test_a_deployment_file_among_the_peers_is_timed_as_a_whole(tmp_path):
    onnx.save(graph("end_to_end", (64, 96)), tmp_path / "fixed.onnx")
    found = speed._file(tmp_path / "fixed.onnx")
    assert found.calls((64, 64), 1) == {} and list(found.calls((64, 96), 1)) == ["end-to-end"]
    assert found.evaluated.size == (64, 96) and found.costs["parameters"] > 200_000


def test_a_plot_needs_an_ap():
    with pytest.raises(DataError, match="give --data"):
        plot_speed_against_ap(pd.DataFrame({"what": ["forward"]}))


def peer(tmp_path, name, outputs):
    """A model of one size (64, 64) that gives constants: {output name: array}."""
    nodes = [helper.make_node("Identity", [f"{key}_c"], [key]) for key in outputs]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "peer",
            [helper.make_tensor_value_info("data", TensorProto.FLOAT, (1, 3, 64, 64))],
            [helper.make_tensor_value_info(k, TensorProto.FLOAT, v.shape) for k, v in
             outputs.items()],
            [numpy_helper.from_array(value, f"{key}_c") for key, value in outputs.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )  # fmt: skip
    onnx.save(model, tmp_path / f"{name}.onnx")
    return OnnxPeer(tmp_path / f"{name}.onnx")


def zeros(*shape):
    return np.zeros(shape, np.float32)


def test_retinafaces_kind(tmp_path):
    scores = zeros(1, 168, 2)
    scores[0, 2 * (8 * 3 + 5), 1] = 0.9  # P3, row 3, column 5, the small anchor
    found = peer(tmp_path, "a", {"bbox": zeros(1, 168, 4), "conf": scores, "points":
                                 zeros(1, 168, 10)})  # fmt: skip
    assert found.kind is RETINAFACE and found.size == (64, 64)
    faces = found.detect(np.zeros((128, 128, 3), np.uint8))  # shrunk to a half
    assert faces.boxes.tolist() == [[72, 40, 104, 72]]  # 16×16 about (44, 28), twice as large
    assert faces.landmarks.tolist() == [[[88, 56]] * 5]


def test_scrfds_and_yunets_kinds(tmp_path):
    levels = (64, 16, 4)
    scores = [zeros(1, 2 * n, 1) for n in levels]
    scores[1][0, 2 * 5 + 1, 0] = 0.8  # stride 16, row 1, column 1, the second anchor
    sides = [np.full((1, 2 * n, 4), 0.5, np.float32) for n in levels]
    points = [np.full((1, 2 * n, 10), 0.25, np.float32) for n in levels]
    for outputs, expected in ((scores + sides + points, 20), (scores + sides, np.nan)):
        found = peer(tmp_path, "scrfd", {f"o{i}": part for i, part in enumerate(outputs)})
        assert found.kind is SCRFD
        faces = found.detect(np.zeros((64, 64, 3), np.uint8))
        assert faces.boxes.tolist() == [[8, 8, 24, 24]]  # from the cell's corner, not its centre
        np.testing.assert_array_equal(faces.landmarks, np.full((1, 5, 2), expected))
    classes, objects = ([zeros(1, n, 1) for n in levels] for _ in range(2))
    classes[2][0, 3, 0], objects[2][0, 3, 0] = 0.81, 1.0
    parts = [*classes, *objects, *(zeros(1, n, 4) for n in levels), *(zeros(1, n, 10) for n in
             levels)]  # fmt: skip
    found = peer(tmp_path, "yunet", {f"o{i}": part for i, part in enumerate(parts)})
    assert found.kind is YUNET
    faces = found.detect(np.zeros((64, 64, 3), np.uint8))
    assert faces.boxes.tolist() == [[16, 16, 48, 48]]
    assert faces.landmarks.tolist() == [[[32, 32]] * 5]
    assert faces.scores.tolist() == pytest.approx([0.9])


def test_an_unknown_kind_is_timed_but_does_not_detect(tmp_path):
    found = peer(tmp_path, "other", {"x": zeros(1, 7)})
    assert found.kind is UNKNOWN and found.forward(zeros(1, 3, 64, 64))[0].shape == (1, 7)
    with pytest.raises(CheckpointError, match="unknown kind of model; it can only be timed"):
        found.detect(np.zeros((8, 8, 3), np.uint8))


def test_a_real_peer_finds_faces():
    path = shared("peers", "yunet_n_640x640.onnx")
    photo = next(iter(sorted(shared("widerface", "WIDER_val", "images").rglob("*.jpg"))))
    assert len(OnnxPeer(path, score_threshold=0.5).detect(photo)) > 0
