"""Bias correction: what rounding adds to a channel's mean is taken off its bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.qdq import graph as graphs
from niwaki.qdq import twins
from niwaki.qdq.graph import Graph
from niwaki.qdq.grid import Grid


def correct(
    proto: Any, activations: Mapping[str, Grid], weights: Mapping[str, Grid], images: npt.NDArray[np.uint8]
) -> int:
    """The number of layers whose bias was corrected, in place, for these grids.

    The shift of each layer is measured on its own float input, rounded, so one pass over the images is
    enough for all layers. A convolution or Gemm without a bias gets one; a MatMul needs a sum with a
    constant behind it.

    Args:
        images: uint8 `[N, H, W, C]`.
    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2 and equation 17, with the expectation over
        calibration images.
    """
    shifts = twins.compare(proto, activations, weights, images)
    graph = graphs.read(proto)
    return sum(_corrected(graph, node, shifts[node.name].shift) for node in graph.layers if node.name in shifts)


def _corrected(graph: Graph, node: Any, shift: npt.NDArray[np.float64]) -> bool:
    held = added(graph, node)
    if held is None and node.op_type != "MatMul" and len(node.input) == 2:
        name = graphs.add_constant(graph.proto, f"{node.name}_bias", -shift.astype(np.float32))
        node.input.append(name)
        return True
    if held is None or len(graph.readers[held]) != 1:
        return False
    before = graph.array(held)
    if before.size != shift.size:
        return False
    graph.set(held, (before - shift.reshape(before.shape)).astype(np.float32))
    return True


def added(graph: Graph, node: Any) -> str | None:
    """The constant that a layer adds to its channels: its bias, or that of a sum right behind a MatMul."""
    if node.op_type != "MatMul":
        return graph.bias(node)
    readers = graph.readers.get(node.output[0], [])
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    return next((name for name in readers[0].input if name in graph.constants), None)
