"""Rules of contractions, which sum over a channel axis: convolutions, linear layers, products, attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from niwaki.surgery.atoms import Axis
from niwaki.surgery.rules.calls import Rows, argument, axes_of, sizes_of, unknown
from niwaki.surgery.trace import Call

if TYPE_CHECKING:
    from niwaki.surgery.axes import Walk


def convolution(walk: Walk, node: Call) -> Rows:
    """conv1d-3d and transposed ones: channels tied to the weight, groups as an outer axis of their own."""
    x, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
    name = str(node.target)
    transposed = "transpose" in name or (".convolution." in name and bool(node.args[6]))
    groups = int(argument(node, 8 if ".convolution." in name else 6, "groups", 1))
    w = axes_of(walk, weight)
    for axis in (*w[2:], *axes_of(walk, x)[2:]):
        walk.atoms.keep(axis)
    channels, out = (w[0], w[1]) if transposed else (w[1], w[0])
    if groups == 1:
        walk.atoms.tie(axes_of(walk, x)[1], channels)
    else:
        size = sizes_of(node)[1]
        out = _grouped(walk, x, channels, out, groups=groups, transposed=transposed, out_size=size)
    if bias is not None:
        walk.atoms.tie(out, axes_of(walk, bias)[0])
    walk.contraction(node, x, weight, transposed=transposed)
    return [axes_of(walk, x)[0], out, *[None] * (len(sizes_of(node)) - 2)]


def _grouped(
    walk: Walk, x: Call, channels: Axis, out: Axis, *, groups: int, transposed: bool, out_size: int
) -> Axis:
    atoms, size = walk.atoms, sizes_of(x)[1]
    outer, inner = atoms.split(axes_of(walk, x)[1], [groups, size // groups])
    if transposed:  # weight [in, out / groups]: the input axis is the weight's first
        atoms.tie(channels, axes_of(walk, x)[1])
        walk.factors(outer, out)
        return atoms.merge([(groups, outer), (out_size // groups, out)])
    if size // groups > 1:
        atoms.tie(inner, channels)
    out_outer, out_inner = atoms.split(out, [groups, out_size // groups])
    atoms.tie(outer, out_outer)
    walk.factors(outer, inner)
    walk.factors(outer, out_inner)
    return atoms.resolve(out)


def linear(walk: Walk, node: Call) -> Rows:
    """x `[..., I]`, weight `[O, I]`."""
    x, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
    w = axes_of(walk, weight)
    walk.atoms.tie(axes_of(walk, x)[-1], w[-1])
    if bias is not None and len(w) == 2:
        walk.atoms.tie(w[0], axes_of(walk, bias)[0])
    walk.contraction(node, x, weight)
    return [*axes_of(walk, x)[:-1], *w[:-1]]


def matmul(walk: Walk, node: Call) -> Rows:
    """`[..., M, K] @ [..., K, N]` with broadcast batch axes; mm and bmm as well."""
    a, b = node.args[0], node.args[1]
    return _product(walk, node, a, b)


def addmm(walk: Walk, node: Call) -> Rows:
    """bias + a @ b (addmm, baddbmm)."""
    out = _product(walk, node, node.args[1], node.args[2])
    shape, bias = sizes_of(node), node.args[0]
    for back in range(1, len(sizes_of(bias)) + 1):
        if sizes_of(bias)[-back] == shape[-back]:
            walk.atoms.tie(axes_of(walk, bias)[-back], out[-back])
    return out


def _product(walk: Walk, node: Call, a: Any, b: Any) -> Rows:
    left, right = axes_of(walk, a), axes_of(walk, b)
    walk.atoms.tie(left[-1], right[-2] if len(right) > 1 else right[0])
    lead = _broadcast(walk, [(a, 2), (b, 2)]) if len(left) > 2 or len(right) > 2 else []
    walk.contraction(node, a, b, product=True)
    rows = [left[-2]] if len(left) > 1 else []
    columns = [right[-1]] if len(right) > 1 else []
    return [*lead, *rows, *columns]


def _broadcast(walk: Walk, parts: Sequence[tuple[Any, int]]) -> Rows:
    """Leading axes of several tensors, without the last `drop` of each, tied and broadcast."""
    shapes = [sizes_of(x)[: len(sizes_of(x)) - drop] for x, drop in parts]
    out: Rows = [None] * max(map(len, shapes))
    sizes = [1] * len(out)
    for (x, _), shape in zip(parts, shapes, strict=True):
        for back in range(1, len(shape) + 1):
            axis = axes_of(walk, x)[len(shape) - back]
            if shape[-back] == 1:
                continue
            if sizes[-back] > 1:
                walk.atoms.tie(out[-back], axis)
            out[-back], sizes[-back] = axis, shape[-back]
    return out


def attention(walk: Walk, node: Call) -> Rows:
    """scaled_dot_product_attention: q `[..., L, E]`, k `[..., S, E]`, v `[..., S, V]`, mask `[..., L, S]`."""
    q, k, v = node.args[:3]
    mask = argument(node, 3, "attn_mask")
    atoms = walk.atoms
    if node.kwargs.get("enable_gqa"):
        for x in (q, k, v):
            atoms.keep(axes_of(walk, x)[-3])
    atoms.tie(axes_of(walk, q)[-1], axes_of(walk, k)[-1])
    atoms.tie(axes_of(walk, k)[-2], axes_of(walk, v)[-2])
    if sizes_of(q)[-1] == sizes_of(v)[-1]:  # one head size in the module's code, as a rule
        atoms.tie(axes_of(walk, q)[-1], axes_of(walk, v)[-1])
    lead = _broadcast(walk, [(q, 2), (k, 2), (v, 2), *([(mask, 2)] if mask is not None else [])])
    if mask is not None:
        for back, axis in ((1, axes_of(walk, k)[-2]), (2, axes_of(walk, q)[-2])):
            if sizes_of(mask)[-back] > 1:
                atoms.tie(axes_of(walk, mask)[-back], axis)
    walk.contraction(node, q, k, attention=v)
    return [*lead, axes_of(walk, q)[-2], axes_of(walk, v)[-1]]


def einsum(walk: Walk, node: Call) -> Rows:
    """Rows with the same letter are tied."""
    equation, tensors = str(node.args[0]).replace(" ", ""), list(node.args[1])
    left, _, right = equation.partition("->")
    letters: dict[str, Axis] = {}
    known: set[str] = set()
    if "." in equation or not right:
        return unknown(walk, node)  # type: ignore[no-any-return]
    for names, x in zip(left.split(","), tensors, strict=True):
        for letter, axis in zip(names, axes_of(walk, x), strict=True):
            if letter in known:
                walk.atoms.tie(letters[letter], axis)
            known.add(letter)
            letters[letter] = axis
    walk.einsum(node, left.split(","), tensors)
    return [letters[letter] for letter in right]
