"""The reference that a pruned model is held against: the *original* graph and weights, with what was dropped
made to count for nothing. It shares no code and no analysis with the surgery: all it gets is which indices of
each parameter were kept, and from there every tensor carries a mask of what is alive through the graph.

Three kinds of operators:
- data movement (view, permute, cat, slice, ...): the same call moves the value and its mask;
- linear across an axis (convolution, linear, matrix products, attention): dead inputs are set to zero;
- everything else across an axis (norms, softmax, means over channels): the alive indices are gathered, the call
  is made on them alone, and zeros are scattered back.
Elementwise calls are alive where all their inputs are. An operator of none of these kinds may only meet tensors
that are alive throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from niwaki.surgery.trace import Call, Traced

Live = tuple[Tensor, Tensor]  # a value, and of the same shape what is alive of it

_MOVES = """
view reshape _unsafe_view flatten unflatten squeeze unsqueeze permute transpose t expand expand_as
repeat cat stack slice select narrow flip roll chunk split split_with_sizes tensor_split unbind
clone contiguous detach alias to _to_copy pixel_shuffle pixel_unshuffle channel_shuffle
native_channel_shuffle lift_fresh_copy index embedding constant_pad_nd pad swapaxes broadcast_to
type_as reflection_pad2d replication_pad2d unfold movedim tile repeat_interleave index_select
gather take_along_dim slice_scatter
""".split()  # noqa: SIM905
_POINTWISE = """
add sub mul div rsub pow maximum minimum where masked_fill relu relu6 silu gelu elu selu celu
hardswish hardsigmoid hardtanh leaky_relu sigmoid tanh softplus mish exp log sqrt rsqrt abs neg
square reciprocal sin cos erf clamp clamp_min clamp_max dropout lerp prelu eq ne lt le gt ge
logical_not logical_and logical_or zeros_like zero ones_like full_like log_sigmoid floor ceil round sign
addcmul addcdiv expm1 log1p exp2 log2 threshold softsign atan2 tan positive remainder fmod
nan_to_num feature_dropout bitwise_not isnan copy
""".split()  # noqa: SIM905
_WINDOWS = """
max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d adaptive_max_pool2d
max_pool2d_with_indices upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d
upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa upsample_trilinear3d
grid_sampler grid_sampler_2d
""".split()  # noqa: SIM905
_REDUCE = """
mean sum amax amin var std var_mean prod logsumexp norm linalg_vector_norm
""".split()  # noqa: SIM905
_BATCH_NORM = """
batch_norm instance_norm _native_batch_norm_legit_no_training _native_batch_norm_legit
_native_batch_norm_legit_functional native_batch_norm
""".split()  # noqa: SIM905
_CHECKS = """
_assert_tensor_metadata _assert_scalar _assert_async sym_constrain_range_for_size
""".split()  # noqa: SIM905
_WEIGHTED = """
linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
""".split()  # noqa: SIM905


class NoReference(Exception):
    """A partly dead tensor met an operator that has no reference."""


def run(traced: Traced, kept: dict[str, dict[int, list[int]]], inputs: Sequence[Any]) -> list[Tensor]:
    """Outputs of the original graph in which only the kept indices of every parameter count.

    Args:
        traced: the original model's graph.
        kept: `{parameter or buffer: {axis: indices}}`; their order does not matter here.
        inputs: the model's inputs.
    Raises:
        NoReference: an operator across a pruned axis is of a kind this cannot judge.
    """
    values: dict[Call, Any] = {}
    given = dict(zip(traced.inputs, inputs, strict=True))
    outputs: list[Tensor] = []
    with torch.no_grad():
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                values[node] = _placeholder(traced, node, kept, given)
            elif node.op == "call_function":
                values[node] = _call(node, values)
            elif node.op == "output":
                fx.node.map_arg(node.args, lambda n: outputs.append(values[n]))
    return [live[0] for live in outputs if isinstance(live, tuple)]


def _placeholder(traced: Traced, node: Call, kept: Any, given: dict[str, Any]) -> Any:
    if node.name not in traced.tensors:
        value = given.get(node.name)
        return _whole(value) if isinstance(value, Tensor) else value
    tensor = traced.tensors[node.name]
    mask = torch.ones(tensor.shape, dtype=torch.bool)
    for d, indices in kept.get(traced.names[node.name], {}).items():
        alive = torch.zeros(tensor.shape[d], dtype=torch.bool)
        alive[indices] = True
        mask &= alive.view([-1 if i == d else 1 for i in range(tensor.dim())])
    return tensor.detach(), mask


def _whole(value: Tensor) -> Live:
    return value, torch.ones((), dtype=torch.bool).expand(value.shape)


def _thin(mask: Tensor) -> Tensor:
    """The mask with one element along each axis that only repeats it, as most do over images and places."""
    return mask[tuple(slice(1 if stride == 0 else None) for stride in mask.stride())]


def _all(mask: Tensor) -> bool:
    return bool(_thin(mask).all())


def _call(node: Call, values: dict[Call, Any]) -> Any:
    if getattr(node.target, "__name__", "") == "getitem" and isinstance(values[node.args[0]], list):  # type: ignore[index]
        return values[node.args[0]][node.args[1]]  # type: ignore[index]
    name = str(getattr(getattr(node.target, "overloadpacket", None), "__name__", node.target))
    live = _lives(node, values)
    if name in _CHECKS:
        return None
    if not live or all(_all(mask) for _, mask in live):
        return _plain(node, values)
    for names, rule in _KINDS:
        if name in names:
            return rule(node, values, name)
    raise NoReference(f"{node.target}: no reference for it across a pruned axis")


def _target(node: Call) -> Callable[..., Any]:
    """The call itself; a view becomes a reshape, for masked tensors may lie otherwise in memory."""
    if str(node.target) in ("aten.view.default", "aten._unsafe_view.default"):
        return torch.ops.aten.reshape.default
    call: Callable[..., Any] = node.target
    return call


def _lives(node: Call, values: dict[Call, Any]) -> list[Live]:
    out: list[Live] = []
    fx.node.map_arg(
        (node.args, node.kwargs),
        lambda n: out.append(values[n]) if isinstance(values[n], tuple) else None,
    )
    return out


def _values(args: Any, values: dict[Call, Any], pick: Callable[[Live], Any] = lambda x: x[0]) -> Any:
    return fx.node.map_arg(args, lambda n: pick(values[n]) if isinstance(values[n], tuple) else values[n])


def _spread(out: Any, masks: Any) -> Any:
    """One (value, mask) or a list of them; a mask of None is alive throughout."""
    if isinstance(out, Tensor):
        return (out, masks) if masks is not None else _whole(out)
    return [_spread(o, None if masks is None else masks[i]) for i, o in enumerate(out)]


def _plain(node: Call, values: dict[Call, Any]) -> Any:
    out = _target(node)(*_values(node.args, values), **_values(node.kwargs, values))
    return _spread(out, None) if isinstance(out, (Tensor, tuple, list)) else out


def _move(node: Call, values: dict[Call, Any], name: str) -> Any:
    out = _target(node)(*_values(node.args, values), **_values(node.kwargs, values))
    args = list(_values(node.args, values, lambda x: x[1]))
    kwargs = dict(_values(node.kwargs, values, lambda x: x[1]))
    picks = {"index": 1, "embedding": 1, "index_select": 2, "gather": 2, "take_along_dim": 1}.get(name)
    if picks is not None:  # what picks is a value, what is picked has the mask
        args[picks] = _values(node.args[picks], values)
    if "pad" in name:
        masks = _padded_mask(node, args)
    elif name in ("to", "_to_copy", "type_as"):
        masks = args[0]
    else:
        masks = _target(node)(*args, **kwargs)
    return _spread(out, masks)


def _padded_mask(node: Call, args: list[Any]) -> Tensor:
    """Padding is alive wherever something alive is padded."""
    mask: Tensor = args[0]
    amounts = [int(a) for a in args[1]]
    out = torch.nn.functional.pad(mask.float(), amounts, value=1.0) > 0.5
    for back in range(1, len(amounts) // 2 + 1):
        if any(amounts[2 * back - 2 : 2 * back]):
            mask = mask.any(-back, keepdim=True)
    return out & mask


def _pointwise(node: Call, values: dict[Call, Any], name: str) -> Any:
    out = _target(node)(*_values(node.args, values), **_values(node.kwargs, values))
    mask = torch.ones((), dtype=torch.bool)
    for _, own in _lives(node, values):
        if name == "prelu" and own.dim() == 1 and own.shape[0] > 1:
            own = own.view(-1, *[1] * (out.dim() - 2))
        mask = mask & _thin(own)
    return out, mask.expand(out.shape)


def _columns(node: Call, values: dict[Call, Any], name: str) -> Any:
    """im2col: each channel's windows, its padding with it, are alive where the channel is."""
    out = _target(node)(*_values(node.args, values), **_values(node.kwargs, values))
    mask = values[node.args[0]][1]  # type: ignore[index]
    alive = mask.any((-2, -1))
    _demand(bool((alive == mask.all(-1).all(-1)).all()), node, "a partly dead spatial axis")
    times = out.shape[1] // alive.shape[1]
    return out, alive.repeat_interleave(times, 1)[..., None].expand(out.shape)


