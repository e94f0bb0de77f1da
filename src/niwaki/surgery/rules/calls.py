"""Reading one call of a graph: its inputs' axes, its sizes, its arguments, its operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from niwaki.surgery.atoms import Axis
from niwaki.surgery.trace import Call, shape_of

if TYPE_CHECKING:
    from niwaki.surgery.axes import Walk

Rows = list[Axis]


def axes_of(walk: Walk, node: Any) -> Rows:
    """The axes of a value, one a dimension."""
    axes: Rows = walk.axes[node]
    return axes


def sizes_of(node: Call) -> tuple[int, ...]:
    """The shape of a value, of the graph's own batch."""
    return shape_of(node.meta["val"])


def argument(node: Call, place: int, name: str, default: Any = None) -> Any:
    """An argument of a call, given by place or by name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def operator_of(node: Call) -> str:
    """`conv2d` of `aten.conv2d.default`."""
    packet = getattr(node.target, "overloadpacket", None)
    return str(getattr(packet, "__name__", node.target))


def unknown(walk: Walk, node: Call) -> Any:
    """No rule: every axis of every input stays whole, and the operator is named."""
    touched = [axis for x in walk.tensors_of(node) for axis in axes_of(walk, x)]
    walk.unprunable(node, touched)
    for axis in touched:
        walk.atoms.keep(axis)
    value = node.meta["val"]
    if isinstance(value, (tuple, list)):
        return [[None] * len(shape_of(v)) if hasattr(v, "shape") else None for v in value]
    return [None] * len(shape_of(value)) if hasattr(value, "shape") else None
