"""What of an ONNX graph runs on whole numbers, and who makes and reads its values.

A *layer* is a node with weights (Conv, Gemm, MatMul by a constant). Only the last functions change a graph.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper, shape_inference

LAYERS = ("Conv", "Gemm", "MatMul")
MIXING = ("Add", "Mul", "Concat")
CUTTING = ("Relu", "Clip")
POINTWISE = (*CUTTING, "Sigmoid")
POOLING = ("MaxPool", "AveragePool", "GlobalAveragePool")
MOVING = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Split", "Slice", "Pad")
OPERATORS = (*LAYERS, *MIXING, *POINTWISE, *POOLING, *MOVING)
"""ONNX operators that run on whole numbers; all others stay float."""
FLOAT_OUT = ("Gemm", "MatMul")
"""Integer kernels that can also give float; all others need whole numbers on both sides."""


@dataclass(frozen=True)
class Graph:
    """A graph's nodes by what they make and read, its constants, and which values are float.

    Args:
        makers: node by the name of its output.
        readers: nodes by the name of an input, in the graph's order.
        constants: initializers by name.
        floats: names of values that are float32, constants left out.
        shapes: of values, 0 for a free size, where they are known.
    """

    proto: Any
    makers: dict[str, Any]
    readers: dict[str, list[Any]]
    constants: dict[str, Any]
    floats: frozenset[str]
    shapes: dict[str, list[int]]

    def array(self, name: str) -> npt.NDArray[Any]:
        """A constant's values."""
        return np.asarray(numpy_helper.to_array(self.constants[name]))

    def set(self, name: str, values: npt.NDArray[Any]) -> None:
        """Gives a constant other values, in place."""
        self.constants[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))

    def inputs(self, node: Any) -> list[str]:
        """The float inputs of a node that are computed, each once."""
        return [name for name in dict.fromkeys(node.input) if name in self.floats]

    def weight(self, node: Any) -> str | None:
        """The name of a layer's weights; None for a node without."""
        held = node.op_type in LAYERS and len(node.input) > 1 and node.input[1] in self.constants
        return node.input[1] if held else None

    def bias(self, node: Any) -> str | None:
        """The name of a convolution's or Gemm's bias; None where there is none."""
        held = node.op_type in ("Conv", "Gemm") and len(node.input) > 2 and node.input[2] in self.constants
        return node.input[2] if held else None

    def axis(self, node: Any) -> int | None:
        """The output channels' axis of a layer's weights; None where it has no one axis."""
        if node.op_type == "Conv" or attribute(node, "transB", 0):
            return 0
        rank = len(self.constants[node.input[1]].dims)
        return 1 if rank == 2 else None

    @property
    def layers(self) -> list[Any]:
        """All nodes with weights."""
        return [node for node in self.proto.graph.node if self.weight(node)]


def read(proto: Any) -> Graph:
    """The index of a ModelProto; its nodes must have names of their own."""
    graph = proto.graph
    known = shape_inference.infer_shapes(proto).graph
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
    kinds = {v.name: v.type.tensor_type for v in (*known.value_info, *known.input, *known.output)}
    floats = frozenset(name for name, kind in kinds.items() if kind.elem_type == TensorProto.FLOAT)
    shapes = {name: [d.dim_value for d in kind.shape.dim] for name, kind in kinds.items()}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    return Graph(proto, makers, readers, constants, floats - constants.keys(), shapes)


def integer_nodes(graph: Graph, *, float_nodes: Collection[str] = ()) -> list[Any]:
    """The nodes that run on whole numbers, in order.

    Sums and products with a constant of more than one number stay float: they are biases, positions and
    scales of channels, whose own rounding would be the largest error there. So do sums that a layer norm
    reads: the residual stream of a transformer, which its norms read in float anyway.
    """
    chosen = [
        node
        for node in graph.proto.graph.node
        if node.op_type in OPERATORS
        and node.name not in float_nodes
        and graph.inputs(node)
        and not _better_float(graph, node)
    ]
    return _joined(graph, chosen)


def _joined(graph: Graph, chosen: list[Any]) -> list[Any]:
    """Without what only moves or cuts values between floats: it would round them for nothing."""
    while True:
        names = {node.name for node in chosen}

        def idle(node: Any, names: set[str] = names) -> bool:
            maker = graph.makers.get(node.input[0])
            read = any(one.name in names for name in node.output for one in graph.readers.get(name, ()))
            return not read and (maker is None or maker.name not in names or maker.op_type in FLOAT_OUT)

        kept = [node for node in chosen if node.op_type not in (*MOVING, *CUTTING, "MaxPool") or not idle(node)]
        if len(kept) == len(chosen):
            return kept
        chosen = kept


def _better_float(graph: Graph, node: Any) -> bool:
    if node.op_type == "MatMul" and node.input[0] in graph.constants:
        return True  # a matrix of means (adaptive pooling): kernels take scales by row on the right only
    if node.op_type not in ("Add", "Mul"):
        return False
    if any(np.prod(graph.constants[name].dims) > 1 for name in node.input if name in graph.constants):
        return True
    return node.op_type == "Add" and any(
        r.op_type == "LayerNormalization" for r in graph.readers.get(node.output[0], ())
    )


def fused(graph: Graph, node: Any) -> bool:
    """Whether a node is a Relu or Clip that is one kernel with the layer or sum before it."""
    maker = graph.makers.get(node.input[0]) if node.op_type in CUTTING else None
    return maker is not None and maker.op_type in OPERATORS and len(graph.readers[node.input[0]]) == 1


def units(graph: Graph, nodes: Iterable[Any]) -> list[Any]:
    """Those of the integer nodes whose rounding is their own: no Relu that is one kernel with what is before,
    nor what only moves values."""
    return [n for n in nodes if n.op_type not in (*MOVING, "MaxPool") and not fused(graph, n)]


def activations(graph: Graph, nodes: Iterable[Any]) -> list[str]:
    """Float values that enter or leave these nodes, each once, in the graph's order."""
    found: dict[str, None] = {}
    for node in nodes:
        for name in (*graph.inputs(node), *(o for o in node.output if o in graph.floats)):
            found[name] = None
    return list(found)


def attribute(node: Any, name: str, default: Any) -> Any:
    """The value of a node's attribute."""
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def add_constant(proto: Any, name: str, values: npt.NDArray[Any]) -> str:
    """The name of a new initializer, in place."""
    proto.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    return name


def rewire(nodes: Iterable[Any], old: str, new: str) -> None:
    """Lets these nodes read `new` where they read `old`, in place."""
    for node in nodes:
        node.input[:] = [new if name and name == old else name for name in node.input]


def drop_unused(graph: Any) -> None:
    """Takes away nodes and weights of a GraphProto that nothing leads from to an output, in place."""
    used = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):  # outputs first: what nobody reads any more goes
        if used.intersection(node.output):
            kept.append(node)
            used.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(initializers)
