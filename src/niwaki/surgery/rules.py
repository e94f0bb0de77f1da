"""What each ATen operator does to the axes of its tensors: one small function a kind of operator.

A rule gets the walk (whose `atoms` it ties) and the node, and returns the axes of the output. Rules are per
operator, never per model. An operator without a rule keeps every axis it touches, and is named by the report.
A new operator is one function here and one line in `RULES`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from niwaki.surgery import operators
from niwaki.surgery.atoms import Atoms, Axis
from niwaki.surgery.trace import Call, shape_of

if TYPE_CHECKING:
    from niwaki.surgery.axes import Walk

Axes = list[Axis]
Rule = Callable[["Walk", Call], Any]


def _axes(walk: Walk, node: Any) -> Axes:
    axes: Axes = walk.axes[node]
    return axes


def _shape(node: Call) -> tuple[int, ...]:
    return shape_of(node.meta["val"])


def _arg(node: Call, place: int, name: str, default: Any = None) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def same(walk: Walk, node: Call) -> Axes:
    """The output has its first input's axes (elementwise in one tensor, clone, softmax, ...)."""
    return list(_axes(walk, node.args[0]))


def elementwise(walk: Walk, node: Call) -> Axes:
    """Inputs broadcast against each other; axes of equal size are tied."""
    shape = _shape(node)
    out: Axes = [None] * len(shape)
    seen = [False] * len(shape)
    for x in walk.tensors_of(node):
        sizes = _shape(x)
        for back in range(1, len(sizes) + 1):
            if sizes[-back] != shape[-back] or shape[-back] == 1:
                continue
            axis = _axes(walk, x)[-back]
            if seen[-back]:
                walk.atoms.tie(out[-back], axis)
                out[-back] = walk.atoms.resolve(axis)
            else:
                out[-back], seen[-back] = axis, True
    return out


def convolution(walk: Walk, node: Call) -> Axes:
    """conv1d-3d and transposed ones: channels tied to the weight, groups as an outer axis of their own."""
    x, weight, bias = node.args[0], node.args[1], _arg(node, 2, "bias")
    name = str(node.target)
    transposed = "transpose" in name or (".convolution." in name and bool(node.args[6]))
    groups = int(_arg(node, 8 if ".convolution." in name else 6, "groups", 1))
    w = _axes(walk, weight)
    for axis in (*w[2:], *_axes(walk, x)[2:]):
        walk.atoms.keep(axis)
    channels, out = (w[0], w[1]) if transposed else (w[1], w[0])
    if groups == 1:
        walk.atoms.tie(_axes(walk, x)[1], channels)
    else:
        size = _shape(node)[1]
        out = _grouped(walk, x, channels, out, groups=groups, transposed=transposed, out_size=size)
    if bias is not None:
        walk.atoms.tie(out, _axes(walk, bias)[0])
    walk.contraction(node, x, weight, transposed=transposed)
    return [_axes(walk, x)[0], out, *[None] * (len(_shape(node)) - 2)]


