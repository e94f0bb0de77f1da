"""int8 for ONNX Runtime on CPUs, by its own static quantizer: per channel, u8 activations, s8
weights.

What is done around the quantizer, and why (each made the file faster or closer on small networks):
- Batch norms are folded before (the exporter does it), so a convolution, its ReLU and its ranges
  become one kernel.
- The pixels are already u8: they enter the first integer convolution directly, with scale 1 and
  zero point 0, or, where all channels are normalised alike, with the normalisation itself as their
  scale and zero point, which costs nothing.
- Batch norms that cannot be folded, and shortcuts that pad channels with zeros, become convolutions
  (onnx_rewrite.py).
- Convolutions thinner than the kernels' width are filled up with zero channels (onnx_widen.py).
- The last linear layer's output and all that follows it (softmax) stay float: probabilities need
  finer steps.

Needs no torch, only onnx and onnxruntime.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

from niwaki.runtimes import onnx_rewrite, onnx_widen
from niwaki.spec import Spec

OPERATORS = (
    *("Conv", "Gemm", "MatMul", "Add", "Relu", "Clip"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Mul", "Sigmoid"),
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Split", "Slice", "Pad"),
)
"""ONNX operators that run on whole numbers; all others stay float."""

BATCH = 32


def quantize(proto: Any, calib: npt.NDArray[np.uint8], spec: Spec) -> Any:
    """The int8 ModelProto of a float one made with `as_convolution`.

    Args:
        proto: changed in place.
        calib: uint8 `[N, H, W, C]` that set the ranges of activations.
    """
    onnx_rewrite.selections(proto)
    onnx_rewrite.norms(proto)
    onnx_rewrite.drop_unused(proto.graph)
    transpose = _reader(proto.graph, "Transpose", "image")
    cast = _reader(proto.graph, "Cast", transpose.output[0])
    normalise = _reader(proto.graph, "Conv", cast.output[0])
    onnx_widen.thin(proto.graph, whole=normalise.name)
    if _alike(spec):
        pixels = normalise.output[0]
        scale, zero = 1 / (255 * spec.std[0]), round(255 * spec.mean[0])
        skip = [transpose.name, normalise.name]
    else:
        pixels, scale, zero = cast.output[0], 1.0, 0
        skip = [transpose.name]
    ranges = {"scale": np.array(scale, np.float32), "zero_point": np.array(zero, np.uint8)}
    logits = proto.graph.node[-1].input[0]
    quantized = _run(proto, calib, skip, {"TensorQuantOverrides": {pixels: [ranges]}})
    graph = quantized.graph
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] == pixels:
            _replace(graph, node.output[0], transpose.output[0])
    _keep_float(graph, logits)
    onnx_rewrite.drop_unused(graph)
    return quantized


def _alike(spec: Spec) -> bool:
    """Whether one scale and zero point, a whole number in 0..255, normalise all channels."""
    return len(set(spec.mean)) == len(set(spec.std)) == 1 and 0 <= spec.mean[0] <= 1


def _run(proto: Any, calib: npt.NDArray[np.uint8], skip: list[str], options: dict[str, Any]) -> Any:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises a pre-processing that is already done
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            quantize_static(
                proto,
                path,
                _Images(calib),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(OPERATORS),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=skip,
                extra_options=options,
            )
            return onnx.load(path)
    finally:
        logging.disable(before)


def _reader(graph: Any, operator: str, value: str) -> Any:
    """The first node of that kind that reads `value` first; one must be there."""
    return next(n for n in graph.node if n.op_type == operator and n.input[0] == value)


def _keep_float(graph: Any, value: str) -> None:
    """Takes away the step to whole numbers and back behind `value`, where there is one."""
    pairs = {n.input[0]: n.output[0] for n in graph.node if n.op_type == "QuantizeLinear"}
    back = {n.input[0]: n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    _replace(graph, back.get(pairs.get(value, ""), ""), value)


def _replace(graph: Any, old: str, new: str) -> None:
    """Lets all who read `old` read `new`."""
    for node in graph.node:
        node.input[:] = [new if name and name == old else name for name in node.input]


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Hands the quantizer its images, a batch at a time."""

    def __init__(self, images: npt.NDArray[np.uint8]) -> None:
        self._batches = iter([images[i : i + BATCH] for i in range(0, len(images), BATCH)])

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        """The next batch, None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}
