"""What the calls of a traced graph see on calibration images: a graph run call by call, on all batches at once.

Running two graphs side by side this way shows, in one pass, a layer's input in a pruned network (whose layers
before it may just have been changed) and its output in the original. A value is dropped after its last use, so
that memory holds one cut through the network and not the whole of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from niwaki.surgery.trace import Call, Traced, shape_of

_VIEWS = ("aten.view.default", "aten._unsafe_view.default")
Batches = Sequence[tuple[Any, ...]]


class Walk:
    """A traced graph on its way through several batches.

    Args:
        traced: the graph; its tensors are read when they are used, so a layer may change before its call.
        batches: inputs of the graph, one tuple a batch.
        wanted: calls whose outputs are kept until they are taken.
    """

    def __init__(self, traced: Traced, batches: Batches, wanted: set[Call]) -> None:
        self._nodes = [node for node in traced.graph.nodes if node.op != "output"]
        self._place, self._last = 0, _last_uses(self._nodes)
        self._wanted = wanted
        fixed = {
            node: traced.tensors[node.name].detach() for node in self._nodes if node.name in traced.tensors
        }
        self._values: list[dict[Call, Any]] = []
        for inputs in batches:
            given = dict(zip(traced.inputs, inputs, strict=True))
            named = {node: given.get(node.name) for node in self._nodes if node.op == "placeholder"}
            self._values.append({**named, **fixed})

    def inputs_of(self, node: Call) -> list[Tensor]:
        """The first argument of a call in each batch, all calls before it done."""
        while self._nodes[self._place] is not node:
            self._advance()
        return [values[node.args[0]] for values in self._values]

    def call(self, node: Call) -> list[Tensor]:
        """The call's outputs with its tensors as they are now; it counts as not yet done."""
        with torch.no_grad():
            return [_called(node, values) for values in self._values]

    def take(self, node: Call) -> list[Tensor]:
        """The outputs of a wanted call, one a batch; they are dropped here."""
        while any(node not in values for values in self._values):
            self._advance()
        self._wanted.discard(node)
        out = [values[node] for values in self._values]
        self._drop(node, self._place)
        return out

    def _advance(self) -> None:
        node = self._nodes[self._place]
        self._place += 1
        if node.op == "placeholder":
            return
        with torch.no_grad():
            for values in self._values:
                values[node] = _called(node, values)
        for used in {node, *node.all_input_nodes}:
            self._drop(used, self._place)

    def _drop(self, node: Call, place: int) -> None:
        if self._last.get(node, -1) < place and node not in self._wanted:
            for values in self._values:
                values.pop(node, None)


def _called(node: Call, values: dict[Call, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    call = torch.ops.aten.reshape.default if str(node.target) in _VIEWS else node.target
    return call(*args, **kwargs)


def _last_uses(nodes: Sequence[Call]) -> dict[Call, int]:
    """For each call the place of the last one that needs it; an output of the graph is needed by none here."""
    return {used: place for place, node in enumerate(nodes) for used in node.all_input_nodes}


def bytes_per_image(traced: Traced) -> int:
    """The most that the live values of one image take at any point of the graph, in bytes."""
    nodes = [node for node in traced.graph.nodes if node.op != "output"]
    last, live, most = _last_uses(nodes), 0, 0
    sizes: dict[Call, int] = {}
    for place, node in enumerate(nodes):
        if node.op != "placeholder":
            sizes[node] = sum(_bytes(value) for value in _tensors(node.meta.get("val"))) // traced.batch
        live += sizes.get(node, 0)
        most = max(most, live)
        for used in {node, *node.all_input_nodes}:
            if last.get(used, place) <= place:
                live -= sizes.pop(used, 0)
    return most


def _tensors(value: Any) -> list[Tensor]:
    found = value if isinstance(value, (tuple, list)) else [value]
    return [item for item in found if isinstance(item, Tensor)]


def _bytes(value: Tensor) -> int:
    size = value.element_size()
    for length in shape_of(value):
        size *= length
    return size


def split(inputs: tuple[Any, ...], traced: Traced, *, images: int, batch: int = 32) -> list[tuple[Any, ...]]:
    """At most `images` of the inputs in batches; of exactly the traced size where the graph has no other."""
    counts = [len(x) for x in inputs if isinstance(x, Tensor) and x.dim()]
    total = min([images, *counts])
    if traced.dynamic:
        parts = max(min(4, total // 2), -(-total // batch), 1)
        edges = [round(i * total / parts) for i in range(parts + 1)]
    else:
        edges = list(range(0, total + 1, traced.batch))
    return [
        tuple(x[a:b] if isinstance(x, Tensor) and x.dim() else x for x in inputs)
        for a, b in itertools.pairwise(edges)
    ]
