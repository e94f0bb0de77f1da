"""ONNX: the exported file computes what the model computes, and its bytes depend on the model
alone."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from niwaki import nets, runtimes
from niwaki.errors import ModelError, ParityError, RuntimeFailed, SpecError
from niwaki.runtimes import onnx_export, onnx_rewrite, parity, wire
from niwaki.spec import Spec
from niwaki.tasks import Classify

torch.set_num_threads(1)
ONNX = runtimes.load("onnx")
RGB = Spec(size_hw=(16, 16))
GREY = Spec(size_hw=(16, 16), mean=(0.5,), std=(0.25,), channels=1)
TASK = Classify(tuple("abcde"))


def settled(model: nn.Module, spec: Spec) -> nn.Module:
    """A model whose batch norms have seen images, so that folding them wrongly shows."""
    model.train()
    with torch.no_grad():
        for seed in range(3):
            model(torch.from_numpy(spec.example(16, seed=seed)))
    return model.eval()


def small(spec: Spec) -> nn.Module:
    torch.manual_seed(0)
    model = settled(nets.build("niwaki:resnet20", classes=5, channels=spec.channels), spec)
    with torch.no_grad():
        model.linear.weight.mul_(0.1)  # else one class takes all, and no error would show
    return model


@pytest.fixture(scope="module", params=["rgb", "grey"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(model, spec, images, float32 file, int8 file)."""
    spec = RGB if request.param == "rgb" else GREY
    folder = tmp_path_factory.mktemp(request.param)
    model, images = small(spec), parity.noise(spec, 48)
    paths = [
        ONNX.export(model, spec, folder / f"{p}.onnx", task=TASK, precision=p, calib=images)
        for p in ("float32", "int8")
    ]
    return model, spec, images, *paths


def test_float_file_is_the_model_for_every_batch_size(made) -> None:
    model, spec, images, path, _ = made
    session = ONNX.open(path)
    for count in (1, 2, 7):
        wanted = parity.reference(model, spec, TASK, images[:count])
        assert np.abs(session(images[:count]) - wanted).max() < 1e-5
    assert (session.size_hw, session.channels, session.classes) == (spec.size_hw, spec.channels, 5)


def test_int8_file_is_close_and_smaller(made) -> None:
    model, spec, images, float_path, path = made
    found = parity.check(model, path, spec, task=TASK, images=images, precision="int8")
    assert 0 < found.error < 0.25
    assert found.agreement >= 0.8
    assert path.stat().st_size < 0.4 * float_path.stat().st_size


def test_int8_runs_on_whole_numbers_from_pixels_to_the_head(made, tmp_path: Path) -> None:
    """What ONNX Runtime makes of the file: nothing is turned back to float between convolutions."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(made[4], options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert "QuantizeLinear" not in kinds
    assert "DequantizeLinear" not in kinds
    assert "Relu" not in kinds
    assert kinds.count("QLinearAdd") == 9
    assert {"QLinearConv", "QLinearGlobalAveragePool", "QGemm", "Softmax"} <= set(kinds)
    assert kinds.count("QLinearConv") == (21 if made[1].channels == 1 else 22)


def test_pixels_keep_all_their_values_in_int8(made) -> None:
    """The first integer tensor is the image itself, whatever the calibration images held."""
    graph = onnx.load(made[4]).graph
    transpose = graph.node[[n.op_type for n in graph.node].index("Transpose")]
    assert list(transpose.input) == ["image"]
    first = next(n for n in graph.node if n.input[0] == transpose.output[0])
    assert first.op_type == "DequantizeLinear"
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    scale, zero = float(values[first.input[1]]), int(values[first.input[2]])
    wanted = (1.0, 0) if made[1].channels == 3 else (1 / (255 * 0.25), round(0.5 * 255))
    assert (scale, zero) == pytest.approx(wanted)


def test_nothing_but_the_model_is_in_the_file(made) -> None:
    for path in made[3:]:
        data = path.read_bytes()
        for word in (
            b".py",
            b"site-packages",
            b"stack_trace",
            b"pkg.torch",
            str(Path.cwd()).encode(),
            b"/tmp",
        ):
            assert word not in data
        proto = onnx.load(path)
        onnx.checker.check_model(proto, full_check=True)
        assert proto.producer_name == "niwaki"
        assert not proto.metadata_props
        assert not any(n.doc_string or n.metadata_props for n in proto.graph.node)


_ELSEWHERE = """
import sys, torch
torch.manual_seed(0); torch.set_num_threads(1)
from tests.parity.test_onnx import ONNX, RGB, TASK, small, parity
model = small(RGB)
for p in ("float32", "int8"):
    ONNX.export(model, RGB, f"{p}.onnx", task=TASK, precision=p, calib=parity.noise(RGB, 48))
