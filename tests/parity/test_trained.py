"""A network trained with fake quantizers, on every runtime that takes it: its scales are kept."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from tests.unit.test_quantize import WIDE, Mobile, images, rounded, settled

from niwaki import evaluate, runtimes
from niwaki.errors import ModelError
from niwaki.quantize import insert
from niwaki.runtimes import tensorrt_graph
from niwaki.surgery.program import Program
from niwaki.tasks import Classify

torch.set_num_threads(1)
TASK = Classify(("a", "b", "c"))
FOUR = ("point", "depth")
ENGINE = Path(__file__).parents[1] / "node" / "node_modules" / "onnxruntime-web" / "dist" / "ort.wasm.min.mjs"


@pytest.fixture(scope="module")
def model() -> Program:
    return rounded(settled(Mobile(), WIDE), WIDE, four=FOUR)


@pytest.fixture(scope="module")
def wanted(model: Program) -> npt.NDArray[np.float32]:
    return evaluate.predictor(model, WIDE, TASK)(images(WIDE))


def exported(name: str, model: Program, folder: Path, **knobs: Any) -> Path:
    can = runtimes.support(name)
    if not can["export"]:
        pytest.skip(f"{name} is not installed: {can['install']}")
    made = runtimes.load(name)
    path: Path = made.export(
        model, WIDE, folder / f"int8.{made.SUFFIX}", task=TASK, precision="int8", prove=False, **knobs
    )
    return path


def same(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    return float((one.argmax(1) == other.argmax(1)).mean())


def learned(model: Program) -> list[tuple[float, int]]:
    """Scale and zero point, as s8, of each value that is rounded."""
    found = insert.learned(model).values()
    return sorted((float(g.log_scale.double().exp().float()), g.zero - 128) for g in found if g.axis < 0)


def test_openvino_runs_it_in_int8_and_agrees(
    model: Program, wanted: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    path = exported("openvino", model, tmp_path)
    assert same(runtimes.load("openvino").open(path)(images(WIDE)), wanted) >= 0.99
    import openvino as ov

    ran = ov.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).get_runtime_model()
    kinds = [
        (one.get_rt_info()["layerType"].astype(str), one.get_rt_info()["runtimePrecision"].astype(str))
        for one in ran.get_ordered_ops()
    ]
    whole = [kind for kind, precision in kinds if kind == "Convolution" and precision in ("u8", "i8")]
    assert len(whole) >= 5  # in whole numbers, not in float behind them


@pytest.mark.slow
def test_litert_keeps_the_scales_and_agrees(
    model: Program, wanted: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    path = exported("litert", model, tmp_path)
    assert same(runtimes.load("litert").open(path)(images(WIDE)), wanted) >= 0.99
    from ai_edge_litert.interpreter import Interpreter

    held = [t for t in Interpreter(str(path)).get_tensor_details() if t["dtype"] == np.int8]
    grids = {t["quantization"] for t in held if len(t["quantization_parameters"]["scales"]) == 1}
    for scale, zero in learned(model):
        assert any(np.isclose(scale, other, rtol=1e-5) and zero == z for other, z in grids), (scale, zero)


def test_tensorrt_gets_symmetric_scales_and_eight_bits_for_four(
    model: Program, wanted: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    first = onnx.load(exported("onnx", model, tmp_path / "onnx"))
    assert any(t.data_type == onnx.TensorProto.INT4 for t in first.graph.initializer)
    path = exported("tensorrt", model, tmp_path / "tensorrt")
    proto = onnx.load(path)
    assert tensorrt_graph.faults(proto) == []
    assert not any(t.data_type == onnx.TensorProto.INT4 for t in proto.graph.initializer)
    got = runtimes.load("onnx").open(path)(images(WIDE))
    # coarser scales are another function; the same weights, so much the same
    assert same(got, wanted) >= 0.9
    assert np.abs(got - wanted).mean() < 0.02


@pytest.mark.skipif(
    shutil.which("node") is None or not ENGINE.is_file(), reason="no node, or no onnxruntime-web"
)
def test_the_browser_runs_the_same_file(
    model: Program, wanted: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    path = exported("onnx", model, tmp_path)
    some = images(WIDE)
    some.tofile(tmp_path / "in.bin")
    (tmp_path / "run.mjs").write_text(
        f"import fs from 'node:fs'; import * as ort from '{ENGINE}'; ort.env.wasm.numThreads = 1;"
        f"const session = await ort.InferenceSession.create(fs.readFileSync('{path.name}'));"
        "const pixels = Uint8Array.from(fs.readFileSync('in.bin'));"
        f"const image = new ort.Tensor('uint8', pixels, {list(some.shape)});"
        "const found = (await session.run({ image })).probabilities.data;"
        "fs.writeFileSync('out.bin', Buffer.from(found.buffer, found.byteOffset, found.byteLength));"
    )
    subprocess.run(["node", "run.mjs"], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    assert same(np.fromfile(tmp_path / "out.bin", np.float32).reshape(wanted.shape), wanted) >= 0.99


@pytest.mark.parametrize("name", ["torch", "ncnn", "executorch"])
@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_runtimes_without_such_int8_refuse_it_by_name(
    name: str, precision: str, model: Program, tmp_path: Path
) -> None:
    made = runtimes.load(name)
    with pytest.raises(ModelError, match=f"has no int8 for {name}") as caught:
        made.export(model, WIDE, tmp_path / "x", task=TASK, precision=precision)
    assert caught.value.code == "export-precision"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["openvino", "litert", "tensorrt"])
def test_it_is_no_float_model(name: str, model: Program, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"before quantize\.qat"):
        runtimes.load(name).export(model, WIDE, tmp_path / "x", task=TASK, precision="float32")
