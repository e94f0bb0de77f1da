"""What TensorRT asks of an ONNX graph: operators it has, and symmetric int8. Needs onnx only.

TensorRT's int8 has no zero points: scales are symmetric, values s8. A u8 tensor with scale s and zero point z
holds values from -z*s to (255-z)*s; as s8 it needs the scale max(z, 255-z)*s/127, up to half as fine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

_TAKEN = """
Abs Add And ArgMax AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv
ConvTranspose Cos DepthToSpace DequantizeLinear Div Einsum Elu Equal Erf Exp Expand Flatten Floor Gather
GatherElements Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GridSample HardSigmoid
HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu Less LessOrEqual Log MatMul Max
MaxPool Mean Min Mod Mul Neg Not Or PRelu Pad Pow QuantizeLinear Range Reciprocal ReduceL2 ReduceMax
ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Resize Shape Sigmoid Sign Sin Size Slice Softmax
Softplus SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh Tile Transpose Trilu Unsqueeze Where
"""
OPERATORS = frozenset(_TAKEN.split())
"""Operators that TensorRT 10's ONNX parser documents as taken (onnx-tensorrt, docs/operators.md)."""


def faults(proto: Any) -> list[str]:
    """Why TensorRT would not take a graph, one line each; empty when nothing is known against it."""
    values = {tensor.name: tensor for tensor in proto.graph.initializer}
    pixels = _pixel_inputs(proto.graph)
    found = []
    for node in proto.graph.node:
        if node.op_type != "Cast" and pixels.intersection(node.input):
            found.append(f"{_named(node)} ({node.op_type}) reads uint8, which may only be cast")
        elif node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
            found.append(f"it has no operator {node.op_type} ({_named(node)})")
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
            zero = values.get(node.input[2])
            if zero is not None and numpy_helper.to_array(zero).any():
                found.append(f"{_named(node)} has a zero point other than zero")
            elif zero is not None and zero.data_type == onnx.TensorProto.UINT8:
                found.append(f"{_named(node)} is unsigned")
    return found


def _named(node: Any) -> str:
    """A node's name, or that of what it gives: files of int8 name values alone."""
    return str(node.name or node.output[0])


def _pixel_inputs(graph: Any) -> set[str]:
    return {held.name for held in graph.input if held.type.tensor_type.elem_type == onnx.TensorProto.UINT8}


def cast_first(proto: Any) -> None:
    """Casts the pixels to float before they are moved, in place: TensorRT's uint8 inputs may only be cast.

    Source: NVIDIA, TensorRT Python API, `DataType.UINT8`.
    """
    graph = proto.graph
    pixels = _pixel_inputs(graph)
    moves = [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in pixels]
    for move in moves:
        casts = [node for node in graph.node if move.output[0] in node.input]
        if not all(node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.FLOAT for node in casts):
            continue  # `faults` names it
        for cast in casts:
            for node in graph.node:
                node.input[:] = [move.output[0] if name == cast.output[0] else name for name in node.input]
            graph.node.remove(cast)
        name = f"{move.output[0]}_as_float"
        first = onnx.helper.make_node("Cast", [move.input[0]], [name], name, to=onnx.TensorProto.FLOAT)
        move.input[0] = name
        graph.node.insert(list(graph.node).index(move), first)


def symmetric(proto: Any) -> None:
    """Makes every u8 tensor between QuantizeLinear and DequantizeLinear an s8 one of zero point 0, in place.

    A DequantizeLinear that reads the raw pixels becomes a cast and a product, since pixels stay u8. A bias,
    whose scale is that of its input times that of its weights, becomes float. Weights of 4 bits, which a Cast
    widens, are stored as s8: TensorRT has no such Cast.
    """
    graph = proto.graph
    _widen(graph)
    values = {tensor.name: tensor for tensor in graph.initializer}
    kept, seen, above = [], {}, set[str]()
    for node in graph.node:
        if node.op_type in _ABOVE or (
            node.op_type in _KEEPS and above.issuperset(node.input[: _KEEPS[node.op_type]])
        ):
            above.update(node.output)
        if node.op_type == "DequantizeLinear" and node.input[0] in values:
            stored = numpy_helper.to_array(values[node.input[0]])
            if stored.dtype == np.int32:
                _float_bias(node, values, graph, stored)
                continue
        elif node.op_type == "DequantizeLinear" and node.input[0] not in seen:
            kept += _pixels(node, values, graph)
            continue
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            if _from_zero(node, values):
                kept += (
                    _clipped(node) if node.op_type == "QuantizeLinear" and node.input[0] not in above else []
                )
                above.update(node.output)
            _shift(node, values, graph)
            seen.update(dict.fromkeys(node.output))
        elif node.op_type in _MOVES and node.input[0] in seen:
            seen.update(dict.fromkeys(node.output))
        kept.append(node)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(kept)
    from niwaki.runtimes import onnx_rewrite

    onnx_rewrite.drop_unused(graph)


