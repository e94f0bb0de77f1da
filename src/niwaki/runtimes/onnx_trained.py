"""int8 for ONNX Runtime of a model that was trained with fake quantizers: the same grids, to the bit.

The exporter leaves a node `niwaki::FakeQuantize` for each; here they become whole-number weights, and
QuantizeLinear and DequantizeLinear, with the scales and zero points that were learned. No calibration: nothing
is measured. Around them, so that ONNX Runtime finds its integer kernels:
- pixels enter as the u8 they are, normalised by an integer convolution whose steps are far finer than a
  pixel's, or by their own scale and zero point where all channels are normalised alike;
- biases are int32 in steps of input scale times weight scale;
- what only moves values (max pooling, reshape, slice, ...) is between whole numbers of one grid;
- shortcuts that pad channels with zeros become convolutions (onnx_rewrite.py);
- weights of 4 bits and less are stored as INT4 and widened to int8 when the file is loaded (qdq/four_bits.py).

Why this is not qdq/insert.py: there grids are given for values of a float graph, and ONNX Runtime's writer
chooses the places; here the places were chosen when the network was trained, each is a node of the graph, and
adding one or leaving one out would be another network.

Needs no torch, only onnx.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from niwaki.qdq import four_bits, insert
from niwaki.runtimes import onnx_names, onnx_rewrite
from niwaki.spec import Spec

DOMAIN, OPERATOR = "niwaki", "FakeQuantize"
MOVING = (
    *(
        "MaxPool",
        "Reshape",
        "Flatten",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Split",
        "Gather",
        "Expand",
    ),
    *("DepthToSpace", "SpaceToDepth", "Identity", "Tile", "Pad"),
)
"""What gives values of its input, or zero."""
LAYERS = ("Conv", "Gemm", "MatMul")
LEAST_WEIGHT = -128

Array = npt.NDArray[Any]


def schema() -> Any:
    """What the exporter must know of the node to write it."""
    kinds = onnx.defs.OpSchema
    return kinds(
        OPERATOR,
        DOMAIN,
        1,
        inputs=[kinds.FormalParameter(name, "T") for name in ("x", "log_scale")],
        outputs=[kinds.FormalParameter("y", "T")],
        type_constraints=[("T", ["tensor(float)"], "")],
        attributes=[kinds.Attribute(name, kinds.AttrType.INT) for name in ("zero", "axis", "low", "high")],
    )


def quantize(proto: Any, spec: Spec) -> Any:
    """The QDQ ModelProto of one that was exported with FakeQuantize nodes, which is changed."""
    graph = proto.graph
    _Writer(graph).fake_quantizers()
    onnx_rewrite.drop_unused(graph)
    for one in [o for o in proto.opset_import if o.domain == DOMAIN]:
        proto.opset_import.remove(one)
    onnx_rewrite.selections(proto)
    onnx_rewrite.drop_unused(graph)
    writer = _Writer(graph)
    writer.pixels(spec)
    writer.selected()
    writer.moved()
    writer.biases()
    onnx_rewrite.drop_unused(graph)
    insert.guard(proto)  # layers that were left float stay so
    onnx_names.shorten(graph)
    if any(tensor.data_type == TensorProto.INT4 for tensor in graph.initializer):
        proto = onnx.version_converter.convert_version(proto, four_bits.OPSET)
        del proto.graph.value_info[:]  # it writes the shape of every value
    return proto


class _Writer:
    """A graph that is rewritten in place, its constants and the makers of its values by name."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.nodes: list[Any] = []

    def fake_quantizers(self) -> None:
        """Weights become whole numbers, values go to whole numbers and back."""
        for node in self.graph.node:
            if node.op_type == OPERATOR and node.domain == DOMAIN:
                self._fake_quantizer(node)
            elif node.op_type == "Transpose" and self._weight(node.input[0]) is not None:
                self._transposed(node)
            else:
                self.nodes.append(node)
        self._done()

    def pixels(self, spec: Spec) -> None:
        """The normalisation in front, on whole numbers, where the model's input is on a grid."""
        transpose = next(n for n in self.graph.node if n.op_type == "Transpose" and n.input[0] == "image")
        cast = self._reader("Cast", transpose.output[0])
        conv = self._reader("Conv", cast.output[0])
        back = self._behind(conv.output[0])
        if back is None:
            return
        scale, zero = (self._array(name) for name in back.input[1:3])
        mean, std = 255 * spec.mean[0], 255 * spec.std[0]
        if len(set(spec.mean)) == len(set(spec.std)) == 1 and np.isclose(1 / scale, std) and int(zero) == mean:
            back.input[0] = transpose.output[0]
            return
        kernel = self._array(conv.input[1])
        unit = self._constant("pixels_scale", np.array(1, np.float32))
        none = self._constant("pixels_zero", np.array(0, np.uint8))
        raw = _node("DequantizeLinear", [transpose.output[0], unit, none], "pixels")
        steps = _steps(np.abs(kernel).max((1, 2, 3)), self._array(conv.input[2]))
        whole = np.rint(kernel / steps[:, None, None, None])
        weight = self._weights("normalise", whole, steps, axis=0, low=LEAST_WEIGHT)
        conv.input[0], conv.input[1] = "pixels", weight[-1].output[0]
        for node in self.graph.node:
            self.nodes += [raw, *weight] if node is conv else []
            self.nodes.append(node)
        self._done()

    def selected(self) -> None:
        """Convolutions that only pick and pad channels: weights of 0 and 1, and their input's grid."""
        for node in self.graph.node:
            source = self.makers.get(node.input[0]) if node.op_type == "Conv" else None
            if source is None or source.op_type != "DequantizeLinear" or not self._picks(node):
                self.nodes.append(node)
                continue
            kernel = self._array(node.input[1])
            made = self._weights(node.output[0], kernel, np.ones(len(kernel)), axis=0, low=LEAST_WEIGHT)
            node.input[1] = made[-1].output[0]
            self.nodes += [*made, *self._pair(node, source)]
        self._done()

    def moved(self) -> None:
        """Calls that only move values are put between whole numbers of their input's grid."""
        for node in self.graph.node:
            source = self.makers.get(node.input[0]) if node.op_type in MOVING else None
            if source is None or source.op_type != "DequantizeLinear" or source.input[0] in self.constants:
                self.nodes.append(node)
            else:
                self.nodes += self._pair(node, source)
                self.makers |= {name: n for n in self.nodes[-2 * len(node.output) :] for name in n.output}
        self._done()

    def biases(self) -> None:
        """Biases of layers on whole numbers become int32."""
        for node in self.graph.node:
            held = len(node.input) > 2 and node.input[2] in self.constants
            backs = [self.makers.get(name) for name in node.input[:2]]
            if node.op_type in LAYERS and held and all(b and b.op_type == "DequantizeLinear" for b in backs):
                self._bias(node, *backs)
            self.nodes.append(node)
        self._done()

    def _bias(self, node: Any, value: Any, weight: Any) -> None:
        steps = self._array(value.input[1]).astype(np.float64) * self._array(weight.input[1])
        bias = self._array(node.input[2])
        whole = np.clip(np.rint(bias / steps), -(2**31) + 1, 2**31 - 1).astype(np.int32)
        name = f"{node.output[0]}_bias"
        steps = np.broadcast_to(steps, bias.shape).astype(np.float32)
        names = [
            self._constant(name, whole),
            self._constant(f"{name}_scale", steps),
        ]
        self.nodes.append(_node("DequantizeLinear", names, f"{name}_float", axis=0))
        node.input[2] = f"{name}_float"

    def _fake_quantizer(self, node: Any) -> None:
        attributes = {a.name: a.i for a in node.attribute}
        if attributes["low"] < LEAST_WEIGHT:  # a bias, whose steps are those of its layer: `biases` rounds it
            for other in self.graph.node:
                other.input[:] = [node.input[0] if name == node.output[0] else name for name in other.input]
            return
        scale = np.exp(self._array(node.input[1]).astype(np.float64)).astype(np.float32)
        if node.input[0] in self.constants:
            axis, low, high = (attributes[key] for key in ("axis", "low", "high"))
            value = self._array(node.input[0]).astype(np.float32)
            shape = [-1 if d == axis else 1 for d in range(value.ndim)]
            whole = np.clip(np.rint(value / scale.reshape(shape)), low, high)
            made = self._weights(node.output[0], whole, scale, axis=axis, low=low)
            made[-1].output[0] = node.output[0]
            self.nodes += made
            self.makers[node.output[0]] = made[-1]
            return
        name = node.output[0]
        step = self._constant(f"{name}_scale", scale.reshape(()))
        zero = self._constant(f"{name}_zero", np.array(attributes["zero"], np.uint8))
        self.nodes.append(_node("QuantizeLinear", [node.input[0], step, zero], f"{name}_whole"))
        self.nodes.append(_node("DequantizeLinear", [f"{name}_whole", step, zero], name))

    def _weight(self, value: str) -> Any:
        """The step back from whole numbers that makes a value, where it is a weight."""
        node = self.makers.get(value)
        if node is None or node.op_type != "DequantizeLinear":
            return None
        maker = self.makers.get(node.input[0])
        stored = node.input[0] if maker is None else maker.input[0]
        return node if stored in self.constants else None

    def _transposed(self, node: Any) -> None:
        """A weight turned round when it is stored, not when it runs."""
        back = self._weight(node.input[0])
        widen = self.makers.get(back.input[0])
        tensor = self.constants[back.input[0] if widen is None else widen.input[0]]
        order = list(next(a.ints for a in node.attribute if a.name == "perm"))
        whole = numpy_helper.to_array(tensor).astype(np.float32).transpose(order)
        axis = order.index(next(a.i for a in back.attribute if a.name == "axis"))
        low = -8 if tensor.data_type == TensorProto.INT4 else LEAST_WEIGHT
        made = self._weights(node.output[0], whole, self._array(back.input[1]), axis=axis, low=low)
        made[-1].output[0] = node.output[0]
        self.nodes += made
        self.makers[node.output[0]] = made[-1]

    def _weights(self, name: str, whole: Array, scale: Array, *, axis: int, low: int) -> list[Any]:
        """The nodes that give a weight of whole numbers as floats; `NAME_float` is what they make."""
        names = [
            self._constant(f"{name}_weight_scale", scale.astype(np.float32)),
            self._constant(f"{name}_weight_zero", np.zeros(scale.shape, np.int8)),
        ]
        stored = f"{name}_weight"
        if low >= -8:
            self.constants[stored] = self.graph.initializer.add()
            self.constants[stored].CopyFrom(four_bits.tensor(stored, whole.astype(np.int8)))
            wide = four_bits.wide(stored)
            return [wide, _node("DequantizeLinear", [wide.output[0], *names], f"{name}_float", axis=axis)]
        self._constant(stored, whole.astype(np.int8))
        return [_node("DequantizeLinear", [stored, *names], f"{name}_float", axis=axis)]

    def _pair(self, node: Any, source: Any) -> list[Any]:
        """A call, and behind each output the steps to whole numbers and back, on the grid of `source`."""
        out = [node]
        for place, name in enumerate(node.output):
            node.output[place] = f"{name}_moved"
            out.append(_node("QuantizeLinear", [f"{name}_moved", *source.input[1:3]], f"{name}_moved_whole"))
            out.append(_node("DequantizeLinear", [f"{name}_moved_whole", *source.input[1:3]], name))
        return out

    def _picks(self, conv: Any) -> bool:
        """Whether each output of a convolution is one of its inputs, or zero: numbers of the same grid."""
        if len(conv.input) > 2 or conv.input[1] not in self.constants:
            return False
        rows = self._array(conv.input[1]).reshape(self.constants[conv.input[1]].dims[0], -1)
        return bool(np.isin(rows, (0, 1)).all() and (rows.sum(1) <= 1).all())

    def _reader(self, operator: str, value: str) -> Any:
        return next(n for n in self.graph.node if n.op_type == operator and n.input[0] == value)

    def _behind(self, value: str) -> Any:
        """The step back from whole numbers behind a value, None where it is not rounded."""
        whole = next(
            (n.output[0] for n in self.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == value), ""
        )
        return next(
            (n for n in self.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == whole), None
        )

    def _array(self, name: str) -> Array:
        array: Array = numpy_helper.to_array(self.constants[name])
        return array

    def _constant(self, name: str, array: Array) -> str:
        self.constants[name] = self.graph.initializer.add()
        self.constants[name].CopyFrom(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def _done(self) -> None:
        """The graph's nodes are those collected."""
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self.nodes]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        self.makers = {name: node for node in self.graph.node for name in node.output}
        self.nodes = []


def _steps(scale: Array, shift: Array) -> Array:
    """Steps of the normalisation's weights, `scale / k`, so that the shift is nearest to whole steps."""
    counts = np.arange(64, 128)
    steps = scale[:, None].astype(np.float64) / counts
    wanted = shift[:, None] / steps
    error = np.abs(wanted - np.rint(wanted)) * steps
    return np.asarray(steps[np.arange(len(scale)), error.argmin(1)])


def _node(operator: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    return helper.make_node(operator, inputs, [output], **attributes)
