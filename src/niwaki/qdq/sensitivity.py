"""Sensitivity: what the outputs and the score lose when a layer is rounded alone, and when all but it are.

The exact figures run the whole network on all images with switches (switches.py); the cheap ones either do so
on a few images, or look at each layer's own output only, all layers in one pass (twins.py).
Shape letters: N images, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.qdq import graph as graphs
from niwaki.qdq import switches, twins
from niwaki.qdq.graph import Graph
from niwaki.qdq.grid import Grid

Probabilities = npt.NDArray[np.float32]
TINY = 1e-9
SUM = 1e-3
"""What probabilities of classes may add up to beside 1."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What rounding some nodes does: KL divergence from the float outputs in nats, SQNR in dB, the score."""

    kl: float
    sqnr: float
    score: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """Plain numbers by name; None where there is no noise, and so no ratio."""
        return {"kl": self.kl, "sqnr": _finite(self.sqnr), "score": self.score}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One layer's sensitivity.

    Args:
        name: of the layer or block; `nodes` are the graph's.
        alone, others: when only it is rounded, and when all but it are.
        weights, inputs: when only its weights are, and only what enters and leaves it; None: it has none.
        few: KL of `alone` on a few images, the cheap figure.
        rest: the same on all the others, which `few` is held against; None where there are no others.
        own: SQNR of its own output in dB, without running the rest; None for a layer without weights.
    """

    name: str
    nodes: tuple[str, ...]
    alone: Change
    others: Change
    weights: Change | None = None
    inputs: Change | None = None
    few: float = 0.0
    rest: float | None = None
    own: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain numbers by name."""
        kinds = ("alone", "others", "weights", "inputs")
        changes = {kind: one.to_json() if (one := getattr(self, kind)) else None for kind in kinds}
        return {
            "name": self.name,
            "nodes": list(self.nodes),
            **changes,
            "few": self.few,
            "rest": self.rest,
            "own": _finite(self.own),
        }


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def measure(
    proto: Any,
    nodes: Sequence[Any],
    activations: Mapping[str, Grid],
    weights: Mapping[str, Grid],
    images: npt.NDArray[np.uint8],
    *,
    by: str = "layer",
    score: Callable[[Probabilities], float] | None = None,
    few: int = 16,
) -> tuple[list[Row], dict[str, Change]]:
    """The sensitivity of each layer or block, in the network's order; and of `float` and `all` rounded.

    Args:
        nodes: the integer nodes.
        images: uint8 `[N, H, W, C]`; those of val, where there is a score.
        by: "layer" or "block".
        score: of the outputs `[N, K]` for these images, 0..1.
        few: images of the cheap figure, the first ones; what it is worth is seen on the others.
    """
    graph = graphs.read(proto)
    whole = switches.switched(proto, nodes, activations, weights)
    names = {node.name for node in nodes}
    before = whole.run(images, whole.roundings(()))

    def change(on: npt.NDArray[np.float32], count: int = len(images)) -> Change:
        after = whole.run(images[:count], on)
        scored = None if score is None or count < len(images) else score(after)
        return Change(kl=divergence(before[:count], after), sqnr=sqnr(before[:count], after), score=scored)

    near = twins.compare(proto, activations, weights, images[:few])
    layers = {node.name for node in graph.layers}
    rows = []
    for name, members in groups(graph, graphs.units(graph, nodes), by=by).items():
        own = [near[member].sqnr for member in members if member in near]
        alone = whole.roundings(members)
        exact, cheap = change(alone), change(alone, min(few, len(images))).kl
        rows.append(
            Row(
                name=name,
                nodes=tuple(members),
                alone=exact,
                others=change(whole.roundings(names.difference(members))),
                weights=change(whole.roundings(members, values=False))
                if layers.intersection(members)
                else None,
                inputs=change(whole.roundings(members, weights=False)),
                few=cheap,
                rest=_without(exact.kl, len(images), cheap, few),
                own=min(own) if own else None,
            )
        )
    none = Change(kl=0.0, sqnr=float("inf"), score=score(before) if score else None)
    return rows, {"float": none, "all": change(whole.roundings(names))}


def kinds(
    proto: Any,
    nodes: Sequence[Any],
    activations: Mapping[str, Grid],
    weights: Mapping[str, Grid],
    images: npt.NDArray[np.uint8],
) -> list[dict[str, Any]]:
    """Each layer's `name`, and {"kl": nats} when all of it is rounded (`alone`), its `weights`, its `inputs`.

    Args:
        nodes, images: as in `measure`.
    """
    graph = graphs.read(proto)
    whole = switches.switched(proto, nodes, activations, weights)
    before = whole.run(images, whole.roundings(()))
    layers = {node.name for node in graph.layers}

    def moved(members: Sequence[str], **kept: bool) -> dict[str, float]:
        return {"kl": divergence(before, whole.run(images, whole.roundings(members, **kept)))}

    return [
        {
            "name": name,
            "alone": moved(members),
            "weights": moved(members, values=False) if layers.intersection(members) else None,
            "inputs": moved(members, weights=False),
        }
        for name, members in groups(graph, graphs.units(graph, nodes)).items()
    ]


def _without(kl: float, count: int, few_kl: float, few: int) -> float | None:
    """The mean over the other images: both are means over images, the few among the `count`."""
    return (count * kl - few * few_kl) / (count - few) if count > few else None