def _glu(node: Call, values: dict[Call, Any], name: str) -> Any:
    """Half of an axis times the sigmoid of the other half: alive where both are."""
    out = _target(node)(*_values(node.args, values), **_values(node.kwargs, values))
    dim = int(node.args[1]) if len(node.args) > 1 else -1  # type: ignore[arg-type]
    first, second = values[node.args[0]][1].chunk(2, dim)  # type: ignore[index]
    return out, first & second


def _positional(node: Call, values: dict[Call, Any], name: str) -> Any:
    """Calls whose result depends on places along an axis, which must be alive alike throughout."""
    mask = values[node.args[0]][1]  # type: ignore[index]
    dims = [-2, -1] if name in ("tril", "triu") else [int(node.args[1])]  # type: ignore[arg-type]
    _demand(all(_even(mask, d) for d in dims), node, "an axis whose places count")
    return _target(node)(*_values(node.args, values), **_values(node.kwargs, values)), mask


def _batch_norm(node: Call, values: dict[Call, Any], name: str) -> Any:
    """Statistics given: channel by channel. Statistics of the values themselves: of those that are alive."""
    value, mask = values[node.args[0]]  # type: ignore[index]
    uneven = [d for d in range(value.dim()) if d != 1 and not _even(mask, d)]
    if uneven:
        small, alive = _gathered(node, values, uneven)
    else:
        small, alive = value, {}
    out = _target(node)(small, *_values(node.args[1:], values), **_values(node.kwargs, values))
    lives = _lives(node, values)[1:]
    for _, own in lives:
        mask = mask & own.view(-1, *[1] * (value.dim() - 2))
    if isinstance(out, Tensor):
        return _scattered(out, alive, value.shape), mask
    return [(_scattered(out[0], alive, value.shape), mask), *[_whole(o) for o in out[1:]]]


