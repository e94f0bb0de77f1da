"""Sizes inside the calls of a graph, before a cut and after it.

`sizes` reads the numbers of a call that say how large something is: what attributes of the user's class are
mended from. `call` is the whole call with every such number made right: what a graph result consists of.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx

from niwaki.errors import ModelError
from niwaki.surgery.axes import Axes
from niwaki.surgery.rules import operator_of
from niwaki.surgery.trace import Call, shape_of

Alive = Any
"""For each atom number whether it stays, as `Axes.alive` gives it."""

_SIZED = ("view", "reshape", "_unsafe_view", "expand", "unflatten")
_PIECES = ("chunk", "unsafe_chunk", "split", "unsafe_split", "tensor_split", "split_with_sizes")
_CONV = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


def sizes(node: Call, axes: Axes, alive: Alive) -> tuple[list[int], list[int]]:
    """The numbers in a call that are sizes, as they were and as they have to be."""
    operator = operator_of(node)
    if operator in _SIZED:
        return list(shape_of(node.meta["val"])), list(axes.shape(node, alive))
    if operator == "split_with_sizes":
        return piece_sizes(node, axes, alive)
    if operator == "split":
        before, after = piece_sizes(node, axes, alive)
        return (before[:1], after[:1]) if len(set(after)) == 1 else ([], [])
    if operator in ("slice", "narrow"):
        return _bounds(node, axes, alive)
    if operator in ("constant_pad_nd", "pad"):
        return _pad_amounts(node, axes, alive)
    return [], []


def dim_of(node: Call, place: int) -> int:
    """A call's `dim`, counted from the front of its first input."""
    dim = node.args[place] if len(node.args) > place else node.kwargs.get("dim", 0)
    return int(dim) % len(shape_of(node.args[0].meta["val"]))


def _stays(axes: Axes, node: Call, dim: int, alive: Alive) -> Any:
    axis = axes.resolve(axes.axes_of(node)[dim])
    return None if axis is None else alive[axis].all(1)


def piece_sizes(node: Call, axes: Axes, alive: Alive) -> tuple[list[int], list[int]]:
    """Lengths of the pieces that chunk or split cuts, before and after."""
    dim = dim_of(node, 2)
    before = [shape_of(piece)[dim] for piece in node.meta["val"]]
    stays = _stays(axes, node.args[0], dim, alive)
    if stays is None:
        return before, before
    return before, [int(part.sum()) for part in np.split(stays, np.cumsum(before)[:-1])]


def _bounds(node: Call, axes: Axes, alive: Alive) -> tuple[list[int], list[int]]:
    """Start and end of a slice, or start and length of a narrow."""
    dim = dim_of(node, 1)
    size = shape_of(node.args[0].meta["val"])[dim]
    stays = _stays(axes, node.args[0], dim, alive)
    numbers = [b for b in node.args[2:4] if isinstance(b, int)]
    if stays is None or len(numbers) != len(node.args[2:4]):
        return [], []
    narrow = operator_of(node) == "narrow"
    if narrow:
        numbers[1] += numbers[0]
    numbers = [min(b % size if b < 0 else b, size) for b in numbers]
    after = [int(stays[:b].sum()) for b in numbers]
    if narrow:
        return [numbers[0], numbers[1] - numbers[0]], [after[0], after[1] - after[0]]
    return numbers, after


