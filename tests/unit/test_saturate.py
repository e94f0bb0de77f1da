"""u8·s8 products without VNNI: against plain whole numbers, and against ONNX Runtime itself."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tests.unit.test_quantize import WIDE, Mobile, images, rounded, settled
from torch import nn

from niwaki import bench, runtimes, timing
from niwaki.artifact import Artifact
from niwaki.cli import main
from niwaki.qdq import processors, saturate
from niwaki.runtimes import onnx_export
from niwaki.tasks import Classify

TASK = Classify(("a", "b", "c"))
EXTREME = st.sampled_from([0, 1, 127, 128, 254, 255]), st.sampled_from([-128, -127, -64, -1, 0, 1, 63, 64, 127])


def one_by_one(a: list[list[int]], b: list[list[int]]) -> list[list[int]]:
    """The sum of products of Python's own whole numbers, two neighbours at a time cut off at 16 bits."""
    out = []
    for row in a:
        sums = []
        for column in range(len(b[0])):
            total = 0
            for k in range(0, len(row), 2):
                both = row[k] * b[k][column]
                if k + 1 < len(row):
                    both += row[k + 1] * b[k + 1][column]
                total += max(-32768, min(32767, both))
            sums.append(total)
        out.append(sums)
    return out


@given(data=st.data(), rows=st.integers(1, 3), inner=st.integers(1, 9), columns=st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_products_equal_plain_whole_numbers(data: Any, rows: int, inner: int, columns: int) -> None:
    u8, s8 = (st.integers(0, 255) | EXTREME[0]), (st.integers(-128, 127) | EXTREME[1])
    a = data.draw(st.lists(st.lists(u8, min_size=inner, max_size=inner), min_size=rows, max_size=rows))
    b = data.draw(st.lists(st.lists(s8, min_size=columns, max_size=columns), min_size=inner, max_size=inner))
    arrays = np.array(a, np.uint8), np.array(b, np.int8)
    assert saturate.products(*arrays).tolist() == one_by_one(a, b)
    assert saturate.products(*arrays, saturates=False).tolist() == (np.array(a) @ np.array(b)).tolist()


def test_the_two_largest_products_saturate() -> None:
    a, b = np.full((1, 4), 255, np.uint8), np.full((4, 1), 127, np.int8)
    assert saturate.products(a, b).item() == 2 * 32767
    assert saturate.products(a, b, saturates=False).item() == 4 * 255 * 127
    # not neighbours: nothing is lost
    assert saturate.products(a, np.array([[127], [0], [127], [0]], np.int8)).item() == 2 * 255 * 127


def convolution(weight: Any, *, group: int = 1, pads: int = 1, stride: int = 1, dilation: int = 1) -> Any:
    """A file of one convolution on whole numbers, u8 pixels to u8 values, flattened: `[N, K]`."""
    outputs = len(weight)
    held = [
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in {
            "xs": np.float32(0.02), "xz": np.uint8(7), "w": weight, "ws": np.full(outputs, 0.01, np.float32),
            "wz": np.zeros(outputs, np.int8), "ys": np.float32(3.0), "yz": np.uint8(120),
            "b": np.arange(outputs, dtype=np.int32) * 50, "bs": np.full(outputs, 0.0002, np.float32),
            "shape": np.array([0, -1]),
        }.items()
    ]  # fmt: skip
    nodes = [
        helper.make_node("Transpose", ["image"], ["x"], perm=[0, 3, 1, 2]),
        helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs"], ["bf"], axis=0),
        helper.make_node(
            "Conv", ["xf", "wf", "bf"], ["c"], group=group, pads=[pads] * 4, strides=[stride] * 2,
            dilations=[dilation] * 2,
        ),
        helper.make_node("QuantizeLinear", ["c", "ys", "yz"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "ys", "yz"], ["y"]),
        helper.make_node("Reshape", ["y", "shape"], ["probabilities"]),
    ]  # fmt: skip
    channels = weight.shape[1] * group
    given_ = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 9, 9, channels])
    made = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", None])
    graph = helper.make_graph(nodes, "g", [given_], [made], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def plain_convolution(image: Any, weight: Any, *, group: int, pads: int, stride: int, dilation: int) -> Any:
    """The same file's values for one image, by loops over Python's whole numbers.

    Pairs run over the channels of a kernel position, then on to the next position."""
    outputs, inputs, rows, columns = weight.shape
    padded = np.pad(image, ((pads, pads), (pads, pads), (0, 0)), constant_values=7)
    reach = [(k - 1) * dilation + 1 for k in (rows, columns)]
    height, width = ((padded.shape[d] - reach[d]) // stride + 1 for d in (0, 1))
    out = np.zeros((outputs, height, width), np.float32)
    for o in range(outputs):
        first = o // (outputs // group) * inputs
        for y in range(height):
            for x in range(width):
                a, b = [], []
                for ky in range(rows):
                    for kx in range(columns):
                        for c in range(inputs):
                            at = padded[y * stride + ky * dilation, x * stride + kx * dilation, first + c]
                            a.append(int(at))
                            b.append([int(weight[o, c, ky, kx])])
                total = one_by_one([a], b)[0][0] - 7 * sum(v for (v,) in b) + 50 * o
                scaled = np.float32(total) * np.float32(np.float32(0.02) * np.float32(0.01) / np.float32(3.0))
                whole = int(np.rint(np.clip(scaled, -120, 135))) + 120
                out[o, y, x] = np.float32(whole - 120) * np.float32(3.0)
    return out.reshape(-1)


@pytest.mark.parametrize(
    ("shape", "knobs"),
    [
        ((16, 8, 3, 3), {}),
        ((16, 3, 3, 3), {"stride": 2}),  # pairs go on from one kernel position to the next
        ((5, 7, 3, 3), {"dilation": 2, "pads": 2}),
        ((8, 3, 1, 1), {"pads": 0}),
        ((8, 3, 3, 3), {"group": 4}),
    ],
)
def test_convolutions_equal_plain_whole_numbers_and_onnx_runtime(shape: Any, knobs: dict[str, int]) -> None:
    rng = np.random.default_rng(3)
    weight = rng.integers(90, 128, shape).astype(np.int8)
    weight[::2] *= -1
    full = {"group": 1, "pads": 1, "stride": 1, "dilation": 1, **knobs}
    proto = convolution(weight, **full)
    some = rng.integers(150, 256, (2, 9, 9, shape[1] * full["group"]), np.uint8)
    got = saturate.emulator(proto)(some)
    assert np.array_equal(got[0], plain_convolution(some[0], weight, **full))
    exact = saturate.emulator(proto, saturates=False)(some)
    assert not np.array_equal(got, exact) and not saturate.safe(proto)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    here = processors.kind(timing.isa()) == "pairs"
    assert np.array_equal(session.run(None, {"image": some})[0], got if here else exact)


def test_depthwise_convolutions_never_saturate() -> None:
    proto = convolution(np.full((16, 1, 3, 3), 127, np.int8), group=16)
    some = np.full((1, 9, 9, 16), 255, np.uint8)
    assert saturate.safe(proto)
    assert np.array_equal(saturate.emulator(proto)(some), saturate.emulator(proto, saturates=False)(some))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of one network with 8-bit and with 7-bit weights."""
    folder, out = tmp_path_factory.mktemp("files"), {}
    net = settled(Mobile(), WIDE)
    for name, bits in (("eight", 8), ("seven", 7)):
        path = folder / f"{name}.onnx"
        model = rounded(net, WIDE, bits=bits)
        out[name] = onnx_export.export(model, WIDE, path, task=TASK, precision="int8", prove=False)
    return out


@pytest.mark.parametrize("name", ["eight", "seven"])
def test_whole_networks_equal_onnx_runtime_to_the_bit(files: dict[str, Path], name: str) -> None:
    some = images(WIDE, 8)
    session = ort.InferenceSession(str(files[name]), providers=["CPUExecutionProvider"])
    saturates = processors.kind(timing.isa()) == "pairs"
    found = saturate.emulator(onnx.load(files[name]), saturates=saturates)(some)
    assert np.array_equal(found, session.run(None, {"image": some})[0])


def test_seven_bits_are_safe_and_eight_are_not(files: dict[str, Path]) -> None:
    eight, seven = (onnx.load(files[name]) for name in ("eight", "seven"))
    assert saturate.safe_for(seven) == {"safe_for": ["vnni", "arm", "pairs"], "decided_by": "weights"}
    assert saturate.safe_for(eight)["safe_for"] == ["vnni", "arm"]
    bright = np.full((4, 16, 16, 3), 255, np.uint8)
    bright[:, ::2] = images(WIDE, 4)[:, ::2]
    found = saturate.safe_for(eight, bright)
    assert found["decided_by"] == "emulation" and found["images"] == 4 and found["moved"] > 0


@pytest.mark.parametrize(
    ("isa", "wanted"),
    [
        (["avx2", "avx512f", "avx512_vnni"], "vnni"),
        (["avx2", "avx_vnni"], "vnni"),
        (["avx2", "avx512f"], "pairs"),
        (["x86_64"], "pairs"),
        (["asimd", "asimddp"], "arm"),
        (["arm64"], "arm"),
    ],
)
def test_kinds_of_cpus(isa: list[str], wanted: str) -> None:
    assert processors.kind(isa) == wanted


def test_artifact_tells_for_which_cpus_its_int8_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = rounded(
        settled(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 3)), WIDE), WIDE
    )
    saved = Artifact.save(tmp_path / "a.niwaki", model, spec=WIDE, task=TASK)
    saved.export(precision="int8")
    entry = Artifact.open(saved.path).exports["onnx"]["int8"]
    assert entry["instruction_sets"] == {"safe_for": ["vnni", "arm"], "decided_by": "weights"}
    assert "a.niwaki: int8 saturates on this CPU" in bench.warnings(saved, isa=["avx2"])[0]
    monkeypatch.setattr(timing, "isa", lambda: ["avx2"])
    with pytest.warns(RuntimeWarning, match="exact mode, which is slower"):
        saved.session(precision="int8")
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    assert main(["predict", str(saved.path), str(tmp_path / "x.png"), "--precision", "int8"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("niwaki: a.niwaki: int8 saturates on this CPU")
    saved.update(default="int8")
    assert main(["bench", str(saved.path), "--against", str(saved.path), "--rounds", "2"]) == 0
    assert "int8 saturates on this CPU" in capsys.readouterr().out
    monkeypatch.setattr(timing, "isa", lambda: ["avx2", "avx_vnni"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saved.session(precision="int8")
    assert bench.warnings(saved, isa=["avx2", "avx_vnni"]) == bench.warnings(saved, isa=["asimd"]) == []
    assert saved.session(precision="int8")(images(WIDE, 2)).shape == (2, 3)


@pytest.mark.parametrize(("bits", "safe"), [(8, ["vnni", "arm"]), (7, ["vnni", "arm", "pairs"])])
def test_openvino_files_tell_for_which_cpus_they_are_safe(tmp_path: Path, bits: int, safe: list[str]) -> None:
    pytest.importorskip("openvino")
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 3))
    model = rounded(settled(net, WIDE), WIDE, bits=bits)
    saved = Artifact.save(tmp_path / "a.niwaki", model, spec=WIDE, task=TASK)
    saved.export("openvino", precision="int8")
    told = saved.exports["openvino"]["int8"]["instruction_sets"]
    assert told == {"safe_for": safe, "decided_by": "weights"}
    lines = bench.warnings(saved, isa=["avx2"], runtime="openvino")
    assert ["OpenVINO's int8 may saturate" in line for line in lines] == ([True] if bits == 8 else [])
    assert bench.warnings(saved, isa=["avx2"]) == lines
    assert (
        bench.warnings(saved, isa=["avx2"], runtime="onnx") == bench.warnings(saved, isa=["avx512_vnni"]) == []
    )


def test_litert_files_are_safe_on_every_cpu() -> None:
    told = runtimes.load("litert").facts(Path("x.tflite"), precision="int8", images=None)
    assert all(processors.safe(told, isa) for isa in (["avx2"], ["avx_vnni"], ["asimd"]))
    assert runtimes.load("litert").facts(Path("x.tflite"), precision="float32", images=None) == {}


def test_what_a_manifest_does_not_tell_is_not_taken_for_safe() -> None:
    told = {"instruction_sets": {"safe_for": ["vnni", "pairs"]}}
    assert processors.safe(told, ["avx2"]) and not processors.safe(told, ["asimd"])
    for damaged in ({}, {"instruction_sets": None}, {"instruction_sets": {"safe_for": "pairs"}}):
        assert not processors.safe(damaged, ["avx2"])
        assert "may saturate" in str(processors.exact("a", damaged, ["avx2"]))
        assert processors.exact("a", damaged, ["avx2", "avx_vnni"]) is None
