"""Grids into a float ONNX graph: QuantizeLinear and DequantizeLinear around all that runs on whole numbers.

ONNX Runtime's own writer places them, so that its kernels find the patterns they look for; the scales and zero
points are those given, to the bit. What it does not do is done here afterwards: a node that stays float reads
unrounded values where its maker can give them, a value without a grid is not rounded, and weights of 4 bits are
widened to int8 when the file is loaded. The writer for trained networks is runtimes/onnx_trained.py, which
says why there are two.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx

from niwaki.errors import ModelError
from niwaki.qdq import four_bits
from niwaki.qdq import graph as graphs
from niwaki.qdq import grid as grids
from niwaki.qdq.graph import Graph
from niwaki.qdq.grid import Grid
from niwaki.qdq.recipe import Recipe


def write(
    proto: Any,
    activations: Mapping[str, Grid],
    *,
    weights: Mapping[str, Grid] | None = None,
    float_nodes: Collection[str] = (),
) -> Any:
    """The QDQ ModelProto of a float one, which is left as it was.

    Args:
        activations: a grid for each float value that is rounded, by name. A node runs on whole numbers where
            all values that enter it have one; a value without one that leaves it stays float.
        weights: grids by the name of the constant; those missing get `grid.of_weights`. Biases are int32 in
            steps of the input's scale times the weights'.
        float_nodes: names of nodes that stay float all the same.
    Raises:
        ModelError: a grid's name, shape or type fits no value of the graph. [quantize-grid]
    """
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    graph = graphs.read(whole)
    activations = spread(graph, activations)
    nodes = [
        node
        for node in graphs.integer_nodes(graph, float_nodes=float_nodes)
        if all(name in activations for name in graph.inputs(node))
    ]
    weights = {**weight_grids(graph, nodes), **(weights or {})}
    _check(graph, activations, weights)
    if not nodes:
        return whole
    if any(one.bits < 8 for one in weights.values()):
        whole = onnx.version_converter.convert_version(whole, four_bits.OPSET)
    written = _written(whole, graph, nodes, activations, weights)
    _tidy(written, {node.name for node in nodes}, activations)
    guard(written)
    _parted(written)
    four_bits.widened(written)
    graphs.drop_unused(written.graph)
    return written


def spread(graph: Graph, activations: Mapping[str, Grid]) -> dict[str, Grid]:
    """The same grids, and those that follow from them: a value that is only moved keeps its own, and what
    enters a Relu or Clip has that of what leaves it."""
    found = dict(activations)
    for node in graph.proto.graph.node:
        if node.op_type in (*graphs.MOVING, "MaxPool") and node.input[0] in found:
            for name in node.output:
                if name in graph.floats:
                    found.setdefault(name, found[node.input[0]])
        elif (
            node.op_type in graphs.CUTTING
            and node.output[0] in found
            and len(graph.readers[node.input[0]]) == 1
        ):
            found.setdefault(node.input[0], found[node.output[0]])
    return found


def weight_grids(graph: Graph, nodes: Any, recipe: Recipe | None = None) -> dict[str, Grid]:
    """The symmetric grid of each layer's weights, one scale an output channel, as a recipe has its bits."""
    recipe = recipe or Recipe()
    found = {}
    for node in nodes:
        if name := graph.weight(node):
            found[name] = grids.of_weights(
                graph.array(name),
                axis=graph.axis(node),
                bits=recipe.bits(node.name),
                narrow=recipe.narrow and recipe.bits(node.name) == 8,
            )
    return found


def _check(graph: Graph, activations: Mapping[str, Grid], weights: Mapping[str, Grid]) -> None:
    for name, one in activations.items():
        if name not in graph.floats or one.axis is not None or one.signed or one.bits != 8:
            raise _unfit(name, "a float value of the graph with one unsigned 8-bit grid")
    for name, one in weights.items():
        held = name in graph.constants and one.signed and one.bits in (4, 8)
        count = () if one.axis is None else (graph.constants[name].dims[one.axis] if held else -1,)
        if not held or one.scale.shape != count:
            raise _unfit(name, "a constant with a signed grid of 4 or 8 bits, one scale an output channel")


def _unfit(name: str, expected: str) -> ModelError:
    return ModelError(
        f"quantize: the grid of {name!r} does not fit: expected {expected}.", code="quantize-grid"
    )


def _written(
    proto: Any, graph: Graph, nodes: Any, activations: Mapping[str, Grid], weights: Mapping[str, Grid]
) -> Any:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import TensorData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    overrides: dict[str, list[dict[str, Any]]] = {}
    ranges = {}
    for name in graphs.activations(graph, nodes):
        one = activations.get(name) or grids.of_range(0, 1)  # taken away again by _tidy
        low, high = one.low_high()
        ranges[name] = TensorData(lowest=np.float32(low), highest=np.float32(high))
        overrides[name] = [{"scale": np.asarray(one.scale), "zero_point": one.zero.astype(np.uint8)}]
    for name, one in weights.items():
        overrides[name] = _channels(one, QuantType.QInt4 if one.bits == 4 else QuantType.QInt8)
    with _quiet():
        writer = QDQQuantizer(
            proto,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=[node.name for node in nodes],
            nodes_to_exclude=[],
            op_types_to_quantize=list(graphs.OPERATORS),
            extra_options={
                "TensorQuantOverrides": overrides,
                "QDQKeepRemovableActivations": not _cuts(graph, activations),
            },
        )
        writer.quantize_model()
        writer.model.topological_sort()
    return writer.model.model