def _grouped(
    walk: Walk, x: Call, channels: Axis, out: Axis, *, groups: int, transposed: bool, out_size: int
) -> Axis:
    atoms, size = walk.atoms, _shape(x)[1]
    outer, inner = atoms.split(_axes(walk, x)[1], [groups, size // groups])
    if transposed:  # weight [in, out / groups]: the input axis is the weight's first
        atoms.tie(channels, _axes(walk, x)[1])
        walk.factors(outer, out)
        return atoms.merge([(groups, outer), (out_size // groups, out)])
    if size // groups > 1:
        atoms.tie(inner, channels)
    out_outer, out_inner = atoms.split(out, [groups, out_size // groups])
    atoms.tie(outer, out_outer)
    walk.factors(outer, inner)
    walk.factors(outer, out_inner)
    return atoms.resolve(out)


def linear(walk: Walk, node: Call) -> Axes:
    """x `[..., I]`, weight `[O, I]`."""
    x, weight, bias = node.args[0], node.args[1], _arg(node, 2, "bias")
    w = _axes(walk, weight)
    walk.atoms.tie(_axes(walk, x)[-1], w[-1])
    if bias is not None and len(w) == 2:
        walk.atoms.tie(w[0], _axes(walk, bias)[0])
    walk.contraction(node, x, weight)
    return [*_axes(walk, x)[:-1], *w[:-1]]


def matmul(walk: Walk, node: Call) -> Axes:
    """`[..., M, K] @ [..., K, N]` with broadcast batch axes; mm and bmm as well."""
    a, b = node.args[0], node.args[1]
    return _product(walk, node, a, b)


def addmm(walk: Walk, node: Call) -> Axes:
    """bias + a @ b (addmm, baddbmm)."""
    out = _product(walk, node, node.args[1], node.args[2])
    shape, bias = _shape(node), node.args[0]
    for back in range(1, len(_shape(bias)) + 1):
        if _shape(bias)[-back] == shape[-back]:
            walk.atoms.tie(_axes(walk, bias)[-back], out[-back])
    return out


def _product(walk: Walk, node: Call, a: Any, b: Any) -> Axes:
    left, right = _axes(walk, a), _axes(walk, b)
    walk.atoms.tie(left[-1], right[-2] if len(right) > 1 else right[0])
    lead = _broadcast(walk, [(a, 2), (b, 2)]) if len(left) > 2 or len(right) > 2 else []
    walk.contraction(node, a, b, product=True)
    rows = [left[-2]] if len(left) > 1 else []
    columns = [right[-1]] if len(right) > 1 else []
    return [*lead, *rows, *columns]


def _broadcast(walk: Walk, parts: Sequence[tuple[Any, int]]) -> Axes:
    """Leading axes of several tensors, without the last `drop` of each, tied and broadcast."""
    shapes = [_shape(x)[: len(_shape(x)) - drop] for x, drop in parts]
    out: Axes = [None] * max(map(len, shapes))
    sizes = [1] * len(out)
    for (x, _), shape in zip(parts, shapes, strict=True):
        for back in range(1, len(shape) + 1):
            axis = _axes(walk, x)[len(shape) - back]
            if shape[-back] == 1:
                continue
            if sizes[-back] > 1:
                walk.atoms.tie(out[-back], axis)
            out[-back], sizes[-back] = axis, shape[-back]
    return out


def attention(walk: Walk, node: Call) -> Axes:
    """scaled_dot_product_attention: q `[..., L, E]`, k `[..., S, E]`, v `[..., S, V]`, mask `[..., L, S]`."""
    q, k, v = node.args[:3]
    mask = _arg(node, 3, "attn_mask")
    atoms = walk.atoms
    if node.kwargs.get("enable_gqa"):
        for x in (q, k, v):
            atoms.keep(_axes(walk, x)[-3])
    atoms.tie(_axes(walk, q)[-1], _axes(walk, k)[-1])
    atoms.tie(_axes(walk, k)[-2], _axes(walk, v)[-2])
    if _shape(q)[-1] == _shape(v)[-1]:  # one head size in the module's code, as a rule
        atoms.tie(_axes(walk, q)[-1], _axes(walk, v)[-1])
    lead = _broadcast(walk, [(q, 2), (k, 2), (v, 2), *([(mask, 2)] if mask is not None else [])])
    if mask is not None:
        for back, axis in ((1, _axes(walk, k)[-2]), (2, _axes(walk, q)[-2])):
            if _shape(mask)[-back] > 1:
                atoms.tie(_axes(walk, mask)[-back], axis)
    walk.contraction(node, q, k, attention=v)
    return [*lead, _axes(walk, q)[-2], _axes(walk, v)[-1]]


def channel_norm(walk: Walk, node: Call) -> Any:
    """batch_norm and instance_norm: weight, bias and statistics belong to axis 1."""
    axes = _axes(walk, node.args[0])
    for x in walk.tensors_of(node)[1:]:
        walk.atoms.tie(axes[1], _axes(walk, x)[0])
    out = list(axes)
    return [out, [None], [None]] if isinstance(node.meta["val"], (tuple, list)) else out


def last_norm(walk: Walk, node: Call) -> Any:
    """layer_norm, rms_norm: weight and bias belong to the last axes; statistics over the kept ones."""
    axes = _axes(walk, node.args[0])
    for x in walk.tensors_of(node)[1:]:
        own = _axes(walk, x)
        for back in range(1, len(own) + 1):
            walk.atoms.tie(axes[-back], own[-back])
    return list(axes)


def group_norm(walk: Walk, node: Call) -> Axes:
    """Axis 1 is groups x channels of a group."""
    axes, size = _axes(walk, node.args[0]), _shape(node)[1]
    groups = int(node.args[1])
    for x in walk.tensors_of(node)[1:]:
        walk.atoms.tie(axes[1], _axes(walk, x)[0])
    if groups > 1:
        outer, inner = walk.atoms.split(axes[1], [groups, size // groups])
        walk.factors(outer, inner)
    return [axes[0], walk.atoms.resolve(axes[1]), *axes[2:]]


def pool(walk: Walk, node: Call) -> Any:
    """Pooling and upsampling: batch and channels pass, spatial axes stay whole."""
    axes = _axes(walk, node.args[0])
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
    axes = _axes(walk, node.args[0])
    dims = _arg(node, 1, "dim")
    dims = range(len(axes)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {d % len(axes) for d in dims} if axes else set()
    value = node.meta["val"]
    shape = shape_of(value[0] if isinstance(value, (tuple, list)) else value)
    if len(shape) == len(axes):
        out = [None if d in gone else axis for d, axis in enumerate(axes)]
    else:
        out = [axis for d, axis in enumerate(axes) if d not in gone]
    return [out, list(out)] if isinstance(value, (tuple, list)) else out


def permute(walk: Walk, node: Call) -> Axes:
    """Axes in another order."""
    axes = _axes(walk, node.args[0])
    return [axes[d] for d in node.args[1]]


def transpose(walk: Walk, node: Call) -> Axes:
    """Two axes swapped (t: the only two)."""
    axes = list(_axes(walk, node.args[0]))
    if len(axes) < 2:
        return axes
    a, b = (node.args[1], node.args[2]) if len(node.args) > 2 else (0, 1)
    axes[a], axes[b] = axes[b], axes[a]
    return axes


def view(walk: Walk, node: Call) -> Axes:
    """view, reshape, flatten, unflatten, squeeze, unsqueeze: row-major regrouping of axes."""
    x = node.args[0]
    return regroup(walk.atoms, _axes(walk, x), _shape(x), _shape(node))


def regroup(atoms: Atoms, axes: Axes, before: Sequence[int], after: Sequence[int]) -> Axes:
    """The axes of a row-major reshape from sizes `before` to sizes `after`."""
    out: Axes = [None] * len(after)
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


def expand(walk: Walk, node: Call) -> Axes:
    """A repeated size-1 axis is all the same value, so any part of it will do."""
    x, shape = node.args[0], _shape(node)
    own, sizes = _axes(walk, x), _shape(x)
    lead = len(shape) - len(sizes)
    out: Axes = []
    for d, size in enumerate(shape):
        kept = d >= lead and sizes[d - lead] == size
        out.append(own[d - lead] if kept else walk.atoms.fresh(size) if d > 0 else None)
    return out


def repeat(walk: Walk, node: Call) -> Axes:
    """Axes tiled whole."""
    x = node.args[0]
    own, sizes, times = _axes(walk, x), _shape(x), list(node.args[1])
    lead = len(times) - len(sizes)
    out: Axes = []
    for d, size in enumerate(_shape(node)):
        count = size if d < lead else size // sizes[d - lead]
        axis = None if d < lead else own[d - lead]
        out.append(walk.atoms.merge([(count, None), (size // count, axis)]))
    return out


def cat(walk: Walk, node: Call) -> Axes:
    """Along one axis the parts follow each other; the other axes are tied."""
    parts = [x for x in node.args[0] if _shape(x) != (0,)]
    dim = int(_arg(node, 1, "dim", 0)) % len(_shape(node))
    out = list(_axes(walk, parts[0]))
    for x in parts[1:]:
        for d, axis in enumerate(_axes(walk, x)):
            if d != dim:
                walk.atoms.tie(out[d], axis)
    out[dim] = join([(_shape(x)[dim], walk.atoms.resolve(_axes(walk, x)[dim])) for x in parts])
    return out


def join(parts: Sequence[tuple[int, Axis]]) -> Axis:
    """Axes given as (size, axis), one after the other."""
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


def stack(walk: Walk, node: Call) -> Axes:
    """Tensors side by side on a new axis that stays whole."""
    parts = list(node.args[0])
    dim = int(_arg(node, 1, "dim", 0)) % len(_shape(node))
    out = list(_axes(walk, parts[0]))
    for x in parts[1:]:
        for kept, axis in zip(out, _axes(walk, x), strict=True):
            walk.atoms.tie(kept, axis)
    return [*out[:dim], None, *out[dim:]]


def pieces(walk: Walk, node: Call) -> list[Axes]:
    """chunk, split: consecutive parts. Equal parts of a chunk must shrink alike, so they are tied."""
    axes = _axes(walk, node.args[0])
    shapes = [shape_of(v) for v in node.meta["val"]]
    name = str(node.target)
    dim = int(_arg(node, 2, "dim", 0)) % len(axes)
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


def unbind(walk: Walk, node: Call) -> list[Axes]:
    """Each index of an axis on its own: the axis stays whole."""
    axes = _axes(walk, node.args[0])
    dim = int(_arg(node, 1, "dim", 0)) % len(axes)
    walk.atoms.keep(axes[dim])
    return [[a for d, a in enumerate(axes) if d != dim] for _ in node.meta["val"]]


def select(walk: Walk, node: Call) -> Axes:
    """One index of an axis: the axis stays whole."""
    axes = _axes(walk, node.args[0])
    dim = int(node.args[1]) % len(axes)
    walk.atoms.keep(axes[dim])
    return [a for d, a in enumerate(axes) if d != dim]


def slice_(walk: Walk, node: Call) -> Axes:
    """A range of an axis."""
    out = list(_axes(walk, node.args[0]))
    dim = int(_arg(node, 1, "dim", 0)) % len(out)
    size = _shape(node.args[0])[dim]
    start, end, step = (_arg(node, p, n) for p, n in ((2, "start"), (3, "end"), (4, "step")))
    if size == _shape(node)[dim] or out[dim] is None:
        return out
    whole = walk.atoms.resolve(out[dim])
    bounds = slice(*(v if isinstance(v, int) else None for v in (start, end, step)))
    if step not in (None, 1):
        walk.atoms.keep(whole)  # a strided range of fewer channels would take others
    out[dim] = None if whole is None else whole[bounds]
    return out


def flip(walk: Walk, node: Call) -> Axes:
    """Axes back to front."""
    out = list(_axes(walk, node.args[0]))
    for d in node.args[1]:
        axis = walk.atoms.resolve(out[d])
        out[d] = None if axis is None else axis[::-1]
    return out


def pad(walk: Walk, node: Call) -> Axes:
    """Constant padding: added elements are free; other modes keep the padded axes."""
    out = list(_axes(walk, node.args[0]))
    amounts = [int(a) for a in node.args[1]]
    constant = "constant" in str(node.target) or _arg(node, 2, "mode", "constant") == "constant"
    sizes = _shape(node.args[0])
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


def unfold(walk: Walk, node: Call) -> Axes:
    """im2col: channels x kernel positions on axis 1."""
    axes = _axes(walk, node.args[0])
    for axis in axes[2:]:
        walk.atoms.keep(axis)
    channels, size = _shape(node.args[0])[1], _shape(node)[1]
    return [axes[0], walk.atoms.merge([(channels, axes[1]), (size // channels, None)]), None]


def pixel_shuffle(walk: Walk, node: Call) -> Axes:
    """`[.., C r r, H, W] -> [.., C, H r, W r]`."""
    axes, r = _axes(walk, node.args[0]), int(node.args[1])
    channels = _shape(node)[-3]
    outer, inner = walk.atoms.split(axes[-3], [channels, r * r])
    for axis in (inner, axes[-1], axes[-2]):
        walk.atoms.keep(axis)
    return [*axes[:-3], walk.atoms.resolve(outer), None, None]


def pixel_unshuffle(walk: Walk, node: Call) -> Axes:
    """`[.., C, H r, W r] -> [.., C r r, H, W]`."""
    axes, r = _axes(walk, node.args[0]), int(node.args[1])
    for axis in axes[-2:]:
        walk.atoms.keep(axis)
    merged = walk.atoms.merge([(_shape(node.args[0])[-3], axes[-3]), (r * r, None)])
    return [*axes[:-3], merged, None, None]


def channel_shuffle(walk: Walk, node: Call) -> Axes:
    """Groups x channels to channels x groups on axis 1."""
    axes, groups, size = _axes(walk, node.args[0]), int(node.args[1]), _shape(node)[1]
    outer, inner = walk.atoms.split(axes[1], [groups, size // groups])
    walk.atoms.keep(outer)
    return [axes[0], walk.atoms.merge([(size // groups, inner), (groups, outer)]), *axes[2:]]


def embedding(walk: Walk, node: Call) -> Axes:
    """Rows of a table: the row axis stays, the width passes."""
    table, index = node.args[0], node.args[1]
    walk.atoms.keep(_axes(walk, table)[0])
    return [*_axes(walk, index), _axes(walk, table)[1]]


def index(walk: Walk, node: Call) -> Axes:
    """x[i, :, j]: indexed axes stay whole, the others pass."""
    axes, picks = _axes(walk, node.args[0]), list(node.args[1])
    picked = [d for d, pick in enumerate(picks) if pick is not None]
    for d in picked:
        walk.atoms.keep(axes[d])
        for axis in _axes(walk, picks[d]):
            walk.atoms.keep(axis)
    rest = [a for d, a in enumerate(axes) if d not in picked]
    rank = len(_shape(node)) - len(rest)
    together = picked == list(range(picked[0], picked[-1] + 1))
    before = picked[0] if together else 0
    return [*rest[:before], *[None] * rank, *rest[before:]]


def einsum(walk: Walk, node: Call) -> Axes:
    """Axes with the same letter are tied."""
    equation, tensors = str(node.args[0]).replace(" ", ""), list(node.args[1])
    left, _, right = equation.partition("->")
    letters: dict[str, Axis] = {}
    known: set[str] = set()
    if "." in equation or not right:
        whole: Axes = unknown(walk, node)
        return whole
    for names, x in zip(left.split(","), tensors, strict=True):
        for letter, axis in zip(names, _axes(walk, x), strict=True):
            if letter in known:
                walk.atoms.tie(letters[letter], axis)
            known.add(letter)
            letters[letter] = axis
    walk.einsum(node, left.split(","), tensors)
    return [letters[letter] for letter in right]


def constant(walk: Walk, node: Call) -> Axes:
    """A new tensor that depends on no channel (arange, zeros, ...)."""
    return [None] * len(_shape(node))


def getitem(walk: Walk, node: Call) -> Axes:
    """One output of an operator with several."""
    axes: Axes = list(walk.axes[node.args[0]][node.args[1]])
    return axes


def unknown(walk: Walk, node: Call) -> Any:
    """No rule: every axis of every input stays whole, and the operator is named."""
    touched = [axis for x in walk.tensors_of(node) for axis in _axes(walk, x)]
    walk.unprunable(node, touched)
    for axis in touched:
        walk.atoms.keep(axis)
    value = node.meta["val"]
    if isinstance(value, (tuple, list)):
        return [[None] * len(shape_of(v)) if hasattr(v, "shape") else None for v in value]
    return [None] * len(shape_of(value)) if hasattr(value, "shape") else None


RULES: dict[str, Rule] = {
    **dict.fromkeys(operators.SAME, same),
    **dict.fromkeys(operators.ELEMENTWISE, elementwise),
    **dict.fromkeys(operators.REDUCE, reduce),
    **dict.fromkeys(operators.POOL, pool),
    **dict.fromkeys(operators.VIEW, view),
    **dict.fromkeys(operators.CONSTANT, constant),
    **dict.fromkeys(operators.CONV, convolution),
    **dict.fromkeys(("linear",), linear),
    **dict.fromkeys(("matmul", "mm", "bmm"), matmul),
    **dict.fromkeys(("addmm", "baddbmm"), addmm),
    **dict.fromkeys(("chunk", "unsafe_chunk", "split", "split_with_sizes", "tensor_split"), pieces),
    **dict.fromkeys(("slice", "narrow"), slice_),
    **dict.fromkeys(("constant_pad_nd", "pad", "reflection_pad2d", "replication_pad2d"), pad),
    **dict.fromkeys(("transpose", "t", "swapaxes"), transpose),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), expand),
    **dict.fromkeys(("layer_norm", "rms_norm"), last_norm),
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training", "instance_norm"), channel_norm),
    "scaled_dot_product_attention": attention,
    "group_norm": group_norm,
    "unbind": unbind,
    "permute": permute,
    "repeat": repeat,
    "cat": cat,
    "stack": stack,
    "select": select,
    "flip": flip,
    "im2col": unfold,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
    "native_channel_shuffle": channel_shuffle,
    "embedding": embedding,
    "index": index,
    "einsum": einsum,
}


def rule_of(node: Call) -> Rule:
    """The rule of a call: by the operator's name without overload, or `unknown`."""
    if getattr(node.target, "__name__", "") == "getitem":
        return getitem
    return RULES.get(operator_of(node), unknown)


def operator_of(node: Call) -> str:
    """`conv2d` of `aten.conv2d.default`."""
    packet = getattr(node.target, "overloadpacket", None)
    return str(getattr(packet, "__name__", node.target))
