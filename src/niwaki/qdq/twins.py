"""Each layer beside its int8 twin, on the same float input: how far rounding moves it, all in one pass.

The graph runs in float; beside each layer the same layer runs on the rounded input with rounded weights, and
only sums of the difference leave the graph. Bias correction takes the mean of each channel from here, the cheap
kind of sensitivity the ratio of powers. Errors that come from layers before are not in these figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from niwaki.qdq import graph as graphs
from niwaki.qdq import ranges
from niwaki.qdq.graph import Graph
from niwaki.qdq.grid import Grid


@dataclass(frozen=True)
class Twin:
    """What rounding a layer's input and weights does to its own output, over all images.

    Args:
        signal, noise: mean squares of the float output and of the difference.
        shift: mean of rounded minus float for each channel, `[C]`.
    """

    signal: float
    noise: float
    shift: npt.NDArray[np.float64]

    @property
    def sqnr(self) -> float:
        """Signal over noise in dB; infinite where there is no noise."""
        return float("inf") if self.noise == 0 else 10 * float(np.log10(max(self.signal, 1e-30) / self.noise))


def compare(
    proto: Any, activations: Mapping[str, Grid], weights: Mapping[str, Grid], images: npt.NDArray[np.uint8]
) -> dict[str, Twin]:
    """The twin of each layer by its node's name; only layers whose input and weights have grids.

    Args:
        images: uint8 `[N, H, W, C]`.
    """
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    graph = graphs.read(whole)
    held = [n for n in graph.layers if n.input[0] in activations and graph.weight(n) in weights]
    for node in held:
        _beside(graph, node, activations, weights)
    kinds = ("signal", "noise", "shift")
    names = [f"{node.name}_{kind}" for node in held for kind in kinds]
    sums: dict[str, Any] = dict.fromkeys(names, 0.0)
    count = 0
    for values in ranges.stream(whole, names, images) if names else ():
        images_here = len(values[names[0]])
        count += images_here
        for name, value in values.items():
            sums[name] = sums[name] + value.astype(np.float64).sum(0)
    return {
        node.name: Twin(
            signal=float(np.mean(sums[f"{node.name}_signal"]) / count),
            noise=float(np.mean(sums[f"{node.name}_noise"]) / count),
            shift=sums[f"{node.name}_shift"] / count,
        )
        for node in held
    }


def _beside(graph: Graph, node: Any, activations: Mapping[str, Grid], weights: Mapping[str, Grid]) -> None:
    """Adds a layer's twin and the three sums of both, one row an image, in place."""
    proto, name, weight = graph.proto, node.name, node.input[1]
    rounded = graphs.add_constant(proto, f"{name}_w", weights[weight].rounded(graph.array(weight)))
    source = add_rounding(proto, node.input[0], activations[node.input[0]], f"{name}_x")
    twin = onnx.NodeProto()
    twin.CopyFrom(node)
    twin.name, twin.input[0], twin.input[1], twin.output[0] = f"{name}_twin", source, rounded, f"{name}_y"
    rank = len(graph.shapes[node.output[0]])
    last = 1 if node.op_type == "Conv" else rank - 1
    others = [d for d in range(1, rank) if d != last]
    proto.graph.node.extend(
        [
            twin,
            helper.make_node("Sub", [f"{name}_y", node.output[0]], [f"{name}_d"], f"{name}_sub"),
            helper.make_node("Mul", [f"{name}_d", f"{name}_d"], [f"{name}_dd"], f"{name}_square"),
            helper.make_node("Mul", [node.output[0]] * 2, [f"{name}_yy"], f"{name}_power"),
        ]
    )
    for value, kind in ((f"{name}_yy", "signal"), (f"{name}_dd", "noise"), (f"{name}_d", "shift")):
        axes = others if kind == "shift" else list(range(1, rank))
        where = graphs.add_constant(proto, f"{name}_{kind}_axes", np.array(axes, np.int64))
        mean = helper.make_node(
            "ReduceMean",
            [value, where],
            [f"{name}_{kind}"],
            f"{name}_{kind}_mean",
            keepdims=0,
            noop_with_empty_axes=1,
        )
        proto.graph.node.append(mean)


def add_rounding(proto: Any, value: str, one: Grid, name: str) -> str:
    """The name of `value` after the way to whole numbers and back, by two new nodes, in place."""
    scale = graphs.add_constant(proto, f"{name}_scale", one.scale)
    zero = graphs.add_constant(proto, f"{name}_zero", one.zero.astype(np.uint8))
    proto.graph.node.extend(
        [
            helper.make_node("QuantizeLinear", [value, scale, zero], [f"{name}_q"], f"{name}_quantize"),
            helper.make_node("DequantizeLinear", [f"{name}_q", scale, zero], [f"{name}_r"], f"{name}_back"),
        ]
    )
    return f"{name}_r"
