"""int8 for ONNX Runtime on CPUs: per channel, u8 activations, s8 weights, as a recipe has it.

What is done around `niwaki.qdq`, and why (each made the file faster or closer on small networks):
- Batch norms are folded before (the exporter does it), so a convolution, its ReLU and its ranges
  become one kernel.
- The pixels are already u8: they enter the first integer convolution directly, with scale 1 and
  zero point 0, or, where all channels are normalised alike, with the normalisation itself as their
  scale and zero point, which costs nothing.
- Batch norms that cannot be folded, and shortcuts that pad channels with zeros, become convolutions
  (onnx_rewrite.py).
- Convolutions thinner than the kernels' width are filled up with zero channels (onnx_widen.py).
- The last linear layer's output and all that follows it (softmax) stay float: probabilities need
  finer steps.

Needs no torch, only onnx and onnxruntime.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.qdq import graph as graphs
from niwaki.qdq import insert, ranges
from niwaki.qdq.grid import Grid
from niwaki.qdq.recipe import Recipe
from niwaki.runtimes import onnx_rewrite, onnx_widen
from niwaki.spec import Spec


@dataclass(frozen=True)
class Prepared:
    """A float graph ready for int8.

    Args:
        proto: the ModelProto, rewritten for integer kernels.
        pixels: the value that pixels enter as, and its grid: exact by construction.
        entry: the value that holds the pixels themselves as uint8.
        logits: what the head reads; it stays float.
        skip: names of nodes before the pixels' value, which stay as they are.
    """

    proto: Any
    pixels: dict[str, Grid]
    entry: str
    logits: str
    skip: tuple[str, ...]


def prepare(proto: Any, spec: Spec) -> Prepared:
    """A float ModelProto made with `as_convolution`, rewritten in place for integer kernels."""
    onnx_rewrite.selections(proto)
    onnx_rewrite.norms(proto)
    graphs.drop_unused(proto.graph)
    transpose = _reader(proto.graph, "Transpose", "image")
    cast = _reader(proto.graph, "Cast", transpose.output[0])
    normalise = _reader(proto.graph, "Conv", cast.output[0])
    onnx_widen.thin(proto.graph, whole=normalise.name)
    if _alike(spec):
        name, scale, zero = normalise.output[0], 1 / (255 * spec.std[0]), round(255 * spec.mean[0])
        skip = (transpose.name, normalise.name)
    else:
        name, scale, zero, skip = cast.output[0], 1.0, 0, (transpose.name,)
    pixels = Grid(scale=np.array(scale, np.float32), zero=np.array(zero, np.int64))
    return Prepared(proto, {name: pixels}, transpose.output[0], proto.graph.node[-1].input[0], skip)


def quantize(proto: Any, calib: npt.NDArray[np.uint8], spec: Spec, recipe: Recipe | None = None) -> Any:
    """The int8 ModelProto of a float one made with `as_convolution`.

    Args:
        proto: changed in place.
        calib: uint8 `[N, H, W, C]` that set the ranges of activations.
        recipe: how; None is plain min-max.
    """
    ready = prepare(proto, spec)
    return finish(ready, grids(ready, calib, recipe or Recipe()), recipe or Recipe())


def grids(ready: Prepared, calib: npt.NDArray[np.uint8], recipe: Recipe) -> dict[str, Grid]:
    """The grid of every activation but the logits, from calibration images."""
    graph = graphs.read(ready.proto)
    names = [
        name
        for name in graphs.activations(graph, graphs.integer_nodes(graph, float_nodes=ready.skip))
        if name not in ready.pixels and name != ready.logits
    ]
    plain = recipe.calibration == "min-max"
    seen = ranges.collect(ready.proto, names, calib, histograms=not plain)
    return {name: ranges.grid(seen[name], recipe.calibration) for name in names} | ready.pixels


def finish(ready: Prepared, activations: dict[str, Grid], recipe: Recipe) -> Any:
    """The int8 ModelProto of a prepared graph with these grids; pixels enter it as they are."""
    graph = graphs.read(ready.proto)
    nodes = graphs.integer_nodes(graph, float_nodes=(*ready.skip, *recipe.float_nodes))
    quantized = insert.write(
        ready.proto,
        activations,
        weights=insert.weight_grids(graph, nodes, recipe),
        float_nodes=(*ready.skip, *recipe.float_nodes),
    )
    inside = quantized.graph
    for node in inside.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in ready.pixels:
            graphs.rewire(inside.node, node.output[0], ready.entry)
    graphs.drop_unused(inside)
    return quantized


def _alike(spec: Spec) -> bool:
    """Whether one scale and zero point, a whole number in 0..255, normalise all channels."""
    return len(set(spec.mean)) == len(set(spec.std)) == 1 and 0 <= spec.mean[0] <= 1


def _reader(graph: Any, operator: str, value: str) -> Any:
    """The first node of that kind that reads `value` first; one must be there."""
    return next(n for n in graph.node if n.op_type == operator and n.input[0] == value)
