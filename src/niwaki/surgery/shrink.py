"""Cutting a model down to kept indices: the user's own class, smaller, or its graph where the class cannot be.

Parameters and buffers are sliced by the analysis. torch's own layers get their size attributes from what they
now hold, the user's by `mend.py`. `rewrite` needs no attribute: it cuts the graph, whose sizes are all to be
seen. Both are only proposals; `prune.prove` shows that they compute the right thing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from niwaki.errors import ModelError
from niwaki.surgery import mend, program, record
from niwaki.surgery.axes import Axes, Keep, Kept
from niwaki.surgery.copying import copied
from niwaki.surgery.inputs import few, outputs
from niwaki.surgery.reaching import reaching
from niwaki.surgery.resize import kept_groups
from niwaki.surgery.rules import operator_of
from niwaki.surgery.trace import Call, owner_of, quiet, shape_of


def shrink(
    model: nn.Module,
    axes: Axes,
    keep: Keep,
    *,
    example: Any = None,
    kept: Kept | None = None,
    like: nn.Module | None = None,
    checked: bool = False,
) -> nn.Module:
    """A copy of `model`, of its own class, in which only the kept atoms are left.

    Args:
        axes: `analyse(model, ...)`.
        keep: for each group to shrink, the numbers of the atoms that stay (0-based, at least one).
        example: an input, tuple or dict of inputs to try the result on; None skips the trial.
        kept: index lists to cut with instead of the analysis's own; only the tests of the proof, which
            must catch wrong ones, have a use for it.
        like: the same cut of the same class with other weights, whose attributes are taken over.
        checked: hold the numbers of the result against the cut graph's even where there was no choice of
            attributes; `prune.cut` does, others may leave it to the proof.
    Raises:
        ModelError: a group's list is empty or out of range, or the class cannot be made to run at these
            sizes. [prune-empty, prune-range, prune-unmendable]
    """
    small = _sliced_model(model, axes, keep, kept)
    _set_layer_sizes(small, axes, keep)
    _keep_attention_scale(small, axes, keep)
    if like is not None:
        mend.copy_mends(small, like, axes, keep)
        return small
    numbers = partial(_graph_outputs, model, axes, keep, example) if kept is None else lambda: None
    mend.mend(small, axes, keep, example=example, wanted=numbers, checked=checked)
    return small


def smaller(model: nn.Module, axes: Axes, keep: Keep, *, example: Any = None) -> nn.Module:
    """`shrink`, or where the class cannot be mended `rewrite`; a proposal, not proven.

    Raises:
        ModelError: neither can. [prune-empty, prune-range, prune-unmendable, program-operator, program-export]
    """
    try:
        return shrink(model, axes, keep, example=example)
    except ModelError as error:
        if error.code != "prune-unmendable":
            raise
        return rewrite(model, axes, keep, example=example)


def rewrite(model: nn.Module, axes: Axes, keep: Keep, *, example: Any = None) -> program.Program:
    """The graph of `model` with only the kept atoms left: same parameter names, trains, saves and exports.

    Args:
        example: an input, tuple or dict of inputs; with it, what training does and eval mode does not
            (dropout inside of attention) is found out.
    Raises:
        ModelError: a group's list is empty or out of range, or the graph cannot be written at these sizes.
            [prune-empty, prune-range, prune-unmendable, program-operator, program-export]
    """
    small = _sliced_model(model, axes, keep, None)
    graph = record.record(model, axes.traced, axes=axes, keep=keep, example=example)
    tensors = record.tensors(small, axes.traced, axes.kept_indices(keep))
    return program.load(graph, tensors)


def _graph_outputs(model: nn.Module, axes: Axes, keep: Keep, example: Any) -> list[Tensor] | None:
    """What the cut graph gives for the first images; None where it cannot be written."""
    try:
        with quiet():
            return outputs(rewrite(model, axes, keep), few(example))
    except Exception:  # the trial is then judged by shapes alone, and in any case by the proof
        return None


def _sliced_model(model: nn.Module, axes: Axes, keep: Keep, kept: Kept | None) -> nn.Module:
    _check(axes, keep)
    if kept is None:
        kept = axes.kept_indices(keep)
    _check_not_empty(kept, keep)
    return copied(model, _cut_tensors(model, kept))


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


def _cut_tensors(model: nn.Module, kept: Kept) -> dict[int, Tensor]:
    """By its id, what stays of every parameter and buffer that loses some; a shared one stays shared."""
    every = itertools.chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    )
    return {id(tensor): sliced(tensor, kept[name]) for name, tensor in every if name in kept}


def sliced(tensor: Tensor, cuts: dict[int, list[int]]) -> Tensor:
    """The kept indices of a tensor along each axis that loses some."""
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
        module.num_groups = kept_groups(node, axes, alive)
    elif hasattr(module, "normalized_shape"):
        layer: Any = module
        layer.normalized_shape = tuple(after[-len(layer.normalized_shape) :])


def _keep_attention_scale(small: nn.Module, axes: Axes, keep: Keep) -> None:
    """Attention that divides by the root of its head size goes on dividing by the original one."""
    for name, factors in attention_factors(axes, keep):
        tensor = small.get_parameter(name)
        with torch.no_grad():
            tensor.mul_(factors.to(tensor))


def attention_factors(axes: Axes, keep: Keep) -> Iterator[tuple[str, Tensor]]:
    """Parameters whose kept rows a cut multiplies, and by what, `[rows that stay, 1, ...]`.

    softmax(q k / sqrt(E)) with E now E' divides by sqrt(E'), so q is multiplied by sqrt(E' / E): its rows of
    the projection (or the norm behind it) carry the factor.
    """
    alive, kept = axes.alive(keep), axes.kept_indices(keep)
    for node in axes.traced.graph.nodes:
        if node.op != "call_function" or operator_of(node) != "scaled_dot_product_attention":
            continue
        query = node.args[0]
        before, after = shape_of(query.meta["val"])[-1], axes.shape(query, alive)[-1]
        if before != after and node.kwargs.get("scale") is None:
            yield from _source_factors(axes, kept, query, factor=math.sqrt(after / before))


def _source_factors(axes: Axes, kept: Kept, query: Call, *, factor: float) -> Iterator[tuple[str, Tensor]]:
    source, path = _source_of_query(query)
    rows = reaching(source, path)
    for held in (x for x in source.args[1:] if isinstance(x, fx.Node)):
        if name := axes.traced.names.get(held.name):
            stays = kept.get(name, {}).get(0, list(range(len(rows))))
            factors = torch.where(rows[torch.tensor(stays)], factor, 1.0)
            yield name, factors.reshape(-1, *[1] * (len(shape_of(held.meta["val"])) - 1))


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
