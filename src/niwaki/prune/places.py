"""Where channels count: the calls that sum or average over a prunable axis, and which atoms each one takes in.

A channel acts on the network's output only through calls that combine channels: convolutions, linear layers,
matrix products, attention scores, means over channels. Everything else (norms, activations, pooling, adding,
reshaping) hands the channel on. Multiplying these calls' inputs by a mask of ones therefore gives each atom one
switch on every path, and the loss's gradient with respect to it is what scores made from data are built on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from niwaki.surgery import Axes
from niwaki.surgery.operators import CONV, REDUCE
from niwaki.surgery.rules import operator_of
from niwaki.surgery.trace import Call, shape_of

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Place:
    """One axis of one call's input over which the call combines channels.

    Args:
        call: the graph node.
        value: its input, a node too.
        dim: the axis of `value`, from 0.
        elements: the atoms behind each index of the axis, `[size, k]`; 0 where there is none.
        atoms: those of them that the call combines (a grouped convolution hands its groups on).
    """

    call: Call
    value: Call
    dim: int
    elements: Ints
    atoms: frozenset[int]

    @property
    def batch(self) -> int | None:
        """The axis that the images lie along, `[.., images x rest, ..]`; None where it cannot be told."""
        sizes = self.value.meta["val"].shape
        varying = [d for d, size in enumerate(sizes) if not isinstance(size, int)]
        return varying[0] if len(varying) == 1 and varying[0] != self.dim else None


def places(axes: Axes) -> tuple[Place, ...]:
    """Every place of a model where channels are combined, in the order of its graph."""
    out = []
    for call in axes.traced.graph.nodes:
        if call.op != "call_function":
            continue
        for value, dim, taken in _combined(axes, call):
            dim %= len(shape_of(value.meta["val"]))
            elements = axes.resolve(axes.axes_of(value)[dim])
            atoms = _numbers(elements) if taken is None else taken
            if elements is not None and atoms:
                out.append(Place(call, value, dim, elements, frozenset(atoms)))
    return tuple(out)


def _numbers(elements: Ints | None) -> set[int]:
    return set() if elements is None else set(elements.ravel().tolist()) - {0}


def _combined(axes: Axes, call: Call) -> Sequence[tuple[Call, int, set[int] | None]]:
    """(input, axis, atoms) of a call; atoms None: all of the axis."""
    name = operator_of(call)
    if name in CONV:
        return [(call.args[0], 1, _of_convolution(axes, call))]
    if name == "linear":
        return [(call.args[0], -1, None)]
    if name in ("matmul", "mm", "bmm"):
        return [_of_product(call.args[0], call.args[1])]
    if name in ("addmm", "baddbmm"):
        return [_of_product(call.args[1], call.args[2])]
    if name == "scaled_dot_product_attention":
        return [(call.args[0], -1, None)]
    if name == "einsum":
        return _of_einsum(call)
    if name in REDUCE:
        return [(call.args[0], dim, None) for dim in _reduced(call)]
    return []


def _of_convolution(axes: Axes, call: Call) -> set[int]:
    """Input channels that are summed over; of a depthwise convolution none."""
    weight = call.args[1]
    given = _numbers(axes.resolve(axes.axes_of(call.args[0])[1]))
    inputs, channels = shape_of(weight.meta["val"])[:2], shape_of(call.args[0].meta["val"])[1]
    transposed = "transpose" in str(call.target) or (operator_of(call) == "convolution" and bool(call.args[6]))
    if not transposed:
        return given & _numbers(axes.resolve(axes.axes_of(weight)[1]))
    ungrouped = shape_of(call.meta["val"])[1] == inputs[1] and channels == inputs[0]
    return given if ungrouped else given - _numbers(axes.resolve(axes.axes_of(call)[1]))


def _varies(value: Call) -> bool:
    return any(not isinstance(size, int) for size in value.meta["val"].shape)


def _of_product(a: Call, b: Call) -> tuple[Call, int, None]:
    """One factor is enough: a product of two masked factors would count the mask twice."""
    last = len(shape_of(b.meta["val"])) == 1
    return (b, -1 if last else -2, None) if _varies(b) and not _varies(a) else (a, -1, None)


def _of_einsum(call: Call) -> list[tuple[Call, int, None]]:
    left, _, right = str(call.args[0]).replace(" ", "").partition("->")
    if "." in left or not right:
        return []
    out = []
    parts = list(zip(left.split(","), call.args[1], strict=True))
    for letter in sorted(set(left) - set(right) - {","}):
        having = [(names, x) for names, x in parts if letter in names]
        names, x = next((part for part in having if _varies(part[1])), having[0])
        out.append((x, names.index(letter), None))
    return out


def _reduced(call: Call) -> list[int]:
    rank = len(shape_of(call.args[0].meta["val"]))
    dims = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim")
    if dims is None or dims == [] or isinstance(dims, bool):
        return list(range(rank))
    return [dims] if isinstance(dims, int) else list(dims)
