"""The torch side of the ONNX runtime: a model becomes one file that takes raw pixels and gives
probabilities.

The graph written: `image` uint8 `[N, H, W, C]` -> channels first -> scale and normalise -> the
model -> the task's head -> `probabilities` float32 `[N, K]`; N is free. The file holds all
weights, and neither paths, source
lines nor time stamps: the same model gives the same bytes, in any process and folder.
Shape letters: B batch, N images, H W pixels, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnxscript import opset20 as op
from onnxscript import values
from torch import nn

from niwaki import files
from niwaki.errors import ModelError
from niwaki.qdq import by_nncf
from niwaki.qdq.recipe import Recipe
from niwaki.runtimes import deployed, onnx_int8, onnx_names, onnx_trained, parity, request
from niwaki.runtimes.onnx import INPUT, OUTPUT, PRECISIONS
from niwaki.spec import Spec
from niwaki.surgery import fake_quantize
from niwaki.surgery.trace import quiet
from niwaki.tasks import Task

OPSET = 20
WRAPPED = "model."
"""What `deployed.Deployed` puts before the names of the model's weights."""
_FAKE_QUANTIZE = values.Op(
    values.Opset(onnx_trained.DOMAIN, 1), onnx_trained.OPERATOR, op_schema=onnx_trained.schema()
)


def export(
    model: nn.Module,
    spec: Spec,
    path: str | Path,
    *,
    task: Task,
    precision: str = "float32",
    calib: npt.NDArray[np.uint8] | None = None,
    recipe: Recipe | None = None,
    prove: bool = True,
) -> Path:
    """The path of the ONNX file written, after it was run again and compared with the model.

    Args:
        model: float; left untouched, exported in eval mode from the CPU.
        precision: "float32", or "int8" (static, per channel, u8 activations, s8 weights).
        calib: images uint8 `[N, H, W, C]` that set the ranges of int8; needed for it, and only
            there.
        recipe: how the float graph becomes int8; None is plain min-max.
        prove: compare the file with the model on up to 16 images (`calib`'s, else random ones).
    Raises:
        ModelError: it cannot be exported, or `precision` and `calib` do not fit.
            [export-failed, export-precision, export-calib]
        PlanError: the recipe is of another model. [quantize-recipe]
        ParityError: the file computes something else. [parity]
    """
    trained = request.check(precision, calib, spec, precisions=PRECISIONS, runtime="onnx", model=model)
    path = Path(path)
    nncf = recipe is not None and recipe.by == "nncf" and not trained
    proto = _trace(model, spec, task, as_convolution=precision == "int8" and not nncf)
    onnx_names.strip(proto, prefix=WRAPPED)
    if trained:
        proto = onnx_trained.quantize(proto, spec)
    elif nncf and calib is not None:
        proto = by_nncf.quantize(proto, calib)
        onnx_names.strip(proto)
    elif calib is not None and precision == "int8":
        proto = onnx_int8.quantize(proto, calib, spec, recipe)
        _finish(proto)
    files.write_bytes(path, proto.SerializeToString(deterministic=True))
    if prove:
        parity.prove(model, path, spec, task=task, precision=precision, calib=calib, runtime="onnx")
    return path


def maker(model: nn.Module, spec: Spec, *, task: Task, calib: npt.NDArray[np.uint8]) -> onnx_int8.Maker:
    """What makes int8 graphs of a model by one recipe after the other: the graph is traced only once.

    Args:
        calib: images uint8 `[N, H, W, C]`; at least one.
    Raises:
        ModelError: the images do not fit, the model cannot be exported, or it was trained with fake quantizers
            and has its ranges. [export-calib, export-failed, export-recipe]
    """
    if fake_quantize.quantizers(model):
        raise ModelError(
            "export: the bits and ranges of this model were trained (quantize.qat), expected a float model for "
            "recipes and sensitivities. Export it as it is, without --max-drop, --size and --sensitivity.",
            code="export-recipe",
        )
    request.check("int8", calib, spec, precisions=PRECISIONS, runtime="onnx")
    proto = _trace(model, spec, task, as_convolution=True)
    onnx_names.strip(proto, prefix=WRAPPED)
    return onnx_int8.Maker(onnx_int8.prepare(proto, spec), calib)


