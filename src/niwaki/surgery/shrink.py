"""Cutting a model down to kept indices: the user's own class, smaller, with its size attributes mended.

Parameters and buffers are sliced by the analysis. torch's own layers get their size attributes from what
they now hold. Where a module's forward uses a size that it keeps in an attribute (`num_heads`, a split, a pad),
the graph says which call changed from which size to which, and the attribute of the module that made the call
is set to match. The result is run once; `prune.prove` then shows that it computes the right thing.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from niwaki.errors import ModelError
from niwaki.surgery.axes import Axes, Keep, Kept
from niwaki.surgery.rules import operator_of
from niwaki.surgery.trace import Call, owner_of, quiet, shape_of

_SIZED = {"view", "reshape", "_unsafe_view", "expand", "unflatten"}
Mend = tuple[str, str, Any]  # module path, attribute, new value


def shrink(
    model: nn.Module, axes: Axes, keep: Keep, *, example: Any = None, kept: Kept | None = None
) -> nn.Module:
    """A copy of `model` in which only the kept atoms are left.

    Args:
        axes: `analyse(model, ...)`.
        keep: for each group to shrink, the numbers of the atoms that stay (0-based, at least one).
        example: an input or tuple of inputs to try the result on; None skips the trial.
        kept: index lists to cut with instead of the analysis's own; only the tests of the proof, which
            must catch wrong ones, have a use for it.
    Raises:
        ModelError: a group's list is empty or out of range, or the class cannot be made to run at these
            sizes. [prune-empty, prune-range, prune-unmendable]
    """
    _check(axes, keep)
    if kept is None:
        kept = axes.kept_indices(keep)
    _check_not_empty(kept, keep)
    small = copy.deepcopy(model)
    _slice_tensors(small, kept)
    _set_layer_sizes(small, axes, keep)
    _keep_attention_scale(small, axes, keep)
    _mend(small, axes, keep, example)
    return small


def _check(axes: Axes, keep: Keep) -> None:
    sizes = {group.name: group.size for group in axes.groups}
    for name, kept in keep.items():
        if name not in sizes:
            raise ModelError(
                f"{name}: no such group of channels; `niwaki doctor` lists them.", code="prune-range"
            )
        if len(set(kept)) != len(kept) or not all(0 <= atom < sizes[name] for atom in kept):
            raise ModelError(
                f"{name}: kept atoms must be distinct and in 0..{sizes[name] - 1}, got {list(kept)[:8]}…",
                code="prune-range",
            )


def _check_not_empty(kept: Kept, keep: Keep) -> None:
    """A group may go entirely (padding channels of a shortcut), an axis may not."""
    for name, by_axis in kept.items():
        for d, indices in by_axis.items():
            if not indices:
                empty = [group for group, atoms in keep.items() if not atoms]
                raise ModelError(
                    f"{name}: at least one index of axis {d} must stay, got none "
                    f"(groups cut entirely: {', '.join(empty)}). "
                    "Lower the ratio or add the group to skip=.",
                    code="prune-empty",
                )


def _slice_tensors(small: nn.Module, kept: Kept) -> None:
    done: dict[int, Tensor] = {}
    for path, module in list(small.named_modules()):
        held: dict[str, Tensor | None] = {**module._parameters, **module._buffers}
        for name, tensor in held.items():
            cuts = kept.get(f"{path}.{name}" if path else name)
            if tensor is None or (cuts is None and id(tensor) not in done):
                continue
            if id(tensor) not in done:
                done[id(tensor)] = _sliced(tensor, cuts or {})
            table = module._parameters if name in module._parameters else module._buffers
            table[name] = done[id(tensor)]  # type: ignore[assignment]


def _sliced(tensor: Tensor, cuts: dict[int, list[int]]) -> Tensor:
    out = tensor.detach()
    for d, indices in cuts.items():
        out = out.index_select(d, torch.tensor(indices, device=out.device))
    out = out.clone(memory_format=torch.contiguous_format)
    return nn.Parameter(out, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else out


def _set_layer_sizes(small: nn.Module, axes: Axes, keep: Keep) -> None:
    """Size attributes of torch's own layers and their subclasses, from the calls they make."""
    alive = axes.alive(keep)
    modules = dict(small.named_modules())
    for node in axes.traced.graph.nodes:
        module = modules.get(owner_of(node)) if node.op == "call_function" else None
        x = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if module is None or x is None or not isinstance(x.meta.get("val"), Tensor):
            continue
        before, after = shape_of(x.meta["val"]), axes.shape(x, alive)
        operator = operator_of(node)
        if "conv" in operator and isinstance(module, nn.modules.conv._ConvNd):
            _set_conv(module, after[1])
        elif operator == "linear" and isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif "norm" in operator:
            _set_norm(module, node, before, after, axes, alive)


