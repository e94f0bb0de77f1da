"""Where a gate multiplies: the parameters' slices through which alone an atom acts on what comes after.

Zero at the output of a layer is not enough to switch a channel off: its bias and its norm's shift live on. So a
gate multiplies the weights that *read* the channel. Where two activations are contracted (the scores of
attention) no weight reads it; then it multiplies the rows of the layer that makes one of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx

from niwaki.prune.places import Place, places
from niwaki.surgery import Axes, Group
from niwaki.surgery.operators import CONV, REDUCE
from niwaki.surgery.reaching import reaching
from niwaki.surgery.rules import operator_of
from niwaki.surgery.trace import Call, shape_of


@dataclass(frozen=True)
class Site:
    """One parameter axis that is multiplied by gates.

    Args:
        name: the parameter.
        axis: from 0.
        elements: the gated atoms behind each index of the axis, `[size, k]`; 0 where there is none.
    """

    name: str
    axis: int
    elements: np.ndarray[Any, np.dtype[np.int64]]


def sites(axes: Axes, groups: Sequence[Group]) -> tuple[list[Site], dict[int, str]]:
    """Every site of the groups' atoms, and the atoms that no weight can switch off, with the reason."""
    gated = {atom for group in groups for atom in group.atoms}
    found: dict[tuple[str, int], Site] = {}
    missed: dict[int, str] = {}
    for place in places(axes):
        atoms = set(place.atoms) & gated
        if not atoms:
            continue
        here = _at(axes, place, atoms)
        if not here:
            missed |= dict.fromkeys(atoms, f"{operator_of(place.call)} combines it without a weight")
        for site in here:
            known = found.get((site.name, site.axis))
            found[site.name, site.axis] = site if known is None else _both(known, site)
    reached = {int(atom) for site in found.values() for atom in np.unique(site.elements)}
    missed |= dict.fromkeys(gated - reached - set(missed), "no weight reads it")
    return list(found.values()), missed


def _both(one: Site, other: Site) -> Site:
    """A parameter axis that is used twice is multiplied once: elements of either."""
    columns = np.concatenate([one.elements, other.elements], axis=1)
    fresh = [columns[:, 0]]
    for column in columns.T[1:]:
        seen = np.zeros(len(column), bool)
        for known in fresh:
            seen |= known == column
        fresh.append(np.where(seen, 0, column))
    kept = [column for column in fresh if column.any()]
    return Site(one.name, one.axis, np.stack(kept, axis=1))


def _at(axes: Axes, place: Place, atoms: set[int]) -> list[Site]:
    name = operator_of(place.call)
    if name in REDUCE:
        return []
    weight, axis = _reader(place, name)
    if weight is not None and weight.op == "placeholder":
        dims = len(shape_of(weight.meta["val"]))
        return _of_axis(axes, weight, axis % dims, atoms)
    return _of_source(axes, place.value, atoms)


def _reader(place: Place, name: str) -> tuple[Call | None, int]:
    """The weight that a call contracts its input with, and along which axis."""
    call = place.call
    if name == "linear":
        return call.args[1], -1
    if name in CONV:
        transposed = "transpose" in str(call.target) or (name == "convolution" and bool(call.args[6]))
        return call.args[1], 0 if transposed else 1
    pair = call.args[1:3] if name in ("addmm", "baddbmm") else call.args[:2]
    if name not in ("matmul", "mm", "bmm", "addmm", "baddbmm"):
        return None, 0
    if place.value is pair[1]:
        return pair[0], -1
    return pair[1], -1 if len(shape_of(pair[1].meta["val"])) == 1 else -2


def _of_axis(axes: Axes, weight: Call, axis: int, atoms: set[int], rows: Any = None) -> list[Site]:
    name = axes.traced.names.get(weight.name, "")
    if name not in axes.traced.program.graph_signature.inputs_to_parameters.values():
        return []
    elements = axes.elements(name)[axis]
    if elements is None:
        return []
    chosen = np.where(np.isin(elements, list(atoms)), elements, 0)
    if rows is not None:
        chosen[~rows] = 0
    return [Site(name, axis, chosen)] if chosen.any() else []


def _of_source(axes: Axes, value: Call, atoms: set[int]) -> list[Site]:
    """The rows of the layer's weight and bias that end in an activation."""
    path: list[Call] = []
    node = value
    while operator_of(node) not in ("linear", "conv1d", "conv2d", "conv3d"):
        inputs = [x for x in node.all_input_nodes if x.op == "call_function"]
        if node.op != "call_function" or not inputs:
            return []
        path.append(node)
        node = inputs[0]
    rows = reaching(node, path[::-1]).numpy()
    held = [x for x in node.args[1:3] if isinstance(x, fx.Node) and x.op == "placeholder"]
    return [site for x in held for site in _of_axis(axes, x, 0, atoms, rows)]