"""


@pytest.mark.slow
def test_same_model_same_bytes_in_two_processes_and_folders(tmp_path: Path) -> None:
    root, digests = Path(__file__).parents[2], []
    for folder in (tmp_path / "one", tmp_path / "another" / "place"):
        folder.mkdir(parents=True)
        code = f"import sys; sys.path.insert(0, {str(root)!r})\n" + _ELSEWHERE
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
        digests.append(
            [hashlib.sha256((folder / f"{p}.onnx").read_bytes()).hexdigest() for p in ("float32", "int8")]
        )
    assert digests[0] == digests[1]


class Pools(nn.Module):
    """Adaptive pooling to sizes that divide the input and sizes that do not, means over several
    axes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6 * (9 + 35 + 1 + 1 + 14), 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        parts = [nn.functional.adaptive_avg_pool2d(x, size).flatten(1) for size in (3, (5, 7), 1)]
        return self.head(torch.cat([*parts, x.mean((2, 3)), x.mean(-1).flatten(1)], 1))


def test_pooling_to_any_size_exports(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Pools().eval()
    path = ONNX.export(model, RGB, tmp_path / "pools.onnx", task=TASK)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert "GlobalAveragePool" in kinds
    found = parity.check(model, path, RGB, task=TASK, images=parity.noise(RGB, 4))
    assert found.error < 1e-6


def test_means_are_the_windows_of_torch() -> None:
    x = torch.randn(1, 1, 11, 1)
    for out in (1, 2, 3, 5, 7, 11, 13):
        wanted = nn.functional.adaptive_avg_pool2d(x, (out, 1))[0, 0, :, 0]
        got = torch.from_numpy(onnx_export._means(11, out)) @ x[0, 0, :, 0]
        torch.testing.assert_close(got, wanted)


def test_shortcuts_of_zeros_become_convolutions_and_stay_the_same() -> None:
    """The rewrite alone, in float: same outputs, and neither Slice nor Pad left."""
    model = small(RGB)
    proto = onnx_export._trace(model, RGB, TASK, as_convolution=True)
    images = parity.noise(RGB, 3)

    def run() -> np.ndarray:
        return onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"image": images})[0]

    before, kinds = run(), [node.op_type for node in proto.graph.node]
    onnx_rewrite.selections(proto)
    onnx_rewrite.drop_unused(proto.graph)
    assert {"Pad", "Slice"} <= set(kinds)
    assert not {"Pad", "Slice"} & {node.op_type for node in proto.graph.node}
    np.testing.assert_allclose(run(), before, atol=1e-6)


class NormFirst(nn.Module):
    """Its first operator stays float, so that the pixels do too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.LayerNorm([1, 16, 16]), nn.Conv2d(1, 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(x)).mean((2, 3))


def test_a_float_operator_may_come_first(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = parity.noise(GREY, 8)
    path = tmp_path / "x.onnx"
    model = NormFirst().eval()
    ONNX.export(model, GREY, path, task=TASK, precision="int8", calib=images)
    found = parity.check(model, path, GREY, task=TASK, images=images, precision="int8")
    assert found.error < 0.02


class Dense(nn.Module):
    """A batch norm before a convolution, behind a concatenation: nothing it could be folded
    into."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(8, 5, 3)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.b(self.norm(torch.cat([x, x.relu()], 1)).relu()).mean((2, 3))


