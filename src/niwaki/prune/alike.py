"""Which groups of a model are alike: the parts that their atoms play in the graph, and a key made of them.

Scores of unlike groups do not compare well: heads with hidden units, residual streams with the inside of
blocks. Isomorphic ranking compares only groups of one key. The key of a group holds, sorted,

- for each of its parameter axes what calls do with it: (operator, argument, axis, factor of the axis), as often
  as it occurs: `("conv2d", "weight", 0, 0)` for the channels that a convolution makes;
- the set of operators that work on its atoms on the way (`relu`, `add`, `scaled_dot_product_attention`); calls
  that only move data are left out.

Sizes, strides and names are no part of it: the blocks of a stage, and of other stages, have one key.
Source: Fang et al. 2024, arXiv:2407.04616, section 3.2. There groups are compared as graphs; here as the sorted
list of their operators and axis roles, which is the same for chains of layers.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from niwaki.surgery import Axes, Group
from niwaki.surgery.operators import CONV, VIEW
from niwaki.surgery.rules import operator_of
from niwaki.surgery.trace import Call, shape_of

Key = tuple[tuple[tuple[str, str, int, int], ...], tuple[str, ...]]

_MOVES = {
    *VIEW,
    *"""
    permute transpose t swapaxes expand expand_as broadcast_to repeat cat stack slice narrow select flip roll
    chunk unsafe_chunk split split_with_sizes tensor_split unbind index clone contiguous detach alias to
    _to_copy lift_fresh_copy dropout feature_dropout alpha_dropout getitem type_as
    """.split(),  # noqa: SIM905
}
_NORMS = {
    *"batch_norm _native_batch_norm_legit_no_training instance_norm group_norm layer_norm rms_norm".split(),  # noqa: SIM905
}


@dataclass(frozen=True, order=True)
class Role:
    """What one call does with one parameter axis.

    Args:
        operator: such as `conv2d`.
        argument: the parameter's name in that call, such as `weight`.
        axis: of the parameter.
        makes: whether the axis is the output channels of a convolution or linear layer that mixes channels.
    """

    operator: str
    argument: str
    axis: int
    makes: bool

    @property
    def scale(self) -> bool:
        """Whether it is the scale of a norm."""
        return self.operator in _NORMS and self.argument == "weight"


def roles(axes: Axes, group: Group) -> dict[tuple[str, int], list[Role]]:
    """For each (parameter, axis) of a group what the calls that read the parameter do with the axis."""
    wanted = {name for name, _ in group.members}
    readers: dict[str, list[tuple[Call, Call]]] = defaultdict(list)
    for node in axes.traced.graph.find_nodes(op="placeholder"):
        name = axes.traced.names.get(node.name)
        if name in wanted:
            readers[name] += [(node, call) for call in node.users]
    return {
        (name, d): [
            Role(operator_of(call), argument, d, _makes(node, call, argument, d))
            for node, call in readers[name]
            for argument in _arguments(node, call)
        ]
        for name, d in group.members
    }


def _arguments(node: Call, call: Call) -> list[str]:
    """Names under which a call takes a node, by the operator's schema."""
    schema = getattr(call.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema else []
    places = [str(i) if i >= len(names) else names[i] for i, x in enumerate(call.args) if _holds(x, node)]
    return places + [name for name, x in call.kwargs.items() if _holds(x, node)]


def _holds(x: object, node: Call) -> bool:
    return x is node or (isinstance(x, list | tuple) and any(item is node for item in x))


def _makes(node: Call, call: Call, argument: str, d: int) -> bool:
    operator = operator_of(call)
    if argument != "weight" or operator not in (*CONV, "linear"):
        return False
    if operator == "linear":
        return d == 0
    shape, inputs = shape_of(node.meta["val"]), shape_of(call.args[0].meta["val"])[1]
    if "transpose" in operator or (operator == "convolution" and bool(call.args[6])):
        return d == 1
    depthwise = shape[1] == 1 and inputs > 1
    return d == 0 and not depthwise


_known: weakref.WeakKeyDictionary[Axes, dict[str, Key]] = weakref.WeakKeyDictionary()
"""Keys of analyses that are in use: a search asks for them at every width it tries."""


def keys(axes: Axes) -> dict[str, Key]:
    """`{group: key}`; groups of equal keys play the same parts."""
    if axes not in _known:
        passed = _operators(axes)
        _known[axes] = {group.name: (_parts(axes, group), passed[group.name]) for group in axes.groups}
    return _known[axes]


def _parts(axes: Axes, group: Group) -> tuple[tuple[str, str, int, int], ...]:
    found = []
    for (name, d), played in roles(axes, group).items():
        elements = axes.elements(name)[d]
        factors = [] if elements is None else np.flatnonzero(np.isin(elements, group.atoms).any(0)).tolist()
        found += [(role.operator, role.argument, d, factor) for role in played for factor in factors]
    return tuple(sorted(found))


def _operators(axes: Axes) -> dict[str, tuple[str, ...]]:
    """For each group the operators whose outputs carry its atoms."""
    owner = {atom: group.name for group in axes.groups for atom in group.atoms}
    found: dict[str, set[str]] = {group.name: set() for group in axes.groups}
    for call in axes.traced.graph.nodes:
        operator = operator_of(call)
        if call.op != "call_function" or operator in _MOVES or "getitem" in operator:
            continue
        for axis in _flat(axes, call):
            for atom in np.unique(axis).tolist():
                if atom in owner:
                    found[owner[atom]].add(operator)
    return {name: tuple(sorted(operators)) for name, operators in found.items()}


def _flat(axes: Axes, call: Call) -> list[np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    """The axes of a call's outputs that have atoms."""
    try:
        held = axes.axes_of(call)
    except KeyError:  # sizes and other plain numbers have no axes
        return []
    outputs = held if held and isinstance(held[0], list) else [held]
    resolved = [axes.resolve(axis) for output in outputs for axis in output]
    return [axis for axis in resolved if axis is not None]
