"""Quantization-aware training: the operator, where it stands, and the same numbers in ONNX Runtime."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from tests.unit.training import SPEC, TASK, net, samples
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki import evaluate, quantize, runtimes
from niwaki.artifact import Artifact
from niwaki.errors import ModelError, PlanError
from niwaki.nets.cifar import CifarResNet
from niwaki.plan import Bench, Plan, step
from niwaki.quantize import graphs, insert, lsq, places
from niwaki.runtimes import onnx_export, onnx_trained
from niwaki.spec import Spec
from niwaki.surgery import program
from niwaki.surgery.fake_quantize import fake_quantize, quantizers
from niwaki.tasks import Classify

WIDE = Spec(size_hw=(16, 16), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
TRAIN, TEST = samples(96), samples(400, seed=1)


class Mobile(nn.Module):
    """What mobile networks are made of: depthwise, squeeze and excite, hard swish, ReLU6, a functional sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.depth = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU6())
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.point = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.before, self.last = nn.BatchNorm2d(16), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depth(x)
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        x = F.relu(self.before(x + self.point(y)))
        both = torch.cat([F.max_pool2d(x, 2), F.avg_pool2d(x, 2)], 1)
        return self.last(both.mean((2, 3)))


def settled(model: nn.Module, spec: Spec = SPEC) -> nn.Module:
    """A model in eval mode whose norms have seen images and whose weights were moved a little."""
    torch.manual_seed(0)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, spec.channels, *spec.size_hw) * 2)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def images(spec: Spec, count: int = 300) -> Any:
    """Random images of a size."""
    return np.random.default_rng(2).integers(0, 256, (count, *spec.size_hw, spec.channels), np.uint8)


class Drawn:
    """Images without labels, as calibration reads them."""

    def __init__(self, spec: Spec) -> None:
        self.all = images(spec, 64)
        self.labels, self.names = np.zeros(64, np.int64), tuple(map(str, range(64)))

    def __len__(self) -> int:
        return 64

    def batch(self, index: Any, spec: Spec) -> Any:
        return self.all[list(index)]


def rounded(model: nn.Module, spec: Spec, bits: int = 8, **knobs: Any) -> program.Program:
    """A quantized graph whose scales were not trained."""
    base = insert.folded(model, spec)
    widths = lsq.widths(base, bits, four=knobs.pop("four", ()), skip=knobs.pop("skip", ()))
    return insert.quantized(base, widths, samples=Drawn(spec), spec=spec, **knobs).eval()  # type: ignore[arg-type]


def opened(path: Path) -> tuple[Counter[str], Any]:
    """Operators of ONNX Runtime's optimised graph, and the session."""
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(path.with_suffix(".opt.onnx")), 4
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(path.with_suffix(".opt.onnx")).graph
    return Counter(node.op_type for node in graph.node), runtimes.load("onnx").open(path)


def plain(x: Tensor, scale: Tensor, zero: int, low: int, high: int) -> Tensor:
    """Fake quantization by autograd's own rules: straight through the rounding, clipping as it is."""
    shape = [-1, *[1] * (x.ndim - 1)] if scale.ndim else []
    step = scale.exp().reshape(shape)
    cut = (x / step).clamp(low - zero, high - zero)
    return (cut + (cut.round() - cut).detach()) * step