def test_norms_that_cannot_be_folded_become_convolutions() -> None:
    torch.manual_seed(0)
    proto = onnx_export._trace(settled(Dense(), RGB), RGB, TASK, as_convolution=True)
    images = parity.noise(RGB, 3)

    def run() -> np.ndarray:
        return onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"image": images})[0]

    before, kinds = run(), [node.op_type for node in proto.graph.node]
    onnx_rewrite.norms(proto)
    assert "BatchNormalization" in kinds
    assert "BatchNormalization" not in [node.op_type for node in proto.graph.node]
    np.testing.assert_allclose(run(), before, atol=1e-6)


class NormThenConvolution(nn.Module):
    """Pooling, a norm, a convolution, and nothing between: the norm's own output is quantized (BiSeNetV2)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.norm(self.a(x).relu().mean((2, 3), keepdim=True))).flatten(1)


def test_a_norm_whose_own_output_is_quantized(tmp_path: Path) -> None:
    """Its gains must not take the name of its output's scale, or the file is none that ONNX Runtime runs."""
    torch.manual_seed(0)
    model, images = settled(NormThenConvolution(), RGB), parity.noise(RGB, 16)
    path = ONNX.export(model, RGB, tmp_path / "int8.onnx", task=TASK, precision="int8", calib=images)
    wanted = parity.reference(model, RGB, TASK, images)
    assert np.abs(ONNX.open(path)(images) - wanted).max() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        *[("resnet18", 32), ("densenet121", 32), ("mobilenetv2_100", 32), ("efficientnet_b0", 32)],
        *[("mobilenetv3_small_100", 32), ("convnext_atto", 32), ("regnety_002", 32)],
        ("vit_tiny_patch16_224", 224),
    ],
)
def test_every_family_exports_in_both_precisions(name: str, size: int, tmp_path: Path) -> None:
    """Both prove themselves while they are written."""
    spec = Spec(size_hw=(size, size))
    torch.manual_seed(0)
    model = settled(nets.build(f"timm:{name}", classes=5), spec)
    for precision in ("float32", "int8"):
        calib = parity.noise(spec, 8)
        ONNX.export(model, spec, tmp_path / precision, task=TASK, precision=precision, calib=calib)


def test_pads_of_pixels_are_no_selections() -> None:
    values = {
        "p": np.array([0, 0, 1, 0, 0, 0, 1, 0]),
        "c": np.array([0, 2, 0, 0, 0, 3, 0, 0]),
        "f": np.float32(1),
    }
    for inputs, wanted in ((["x", "p"], None), (["x", "c"], (2, 3)), (["x", "c", "f"], None)):
        node = onnx.helper.make_node("Pad", inputs, ["y"])
        assert onnx_rewrite._channel_pads(node, values) == wanted


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = small(RGB).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ONNX.export(model, RGB, tmp_path / "x.onnx", task=TASK)
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_tampered_weights_fail_parity(made, tmp_path: Path) -> None:
    model, spec, images, path, int8_path = made
    rare = parity.reference(model, spec, TASK, images).mean(0).argmin()
    for precision, source in (("float32", path), ("int8", int8_path)):
        proto = onnx.load(source)
        bias = next(node for node in proto.graph.node if node.op_type == "Gemm").input[2]
        maker = next((node for node in proto.graph.node if bias in node.output), None)
        name = maker.input[0] if maker else bias  # whole numbers behind a DequantizeLinear
        tensor = next(t for t in proto.graph.initializer if t.name == name)
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[rare] += 0.1 if precision == "float32" else 2**30
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
        bad = tmp_path / f"{precision}.onnx"
        onnx.save(proto, bad)
        with pytest.raises(ParityError) as caught:
            parity.check(model, bad, spec, task=TASK, images=images, precision=precision)
        assert (caught.value.code, caught.value.exit_code) == ("parity", 3)


def test_nan_and_other_shapes_fail_parity() -> None:
    wanted = np.full((2, 3), 1 / 3, np.float32)
    found = parity.compare(wanted, np.full((2, 3), np.nan, np.float32))
    assert not found.error <= parity.LIMITS["float32"].error
    with pytest.raises(ParityError):
        parity.compare(wanted, np.zeros((2, 4), np.float32))


