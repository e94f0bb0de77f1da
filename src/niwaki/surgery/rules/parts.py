"""Rules of operators that take parts of axes or add to them: splits, slices, padding, look-ups."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from niwaki.surgery.rules.calls import Rows, argument, axes_of, operator_of, sizes_of
from niwaki.surgery.rules.shapes import join
from niwaki.surgery.trace import Call, shape_of

if TYPE_CHECKING:
    from niwaki.surgery.axes import Walk


def pieces(walk: Walk, node: Call) -> list[Rows]:
    """chunk, split: consecutive parts. Equal parts of a chunk must shrink alike, so they are tied."""
    axes = axes_of(walk, node.args[0])
    shapes = [shape_of(v) for v in node.meta["val"]]
    name = str(node.target)
    dim = int(argument(node, 2, "dim", 0)) % len(axes)
    sizes = [s[dim] for s in shapes]
    cuts = [0, *np.cumsum(sizes)]
    whole = walk.atoms.resolve(axes[dim])
    parts = [None if whole is None else whole[a:b] for a, b in itertools.pairwise(cuts)]
    if "split_with_sizes" not in name and whole is not None:
        for part, size in zip(parts[1:], sizes[1:], strict=True):
            if size == sizes[0]:
                walk.atoms.tie(parts[0], part)
            else:
                walk.atoms.keep(whole)
    return [[part if d == dim else a for d, a in enumerate(axes)] for part in parts]


def unbind(walk: Walk, node: Call) -> list[Rows]:
    """Each index of an axis on its own: the axis stays whole."""
    axes = axes_of(walk, node.args[0])
    dim = int(argument(node, 1, "dim", 0)) % len(axes)
    walk.atoms.keep(axes[dim])
    return [[a for d, a in enumerate(axes) if d != dim] for _ in node.meta["val"]]


def select(walk: Walk, node: Call) -> Rows:
    """One index of an axis: the axis stays whole."""
    axes = axes_of(walk, node.args[0])
    dim = int(node.args[1]) % len(axes)
    walk.atoms.keep(axes[dim])
    return [a for d, a in enumerate(axes) if d != dim]


def slice_(walk: Walk, node: Call) -> Rows:
    """A range of an axis."""
    out = list(axes_of(walk, node.args[0]))
    dim = int(argument(node, 1, "dim", 0)) % len(out)
    size = sizes_of(node.args[0])[dim]
    start, end, step = (argument(node, p, n) for p, n in ((2, "start"), (3, "end"), (4, "step")))
    if size == sizes_of(node)[dim] or out[dim] is None:
        return out
    whole = walk.atoms.resolve(out[dim])
    bounds = slice(*(v if isinstance(v, int) else None for v in (start, end, step)))
    if step not in (None, 1):
        walk.atoms.keep(whole)  # a strided range of fewer channels would take others
    out[dim] = None if whole is None else whole[bounds]
    return out


def pad(walk: Walk, node: Call) -> Rows:
    """Constant padding: added elements are free; other modes keep the padded axes."""
    out = list(axes_of(walk, node.args[0]))
    amounts = [int(a) for a in node.args[1]]
    constant = "constant" in str(node.target) or argument(node, 2, "mode", "constant") == "constant"
    sizes = sizes_of(node.args[0])
    for back in range(1, len(amounts) // 2 + 1):
        before, after = amounts[2 * back - 2 : 2 * back]
        if before == after == 0:
            continue
        axis = walk.atoms.resolve(out[-back])
        if not constant or min(before, after) < 0 or axis is None:
            walk.atoms.keep(axis)
            out[-back] = None
        else:
            size = sizes[-back]
            ends = [(before, walk.free(before)), (size, axis), (after, walk.free(after))]
            out[-back] = join([(n, a) for n, a in ends if n])
    return out


def embedding(walk: Walk, node: Call) -> Rows:
    """Rows of a table: the row axis stays, the width passes."""
    table, index = node.args[0], node.args[1]
    walk.atoms.keep(axes_of(walk, table)[0])
    return [*axes_of(walk, index), axes_of(walk, table)[1]]


def index(walk: Walk, node: Call) -> Rows:
    """x[i, :, j]: indexed axes stay whole, the others pass."""
    axes, picks = axes_of(walk, node.args[0]), list(node.args[1])
    picked = [d for d, pick in enumerate(picks) if pick is not None]
    for d in picked:
        walk.atoms.keep(axes[d])
        for axis in axes_of(walk, picks[d]):
            walk.atoms.keep(axis)
    rest = [a for d, a in enumerate(axes) if d not in picked]
    rank = len(sizes_of(node)) - len(rest)
    together = picked == list(range(picked[0], picked[-1] + 1))
    before = picked[0] if together else 0
    return [*rest[:before], *[None] * rank, *rest[before:]]


def take(walk: Walk, node: Call) -> Rows:
    """index_select, gather, take_along_dim and their like: the axis picked from stays whole, others pass."""
    axes = axes_of(walk, node.args[0])
    dim = int(argument(node, 1, "dim", 0)) % max(1, len(axes))
    walk.atoms.keep(axes[dim])
    picks = axes_of(walk, node.args[2])
    if len(picks) != len(axes) or operator_of(node) == "index_select":
        return [None if d == dim else axis for d, axis in enumerate(axes)]
    for d, pick in enumerate(picks):
        for axis in (pick, axes[d]):
            walk.atoms.keep(axis)
    return [None] * len(sizes_of(node))


def grid_sample(walk: Walk, node: Call) -> Rows:
    """`[B, C, H, W]` sampled at `[B, h, w, 2]`: channels pass, places stay whole."""
    x, grid = axes_of(walk, node.args[0]), axes_of(walk, node.args[1])
    for axis in (*x[2:], *grid[1:]):
        walk.atoms.keep(axis)
    return [*x[:2], *[None] * (len(x) - 2)]


def topk(walk: Walk, node: Call) -> list[Rows]:
    """The axis that is ranked stays whole, others pass; values and places alike."""
    axes = list(axes_of(walk, node.args[0]))
    dim = int(argument(node, 2, "dim", -1)) % len(axes)
    walk.atoms.keep(axes[dim])
    axes[dim] = None
    return [axes, list(axes)]


def scatter(walk: Walk, node: Call) -> Rows:
    """A tensor with single elements written over: all axes stay whole."""
    for x in walk.tensors_of(node):
        for axis in axes_of(walk, x):
            walk.atoms.keep(axis)
    return [None] * len(sizes_of(node))


def windows(walk: Walk, node: Call) -> Rows:
    """unfold: windows of one axis, which stays whole, on a new last axis."""
    axes = list(axes_of(walk, node.args[0]))
    dim = int(node.args[1]) % len(axes)
    walk.atoms.keep(axes[dim])
    axes[dim] = None
    return [*axes, None]


def gated(walk: Walk, node: Call) -> Rows:
    """glu: the first half of an axis times the sigmoid of the second."""
    axes = list(axes_of(walk, node.args[0]))
    dim = int(argument(node, 1, "dim", -1)) % len(axes)
    whole = walk.atoms.resolve(axes[dim])
    if whole is not None:
        half = len(whole) // 2
        walk.atoms.tie(whole[:half], whole[half:])
        axes[dim] = walk.atoms.resolve(whole[:half])
    return axes


def slice_scatter(walk: Walk, node: Call) -> Rows:
    """A range of an axis written over with another tensor's elements; the other axes are tied."""
    x, source = node.args[0], node.args[1]
    out, new = list(axes_of(walk, x)), axes_of(walk, source)
    dim = int(argument(node, 2, "dim", 0)) % len(out)
    start, end, step = (argument(node, p, n) for p, n in ((3, "start"), (4, "end"), (5, "step")))
    for d, axis in enumerate(new):
        if d != dim:
            walk.atoms.tie(out[d], axis)
    size = sizes_of(x)[dim]
    if sizes_of(source)[dim] == size:
        out[dim] = walk.atoms.resolve(new[dim])
        return out
    if step not in (None, 1) or not all(b is None or isinstance(b, int) for b in (start, end)):
        walk.atoms.keep(out[dim])
        walk.atoms.keep(new[dim])
        return out
    first, last, _ = slice(start, end).indices(size)
    old, written = walk.atoms.resolve(out[dim]), walk.atoms.resolve(new[dim])
    before, after = (None, None) if old is None else (old[:first], old[last:])
    parts = [(first, before), (last - first, written), (size - last, after)]
    out[dim] = join([(n, axis) for n, axis in parts if n])
    return out