def save_int8(maker: onnx_int8.Maker, recipe: Recipe, path: Path) -> Path:
    """The path of the int8 file of a recipe: the one that `export` writes."""
    proto = maker.make(recipe)
    _finish(proto)
    files.write_bytes(path, proto.SerializeToString(deterministic=True))
    return path


def _finish(proto: Any) -> None:
    onnx_names.strip(proto)
    onnx_names.shorten(proto.graph)


def _trace(model: nn.Module, spec: Spec, task: Task, *, as_convolution: bool) -> Any:
    """ONNX ModelProto of the deployed model."""
    whole = deployed.wrap(model, spec, task, as_convolution=as_convolution)
    example = deployed.example(spec, batch=2)
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                whole,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
                external_data=False,
                verbose=False,
                custom_translation_table={
                    torch.ops.aten.adaptive_avg_pool2d.default: _adaptive_avg_pool2d,
                    torch.ops.aten.mean.dim: _mean,
                    torch.ops.niwaki.fake_quantize.default: _fake_quantize,
                },
            )
    except Exception as error:  # torch's exporter raises many kinds, its own among them
        reason = str(error.__cause__ or error).strip().splitlines()
        raise ModelError(
            f"export: {type(model).__name__} cannot be exported to ONNX: "
            f"{reason[0] if reason else error!r}. "
            f"It must take [N, {spec.channels}, {spec.size_hw[0]}, {spec.size_hw[1]}] for any N, without "
            "branches that depend on values.",
            code="export-failed",
        ) from error
    assert program is not None
    proto = program.model_proto
    onnx_names.turned(proto, {name: tensor.detach().numpy() for name, tensor in whole.named_parameters()})
    return proto


def _adaptive_avg_pool2d(self: Any, output_size: Sequence[int]) -> Any:
    """aten.adaptive_avg_pool2d for any sizes: global pooling, or two products with matrices of
    means."""
    out_h, out_w = (int(n) for n in output_size)
    if (out_h, out_w) == (1, 1):
        return op.GlobalAveragePool(self)
    height, width = (int(n) for n in self.shape[-2:])
    if (out_h, out_w) == (height, width):
        return op.Identity(self)
    left = op.Constant(value=_tensor(_means(height, out_h)))
    right = op.Constant(value=_tensor(_means(width, out_w).T))
    return op.MatMul(op.MatMul(left, self), right)


def _means(size: int, out: int) -> npt.NDArray[np.float32]:
    """Matrix `[out, size]` whose rows average the window torch gives to each output."""
    matrix = np.zeros((out, size), np.float32)
    for row in range(out):
        start, stop = row * size // out, -(-(row + 1) * size // out)
        matrix[row, start:stop] = 1 / (stop - start)
    return matrix


def _mean(self: Any, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: int = -1) -> Any:
    """aten.mean.dim; over height and width of `[N, C, H, W]` it is global pooling, which int8
    knows."""
    rank = len(self.shape)
    axes = sorted(d % rank for d in dim) if dim else list(range(rank))
    if rank == 4 and axes == [2, 3]:
        pooled = op.GlobalAveragePool(self)
        return pooled if keepdim else op.Flatten(pooled)
    wanted: Any = op.Constant(value=_tensor(np.array(axes, np.int64)))
    return op.ReduceMean(self, wanted, keepdims=int(keepdim))


def _fake_quantize(x: Any, log_scale: Any, zero: int, axis: int, low: int, high: int) -> Any:
    """A node that `onnx_trained` replaces once the graph is a file's."""
    return _FAKE_QUANTIZE(x, log_scale, zero=zero, axis=axis, low=low, high=high)


def _tensor(array: npt.NDArray[Any]) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.ascontiguousarray(array))