def costly(
    proto: Any,
    nodes: Sequence[Any],
    activations: Mapping[str, Grid],
    weights: Mapping[str, Grid],
    images: npt.NDArray[np.uint8],
) -> list[tuple[str, ...]]:
    """Sets of nodes that may stay float together, the one that helps most first, on a few images.

    A set is a layer, or all that a value runs through: its readers, and its maker where that gives whole
    numbers only, so that the value is not rounded at all.
    """
    whole = switches.switched(proto, nodes, activations, weights)
    graph = graphs.read(proto)
    names = {node.name for node in nodes}
    sets: dict[tuple[str, ...], None] = {(node.name,): None for node in graph.layers if node.name in names}
    for value in dict.fromkeys(edge.value for edge in whole.edges if not edge.weight):
        around = [edge for edge in whole.edges if edge.value == value]
        members = {edge.reader for edge in around if edge.reader in names}
        members |= {edge.maker for edge in around if edge.held}
        sets[tuple(sorted(members))] = None
    before = whole.run(images, whole.roundings(()))
    left = {
        some: divergence(before, whole.run(images, whole.roundings(names.difference(some)))) for some in sets
    }
    return sorted(left, key=lambda some: (left[some], len(some)))


def by_bits(
    proto: Any,
    nodes: Sequence[Any],
    activations: Mapping[str, Grid],
    weights: Mapping[int, Mapping[str, Grid]],
    images: npt.NDArray[np.uint8],
) -> dict[str, dict[int, float]]:
    """How far outputs move (`divergence`) when one layer alone is rounded, by its weights' name and bits.

    Args:
        nodes: the integer nodes; only those with weights are asked, and those that share them together.
        weights: grids of all layers' weights, by bits.
    """
    members = readers(graphs.read(proto), nodes)
    found: dict[str, dict[int, float]] = {weight: {} for weight in members}
    for bits, grids in weights.items():
        whole = switches.switched(proto, nodes, activations, grids)
        before = whole.run(images, whole.roundings(()))
        for weight, losses in found.items():
            losses[bits] = divergence(before, whole.run(images, whole.roundings(members[weight])))
    return found


def readers(graph: Graph, nodes: Sequence[Any]) -> dict[str, list[str]]:
    """The layers among the nodes that read each weight, by the weight's name."""
    found: dict[str, list[str]] = {}
    for node in nodes:
        if weight := graph.weight(node):
            found.setdefault(weight, []).append(node.name)
    return found


def divergence(before: Probabilities, after: Probabilities) -> float:
    """How far outputs `[N, K, ...]` are from the float ones: mean KL divergence of classes, in nats.

    Outputs that are no probabilities of classes (objects' distances) have none: the power of the difference as
    a share of the power of the float ones. Both are 0 where nothing moved, and never below.
    """
    found = []
    for one, other in zip(before, after, strict=True):  # image by image: maps of many classes are large
        if abs(float(one.sum(0).mean()) - 1) < SUM and abs(float(one.sum(0).max()) - 1) < SUM:
            p, q = (np.maximum(part.astype(np.float64), TINY) for part in (one, other))
            found.append(max(0.0, float((p * (np.log(p) - np.log(q))).sum(0).mean())))
        else:
            power = float((one.astype(np.float64) ** 2).mean())
            found.append(float(((other.astype(np.float64) - one) ** 2).mean()) / max(power, TINY))
    return float(np.mean(found))


def sqnr(before: Probabilities, after: Probabilities) -> float:
    """Signal over noise of the outputs, in dB; infinite where nothing moved."""
    noise = float(((after.astype(np.float64) - before) ** 2).mean())
    signal = float((before.astype(np.float64) ** 2).mean())
    return float("inf") if noise == 0 else 10 * float(np.log10(signal / noise))


def groups(graph: Graph, nodes: Sequence[Any], *, by: str = "layer") -> dict[str, list[str]]:
    """Names of nodes by layer or block, in order.

    A layer is called like its weights, any other node `operator after layer`. A block is all that shares a
    name up to its last number: `layer1.0.conv2` belongs to `layer1.0`.
    """
    found: dict[str, list[str]] = {}
    last = "input"
    for node in nodes:
        weight = graph.weight(node)
        last = title(weight) if weight else last
        name = last if weight else f"{node.op_type} after {last}"
        if by == "block":
            name = block(last)
        elif name in found:
            name = f"{name} ({node.name})"
        found.setdefault(name, []).append(node.name)
    return found


def title(weight: str) -> str:
    """A layer's name from that of its weights."""
    return re.sub(r"\.?(weight|weight_.*|kernel|scale)$", "", weight) or weight


def block(name: str) -> str:
    """The part of a dotted name up to its last number; the whole name where it has none."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[-1] + 1]) if numbers else name


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Rank correlation of two lists, -1..1; equal values share their mean rank.

    Source: Spearman 1904; the Pearson correlation of ranks.
    """
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (one, other)]
    a, b = (rank - rank.mean() for rank in ranks)
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / scale) if scale else 0.0


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[place].astype(np.float64)


def agreement(rows: Sequence[Row]) -> dict[str, float | None]:
    """Rank correlations of the cheap figures with the exact one (KL when only the layer is rounded).

    That of the few images is with all others: with themselves among them it would be near 1 whatever they are
    worth. None where there are no others.
    """
    others = [row.rest for row in rows if row.rest is not None]
    own = [row for row in rows if row.own is not None and np.isfinite(row.own)]
    return {
        "few images": spearman([row.few for row in rows], others) if len(others) == len(rows) else None,
        "own output": spearman([-(row.own or 0.0) for row in own], [row.alone.kl for row in own]),
    }