def _ranked(node: Call, values: dict[Call, Any], name: str) -> Any:
    """topk: along an axis that is alive alike throughout, where any of its elements may be."""
    mask = values[node.args[0]][1]  # type: ignore[index]
    dim = int(node.args[2]) if len(node.args) > 2 else -1  # type: ignore[arg-type]
    _demand(_even(mask, dim), node, "an axis that is ranked")
    found = _target(node)(*_values(node.args, values), **_values(node.kwargs, values))
    alive = mask.narrow(dim, 0, int(node.args[1]))  # type: ignore[arg-type]
    return _spread(found, [alive, alive])


def _window(node: Call, values: dict[Call, Any], name: str) -> Any:
    out = _target(node)(*_values(node.args, values), **_values(node.kwargs, values))
    mask = values[node.args[0]][1]
    rank = 1 if "1d" in name else 3 if "3d" in name else 2
    lead = mask.flatten(-rank)
    _demand(bool((lead.any(-1) == lead.all(-1)).all()), node, "a partly dead spatial axis")
    first = out if isinstance(out, Tensor) else out[0]
    alive = lead.any(-1)[(..., *[None] * rank)].expand(first.shape)
    return _spread(out, alive if isinstance(out, Tensor) else [alive] * len(out))


def _demand(ok: bool, node: Call, what: str) -> None:
    if not ok:
        raise NoReference(f"{node.target}: no reference for it across {what}")


def _zeroed(node: Call, values: dict[Call, Any]) -> Any:
    """The call with dead inputs set to zero."""
    args, kwargs = _values((node.args, node.kwargs), values, _filled)
    return _target(node)(*args, **kwargs)


def _filled(live: Live) -> Tensor:
    value, mask = live
    return value if _all(mask) else value.masked_fill(~_thin(mask), 0)


def _weighted(node: Call, values: dict[Call, Any], name: str) -> Any:
    """linear and convolutions: an output channel is alive if its weights and its bias are."""
    out = _zeroed(node, values)
    (_, x), (_, weight) = (values[n] for n in node.args[:2])  # type: ignore[index]
    channel = out.dim() - 1 if name == "linear" else 1
    if "transpose" in name:
        groups = out.shape[1] // weight.shape[1]
        rows = weight.flatten(2).any(-1).view(groups, -1, weight.shape[1]).any(1).reshape(-1)
    else:
        rows = weight.flatten(1).any(1)
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    if isinstance(bias, fx.Node):
        rows = rows & values[bias][1]
    mask = rows.view([-1 if d == channel else 1 for d in range(out.dim())]).expand(out.shape)
    if name == "linear":  # where nothing of the input lives, nothing of the output does
        mask = (rows & _thin(x).any(-1, keepdim=True)).expand(out.shape)
    return out, mask


