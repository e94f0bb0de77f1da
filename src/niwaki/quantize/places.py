"""Where a graph is quantized: which calls run on whole numbers, and which values are rounded for them.

The rules are those by which ONNX Runtime fuses integer kernels, so that what is trained is what runs:

| call | values |
|---|---|
| convolution, linear layer | its input is on a grid of 8 bits, its weights on one of their own |
| convolution | its output is rounded, behind a ReLU or clamp that alone reads it |
| sum, concatenation, product, sigmoid, pooling | its output is rounded where all its inputs are on a grid |
| max pooling, reshape, slice, padding with zero, ... | on the grid of its input |
| all else, and whatever only leads to the output | float |

A linear layer's output stays float until a layer reads it: normalisation, softmax and residual sums of a
transformer are float, as its runtimes compute them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from niwaki.errors import PlanError
from niwaki.quantize.graphs import CONVOLUTIONS, Json, argument, base, names, readers

LAYERS = (*CONVOLUTIONS, "linear")
TAILS = ("relu", "relu6", "hardtanh", "clamp", "clamp_min")
"""What becomes part of the kernel of the call before."""
SAME = (
    *("max_pool1d", "max_pool2d", "max_pool2d_with_indices", "adaptive_max_pool2d", "operator.getitem"),
    *(
        "reshape",
        "view",
        "_unsafe_view",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "transpose",
        "permute",
    ),
    *("t", "contiguous", "clone", "expand", "slice", "select", "split", "split_with_sizes", "chunk", "unbind"),
    *("narrow", "channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "upsample_nearest2d", "flip", "roll"),
    *("pad", "constant_pad_nd", "dropout", "feature_dropout", "relu", "alias", "detach", "repeat"),
)
"""What gives values of its input, or zero."""
MIXES = ("add", "cat", "mul", "sigmoid", "avg_pool2d", "adaptive_avg_pool2d", "mean")
"""What has an integer kernel where all its inputs are whole numbers."""


@dataclass(frozen=True)
class Places:
    """What is rounded.

    Args:
        values: names of the values, in the order of the graph.
        weights: the weights' tensors by name, each with the axis of its output channels.
        sources: of each layer, by its call's name, the value that was rounded onto its input's grid.
    """

    values: tuple[str, ...]
    weights: dict[str, int]
    sources: dict[str, str]


def layers(graph: Json) -> tuple[str, ...]:
    """Names of the weights of all layers that can be quantized, in the order of the graph."""
    held = graph["tensors"]
    found = [held.get(n["args"][1]["node"]) for n in graph["nodes"] if base(n) in LAYERS]
    return tuple(dict.fromkeys(name for name in found if name))


def chosen(graph: Json, given: Sequence[str], *, what: str) -> set[str]:
    """The layers' weights that names stand for: a layer's own name, or the path of what it is in.

    Raises:
        PlanError: a name is no layer and no part of the model. [quantize-layer]
    """
    every = layers(graph)
    out: set[str] = set()
    for name in given:
        stem = name.removesuffix(".weight")
        found = {one for one in every if f"{one}.".startswith(f"{stem}.")}
        if not found:
            raise PlanError(
                f"quantize: {what} names {name!r}, which is no layer of the model and no part that holds one. "
                f"Its layers: {', '.join(one.removesuffix('.weight') for one in every[:20])}.",
                code="quantize-layer",
            )
        out |= found
    return out


def find(graph: Json, quantized: set[str], ranks: dict[str, int]) -> Places:
    """What is rounded where these layers run on whole numbers.

    Args:
        quantized: weights of the layers that do.
        ranks: axes of each value, by name.
    """
    return _Finder(graph, quantized, ranks).places()


class _Finder:
    """One walk over a graph, in order."""

    def __init__(self, graph: Json, quantized: set[str], ranks: dict[str, int]) -> None:
        self.graph, self.quantized, self.ranks = graph, quantized, ranks
        self.readers = readers(graph)
        self.outputs = set(names(graph["outputs"]))
        self.order = [*graph["inputs"], *(node["name"] for node in graph["nodes"])]
        self.rounded: set[str] = set()
        self.on_grid: dict[str, str] = {}  # each with the value that was rounded onto it
        self.weights: dict[str, int] = {}
        self.sources: dict[str, str] = {}

    def places(self) -> Places:
        for node in self.graph["nodes"]:
            self._visit(node)
        return Places(tuple(name for name in self.order if name in self.rounded), self.weights, self.sources)

    def _visit(self, node: Json) -> None:
        kind, name = base(node), str(node["name"])
        if kind in LAYERS:
            self._layer(node, kind)
        elif name in self.rounded:  # the tail of a call before
            pass
        elif kind in SAME and not self._other_zero(node) and node["args"][0]["node"] in self.on_grid:
            self.on_grid[name] = self.on_grid[node["args"][0]["node"]]
        elif kind in MIXES and self._whole(node, kind):
            self._round_after(node)

    def _layer(self, node: Json, kind: str) -> None:
        weight = self.graph["tensors"].get(node["args"][1]["node"])
        if weight not in self.quantized:
            return
        self._want(node["args"][0]["node"])
        self.weights[weight] = 0
        self.sources[str(node["name"])] = self.on_grid[node["args"][0]["node"]]
        if kind != "linear":
            self._round_after(node)

    def _want(self, value: str) -> None:
        if value not in self.on_grid:
            self.rounded.add(value)
            self.on_grid[value] = value

    def _round_after(self, node: Json) -> None:
        """Rounds what a call gives, or what its tail gives; nothing where only the output is behind it."""
        end = node
        read = self.readers[end["name"]]
        if len(read) == 1 and base(read[0]) in TAILS and end["name"] not in self.outputs:
            end = read[0]
        if not self._only_output(end["name"]):
            self._want(end["name"])

    def _only_output(self, value: str) -> bool:
        """Whether everything behind a value is the output, through calls that only move it."""
        behind = self.readers[value]
        return all(base(n) in (*SAME, "mean") and self._only_output(n["name"]) for n in behind)

    def _whole(self, node: Json, kind: str) -> bool:
        """Whether a call that mixes values has an integer kernel here."""
        given = [*names(node["args"])]
        if not given or not all(name in self.on_grid for name in given):
            return False
        if kind in ("add", "mul"):
            return len(given) == 2 and not node["kwargs"]
        if kind == "mean":
            rank = self.ranks.get(given[0], 0)
            axes = [d % rank for d in argument(node, 1) or []] if rank else []
            return rank == 4 and sorted(axes) == [2, 3]
        return True

    def _other_zero(self, node: Json) -> bool:
        """Padding with something else than zero, which the grid need not hold."""
        if base(node) == "constant_pad_nd":
            return bool(argument(node, 2, 0))
        return base(node) == "pad" and (argument(node, 2, "constant") != "constant" or bool(argument(node, 3)))