def _widen(graph: Any) -> None:
    held = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT4}
    casts = [node for node in graph.node if node.op_type == "Cast" and node.input[0] in held]
    for node in casts:
        whole = numpy_helper.to_array(held[node.input[0]]).astype(np.int8)
        graph.initializer.append(numpy_helper.from_array(whole, node.output[0]))
        graph.node.remove(node)


_MOVES = ("Transpose", "Reshape", "Flatten", "MaxPool", "Slice", "Squeeze", "Unsqueeze", "Identity")
"""Operators that only move quantized values."""
_ABOVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax")
_KEEPS = {
    **dict.fromkeys(_MOVES, 1),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool"), 1),
    **dict.fromkeys(("Add", "Mul", "Concat"), None),
}
"""What gives nothing below zero; and what gives that where its first inputs, or all, are so."""


def _float_bias(node: Any, values: dict[str, Any], graph: Any, stored: Any) -> None:
    scale = numpy_helper.to_array(values[node.input[1]]).astype(np.float64)
    whole = (stored * scale).astype(np.float32)
    _add(graph, values, node.output[0], whole)


def _from_zero(node: Any, values: dict[str, Any]) -> bool:
    """Whether a grid is u8 with zero as its smallest number."""
    zero = numpy_helper.to_array(values[node.input[2]])
    return zero.dtype == np.uint8 and not zero.any()


def _clipped(node: Any) -> list[Any]:
    """The ReLU that a zero point of 0 stood for: u8 cuts off what is below zero, s8 does not."""
    source, name = node.input[0], f"{node.output[0]}_cut"
    node.input[0] = name
    return [onnx.helper.make_node("Relu", [source], [name], f"{name}_relu")]


def _shift(node: Any, values: dict[str, Any], graph: Any) -> None:
    """The node with a symmetric scale, where it had a zero point."""
    scale, zero = (numpy_helper.to_array(values[name]) for name in node.input[1:3])
    if zero.dtype != np.uint8:
        return
    wide = np.maximum(zero.astype(np.float32), 255 - zero.astype(np.float32)) / 127
    names = [f"{node.input[1]}_symmetric", f"{node.input[2]}_symmetric"]
    _add(graph, values, names[0], (scale * wide).astype(np.float32))
    _add(graph, values, names[1], np.zeros(zero.shape, np.int8))
    node.input[1:3] = names


def _pixels(node: Any, values: dict[str, Any], graph: Any) -> list[Any]:
    """(pixel - zero) * scale in float, for a node that reads raw pixels."""
    scale, zero = (numpy_helper.to_array(values[name]) for name in node.input[1:3])
    name = node.output[0]
    _add(graph, values, f"{name}_scale", np.asarray(scale, np.float32))
    _add(graph, values, f"{name}_zero", np.asarray(zero, np.float32))
    make = onnx.helper.make_node
    return [
        make("Cast", [node.input[0]], [f"{name}_float"], f"{name}_cast", to=onnx.TensorProto.FLOAT),
        make("Sub", [f"{name}_float", f"{name}_zero"], [f"{name}_shifted"], f"{name}_shift"),
        make("Mul", [f"{name}_shifted", f"{name}_scale"], [name], f"{name}_product"),
    ]


def _add(graph: Any, values: dict[str, Any], name: str, array: Any) -> None:
    if name not in values:
        values[name] = numpy_helper.from_array(np.array(array, order="C"), name)  # a scalar stays one
        graph.initializer.append(values[name])
