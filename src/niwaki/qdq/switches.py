"""One float graph in which each rounding is switched on and off: no file for each sensitivity.

A reader of a value gets `x + s * (rounded(x) - x)`, and the same for weights; the switches `s` are an input of
the graph. `roundings` says which of them a file with given integer nodes would do, so with its answer the graph
computes what that file computes, but for the order of sums; `tests/unit/test_sensitivity.py` holds the two
together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from niwaki.qdq import graph as graphs
from niwaki.qdq import twins
from niwaki.qdq.graph import Graph
from niwaki.qdq.grid import Grid

SWITCHES = "switches"
BATCH = 32

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Edge:
    """A rounding: of `value` on its way to the node `reader`; `maker` is the node that makes the value.

    Args:
        held: the maker's kernel gives whole numbers only, so the value is rounded whoever reads it.
    """

    reader: str
    value: str
    maker: str
    held: bool
    weight: bool


@dataclass(frozen=True)
class Switched:
    """A graph with switches; `run(images, on)` gives its outputs with the roundings `on` `[E]` (0 or 1)."""

    edges: tuple[Edge, ...]
    session: Any
    image: str

    def run(self, images: Images, on: Floats) -> Floats:
        """Outputs `[N, K]` of images uint8 `[N, H, W, C]`."""
        feed = {SWITCHES: np.asarray(on, np.float32)}
        parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        return np.concatenate([self.session.run(None, {self.image: part, **feed})[0] for part in parts])

    def roundings(self, integer: Collection[str], *, weights: bool = True, values: bool = True) -> Floats:
        """The switches `[E]` of a file in which the nodes of these names run on whole numbers.

        Args:
            weights, values: whether weights, and activations, are rounded.
        """
        names = set(integer)
        on = [
            (weights if edge.weight else values)
            and (edge.reader in names or (edge.held and edge.maker in names))
            for edge in self.edges
        ]
        return np.array(on, np.float32)


def switched(
    proto: Any, nodes: Sequence[Any], activations: Mapping[str, Grid], weights: Mapping[str, Grid]
) -> Switched:
    """The graph with a switch for each rounding that the integer nodes lead to."""
    import onnxruntime as ort

    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    graph = graphs.read(whole)
    edges = tuple(_edges(graph, {node.name for node in nodes}, activations, weights))
    whole.graph.input.append(helper.make_tensor_value_info(SWITCHES, TensorProto.FLOAT, [len(edges)]))
    own = {node.name: node for node in whole.graph.node}
    changes: dict[str, str] = {}
    for place, edge in enumerate(edges):
        if edge.value not in changes:
            changes[edge.value] = _change(graph, edge.value, activations, weights)
        _switch(whole, own[edge.reader], edge.value, changes[edge.value], place)
    _sort(whole.graph)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Switched(edges, session, proto.graph.input[0].name)


def _edges(
    graph: Graph, integer: set[str], activations: Mapping[str, Grid], weights: Mapping[str, Grid]
) -> list[Edge]:
    found = []
    for node in graph.proto.graph.node:
        if graphs.fused(graph, node):
            continue
        for value in dict.fromkeys(node.input):
            if value in weights and node.name in integer:
                found.append(Edge(node.name, value, "", False, True))
            elif value in activations:
                maker = graph.makers.get(value)
                while maker is not None and graphs.fused(graph, maker):
                    maker = graph.makers.get(maker.input[0])
                name = "" if maker is None else maker.name
                held = maker is not None and name in integer and maker.op_type not in graphs.FLOAT_OUT
                if held or node.name in integer:
                    found.append(Edge(node.name, value, name, held, False))
    return found


def _switch(proto: Any, node: Any, value: str, change: str, place: int) -> None:
    """Lets a node read a value with its change switched, in place."""
    name = f"{node.name}_{value}"
    where = graphs.add_constant(proto, f"{name}_place", np.array([place], np.int64))
    proto.graph.node.extend(
        [
            helper.make_node("GatherND", [SWITCHES, where], [f"{name}_switch"], f"{name}_switch"),
            helper.make_node("Mul", [change, f"{name}_switch"], [f"{name}_delta"], f"{name}_delta"),
            helper.make_node("Add", [value, f"{name}_delta"], [f"{name}_mixed"], f"{name}_mixed"),
        ]
    )
    graphs.rewire([node], value, f"{name}_mixed")


def _change(graph: Graph, value: str, activations: Mapping[str, Grid], weights: Mapping[str, Grid]) -> str:
    """The name of what rounding adds to a value."""
    if value in graph.constants:
        array = graph.array(value)
        return graphs.add_constant(graph.proto, f"{value}_change", weights[value].rounded(array) - array)
    back = twins.add_rounding(graph.proto, value, activations[value], f"{value}_switched")
    graph.proto.graph.node.append(
        helper.make_node("Sub", [back, value], [f"{value}_change"], f"{value}_change")
    )
    return f"{value}_change"


def _sort(graph: Any) -> None:
    """Puts nodes behind those whose values they read, in place."""
    makers = {name: node for node in graph.node for name in node.output if name}
    order: list[Any] = []
    placed: set[str] = set()
    for root in graph.node:
        stack = [(root, False)]
        while stack:
            node, ready = stack.pop()
            if node.name in placed:
                continue
            if ready:
                placed.add(node.name)
                order.append(node)
                continue
            stack.append((node, True))
            stack.extend((makers[name], False) for name in node.input if name in makers)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in order]
    del graph.node[:]
    graph.node.extend(copies)
