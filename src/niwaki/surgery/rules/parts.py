"""Rules of operators that take parts of axes or add to them: splits, slices, padding, look-ups."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from niwaki.surgery.rules.calls import Rows, argument, axes_of, sizes_of
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
