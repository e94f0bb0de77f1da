"""What can be removed from a model, and what goes with it: the axes of every tensor of its graph.

`analyse` walks the exported graph once, in order, and ties atoms by the rules of each operator. What comes out
are groups of atoms (channels, heads, hidden units) that can go one by one, and for every parameter axis which
of its indices remain when they do. Nothing here changes a model; `shrink` does.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, fx, nn

from niwaki.cost import Cost
from niwaki.surgery.atoms import KEPT, Atoms, Axis, Ints
from niwaki.surgery.rules import operator_of, rule_of
from niwaki.surgery.trace import Call, Traced, shape_of, source_of, trace

Keep = Mapping[str, Sequence[int]]
Kept = dict[str, dict[int, list[int]]]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Atoms that sit in the same places: each can be removed on its own, everywhere at once.

    Args:
        name: the first parameter axis that the atoms are part of, such as `layer1.0.conv1.weight:0`.
        atoms: their numbers, in the order of that axis.
        members: every (parameter, axis) that loses indices with them.
        secondary: the smaller factor of an axis that is a product of two (heads and head size, groups and
            channels of a group); left whole unless asked for, so that half the channels means half.
    """

    name: str
    atoms: tuple[int, ...]
    members: tuple[tuple[str, int], ...]
    secondary: bool = False
    optional: bool = False

    @property
    def size(self) -> int:
        """Number of atoms."""
        return len(self.atoms)


@dataclass(frozen=True)
class _Product:
    """Multiply-adds of one call: the product of the axes' kept sizes times a fixed factor."""

    axes: tuple[Any, ...]
    fixed: float


@dataclass
class Walk:
    """The state of one walk through a graph: what the rules read and tie."""

    traced: Traced
    atoms: Atoms = field(default_factory=Atoms)
    axes: dict[fx.Node, Any] = field(default_factory=dict)
    products: list[_Product] = field(default_factory=list)
    blocked: list[tuple[fx.Node, list[Axis]]] = field(default_factory=list)
    shared: dict[Any, list[Axis]] = field(default_factory=dict)

    def tensors_of(self, node: fx.Node) -> list[fx.Node]:
        """The tensor inputs of a call, in order, lists opened."""
        return [x for x in _flat_inputs(node) if self._is_tensor(x)]

    def _is_tensor(self, node: fx.Node) -> bool:
        return isinstance(node.meta.get("val"), Tensor)

    def free(self, size: int) -> Axis:
        """New elements that nothing needs yet (padding)."""
        fresh = self.atoms.fresh(size + 1)
        return None if fresh is None or size == 0 else fresh[:size]

    def factors(self, outer: Axis, inner: Axis) -> None:
        """Note that one axis is the product of two, of which pruning takes the finer by default."""
        if outer is not None and inner is not None:
            self.atoms.factors.append((outer, inner))

    def unprunable(self, node: fx.Node, touched: list[Axis]) -> None:
        """Note an operator without a rule, and the axes it keeps whole."""
        self.blocked.append((node, [self.atoms.resolve(axis) for axis in touched]))

    def contraction(
        self,
        node: fx.Node,
        x: fx.Node,
        weight: fx.Node,
        *,
        transposed: bool = False,
        product: bool = False,
        attention: fx.Node | None = None,
    ) -> None:
        """Count a convolution, linear layer, matrix product or attention: its kept axes, multiplied."""
        shape, w = shape_of(node.meta["val"]), shape_of(weight.meta["val"])
        own, other = self.axes[x], self.axes[weight]
        batch = 1 / self.traced.batch
        name = operator_of(node)
        if attention is not None:
            q, v = shape_of(x.meta["val"]), shape_of(attention.meta["val"])
            lead, lengths = tuple(own[:-2]), q[-2] * w[-2] * batch
            self._count((*lead, own[-1]), math.prod(q[:-2]) * q[-1], lengths)
            self._count((*lead, self.axes[attention][-1]), math.prod(q[:-2]) * v[-1], lengths)
        elif product:
            left = shape_of(x.meta["val"])
            column = other[-1] if len(w) > 1 else None
            self._count((*own, column), math.prod(left) * (w[-1] if len(w) > 1 else 1), batch)
        elif name == "linear":
            rows = shape_of(x.meta["val"])[:-1]
            self._count((*own[:-1], *other), math.prod(rows) * math.prod(w), batch)
        else:
            pixels = shape_of(x.meta["val"])[2:] if transposed else shape[2:]
            self._count((other[0], other[1]), math.prod(w), math.prod(pixels) * shape[0] * batch)

    def recurrence(self, node: fx.Node, weight: fx.Node) -> None:
        """Count one weight of a recurrent layer: it is used once for each step of each sequence."""
        sequences: Call = node.args[0]
        steps = math.prod(shape_of(sequences.meta["val"])[:-1])
        self._count(
            tuple(self.axes[weight]), math.prod(shape_of(weight.meta["val"])), steps / self.traced.batch
        )

    def einsum(self, node: fx.Node, names: list[str], tensors: list[fx.Node]) -> None:
        """Count an einsum: the product of all letters."""
        letters: dict[str, tuple[int, Axis]] = {}
        for letter_names, x in zip(names, tensors, strict=True):
            sizes = shape_of(x.meta["val"])
            letters |= {c: (s, a) for c, s, a in zip(letter_names, sizes, self.axes[x], strict=True)}
        size = math.prod(s for s, _ in letters.values())
        if len(tensors) > 1:
            self._count(tuple(a for _, a in letters.values()), size, 1 / self.traced.batch)

    def _count(self, axes: tuple[Axis, ...], size: float, fixed: float) -> None:
        live = tuple(axis for axis in axes if axis is not None)
        whole = size / math.prod(len(axis) for axis in live)
        self.products.append(_Product(live, whole * fixed))