def _matmul(node: Call, values: dict[Call, Any], name: str) -> Any:
    """Matrix products: an output is alive if anything alive reaches it."""
    out = _zeroed(node, values)
    if name == "einsum":
        args, kwargs = _values((node.args, node.kwargs), values, lambda x: x[1].float())
        return out, _target(node)(*args, **kwargs) > 0.5
    a, b = _values(node.args, values, lambda x: _batches_thin(x[1]))
    return out, (torch.matmul(a, b) > 0.5).expand(out.shape)


def _batches_thin(mask: Tensor) -> Tensor:
    """A factor of a product, alive ones counted, with one element along batch axes that only repeat it."""
    if mask.dim() < 3:
        return mask.float()
    thin = _thin(mask)
    return thin.expand(*thin.shape[:-2], *mask.shape[-2:]).float()


def _addmm(node: Call, values: dict[Call, Any], name: str) -> Any:
    out = _zeroed(node, values)
    bias, a, b = _values(node.args[:3], values, lambda x: x[1].double())
    return out, (torch.matmul(a, b) > 0.5) & (bias > 0.5)


def _attention(node: Call, values: dict[Call, Any], name: str) -> Any:
    """softmax(q k / scale) v with the original scale; a head is alive if its queries and values are."""
    out = _zeroed(node, values)
    q, v = (values[n][1] for n in (node.args[0], node.args[2]))  # type: ignore[index]
    return out, (q.any(-1, keepdim=True) & v.any(-2, keepdim=True)).expand(out.shape)


def _gathered(node: Call, values: dict[Call, Any], dims: list[int]) -> tuple[Tensor, dict[int, Tensor]]:
    """The first input at its alive indices along `dims`, and those indices."""
    value, mask = values[node.args[0]]  # type: ignore[index]
    rank = value.dim()
    alive: dict[int, Tensor] = {}
    whole = torch.ones_like(mask)
    for d in dims:
        own = mask.movedim(d, 0).flatten(1).any(1) if rank > 1 else mask
        alive[d] = own.nonzero()[:, 0]
        whole &= own.view([-1 if i == d else 1 for i in range(rank)])
    others = mask
    for d in dims:
        others = others.any(d, keepdim=True)
    _demand(bool((mask == (whole & others)).all()), node, "axes that are not pruned alike everywhere")
    for d, indices in alive.items():
        value = value.index_select(d, indices)
    return value, alive


def _scattered(small: Tensor, alive: dict[int, Tensor], shape: Sequence[int]) -> Tensor:
    out = small
    for d, indices in alive.items():
        sizes = list(out.shape)
        sizes[d] = shape[d]
        out = torch.zeros(sizes, dtype=out.dtype).index_copy_(d, indices, out)
    return out


def _last_norm(node: Call, values: dict[Call, Any], name: str) -> Any:
    value, mask = values[node.args[0]]  # type: ignore[index]
    rank = len(node.args[1])  # type: ignore[arg-type]
    dims = list(range(value.dim() - rank, value.dim()))
    small, alive = _gathered(node, values, dims)
    rest = []
    for arg in node.args[2:]:
        own = values[arg][0] if isinstance(arg, fx.Node) else arg
        if isinstance(own, Tensor):
            for d, indices in alive.items():
                own = own.index_select(d - dims[0], indices)
        rest.append(own)
    out = _target(node)(small, list(small.shape[-rank:]), *rest, **_values(node.kwargs, values))
    return _scattered(out, alive, value.shape), mask


def _group_norm(node: Call, values: dict[Call, Any], name: str) -> Any:
    value, mask = values[node.args[0]]  # type: ignore[index]
    small, alive = _gathered(node, values, [1])
    groups = int(node.args[1])  # type: ignore[arg-type]
    of_group = alive[1] // (value.shape[1] // groups)
    counts = torch.bincount(of_group, minlength=groups)
    counts = counts[counts > 0]
    _demand(bool((counts == counts[0]).all()), node, "groups that keep different numbers of channels")
    rest = [values[a][0].index_select(0, alive[1]) if isinstance(a, fx.Node) else a for a in node.args[2:]]
    out = _target(node)(small, len(counts), *rest, **_values(node.kwargs, values))
    return _scattered(out, alive, value.shape), mask


