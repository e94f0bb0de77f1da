"""Rules of operators that leave axes where they are: elementwise calls, norms, pools and reductions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from niwaki.surgery import operators
from niwaki.surgery.rules.calls import Rows, argument, axes_of, operator_of, sizes_of
from niwaki.surgery.trace import Call, shape_of

if TYPE_CHECKING:
    from niwaki.surgery.axes import Walk


def same(walk: Walk, node: Call) -> Rows:
    """The output has its first input's axes (elementwise in one tensor, clone, softmax, ...)."""
    return list(axes_of(walk, node.args[0]))


def elementwise(walk: Walk, node: Call) -> Rows:
    """Inputs broadcast against each other; axes of equal size are tied."""
    shape = sizes_of(node)
    out: Rows = [None] * len(shape)
    seen = [False] * len(shape)
    for x in walk.tensors_of(node):
        sizes = sizes_of(x)
        for back in range(1, len(sizes) + 1):
            axis = axes_of(walk, x)[-back]
            if sizes[-back] == 1:  # one channel cut out of several: without it there is nothing to broadcast
                walk.atoms.keep(axis)
            if sizes[-back] != shape[-back] or shape[-back] == 1:
                continue
            if seen[-back]:
                walk.atoms.tie(out[-back], axis)
                out[-back] = walk.atoms.resolve(axis)
            else:
                out[-back], seen[-back] = axis, True
    return out


def channel_norm(walk: Walk, node: Call) -> Any:
    """batch_norm and instance_norm: weight, bias and statistics belong to axis 1.

    Statistics that are taken from the values themselves are those of the kept elements.
    """
    axes = axes_of(walk, node.args[0])
    for x in walk.tensors_of(node)[1:]:
        walk.atoms.tie(axes[1], axes_of(walk, x)[0])
    out, value = [axes[0], walk.atoms.resolve(axes[1]), *axes[2:]], node.meta["val"]
    if not isinstance(value, (tuple, list)):
        return out
    return [
        out,
        *[[out[1] if size == sizes_of(node.args[0])[1] else None for size in shape_of(v)] for v in value[1:]],
    ]


def last_norm(walk: Walk, node: Call) -> Any:
    """layer_norm, rms_norm: weight and bias belong to the last axes; statistics over the kept ones."""
    axes = axes_of(walk, node.args[0])
    for x in walk.tensors_of(node)[1:]:
        own = axes_of(walk, x)
        for back in range(1, len(own) + 1):
            walk.atoms.tie(axes[-back], own[-back])
    return list(axes)


def group_norm(walk: Walk, node: Call) -> Rows:
    """Axis 1 is groups x channels of a group."""
    axes, size = axes_of(walk, node.args[0]), sizes_of(node)[1]
    groups = int(node.args[1])
    for x in walk.tensors_of(node)[1:]:
        walk.atoms.tie(axes[1], axes_of(walk, x)[0])
    if groups > 1:
        outer, inner = walk.atoms.split(axes[1], [groups, size // groups])
        walk.factors(outer, inner)
    return [axes[0], walk.atoms.resolve(axes[1]), *axes[2:]]


def pool(walk: Walk, node: Call) -> Any:
    """Pooling and upsampling: batch and channels pass, spatial axes stay whole."""
    axes = axes_of(walk, node.args[0])
    value = node.meta["val"]
    shape = shape_of(value[0] if isinstance(value, (tuple, list)) else value)
    spatial = 1 if "1d" in str(node.target) else 3 if "3d" in str(node.target) else 2
    for axis in axes[len(axes) - spatial :]:
        walk.atoms.keep(axis)
    out = [*axes[: len(axes) - spatial], *[None] * spatial]
    assert len(out) == len(shape)
    return [out, list(out)] if isinstance(value, (tuple, list)) else out


def reduce(walk: Walk, node: Call) -> Any:
    """mean, sum, amax, var, ...: over a pruned axis the kept elements are what is reduced."""
    axes = axes_of(walk, node.args[0])
    dims = argument(node, 2 if operator_of(node) in operators.ORDERED else 1, "dim")
    dims = range(len(axes)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {d % len(axes) for d in dims} if axes else set()
    value = node.meta["val"]
    shape = shape_of(value[0] if isinstance(value, (tuple, list)) else value)
    if len(shape) == len(axes):
        out = [None if d in gone else axis for d, axis in enumerate(axes)]
    else:
        out = [axis for d, axis in enumerate(axes) if d not in gone]
    return [out, list(out)] if isinstance(value, (tuple, list)) else out


def positional(walk: Walk, node: Call) -> Any:
    """Results that depend on the places along an axis (argmax, cumsum, triangles): it stays whole."""
    axes = axes_of(walk, node.args[0])
    for d in _ordered(node, len(axes)):
        walk.atoms.keep(axes[d])
    return reduce(walk, node) if operator_of(node) in ("argmax", "argmin") else list(axes)


def _ordered(node: Call, rank: int) -> list[int]:
    if operator_of(node) in ("tril", "triu"):
        return [rank - 2, rank - 1]
    dim = argument(node, 1, "dim")
    return list(range(rank)) if dim is None else [int(dim) % rank]
