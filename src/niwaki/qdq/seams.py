"""Seams: values of a graph whose channels can be scaled without changing what the network computes.

Between its maker and its readers a value may be any size, channel by channel: the maker's weights are divided
by what the readers' weights are multiplied by, as long as only operators that keep factors (ReLU, pooling) lie
between. Cross-layer equalisation and smoothing choose the factors; this does the scaling.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.qdq import graph as graphs
from niwaki.qdq.graph import Graph

Floats = npt.NDArray[np.float32]
KEEPING = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity")
"""Operators that commute with a factor above 0 on each channel."""
FLATTENING = ("Flatten", "Reshape", "Squeeze")


@dataclass(frozen=True)
class Seam:
    """A value whose channels can be scaled.

    Args:
        value: what its readers read, behind the operators that keep factors.
        maker: the convolution, linear layer or layer norm that makes it.
        readers: the layers that read it; there is at least one.
        channels: how many.
    """

    value: str
    maker: Any
    readers: tuple[Any, ...]
    channels: int


def seams(graph: Graph, *, skip: Collection[str] = ()) -> list[Seam]:
    """All seams of a graph, in its order, but those made by the nodes named in `skip`."""
    found = []
    for node in graph.proto.graph.node:
        count = 0 if node.name in skip else _made(graph, node)
        if not count:
            continue
        value, readers = _end(graph, node.output[0], count)
        if readers and all(_reads(graph, one, value) == count for one in readers):
            found.append(Seam(value, node, tuple(readers), count))
    return found


def scale(graph: Graph, seam: Seam, factors: Floats) -> None:
    """Divides a seam's value by `factors` `[C]`, all above 0, by weights alone, in place."""
    maker = seam.maker
    for name, axis in _written(graph, maker).items():
        array = graph.array(name)
        shape = [1] * array.ndim
        shape[axis] = -1
        graph.set(name, (array / factors.reshape(shape)).astype(np.float32))
    for node in seam.readers:
        name = node.input[1]
        array = graph.array(name)
        graph.set(name, (array * _reader_shape(node, array, factors)).astype(np.float32))


def largest(graph: Graph, seam: Seam) -> tuple[Floats, Floats]:
    """The largest weight behind each channel, of the maker and over all readers: two of `[C]`."""
    name = graph.weight(seam.maker) or seam.maker.input[1]
    made = graph.array(name)
    axis = _written(graph, seam.maker)[name]
    first = np.abs(made).max(axis=tuple(d for d in range(made.ndim) if d != axis))
    return first, read_largest(graph, seam)


def read_largest(graph: Graph, seam: Seam) -> Floats:
    """The largest weight that any reader has for each channel, `[C]`."""
    found = np.zeros(seam.channels, np.float32)
    for node in seam.readers:
        array = np.abs(graph.array(node.input[1]))
        place = np.arange(seam.channels, dtype=np.float32)
        where = np.broadcast_to(_reader_shape(node, array, place), array.shape).astype(np.int64)
        np.maximum.at(found, where.ravel(), array.ravel())
    return found


def _made(graph: Graph, node: Any) -> int:
    """Channels that a maker of seams makes; 0 for any other node."""
    if node.op_type == "LayerNormalization":
        held = all(name in graph.constants for name in node.input[1:]) and len(node.input) > 2
        last = graphs.attribute(node, "axis", -1) in (-1, len(graph.shapes.get(node.input[0], [])) - 1)
        return int(graph.constants[node.input[1]].dims[0]) if held and last and _own(graph, node) else 0
    if node.op_type in ("Conv", "Gemm") and graph.weight(node) and _own(graph, node):
        return int(graph.constants[node.input[1]].dims[graph.axis(node) or 0])
    return 0


def _own(graph: Graph, node: Any) -> bool:
    """Whether nobody else reads a node's weights."""
    names = [name for name in node.input[1:] if name]
    return all(name in graph.constants and len(graph.readers[name]) == 1 for name in names)


def _written(graph: Graph, maker: Any) -> dict[str, int]:
    """The constants of a maker that scale what it makes, each with its axis of channels."""
    if maker.op_type == "LayerNormalization":
        return dict.fromkeys(maker.input[1:], 0)
    bias = graph.bias(maker)
    return {maker.input[1]: graph.axis(maker) or 0, **({bias: 0} if bias else {})}


def _end(graph: Graph, value: str, count: int) -> tuple[str, list[Any]]:
    """The value at the end of a chain of operators that keep factors, and who reads it."""
    outputs = {output.name for output in graph.proto.graph.output}
    while value not in outputs:
        readers = graph.readers.get(value, [])
        if len(readers) != 1 or not _keeps(graph, readers[0], count):
            return value, readers
        value = readers[0].output[0]
    return value, []


def _keeps(graph: Graph, node: Any, count: int) -> bool:
    if node.op_type in KEEPING:
        return True
    before, after = (graph.shapes.get(name, []) for name in (node.input[0], node.output[0]))
    flat = len(before) == 4 and before[2:] == [1, 1] and after[1:] == [count]
    return node.op_type in FLATTENING and flat


def _reads(graph: Graph, node: Any, value: str) -> int:
    """Channels of `value` that a layer reads with weights of its own; 0 where it is no such layer."""
    if not graph.weight(node) or node.input[0] != value or list(node.input).count(value) != 1:
        return 0
    if not _own(graph, node) and node.op_type != "MatMul":
        return 0
    if len(graph.readers[node.input[1]]) != 1:
        return 0
    dims = graph.constants[node.input[1]].dims
    if node.op_type == "Conv":
        return int(dims[1] * graphs.attribute(node, "group", 1))
    if len(dims) != 2:
        return 0
    return int(dims[1] if graphs.attribute(node, "transB", 0) else dims[0])


def _reader_shape(node: Any, array: npt.NDArray[Any], factors: Floats) -> Floats:
    """Factors of the input's channels in the shape of a reader's weights."""
    if node.op_type == "Conv":
        groups = graphs.attribute(node, "group", 1)
        rows = factors.reshape(groups, array.shape[1])
        each = np.repeat(rows, array.shape[0] // groups, axis=0)
        return each.reshape(*each.shape, *[1] * (array.ndim - 2))
    return factors[None, :] if graphs.attribute(node, "transB", 0) else factors[:, None]
