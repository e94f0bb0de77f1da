"""Weights of 4 bits in an ONNX file: stored as INT4, two numbers a byte, widened to int8 by a Cast.

ONNX Runtime folds the Cast when it loads the file and runs the layer by its int8 kernels; INT4 read by a
DequantizeLinear itself, it runs in float (`benchmarks/four_bits.py` has the times). Needs no torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 21
"""ONNX has 4-bit numbers from here on."""


def tensor(name: str, whole: npt.NDArray[np.int8]) -> Any:
    """An INT4 TensorProto of numbers from -8 to 7, the first of each two in the lower half of its byte."""
    flat = np.append(whole.ravel(), np.zeros(whole.size % 2, np.int8)).view(np.uint8) & 15
    packed = (flat[::2] | flat[1::2] << 4).astype(np.uint8)
    return helper.make_tensor(name, TensorProto.INT4, whole.shape, packed.tobytes(), raw=True)


def wide(name: str) -> Any:
    """The node that widens the INT4 constant of that name; it gives `NAME_wide`."""
    return helper.make_node("Cast", [name], [f"{name}_wide"], f"Cast_{name}", to=TensorProto.INT8)


def widened(proto: Any) -> None:
    """Puts a Cast between INT4 constants and every DequantizeLinear that reads them, in place."""
    graph = proto.graph
    held = {one.name: one for one in graph.initializer if one.data_type == TensorProto.INT4}
    nodes: list[Any] = []
    made: set[str] = set()
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in held:
            stored, zero = node.input[0], held.get(node.input[2]) if len(node.input) > 2 else None
            nodes += [wide(stored)] if stored not in made else []
            made.add(stored)
            node.input[0] = f"{stored}_wide"
            if zero is not None:  # of the type of what it belongs to; those of weights are zero
                zero.CopyFrom(numpy_helper.from_array(np.zeros(tuple(zero.dims), np.int8), zero.name))
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