def _set_conv(module: nn.modules.conv._ConvNd, channels: int) -> None:
    module.in_channels = channels
    if module.transposed:
        module.groups = max(1, module.groups * channels // max(1, module.weight.shape[0]))
        module.out_channels = module.weight.shape[1] * module.groups
    else:
        module.out_channels = module.weight.shape[0]
        module.groups = channels // module.weight.shape[1]


def _set_norm(
    module: nn.Module, node: Call, before: tuple[int, ...], after: tuple[int, ...], axes: Axes, alive: Any
) -> None:
    if isinstance(module, (nn.modules.batchnorm._NormBase,)):
        module.num_features = after[1]
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = after[1]
        module.num_groups = _kept_groups(node, axes, alive)
    elif hasattr(module, "normalized_shape"):
        layer: Any = module
        layer.normalized_shape = tuple(after[-len(layer.normalized_shape) :])


def _kept_groups(node: Call, axes: Axes, alive: Any) -> int:
    groups = int(node.args[1])  # type: ignore[arg-type]
    axis = axes.resolve(axes.axes_of(node.args[0])[1])
    if axis is None:
        return groups
    return int(alive[axis].all(1).reshape(groups, -1).any(1).sum())


def _keep_attention_scale(small: nn.Module, axes: Axes, keep: Keep) -> None:
    """Attention that divides by the root of its head size goes on dividing by the original one.

    softmax(q k / sqrt(E)) with E now E' divides by sqrt(E'), so q is multiplied by sqrt(E' / E): its rows of
    the projection (or the norm behind it) carry the factor.
    """
    alive = axes.alive(keep)
    for node in axes.traced.graph.nodes:
        if node.op != "call_function" or operator_of(node) != "scaled_dot_product_attention":
            continue
        query = node.args[0]
        before, after = shape_of(query.meta["val"])[-1], axes.shape(query, alive)[-1]
        if before != after and node.kwargs.get("scale") is None:
            _scale_source(small, axes, keep, query, factor=math.sqrt(after / before))


def _scale_source(small: nn.Module, axes: Axes, keep: Keep, query: Call, *, factor: float) -> None:
    source, path = _source_of_query(query)
    rows = _reaches(source, path, query)
    names = [axes.traced.names.get(x.name) for x in source.args[1:] if isinstance(x, fx.Node)]
    kept = axes.kept_indices(keep)
    for name in (n for n in names if n):
        tensor = small.get_parameter(name)
        stays = kept.get(name, {}).get(0, list(range(len(rows))))
        chosen = rows[torch.tensor(stays)]
        with torch.no_grad():
            tensor[chosen.to(tensor.device)] *= factor


def _source_of_query(query: Call) -> tuple[Call, list[Call]]:
    """The linear layer or affine norm that the queries come from, and the calls in between, in order."""
    path: list[Call] = []
    node = query
    while operator_of(node) not in ("linear", "conv2d", "layer_norm", "rms_norm"):
        path.append(node)
        inputs = [x for x in node.all_input_nodes if isinstance(x.meta.get("val"), (Tensor, tuple, list))]
        if node.op != "call_function" or not inputs:
            raise ModelError(
                f"{node.name}: the queries' scale cannot be kept: they do not come from a linear layer. "
                "Pass scale= to scaled_dot_product_attention, or add the head size to skip=.",
                code="prune-unmendable",
            )
        node = inputs[0]
    return node, path[::-1]


def _reaches(source: Call, path: list[Call], query: Call) -> Tensor:
    """Which of the source's output channels end in the queries: bool `[channels]`, found by a gradient."""
    leaf = torch.ones(shape_of(source.meta["val"]), requires_grad=True)
    values: dict[Call, Any] = {source: leaf}

    def value(x: Any) -> Any:
        if not isinstance(x, fx.Node):
            return x
        if x in values:
            return values[x]
        meta = x.meta["val"]
        return torch.ones(shape_of(meta)) if isinstance(meta, Tensor) else int(meta.node.hint)

    for node in path:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        call = torch.ops.aten.reshape.default if operator_of(node) == "view" else node.target
        values[node] = call(*args, **kwargs)  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(values[query].sum(), leaf)
    channel = 1 if operator_of(source) == "conv2d" else leaf.dim() - 1
    return gradient.abs().movedim(channel, 0).flatten(1).sum(1) > 0


def _mend(small: nn.Module, axes: Axes, keep: Keep, example: Any) -> None:
    mends = list(dict.fromkeys(_proposals(small, axes, keep)))
    if example is None:
        _apply(small, mends)
        return
    failure: Exception | None = None
    for chosen in _subsets(mends):
        old = _apply(small, chosen)
        try:
            _try(small, axes, example)
            return
        except Exception as error:  # the user's forward may raise anything at a wrong size
            failure = error
            _apply(small, old)
    where = ", ".join(f"{path or 'the model'}.{name}" for path, name, _ in mends) or "no attribute"
    reason = str(failure).splitlines()[0] if failure else ""
    raise ModelError(
        f"{type(small).__name__} does not run at its new sizes ({reason}); tried to set {where}. Keep sizes "
        "that forward uses in attributes of the module that uses them, or add the group to skip=.",
        code="prune-unmendable",
    ) from failure


def _subsets(mends: list[Mend]) -> Iterator[list[Mend]]:
    """All of them where they agree, then every way to choose where one attribute has several proposals."""
    by_place: dict[tuple[str, str], list[Mend]] = {}
    for mend in mends:
        by_place.setdefault(mend[:2], []).append(mend)
    for count, chosen in enumerate(itertools.product(*by_place.values())):
        if count == 64:
            return
        yield list(chosen)


def _try(small: nn.Module, axes: Axes, example: Any) -> None:
    inputs = example if isinstance(example, tuple) else (example,)
    was = small.training
    small.eval()
    try:
        with torch.no_grad(), quiet():
            out = small(*inputs)
    finally:
        small.train(was)
    first = out if isinstance(out, Tensor) else next(iter(_leaves(out)))
    node = next(iter(axes.traced.graph.find_nodes(op="output"))).args[0][0]
    if tuple(first.shape[1:]) != shape_of(node.meta["val"])[1:]:
        raise ValueError(f"its output has shape {tuple(first.shape)}")


def _leaves(value: Any) -> list[Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(value) if isinstance(x, Tensor)]


def _apply(small: nn.Module, mends: list[Mend]) -> list[Mend]:
    """Set attributes; returns the list that sets them back."""
    old = []
    for path, name, value in mends:
        module = small.get_submodule(path)
        old.append((path, name, getattr(module, name)))
        setattr(module, name, value)
    return old


def _proposals(small: nn.Module, axes: Axes, keep: Keep) -> Iterator[Mend]:
    alive = axes.alive(keep)
    modules = dict(small.named_modules())
    for node in axes.traced.graph.nodes:
        if node.op != "call_function":
            continue
        before, after = _sizes(node, axes, alive)
        if before != after:
            yield from _attributes(modules, owner_of(node), before, after)


def _sizes(node: Call, axes: Axes, alive: Any) -> tuple[list[int], list[int]]:
    """The numbers in a call that are sizes, as they were and as they have to be."""
    operator = operator_of(node)
    if operator in _SIZED:
        return list(shape_of(node.meta["val"])), list(axes.shape(node, alive))
    if operator == "split_with_sizes":
        sizes = [int(s) for s in node.args[1]]  # type: ignore[union-attr]
        return sizes, _kept_runs(node, axes, alive, sizes, dim=_dim(node, 2))
    if operator == "slice":
        return _slice_bounds(node, axes, alive)
    if operator in ("constant_pad_nd", "pad"):
        return _pad_amounts(node, axes, alive)
    return [], []


def _dim(node: Call, place: int) -> int:
    dim = node.args[place] if len(node.args) > place else node.kwargs.get("dim", 0)
    return int(dim)  # type: ignore[arg-type]


def _kept_runs(node: Call, axes: Axes, alive: Any, sizes: list[int], *, dim: int) -> list[int]:
    axis = axes.resolve(axes.axes_of(node.args[0])[dim])
    if axis is None:
        return sizes
    stays = alive[axis].all(1)
    return [int(part.sum()) for part in np.split(stays, np.cumsum(sizes)[:-1])]


def _slice_bounds(node: Call, axes: Axes, alive: Any) -> tuple[list[int], list[int]]:
    dim = _dim(node, 1)
    size = shape_of(node.args[0].meta["val"])[dim]  # type: ignore[union-attr]
    bounds = [b for b in node.args[2:4] if isinstance(b, int)]
    bounds = [min(b % size if b < 0 else b, size) for b in bounds]
    axis = axes.resolve(axes.axes_of(node.args[0])[dim])
    if axis is None:
        return [], []
    stays = alive[axis].all(1)
    return bounds, [int(stays[:b].sum()) for b in bounds]


def _pad_amounts(node: Call, axes: Axes, alive: Any) -> tuple[list[int], list[int]]:
    amounts = [int(a) for a in node.args[1]]  # type: ignore[union-attr]
    out = list(amounts)
    for back in range(1, len(amounts) // 2 + 1):
        axis = axes.resolve(axes.axes_of(node)[-back])
        before, after = amounts[2 * back - 2 : 2 * back]
        if axis is not None and before + after:
            stays = alive[axis].all(1)
            out[2 * back - 2 : 2 * back] = [
                int(stays[:before].sum()),
                int(stays[len(stays) - after :].sum()),
            ]
    return amounts, out


def _attributes(
    modules: dict[str, nn.Module], owner: str, before: list[int], after: list[int]
) -> Iterator[Mend]:
    """Attributes of the calling module, or else of the nearest module around it, that hold the old sizes."""
    path = owner
    while True:
        found = list(_matches(path, modules[path], before, after)) if path in modules else []
        if found or not path:
            yield from found
            return
        path = path.rpartition(".")[0]


def _matches(path: str, module: nn.Module, before: list[int], after: list[int]) -> Iterator[Mend]:
    changed = [(b, a) for b, a in zip(before, after, strict=True) if b != a]
    for name, value in vars(module).items():
        if name.startswith("_") or isinstance(value, bool):
            continue
        if isinstance(value, int):
            yield from ((path, name, a) for b, a in changed if b == value)
        elif isinstance(value, (tuple, list)) and value and all(type(v) is int for v in value):
            for start in range(len(before) - len(value) + 1):
                span = slice(start, start + len(value))
                if before[span] == list(value) and after[span] != before[span]:
                    yield path, name, type(value)(after[span])
