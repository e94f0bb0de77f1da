"""Rules of operators that move axes or regroup them: views, permutes, concatenation, shuffles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from niwaki.surgery.atoms import Atoms, Axis
from niwaki.surgery.rules.calls import Rows, argument, axes_of, sizes_of, unknown
from niwaki.surgery.trace import Call

if TYPE_CHECKING:
    from niwaki.surgery.axes import Walk


def permute(walk: Walk, node: Call) -> Rows:
    """Rows in another order."""
    axes = axes_of(walk, node.args[0])
    return [axes[d] for d in node.args[1]]


def transpose(walk: Walk, node: Call) -> Rows:
    """Two axes swapped (t: the only two)."""
    axes = list(axes_of(walk, node.args[0]))
    if len(axes) < 2:
        return axes
    a, b = (node.args[1], node.args[2]) if len(node.args) > 2 else (0, 1)
    axes[a], axes[b] = axes[b], axes[a]
    return axes


def view(walk: Walk, node: Call) -> Rows:
    """view, reshape, flatten, unflatten, squeeze, unsqueeze: row-major regrouping of axes."""
    x = node.args[0]
    return regroup(walk.atoms, axes_of(walk, x), sizes_of(x), sizes_of(node))


def regroup(atoms: Atoms, axes: Rows, before: Sequence[int], after: Sequence[int]) -> Rows:
    """The axes of a row-major reshape from sizes `before` to sizes `after`."""
    out: Rows = [None] * len(after)
    i = j = 0
    while i < len(before) and j < len(after):
        ins, outs = [i], [j]
        i, j = i + 1, j + 1
        while True:
            have, want = math.prod(before[d] for d in ins), math.prod(after[d] for d in outs)
            if have == want:
                break
            if have < want:
                ins, i = [*ins, i], i + 1
            else:
                outs, j = [*outs, j], j + 1
        if len(ins) == len(outs) == 1:
            out[outs[0]] = axes[ins[0]]
            continue
        flat = atoms.merge([(before[d], axes[d]) for d in ins])
        for d, axis in zip(outs, atoms.split(flat, [after[d] for d in outs]), strict=True):
            out[d] = axis
    return out


def expand(walk: Walk, node: Call) -> Rows:
    """A repeated size-1 axis is all the same value, so any part of it will do."""
    x, shape = node.args[0], sizes_of(node)
    own, sizes = axes_of(walk, x), sizes_of(x)
    lead = len(shape) - len(sizes)
    out: Rows = []
    for d, size in enumerate(shape):
        kept = d >= lead and sizes[d - lead] == size
        out.append(own[d - lead] if kept else walk.atoms.fresh(size) if d > 0 else None)
    return out


def repeat(walk: Walk, node: Call) -> Rows:
    """Rows tiled whole."""
    x = node.args[0]
    own, sizes, times = axes_of(walk, x), sizes_of(x), list(node.args[1])
    lead = len(times) - len(sizes)
    out: Rows = []
    for d, size in enumerate(sizes_of(node)):
        count = size if d < lead else size // sizes[d - lead]
        axis = None if d < lead else own[d - lead]
        out.append(walk.atoms.merge([(count, None), (size // count, axis)]))
    return out


def cat(walk: Walk, node: Call) -> Rows:
    """Along one axis the parts follow each other; the other axes are tied."""
    parts = [x for x in node.args[0] if sizes_of(x) != (0,)]
    dim = int(argument(node, 1, "dim", 0)) % len(sizes_of(node))
    out = list(axes_of(walk, parts[0]))
    for x in parts[1:]:
        for d, axis in enumerate(axes_of(walk, x)):
            if d != dim:
                walk.atoms.tie(out[d], axis)
    out[dim] = join([(sizes_of(x)[dim], walk.atoms.resolve(axes_of(walk, x)[dim])) for x in parts])
    return out


def join(parts: Sequence[tuple[int, Axis]]) -> Axis:
    """Rows given as (size, axis), one after the other."""
    if all(axis is None for _, axis in parts):
        return None
    width = max(axis.shape[1] for _, axis in parts if axis is not None)
    rows = [
        np.zeros((size, width), np.int64)
        if axis is None
        else np.pad(axis, ((0, 0), (0, width - axis.shape[1])))
        for size, axis in parts
    ]
    return np.concatenate(rows)


def stack(walk: Walk, node: Call) -> Rows:
    """Tensors side by side on a new axis that stays whole."""
    parts = list(node.args[0])
    dim = int(argument(node, 1, "dim", 0)) % len(sizes_of(node))
    out = list(axes_of(walk, parts[0]))
    for x in parts[1:]:
        for kept, axis in zip(out, axes_of(walk, x), strict=True):
            walk.atoms.tie(kept, axis)
    return [*out[:dim], None, *out[dim:]]


def unfold(walk: Walk, node: Call) -> Rows:
    """im2col: channels x kernel positions on axis 1."""
    axes = axes_of(walk, node.args[0])
    for axis in axes[2:]:
        walk.atoms.keep(axis)
    channels, size = sizes_of(node.args[0])[1], sizes_of(node)[1]
    return [axes[0], walk.atoms.merge([(channels, axes[1]), (size // channels, None)]), None]


def pixel_shuffle(walk: Walk, node: Call) -> Rows:
    """`[.., C r r, H, W] -> [.., C, H r, W r]`."""
    axes, r = axes_of(walk, node.args[0]), int(node.args[1])
    channels = sizes_of(node)[-3]
    outer, inner = walk.atoms.split(axes[-3], [channels, r * r])
    for axis in (inner, axes[-1], axes[-2]):
        walk.atoms.keep(axis)
    return [*axes[:-3], walk.atoms.resolve(outer), None, None]


def pixel_unshuffle(walk: Walk, node: Call) -> Rows:
    """`[.., C, H r, W r] -> [.., C r r, H, W]`."""
    axes, r = axes_of(walk, node.args[0]), int(node.args[1])
    for axis in axes[-2:]:
        walk.atoms.keep(axis)
    merged = walk.atoms.merge([(sizes_of(node.args[0])[-3], axes[-3]), (r * r, None)])
    return [*axes[:-3], merged, None, None]


def channel_shuffle(walk: Walk, node: Call) -> Rows:
    """Groups x channels to channels x groups on axis 1."""
    axes, groups, size = axes_of(walk, node.args[0]), int(node.args[1]), sizes_of(node)[1]
    outer, inner = walk.atoms.split(axes[1], [groups, size // groups])
    walk.atoms.keep(outer)
    return [axes[0], walk.atoms.merge([(size // groups, inner), (groups, outer)]), *axes[2:]]


def flip(walk: Walk, node: Call) -> Rows:
    """Rows back to front."""
    out = list(axes_of(walk, node.args[0]))
    for d in node.args[1]:
        axis = walk.atoms.resolve(out[d])
        out[d] = None if axis is None else axis[::-1]
    return out


def roll(walk: Walk, node: Call) -> Rows:
    """Axes turned round by fixed shifts: the turned ones stay whole."""
    axes = list(axes_of(walk, node.args[0]))
    dims = list(argument(node, 2, "dims", ()) or range(len(axes)))
    for d in dims:
        walk.atoms.keep(axes[d])
    return axes


def movedim(walk: Walk, node: Call) -> Rows:
    """Some axes moved to other places, the others in order."""
    axes = axes_of(walk, node.args[0])
    given = [[d] if isinstance(d, int) else list(d) for d in node.args[1:3]]
    source, target = ([d % len(axes) for d in dims] for dims in given)
    moved = dict(zip(target, source, strict=True))
    rest = iter(d for d in range(len(axes)) if d not in source)
    return [axes[moved[d] if d in moved else next(rest)] for d in range(len(axes))]


def repeat_interleave(walk: Walk, node: Call) -> Rows:
    """Each index of one axis several times in a row."""
    axes = list(axes_of(walk, node.args[0]))
    times, dim = argument(node, 1, "repeats"), argument(node, 2, "dim")
    if not isinstance(times, int) or not isinstance(dim, int):
        return unknown(walk, node)  # type: ignore[no-any-return]
    axes[dim] = walk.atoms.merge([(sizes_of(node.args[0])[dim], axes[dim]), (times, None)])
    return axes
