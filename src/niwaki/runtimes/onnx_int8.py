"""int8 for ONNX Runtime on CPUs: per channel, u8 activations, s8 weights, as a recipe has it.

What is done around `niwaki.qdq`, and why (each made the file faster or closer on small networks):
- Batch norms are folded before (the exporter does it), so a convolution, its ReLU and its ranges
  become one kernel.
- The pixels are already u8: they enter the first integer convolution directly, with scale 1 and
  zero point 0, or, where all channels are normalised alike, with the normalisation itself as their
  scale and zero point, which costs nothing (`pixels_grid` says how near that is).
- Batch norms that cannot be folded, and shortcuts that pad channels with zeros, become convolutions
  (onnx_rewrite.py).
- Convolutions thinner than the kernels' width are filled up with zero channels (onnx_widen.py).
- The last linear layer's output and all that follows it (softmax) stay float: probabilities need
  finer steps.

Needs no torch, only onnx and onnxruntime.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from niwaki.errors import PlanError
from niwaki.qdq import bias, equalise, insert, ranges, rounding, sensitivity, smooth
from niwaki.qdq import graph as graphs
from niwaki.qdq.grid import Grid
from niwaki.qdq.recipe import BITS, FLOAT_BITS, Recipe
from niwaki.runtimes import onnx_rewrite, onnx_widen
from niwaki.spec import Spec

FEW = 32
"""Images on which nodes are put into the order in which they stay float, or get their bits."""


@dataclass(frozen=True)
class Prepared:
    """A float graph ready for int8.

    Args:
        proto: the ModelProto, rewritten for integer kernels.
        pixels: the value that pixels enter as, and its grid, on which each of their 256 levels has a number.
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
    name, pixels = cast.output[0], _grid(1.0, 0)
    skip: tuple[str, ...] = (transpose.name,)
    if (own := pixels_grid(spec)) is not None:
        name, pixels, skip = normalise.output[0], own, (transpose.name, normalise.name)
    return Prepared(proto, {name: pixels}, transpose.output[0], _logits(proto.graph), skip)


def quantize(proto: Any, calib: npt.NDArray[np.uint8], spec: Spec, recipe: Recipe | None = None) -> Any:
    """The int8 ModelProto of a float one made with `as_convolution`.

    Args:
        proto: changed in place.
        calib: uint8 `[N, H, W, C]` that set the ranges of activations.
        recipe: how; None is plain min-max.
    Raises:
        ModelError: there are no images, or a value is infinite on them. [quantize-images, quantize-infinite]
        PlanError: the recipe leaves a node in float that the graph has not. [quantize-recipe]
    """
    return Maker(prepare(proto, spec), calib).make(recipe or Recipe())