@pytest.mark.parametrize(("axis", "zero", "low", "high"), [(-1, 100, 0, 255), (0, 0, -8, 7)])
def test_operator_is_learned_step_size(axis: int, zero: int, low: int, high: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    scale = torch.full((6,) if axis == 0 else (), -2.5, dtype=torch.float64, requires_grad=True)
    out = fake_quantize(x, scale, zero, axis, low, high)
    wanted = plain(x, scale, zero, low, high)
    assert torch.allclose(out, wanted, atol=1e-12)
    assert bool((out == x).any()) is False  # it did round
    push = torch.randn_like(out)
    got = torch.autograd.grad(out, (x, scale), push)
    true = torch.autograd.grad(wanted, (x, scale), push)
    count = 5 * 9  # of a channel's weights, or of an image's values
    assert torch.allclose(got[0], true[0])
    assert torch.allclose(got[1], true[1] / (count * high) ** 0.5)


def test_rounding_is_half_to_even_as_in_onnx() -> None:
    halves = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    assert fake_quantize(halves, torch.tensor(0.0), 0, -1, -8, 7).tolist() == [0, 2, 2, 0, -2]


def test_folding_norms_changes_nothing() -> None:
    model = settled(Mobile(), WIDE)
    example = torch.randn(4, 3, 16, 16)
    base = insert.folded(model, WIDE)
    left = {graphs.base(node) for node in base.graph["nodes"]}
    assert "batch_norm" not in left
    assert torch.allclose(program.load(base.graph, base.tensors).eval()(example), model(example), atol=1e-4)


@pytest.mark.parametrize("build", [Mobile, lambda: CifarResNet(1, classes=3)])
def test_int8_file_computes_the_fake_quantized_model_in_whole_numbers(tmp_path: Path, build: Any) -> None:
    spec, task = WIDE, Classify(("a", "b", "c"))
    model = rounded(settled(build(), spec), spec)
    path = onnx_export.export(model, spec, tmp_path / "q.onnx", task=task, precision="int8")
    kinds, session = opened(path)
    layers = sum(graphs.base(node) in places.LAYERS for node in model.graph()["nodes"])
    assert kinds["QLinearConv"] + kinds["QGemm"] >= layers  # and the normalisation, and shortcuts
    assert not {"Conv", "Gemm", "MatMul", "Pad", "MaxPool", "AveragePool"} & kinds.keys() - {"MaxPool"}
    some = images(spec)
    torch_says = evaluate.predictor(model, spec, task)(some)
    onnx_says = session(some)
    assert (torch_says.argmax(1) == onnx_says.argmax(1)).mean() >= 0.995
    assert np.abs(torch_says - onnx_says).mean() < 2e-3


def test_transformer_keeps_its_residuals_float_and_agrees(tmp_path: Path) -> None:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    vit = VisionTransformer(img_size=16, patch_size=4, num_classes=3, embed_dim=32, depth=1, num_heads=2)
    model, task = rounded(settled(vit, WIDE), WIDE), Classify(("a", "b", "c"))
    path = onnx_export.export(model, WIDE, tmp_path / "q.onnx", task=task, precision="int8")
    kinds, session = opened(path)
    assert kinds["MatMulIntegerToFloat"] + kinds["QGemm"] == 5 and kinds["QLinearConv"] == 2
    some = images(WIDE)
    found = evaluate.predictor(model, WIDE, task)(some)
    assert (found.argmax(1) == session(some).argmax(1)).mean() >= 0.995


def test_four_bits_are_stored_as_four_and_run_as_eight(tmp_path: Path) -> None:
    task, four = Classify(("a", "b", "c")), ("layer1", "layer2", "layer3")
    model = rounded(settled(CifarResNet(1, classes=3), WIDE), WIDE, four=four)
    path = onnx_export.export(model, WIDE, tmp_path / "four.onnx", task=task, precision="int8")
    kinds, session = opened(path)
    assert kinds["QLinearConv"] == 10 and "Conv" not in kinds and "Cast" not in kinds
    stored = [t for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.INT4]
    count = sum(p.numel() for name, p in model.named_parameters() if name.startswith(four) and p.ndim == 4)
    assert sum(len(t.raw_data) for t in stored) == count / 2  # two numbers a byte
    some = images(WIDE)
    assert (evaluate.predictor(model, WIDE, task)(some).argmax(1) == session(some).argmax(1)).mean() >= 0.995


def test_training_moves_scales_and_weights_and_wins_back_accuracy() -> None:
    from niwaki import train

    known = train.fit(net(), task=TASK, spec=SPEC, train=TRAIN, epochs=12, batch=16, lr=5e-3)
    coarse = rounded(known, SPEC, bits=2, activations=False)
    model = quantize.qat(
        known,
        task=TASK,
        spec=SPEC,
        train=TRAIN,
        epochs=12,
        batch=16,
        lr=5e-3,
        weight_bits=2,
        activation_bits=32,
    )
    moved = {name for name, grid in insert.learned(model).items() if name in insert.learned(coarse)}
    assert moved and all(
        not torch.equal(insert.learned(model)[n].log_scale, insert.learned(coarse)[n].log_scale) for n in moved
    )

    def loss(one: nn.Module) -> float:
        pixels = torch.from_numpy(SPEC.normalise(TEST.batch(range(400), SPEC)))
        with torch.no_grad():
            return float(TASK.loss(one(pixels), torch.from_numpy(TEST.labels)).mean())

    assert loss(model) < 0.5 * loss(coarse)


def test_artifact_keeps_the_model_and_its_file_the_scales_that_were_learned(tmp_path: Path) -> None:
    model = quantize.qat(settled(net()), task=TASK, spec=SPEC, train=TRAIN, epochs=1, batch=16)
    saved = Artifact.save(tmp_path / "q.niwaki", model, spec=SPEC, task=TASK, builder="niwaki:small")
    again = saved.model()
    assert len(quantizers(again)) == len(quantizers(model)) > 0
    saved.export(precision="int8")
    graph = onnx.load(saved.path / saved.exports["onnx"]["int8"]["file"]).graph
    held = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    steps = [n.input for n in graph.node if n.op_type == "QuantizeLinear"]
    pairs = {(float(held[scale]), int(held[zero])) for _, scale, zero in steps}
    grids = [grid for grid in insert.learned(model).values() if grid.axis < 0]
    assert grids and pairs >= {(float(grid.log_scale.double().exp().float()), grid.zero) for grid in grids}
    some = TEST.batch(range(400), SPEC)
    with torch.no_grad():
        wanted = evaluate.predictor(again, SPEC, TASK)(some).argmax(1)
    assert (saved.session(precision="int8")(some).argmax(1) == wanted).mean() >= 0.995
    with pytest.raises(ModelError, match=r"quantize\.qat") as found:
        saved.export(precision="float32")
    assert found.value.code == "export-precision"


def test_qat_is_a_step_that_leaves_its_model_alone_and_learns_from_a_teacher() -> None:
    model = settled(net())
    before = copy.deepcopy(model.state_dict())
    plan = Plan.from_toml(Plan(step("quantize.qat", epochs=1, batch=16, skip=("3",))).to_toml())
    bench = Bench(spec=SPEC, task=TASK, train=TRAIN, teacher=settled(net(seed=3)))
    done = plan.run(model, bench)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert {node["args"][0]["node"] for node in quantizers(done)}.isdisjoint({"p_3_weight"})
    labels = plan.run(model, Bench(spec=SPEC, task=TASK, train=TRAIN))
    assert not torch.equal(
        dict(labels.named_parameters())["7.weight"], dict(done.named_parameters())["7.weight"]
    )


def test_stages_quantize_the_least_sensitive_first() -> None:
    model = settled(net())
    seen: dict[str, int] = {}
    done = quantize.stages(
        model, task=TASK, spec=SPEC, train=TRAIN, epochs=3, batch=16, parts=3,
        show=lambda p: seen.update({p.stage: p.epochs}),
    )  # fmt: skip
    assert seen == {"stage 1": 1, "stage 2": 1, "stage 3": 1}
    one_shot = rounded(model, SPEC)
    assert [n["name"] for n in quantizers(done)] == [n["name"] for n in quantizers(one_shot)]


def test_noise_falls_by_about_a_factor_of_four_a_bit() -> None:
    found = quantize.noise(settled(net()), spec=SPEC, samples=TRAIN, bits=(4, 6, 8), activation_bits=32)
    assert sorted(found) == ["0.weight", "3.weight", "7.weight"]
    for each in found.values():
        assert each[4] > 5 * each[6] > 25 * each[8] > 0


@pytest.mark.parametrize(
    ("knobs", "code"),
    [
        ({"weight_bits": 9}, "train-knob"),
        ({"activation_bits": 4}, "train-knob"),
        ({"alpha": 2.0}, "train-knob"),
        ({"skip": ("nowhere",)}, "quantize-layer"),
        ({"four": ("0.weigh",)}, "quantize-layer"),
        ({"skip": ("0", "3", "7")}, "quantize-layer"),
    ],
)
def test_wrong_knobs_are_refused(knobs: dict[str, Any], code: str) -> None:
    with pytest.raises(PlanError) as found:
        quantize.qat(net(), task=TASK, spec=SPEC, train=TRAIN, epochs=1, **knobs)
    assert found.value.code == code


def test_what_cannot_be_quantized_is_refused() -> None:
    model = rounded(settled(net()), SPEC)
    with pytest.raises(PlanError, match="already"):
        quantize.qat(model, task=TASK, spec=SPEC, train=TRAIN, epochs=1)
    with pytest.raises(PlanError, match="no convolution"):
        insert.folded(nn.Sequential(nn.Flatten(), nn.ReLU()), SPEC)
    with pytest.raises(PlanError, match="parts"):
        quantize.stages(net(), task=TASK, spec=SPEC, train=TRAIN, epochs=2, parts=3)


def test_steps_of_the_normalisation_hold_the_shift() -> None:
    scale, shift = 1 / (255 * np.array(WIDE.std)), -np.array(WIDE.mean) / np.array(WIDE.std)
    steps = onnx_trained._steps(scale, shift)
    off = np.abs(np.rint(shift / steps) * steps - shift) / scale
    assert (off < 1e-3).all() and (np.rint(scale / steps) <= 127).all()