def _along(node: Call, values: dict[Call, Any], name: str) -> Any:
    """softmax and its like: one axis, sizes unchanged."""
    value, mask = values[node.args[0]]  # type: ignore[index]
    dim = int(node.args[1]) % value.dim()  # type: ignore[arg-type]
    if _even(mask, dim):
        return _target(node)(*_values(node.args, values), **_values(node.kwargs, values)), mask
    small, alive = _gathered(node, values, [dim])
    out = _target(node)(small, *_values(node.args[1:], values), **_values(node.kwargs, values))
    return _scattered(out, alive, value.shape), mask


def _recurrent(node: Call, values: dict[Call, Any], name: str) -> Any:
    """lstm, gru, rnn: the layer with its alive inputs and units alone."""
    value, mask = values[node.args[0]]  # type: ignore[index]
    inputs = mask.flatten(0, -2).any(0)
    _demand(bool((mask == inputs).all()), node, "inputs that are not pruned alike everywhere")
    weights = [values[w] for w in node.args[2]]  # type: ignore[union-attr]
    units = weights[1][1].any(0)
    states = [values[s][0] for s in torch.utils._pytree.tree_leaves(node.args[1])]
    _demand(not any(bool(s.any()) for s in states), node, "a state to start from that is not zero")
    small = [_alive_part(w, own) for w, own in weights]
    start = [s[..., : int(units.sum())] for s in states]
    hx = start if isinstance(node.args[1], (list, tuple)) else start[0]
    given = value.index_select(-1, inputs.nonzero()[:, 0])
    rest = _values(node.args[3:], values)
    out, *ends = _target(node)(given, hx, small, *rest)
    both = out.shape[-1] // max(1, ends[0].shape[-1])
    spread = [(out, units.repeat(both)), *[(end, units) for end in ends]]
    return [
        (_scattered(o, {o.dim() - 1: m.nonzero()[:, 0]}, (*o.shape[:-1], len(m))), m.expand(*o.shape[:-1], -1))
        for o, m in spread
    ]


def _alive_part(value: Tensor, mask: Tensor) -> Tensor:
    """The alive block of a parameter whose axes are pruned each on its own."""
    for d in range(value.dim()):
        alive = mask.movedim(d, 0).flatten(1).any(1) if value.dim() > 1 else mask
        value = value.index_select(d, alive.nonzero()[:, 0])
    return value


def _reduce(node: Call, values: dict[Call, Any], name: str) -> Any:
    value, mask = values[node.args[0]]  # type: ignore[index]
    place = 2 if "norm" in name else 1  # an order comes first
    dims = node.args[place] if len(node.args) > place else node.kwargs.get("dim")
    dims = list(range(value.dim())) if dims in (None, []) else [dims] if isinstance(dims, int) else list(dims)  # type: ignore[arg-type]
    dims = [d % value.dim() for d in dims]
    small, _ = _gathered(node, values, [d for d in dims if not _even(mask, d)])
    out = _target(node)(small, *_values(node.args[1:], values), **_values(node.kwargs, values))
    first = out if isinstance(out, Tensor) else out[0]
    alive = mask
    for d in sorted(dims, reverse=True):
        alive = alive.any(d, keepdim=True) if first.dim() == value.dim() else alive.any(d)
    return _spread(out, alive if isinstance(out, Tensor) else [alive] * len(out))


def _even(mask: Tensor, dim: int) -> bool:
    mask = _thin(mask)
    return mask.shape[dim] == 1 or bool((mask.any(dim) == mask.all(dim)).all())


def _new(node: Call, values: dict[Call, Any], name: str) -> Any:
    """A constant that takes no more from a tensor than its type: alive throughout."""
    return _plain(node, values)


_KINDS: tuple[tuple[Sequence[str], Callable[..., Any]], ...] = (
    (_MOVES, _move),
    (_POINTWISE, _pointwise),
    (("new_zeros", "new_ones", "new_full", "new_empty"), _new),
    (_WEIGHTED, _weighted),
    (("matmul", "mm", "bmm", "einsum"), _matmul),
    (("addmm", "baddbmm"), _addmm),
    (("scaled_dot_product_attention",), _attention),
    (("im2col",), _columns),
    (("glu",), _glu),
    (("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    (("cumsum", "cumprod", "tril", "triu"), _positional),
    (("topk",), _ranked),
    (_WINDOWS, _window),
    (_REDUCE, _reduce),
    (_BATCH_NORM, _batch_norm),
    (("layer_norm", "rms_norm"), _last_norm),
    (("group_norm",), _group_norm),
    (("softmax", "_softmax", "log_softmax", "_safe_softmax"), _along),
)