class Maker:
    """Makes int8 graphs of one float graph by many recipes, and measures what they share only once.

    Args:
        ready: left as it is.
        calib: uint8 `[N, H, W, C]`.
    """

    def __init__(self, ready: Prepared, calib: npt.NDArray[np.uint8]) -> None:
        self.ready, self.calib = ready, calib
        self._scalings: dict[tuple[bool, tuple[float, str] | None], Any] = {}
        self._seen: dict[tuple[bool, tuple[float, str] | None, bool], dict[str, ranges.Seen]] = {}

    def make(self, recipe: Recipe) -> Any:
        """The int8 ModelProto of a recipe; pixels enter it as they are."""
        proto, activations, weights = self.rounded(recipe)
        quantized = insert.write(
            proto, activations, weights=weights, float_nodes=(*self.ready.skip, *recipe.float_nodes)
        )
        inside = quantized.graph
        for node in inside.node:
            if node.op_type == "QuantizeLinear" and node.input[0] in self.ready.pixels:
                graphs.rewire(inside.node, node.output[0], self.ready.entry)
        graphs.drop_unused(inside)
        return quantized

    def rounded(self, recipe: Recipe) -> tuple[Any, dict[str, Grid], dict[str, Grid]]:
        """The float graph as a recipe changes it, and the grids of its activations and weights."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._scaled(recipe))
        activations = self._activations(proto, recipe)
        weights = insert.weight_grids(graphs.read(proto), self.nodes(proto, recipe), recipe)
        if recipe.rounding == "learned":
            rounding.learn(proto, activations, weights, self.calib)
        if recipe.correct_bias:
            bias.correct(proto, activations, weights, self.calib)
        return proto, activations, weights

    def _scaled(self, recipe: Recipe) -> Any:
        """The float graph after equalisation and smoothing, which takes its time and is kept."""
        key = (recipe.equalise, None if recipe.smooth is None else (recipe.smooth, recipe.calibration))
        if key == (False, None):
            return self.ready.proto
        if key not in self._scalings:
            self._scalings[key] = proto = onnx.ModelProto()
            proto.CopyFrom(self.ready.proto)
            if recipe.equalise:
                equalise.equalise(proto, skip=self.ready.skip)
            if recipe.smooth is not None:
                ranges_by = recipe.calibration
                smooth.smooth(
                    proto, self.calib, share=recipe.smooth, skip=self.ready.skip, calibration=ranges_by
                )
        return self._scalings[key]

    def nodes(self, proto: Any, recipe: Recipe) -> list[Any]:
        """The nodes that run on whole numbers."""
        names = {node.name for node in proto.graph.node}
        if unknown := sorted({*recipe.float_nodes, *(recipe.node_bits or {})} - names):
            raise PlanError(
                f"recipe: the graph has no node {unknown[0]!r}. A recipe fits the model that it was made for; "
                "climb the ladder again for another one.",
                code="quantize-recipe",
            )
        return graphs.integer_nodes(graphs.read(proto), float_nodes=(*self.ready.skip, *recipe.float_nodes))

    def sensitive(self, recipe: Recipe, *, images: int = FEW) -> list[tuple[str, ...]]:
        """Sets of nodes that may stay float together, the one that helps most first."""
        proto, activations, weights = self.rounded(recipe)
        nodes = self.nodes(proto, recipe)
        return sensitivity.costly(proto, nodes, activations, weights, self.calib[:images])

    def by_bits(
        self, recipe: Recipe, *, images: int = FEW
    ) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, float]]]:
        """What each layer loses (KL divergence in nats when it alone is rounded) and the bytes of its weights,
        both by the weights' name and bits: 4, 8, and 32 for a layer in float, which loses nothing."""
        proto, activations, _ = self.rounded(recipe)
        graph, nodes = graphs.read(proto), self.nodes(proto, recipe)
        grids = {
            bits: insert.weight_grids(graph, nodes, replace(recipe, weight_bits=bits, node_bits=None))
            for bits in BITS
        }
        losses = sensitivity.by_bits(proto, nodes, activations, grids, self.calib[:images])
        counts = {name: graph.array(name).size for name in losses}
        sizes = {
            name: {bits: count * bits / 8 for bits in (*BITS, FLOAT_BITS)} for name, count in counts.items()
        }
        return {name: {**own, FLOAT_BITS: 0.0} for name, own in losses.items()}, sizes

    def readers(self, recipe: Recipe) -> dict[str, list[str]]:
        """The nodes that read each layer's weights, by the weights' name."""
        return sensitivity.readers(graphs.read(self.ready.proto), self.nodes(self.ready.proto, recipe))

    def _activations(self, proto: Any, recipe: Recipe) -> dict[str, Grid]:
        """The grid of every activation but the logits."""
        graph = graphs.read(proto)
        nodes = graphs.integer_nodes(graph, float_nodes=self.ready.skip)
        kept = {*self.ready.pixels, self.ready.logits}
        names = [name for name in graphs.activations(graph, nodes) if name not in kept]
        smoothed = None if recipe.smooth is None else (recipe.smooth, recipe.calibration)
        key = (recipe.equalise, smoothed, recipe.calibration != "min-max")
        if key not in self._seen:
            self._seen[key] = ranges.collect(proto, names, self.calib, histograms=key[2])
        return {
            name: ranges.grid(self._seen[key][name], recipe.calibration) for name in names
        } | self.ready.pixels


def _logits(graph: Any) -> str:
    """What the head's softmax reads; where there is none, what the last node does."""
    heads = [node for node in graph.node if node.op_type == "Softmax"]
    last = heads[-1] if heads and graph.node[-1].op_type == "Resize" else graph.node[-1]
    return str(last.input[0])


def pixels_grid(spec: Spec) -> Grid | None:
    """The scale and zero point that normalise all channels, None where they are not normalised alike.

    A zero point is whole: where `255 * mean` is not (0.5 gives 127.5), all levels are moved by the same part of
    a level, half of one at most. Rounding the exact values to the grid of their range is as far off.
    """
    if len(set(spec.mean)) > 1 or len(set(spec.std)) > 1 or not 0 <= spec.mean[0] <= 1:
        return None
    return _grid(1 / (255 * spec.std[0]), round(255 * spec.mean[0]))


def _grid(scale: float, zero: int) -> Grid:
    return Grid(scale=np.array(scale, np.float32), zero=np.array(zero, np.int64))


def _reader(graph: Any, operator: str, value: str) -> Any:
    """The first node of that kind that reads `value` first; one must be there."""
    return next(n for n in graph.node if n.op_type == operator and n.input[0] == value)