def _pad_amounts(node: Call, axes: Axes, alive: Alive) -> tuple[list[int], list[int]]:
    amounts = [int(a) for a in node.args[1]]
    out = list(amounts)
    for back in range(1, len(amounts) // 2 + 1):
        before, after = amounts[2 * back - 2 : 2 * back]
        stays = _stays(axes, node, -back, alive) if before + after else None
        if stays is not None:
            out[2 * back - 2 : 2 * back] = [
                int(stays[:before].sum()),
                int(stays[len(stays) - after :].sum()),
            ]
    return amounts, out


def kept_groups(node: Call, axes: Axes, alive: Alive) -> int:
    """How many groups a group norm has left."""
    groups = int(node.args[1])
    stays = _stays(axes, node.args[0], 1, alive)
    return groups if stays is None else int(stays.reshape(groups, -1).any(1).sum())


def call(node: Call, axes: Axes, alive: Alive) -> tuple[str | None, list[Any], dict[str, Any]]:
    """(another operator to call or None, arguments, keywords) of a call after the cut; `fx.Node`s stand for
    the values they make.

    Raises:
        ModelError: a size that changes is computed by the graph itself. [prune-unmendable]
    """
    args, kwargs = list(node.args), dict(node.kwargs)
    rewrite = _REWRITES.get(operator_of(node))
    target = rewrite(node, axes, alive, args, kwargs) if rewrite else None
    return target, args, kwargs


Rewrite = Callable[[Call, Axes, Alive, list[Any], dict[str, Any]], str | None]


def _shaped(place: int) -> Rewrite:
    """A list of sizes, one for each axis of the output (unflatten: for the new ones)."""

    def rewrite(node: Call, axes: Axes, alive: Alive, args: list[Any], kwargs: dict[str, Any]) -> None:
        before, after = shape_of(node.meta["val"]), axes.shape(node, alive)
        wanted = list(args[place])
        first = dim_of(node, 1) if operator_of(node) == "unflatten" else len(before) - len(wanted)
        for at in range(len(wanted)):
            if before[first + at] != after[first + at]:
                wanted[at] = _new_size(wanted[at], after[first + at])
        if sum(isinstance(w, int) and w == -1 for w in wanted) > 1 and operator_of(node) != "expand":
            known = [isinstance(s, int) for s in node.meta["val"].shape]
            wanted = [
                after[first + at] if w == -1 and args[place][at] == -1 and known[first + at] else w
                for at, w in enumerate(wanted)
            ]
        if sum(isinstance(w, int) and w == -1 for w in wanted) > 1 and operator_of(node) != "expand":
            raise _unmendable(node)
        args[place] = wanted

    return rewrite


def _new_size(old: Any, new: int) -> int:
    """A size that the graph computes (batch times heads) is left for the view to find."""
    return -1 if isinstance(old, fx.Node) or old == -1 else new


def _expanded(node: Call, axes: Axes, alive: Alive, args: list[Any], kwargs: dict[str, Any]) -> None:
    before, after = shape_of(node.meta["val"]), axes.shape(node, alive)
    pairs = list(zip(args[1], before, after, strict=True))
    if any(isinstance(old, fx.Node) and b != a for old, b, a in pairs):
        raise _unmendable(node)
    args[1] = [a if b != a and old != -1 else old for old, b, a in pairs]


def _made(node: Call, axes: Axes, alive: Alive, args: list[Any], kwargs: dict[str, Any]) -> None:
    """new_zeros and its like, zeros and its like: tensors of a given size."""
    place = 1 if operator_of(node).startswith("new_") else 0
    before, after = shape_of(node.meta["val"]), axes.shape(node, alive)
    if before != after:
        args[place] = [a if b != a else old for old, b, a in zip(args[place], before, after, strict=True)]


def _cut_pieces(node: Call, axes: Axes, alive: Alive, args: list[Any], kwargs: dict[str, Any]) -> str | None:
    before, after = piece_sizes(node, axes, alive)
    if before == after:
        return None
    args[:] = [args[0], after, dim_of(node, 2)]
    kwargs.clear()
    return "aten.split_with_sizes.default"


def _cut_range(node: Call, axes: Axes, alive: Alive, args: list[Any], kwargs: dict[str, Any]) -> None:
    before, after = _bounds(node, axes, alive)
    if before != after:
        args[2 : 2 + len(after)] = after


def _written(node: Call, axes: Axes, alive: Alive, args: list[Any], kwargs: dict[str, Any]) -> None:
    """slice_scatter: where the range that is written over begins and ends."""
    dim = dim_of(node, 2)
    stays = _stays(axes, node.args[0], dim, alive)
    source = axes.shape(node.args[1], alive)[dim]
    if stays is None and source == shape_of(node.args[1].meta["val"])[dim]:
        return
    size = shape_of(node.meta["val"])[dim]
    first = slice(*args[3:5]).indices(size)[0] if len(args) > 4 else slice(args[3], None).indices(size)[0]
    start = first if stays is None else int(stays[:first].sum())
    args[2:5] = [dim, start, start + source]


def _padded(node: Call, axes: Axes, alive: Alive, args: list[Any], kwargs: dict[str, Any]) -> None:
    before, after = _pad_amounts(node, axes, alive)
    if before != after:
        args[1] = after


def _convolved(node: Call, axes: Axes, alive: Alive, args: list[Any], kwargs: dict[str, Any]) -> None:
    place = 8 if operator_of(node) == "convolution" else 6
    groups = args[place] if len(args) > place else kwargs.get("groups", 1)
    if groups == 1:
        return
    before, after = shape_of(args[0].meta["val"])[1], axes.shape(args[0], alive)[1]
    weight = axes.shape(args[1], alive)
    turned = "transpose" in operator_of(node) or (place == 8 and bool(args[6]))
    new = max(1, groups * after // before) if turned else after // max(1, weight[1])
    if len(args) > place:
        args[place] = new
    else:
        kwargs["groups"] = new


def _normed(node: Call, axes: Axes, alive: Alive, args: list[Any], kwargs: dict[str, Any]) -> None:
    args[1] = list(axes.shape(args[0], alive)[-len(args[1]) :])


def _group_normed(node: Call, axes: Axes, alive: Alive, args: list[Any], kwargs: dict[str, Any]) -> None:
    args[1] = kept_groups(node, axes, alive)


def _attended(node: Call, axes: Axes, alive: Alive, args: list[Any], kwargs: dict[str, Any]) -> None:
    """The scale that followed from the head size stays what it was."""
    before, after = shape_of(args[0].meta["val"])[-1], axes.shape(args[0], alive)[-1]
    if before != after and kwargs.get("scale") is None:
        kwargs["scale"] = 1 / math.sqrt(before)


def _unmendable(node: Call) -> ModelError:
    return ModelError(
        f"{node.name}: the size that {node.target} is called with is computed by the graph and cannot be "
        "changed. Add the group to skip=.",
        code="prune-unmendable",
    )


_REWRITES: dict[str, Rewrite] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), _shaped(1)),
    "unflatten": _shaped(2),
    "expand": _expanded,
    "slice_scatter": _written,
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty"), _made),
    **dict.fromkeys(("zeros", "ones", "full", "empty"), _made),
    **dict.fromkeys(_PIECES, _cut_pieces),
    **dict.fromkeys(("slice", "narrow"), _cut_range),
    **dict.fromkeys(("constant_pad_nd", "pad"), _padded),
    **dict.fromkeys((*_CONV, "convolution"), _convolved),
    **dict.fromkeys(("layer_norm", "rms_norm", "native_layer_norm"), _normed),
    "group_norm": _group_normed,
    "scaled_dot_product_attention": _attended,
}