def _flat_inputs(node: fx.Node) -> list[fx.Node]:
    out: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), lambda n: out.append(n))
    return out


class Axes:
    """The analysis of one model: its groups, its costs at any widths, its parameters' kept indices."""

    def __init__(self, walk: Walk) -> None:
        self.traced = walk.traced
        self._walk = walk
        atoms = walk.atoms
        self._resolved: dict[int, Axis] = {}  # of the walk's axes, which live as long as it does
        self._tensors = {
            walk.traced.names[node.name]: [atoms.resolve(axis) for axis in walk.axes[node]]
            for node in walk.traced.graph.nodes
            if node.name in walk.traced.tensors
        }
        self._shapes = {walk.traced.names[name]: tuple(t.shape) for name, t in walk.traced.tensors.items()}

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Every group of atoms that can go, in the order of the parameters."""
        places: dict[int, dict[tuple[str, int, int], None]] = defaultdict(dict)
        for name in self._parameters:
            for d, axis in enumerate(self._tensors[name]):
                for factor, column in enumerate([] if axis is None else axis.T):
                    for atom in dict.fromkeys(column.tolist()):
                        places[atom][name, d, factor] = None
        places.pop(KEPT, None)
        alike: dict[tuple[tuple[str, int, int], ...], list[int]] = defaultdict(list)
        for atom, where in places.items():
            alike[tuple(where)].append(atom)
        small = self._smaller_factors()
        out, taken = [], set[str]()
        for signature, numbers in alike.items():
            members = tuple(dict.fromkeys((name, d) for name, d, _ in signature))
            out.append(
                Group(
                    name=self._named(members, taken),
                    atoms=tuple(numbers),
                    members=members,
                    secondary=not small.isdisjoint(numbers),
                    optional=all(self._shared(name, d, numbers) for name, d in members),
                )
            )
        return tuple(group for group in out if group.size > 1)

    def _shared(self, name: str, d: int, numbers: list[int]) -> bool:
        """Whether an axis has elements that stay when these atoms go."""
        return bool((~np.isin(self._tensors[name][d], numbers)).all(1).any())  # type: ignore[arg-type]

    @staticmethod
    def _named(where: tuple[tuple[str, int], ...], taken: set[str]) -> str:
        base = f"{where[0][0]}:{where[0][1]}"
        name, count = base, 1
        while name in taken:
            count += 1
            name = f"{base}#{count}"
        taken.add(name)
        return name

    @cached_property
    def _parameters(self) -> list[str]:
        parameters = set(self.traced.program.graph_signature.inputs_to_parameters.values())
        return [name for name in self._tensors if name in parameters]

    def _smaller_factors(self) -> set[int]:
        """Atoms of the factor with fewer of them, wherever an axis is a product of two."""
        out: set[int] = set()
        for pair in self._walk.atoms.factors:
            outer, inner = (self._numbers(axis) for axis in pair)
            if outer and inner and not outer & inner:
                out |= min(outer, inner, key=len)
        return out

    def _numbers(self, axis: Axis) -> set[int]:
        resolved = self._walk.atoms.resolve(axis)
        return set() if resolved is None else set(resolved.ravel().tolist()) - {KEPT}

    @property
    def unprunable(self) -> list[dict[str, str]]:
        """Operators without a rule whose channels could otherwise have gone: operator and source."""
        seen: dict[tuple[str, str], None] = {}
        for node, touched in self._walk.blocked:
            if any(axis is not None for axis in touched):
                seen[str(node.target), source_of(node)] = None
        return [{"operator": operator, "source": source} for operator, source in seen]

    @property
    def prunable(self) -> float:
        """Share of the parameters that sit in at least one prunable group, 0..1."""
        total = sum(math.prod(self._shapes[name]) for name in self._parameters)
        inside = {name for group in self.groups for name, _ in group.members}
        return sum(math.prod(self._shapes[name]) for name in inside) / max(1, total)

    @property
    def protected(self) -> dict[str, list[str]]:
        """What is never touched: the inputs, and the parameters that make the outputs."""
        heads = [
            name
            for name in self._parameters
            if self._tensors[name]
            and self._tensors[name][0] is None
            and len(self._shapes[name]) > 1
            and self._shapes[name][0] > 1
        ]
        return {"inputs": list(self.traced.inputs), "whole": heads}

    def alive(self, keep: Keep) -> npt.NDArray[np.bool_]:
        """For each atom number whether it stays."""
        alive = np.ones(self._walk.atoms.count, dtype=bool)
        for group in self.groups:
            if group.name in keep:
                alive[list(group.atoms)] = False
                alive[[group.atoms[i] for i in keep[group.name]]] = True
        return alive

    def kept_indices(self, keep: Keep) -> Kept:
        """`{parameter or buffer: {axis: kept indices}}` for every axis that loses some."""
        alive = self.alive(keep)
        out: Kept = {}
        for name, axes in self._tensors.items():
            for d, axis in enumerate(axes):
                stays = None if axis is None else alive[axis].all(1)
                if stays is not None and not stays.all():
                    out.setdefault(name, {})[d] = np.flatnonzero(stays).tolist()
        return out

    def size(self, axis: Axis, size: int, alive: npt.NDArray[np.bool_]) -> int:
        """Kept elements of any traced axis of `size`."""
        resolved = self.resolve(axis)
        return size if resolved is None else int(alive[resolved].all(1).sum())

    def shape(self, node: fx.Node, alive: npt.NDArray[np.bool_]) -> tuple[int, ...]:
        """The shape that a traced tensor has after pruning."""
        sizes = shape_of(node.meta["val"])
        return tuple(self.size(a, s, alive) for a, s in zip(self._walk.axes[node], sizes, strict=True))

    def resolve(self, axis: Axis) -> Axis:
        """An axis of the walk in its final atoms."""
        if id(axis) not in self._resolved:
            self._resolved[id(axis)] = self._walk.atoms.resolve(axis)
        return self._resolved[id(axis)]

    def axes_of(self, node: fx.Node) -> Any:
        """The axes of a traced tensor (of each, where a call has several)."""
        return self._walk.axes[node]

    def elements(self, name: str) -> list[Axis]:
        """The axes of a parameter or buffer."""
        return self._tensors[name]

    @cached_property
    def _products(self) -> list[_Product]:
        resolve = self._walk.atoms.resolve
        out = []
        for product in self._walk.products:
            axes = [(resolve(axis), len(axis)) for axis in product.axes if axis is not None]
            fixed = product.fixed * math.prod(size for axis, size in axes if axis is None)
            out.append(_Product(tuple(axis for axis, _ in axes if axis is not None), fixed))
        return out

    @cached_property
    def _sizes(self) -> list[_Product]:
        out = []
        for name in self._parameters:
            sized = list(zip(self._tensors[name], self._shapes[name], strict=True))
            whole = math.prod(size for axis, size in sized if axis is None)
            out.append(_Product(tuple(axis for axis, _ in sized if axis is not None), whole))
        return out

    def terms(self, kind: str) -> list[tuple[float, tuple[Ints, ...]]]:
        """A cost as a sum of products: a factor, and the axes whose kept sizes multiply it.

        Args:
            kind: "macs" of one image, or "params".
        """
        return [(p.fixed, p.axes) for p in (self._products if kind == "macs" else self._sizes)]

    def cost(self, keep: Keep) -> Cost:
        """Multiply-adds of one image and parameters at these widths, by counting; `{}`: as it is."""
        alive = self.alive(keep)
        counts: dict[int, int] = {}

        def kept(axis: Axis) -> int:
            if id(axis) not in counts:
                counts[id(axis)] = int(alive[axis].all(1).sum())
            return counts[id(axis)]

        macs, params = (
            sum(fixed * math.prod(kept(axis) for axis in axes) for fixed, axes in self.terms(kind))
            for kind in ("macs", "params")
        )
        return Cost(macs=round(macs), params=round(params))


def analyse(model: nn.Module, example: Tensor | tuple[Any, ...]) -> Axes:
    """The axes of a model: what can go, what goes with it, and what it costs.

    Args:
        model: any module that `torch.export` follows; it is not changed.
        example: an input `[B, ...]` or a tuple of inputs.
    Raises:
        ModelError: torch.export cannot follow the forward. [model-export]
    """
    return walk(trace(model, example))


def walk(traced: Traced) -> Axes:
    """`analyse` for a graph that is traced already."""
    state = Walk(traced)
    for node in traced.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder":
            state.axes[node] = _placeholder(state, node, value)
        elif node.op == "call_function" and (isinstance(value, (Tensor, tuple, list))):
            state.axes[node] = rule_of(node)(state, node)
        elif node.op == "output":
            for out in _flat_inputs(node):
                if isinstance(out.meta.get("val"), Tensor):
                    for axis in state.axes[out]:
                        state.atoms.keep(axis)
    return Axes(state)


def _placeholder(state: Walk, node: fx.Node, value: Any) -> list[Axis] | None:
    if not isinstance(value, Tensor):
        return None
    held = state.traced.tensors.get(node.name)
    if held is None:
        return [None] * value.dim()
    shared = (held.data_ptr(), tuple(held.shape), held.stride())
    if held.numel() == 0 or shared not in state.shared:
        state.shared[shared] = [state.atoms.fresh(size) for size in value.shape]
    return state.shared[shared]