def test_agreement_counts_classes_nearer_than_the_tolerance_as_equal() -> None:
    wanted = np.array([[0.5, 0.49999, 0.0], [0.6, 0.3, 0.1]], np.float32)
    got = np.array([[0.49999, 0.5, 0.0], [0.3, 0.6, 0.1]], np.float32)
    assert parity.compare(wanted, got).agreement == 0.5


@pytest.mark.parametrize(
    ("precision", "calib", "code"),
    [
        ("float16", None, "export-precision"),
        ("int8", None, "export-calib"),
        ("int8", np.zeros((0, 16, 16, 3), np.uint8), "export-calib"),
        ("int8", np.zeros((4, 16, 16, 1), np.uint8), "export-calib"),
        ("int8", np.zeros((4, 16, 16, 3), np.float32), "export-calib"),
    ],
)
def test_requests_that_do_not_fit(precision: str, calib, code: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        ONNX.export(nn.Identity(), RGB, tmp_path / "x", task=TASK, precision=precision, calib=calib)
    assert caught.value.code == code


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :5] if x.sum() > 0 else x.flatten(1)[:, 5:10]


def test_what_torch_cannot_export_is_an_error_with_a_code(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        ONNX.export(Branches(), RGB, tmp_path / "x.onnx", task=TASK)
    assert caught.value.code == "export-failed"
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((16, 16, 3), np.uint8),
        np.zeros((0, 16, 16, 3), np.uint8),
        np.zeros((1, 3, 16, 16), np.uint8),
        np.zeros((1, 16, 16, 3), np.float32),
        [[1]],
        None,
    ],
)
def test_other_images_are_refused(made, images) -> None:
    with pytest.raises(SpecError) as caught:
        ONNX.open(made[3])(images)
    assert caught.value.code == "runtime-input"


def test_unknown_runtime() -> None:
    with pytest.raises(RuntimeFailed) as caught:
        runtimes.load("os")
    assert caught.value.code == "runtime-unknown"
    assert all(hasattr(runtimes.load(name), "export") for name in runtimes.NAMES)


def test_external_tensors_are_found_wherever_they_hide(made) -> None:
    proto = onnx.load(made[3])
    proto.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    hidden = onnx.load(made[3])
    inner = onnx.helper.make_graph([], "inner", [], [], [proto.graph.initializer[0]])
    branch = onnx.helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=inner)
    hidden.graph.node.append(branch)
    for one in (proto, hidden):
        with pytest.raises(RuntimeFailed) as caught:
            wire.refuse_external(one.SerializeToString(), Path("x.onnx"))
        assert caught.value.code == "runtime-external"
    wire.refuse_external(made[3].read_bytes(), made[3])


def test_limits_are_those_of_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "parity.md").read_text()
    rows = re.findall(r"^\| (\w+) \| ([\d.e-]+) \| ([\d.]+) \| ([\d.e-]+) \|", text, re.MULTILINE)
    found = {name: tuple(map(float, values)) for name, *values in rows}
    assert found == {k: (v.error, v.agreement, v.moved) for k, v in parity.LIMITS.items()}


def test_no_thread_spins_on_after_a_call(made) -> None:
    """It would take the core of the file that is timed next, or of another session of a server."""
    _, _, images, path, _ = made
    session = ONNX.open(path, threads=2)
    session(images[:1])
    before = time.process_time()
    time.sleep(0.02)
    assert time.process_time() - before < 0.01


@pytest.mark.parametrize(("isa", "exact"), [(["avx2", "avx512_vnni"], "0"), (["avx2"], "1"), (["asimd"], "0")])
def test_exact_kernels_are_for_cpus_that_saturate(made, monkeypatch, isa: list[str], exact: str) -> None:
    """Elsewhere they would only be slower, by half on the int8 of a ResNet-20, and mislead every timing."""
    asked = {}
    real = onnxruntime.SessionOptions.add_session_config_entry

    def add(self, name: str, value: str) -> None:
        asked[name] = value
        real(self, name, value)

    monkeypatch.setattr(onnxruntime.SessionOptions, "add_session_config_entry", add)
    monkeypatch.setattr("niwaki.timing.isa", lambda: isa)
    ONNX.open(made[4])
    assert asked["session.x64quantprecision"] == exact