def _cuts(graph: Graph, activations: Mapping[str, Grid]) -> bool:
    """Whether every grid behind a Relu or Clip ends where that cuts off, so that it may go."""
    for node in graph.proto.graph.node:
        one = activations.get(node.output[0]) if node.op_type in graphs.CUTTING else None
        if one is None:
            continue
        bounds = [float(graph.array(n)) if n in graph.constants else None for n in node.input[1:]]
        low, high = (0.0, None) if node.op_type == "Relu" else [*bounds, None, None][:2]
        least, most = (float(end) for end in one.low_high())
        if (low is not None and least < low - one.scale / 2) or (
            high is not None and most > high + one.scale / 2
        ):
            return False
    return True


def _channels(one: Grid, kind: Any) -> list[dict[str, Any]]:
    """A grid of weights as ONNX Runtime's writer takes it."""
    scales = np.atleast_1d(one.scale)
    zero = np.zeros((), np.int8)
    held = [{"quant_type": kind, "scale": np.asarray(scale), "zero_point": zero} for scale in scales]
    return held if one.axis is None else [{**item, "axis": one.axis} for item in held]


def _tidy(proto: Any, integer: Collection[str], activations: Mapping[str, Grid]) -> None:
    """Lets floats through where nothing needs them rounded, in place."""
    nodes = list(proto.graph.node)
    makers = {name: node for node in nodes for name in node.output}
    constants = {tensor.name for tensor in proto.graph.initializer}
    for back in [node for node in nodes if node.op_type == "DequantizeLinear"]:
        to = makers.get(back.input[0])
        if to is None or to.op_type != "QuantizeLinear" or to.input[0] in constants:
            continue
        value = to.input[0]
        maker = makers.get(value)
        bare = value.removesuffix("_QuantizeLinear_Input")
        floats = maker is None or maker.name not in integer or maker.op_type in graphs.FLOAT_OUT
        readers = [node for node in nodes if back.output[0] in node.input]
        if bare not in activations and back.output[0] not in activations:
            graphs.rewire(readers, back.output[0], value)
        elif floats:
            graphs.rewire([node for node in readers if node.name not in integer], back.output[0], value)


def guard(proto: Any) -> None:
    """Keeps float layers between whole numbers float, in place.

    ONNX Runtime rounds the float weights of a Conv or Gemm whose input and output are whole numbers, one scale
    for all channels, whether they were left in float on purpose or not (its WeightBiasQuantization). A maximum
    with the lowest float between its input and it is no change, and hides the pattern.
    """
    constants = {tensor.name for tensor in proto.graph.initializer}
    makers = {name: node for node in proto.graph.node for name in node.output}
    guarded: dict[str, str] = {}
    out = []
    for node in proto.graph.node:
        maker = makers.get(node.input[0]) if node.input else None
        held = node.op_type in ("Conv", "Gemm") and len(node.input) > 1 and node.input[1] in constants
        if held and maker is not None and maker.op_type == "DequantizeLinear":
            value = node.input[0]
            if value not in guarded:
                guarded[value] = f"{value}_float"
                lowest = graphs.add_constant(
                    proto, f"{value}_lowest", np.array(np.finfo(np.float32).min, np.float32)
                )
                out.append(onnx.helper.make_node("Max", [value, lowest], [guarded[value]], f"Max_{value}"))
            node.input[0] = guarded[value]
        out.append(node)
    if guarded:
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in out]
        del proto.graph.node[:]
        proto.graph.node.extend(copies)


def _parted(proto: Any) -> None:
    """Weights of its own for each layer that shares some with others, in place.

    ONNX Runtime's exact kernels (`session.x64quantprecision`) write each layer's weights anew under the name of
    the constant, and refuse the second of that name.
    """
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    makers = {
        node.output[0]: node
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    seen: dict[str, int] = {}
    out = []
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            if name not in makers:
                continue
            seen[name] = seen.get(name, 0) + 1
            if seen[name] > 1:
                own = _copied(makers[name], seen[name])
                for k, constant in enumerate(makers[name].input):
                    held = onnx.TensorProto.FromString(constants[constant].SerializeToString())
                    held.name = own.input[k] = f"{constant}_{seen[name]}"
                    proto.graph.initializer.append(held)
                node.input[place] = own.output[0]
                out.append(own)
        out.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in out]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)


def _copied(node: Any, count: int) -> Any:
    """A node of its own name and output."""
    own = onnx.NodeProto.FromString(node.SerializeToString())
    own.name, own.output[0] = f"{own.name}_{count}", f"{own.output[0]}_{count}"
    return own


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps ONNX Runtime's writer from advising a pre-processing that is already done."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
