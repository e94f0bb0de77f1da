"""Rewrites of an ONNX graph before it is made int8: the same function by operators that run on
whole numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from niwaki.qdq.graph import drop_unused as drop_unused

Array = npt.NDArray[Any]


def selections(proto: Any) -> None:
    """Turns "every s-th pixel, then channels of zeros" into 1x1 convolutions, in place.

    The parameter-free shortcut of CIFAR ResNets is written so. ONNX Runtime has no Pad on u8 with
    a zero point, and would go through float.
    """
    graph = proto.graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    shapes = _shapes(proto)
    for place, node in enumerate(graph.node):
        pads = _channel_pads(node, values)
        if pads is None:
            continue
        source, stride = _strided(node.input[0], makers, values)
        shape = shapes.get(source, [])
        if len(shape) != 4 or not shape[1]:
            continue
        count = shape[1]
        kernel = np.zeros((pads[0] + count + pads[1], count, 1, 1), np.float32)
        kernel[pads[0] + np.arange(count), np.arange(count)] = 1
        name = f"{node.output[0]}_kernel"
        graph.initializer.append(numpy_helper.from_array(kernel, name))
        conv = helper.make_node("Conv", [source, name], list(node.output), strides=stride)
        graph.node[place].CopyFrom(conv)
        graph.node[place].name = f"Conv_{node.output[0]}"


def norms(proto: Any) -> None:
    """Turns batch norms that could not be folded into depthwise 1x1 convolutions, in place.

    They stand before a convolution (DenseNet); ONNX Runtime has no batch norm on whole numbers.
    """
    graph = proto.graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    shapes = _shapes(proto)
    for node in graph.node:
        if node.op_type != "BatchNormalization" or len(shapes.get(node.input[0], [])) != 4:
            continue
        if any(name not in values for name in node.input[1:]):
            continue
        gamma, beta, mean, var = (values[name].astype(np.float64) for name in node.input[1:])
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        scale = gamma / np.sqrt(var + epsilon)
        shift = beta - mean * scale
        names = [f"{node.output[0]}_gain", f"{node.output[0]}_shift"]  # quantizers take the name `_scale`
        for name, array in zip(names, (scale[:, None, None, None], shift), strict=True):
            graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
        conv = helper.make_node(
            "Conv", [node.input[0], *names], [node.output[0]], group=len(scale), kernel_shape=[1, 1]
        )
        conv.name = f"Conv_{node.output[0]}"
        node.CopyFrom(conv)


def _shapes(proto: Any) -> dict[str, list[int]]:
    """Shape of each value where it is known, 0 for a free size."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    return {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input)
    }


def _channel_pads(node: Any, values: dict[str, Array]) -> tuple[int, int] | None:
    """Channels of zeros before and after, when that is all a node adds."""
    if node.op_type != "Pad" or any(a.name == "mode" and a.s != b"constant" for a in node.attribute):
        return None
    names = [*node.input[1:], "", "", ""]
    pads, fill = values.get(names[0]), values.get(names[1])
    if pads is None or pads.size != 8 or names[2] or (names[1] and (fill is None or fill.any())):
        return None
    before, after = pads[:4], pads[4:]
    others = [*np.delete(before, 1), *np.delete(after, 1)]
    if any(others) or before[1] < 0 or after[1] < 0:
        return None
    return int(before[1]), int(after[1])


def _strided(name: str, makers: dict[str, Any], values: dict[str, Array]) -> tuple[str, list[int]]:
    """What `name` takes every s-th row and column of, and the two steps."""
    stride = {2: 1, 3: 1}
    while (node := makers.get(name)) is not None and node.op_type == "Slice":
        start, stop, axis, step = (values.get(n) for n in [*node.input[1:], *[""] * 4][:4])
        parts = [v for v in (start, stop, axis, step) if v is not None and v.size == 1]
        if len(parts) != 4:
            break
        first, end, where, every = (int(v.reshape(())) for v in parts)
        if first != 0 or end < 2**31 - 1 or where not in stride or every < 1:
            break
        stride[where] *= every
        name = node.input[0]
    return name, [stride[2], stride[3]]
