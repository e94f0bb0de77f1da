"""Multiply-adds and parameters at any widths, call by call, fast enough to be asked thousands of times.

`Axes.cost` looks at every atom; here each distinct axis is looked at once for each combination of widths of
the groups in it, which is all that a count can depend on. Also: which groups and which calls are alike, so
that what is measured of one holds for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Widths = dict[str, int]
"""Kept atoms by group name; a group that is not named is whole."""


class Counts:
    """What a network counts at given widths, of its `surgery.Axes`.

    `whole` are the multiply-adds of each call of the unpruned network. `kinds` lists the groups that may be
    pruned, those of identical structure and shape together; `alike` gives each call the number of its class:
    calls of one class have the same shapes.
    """

    def __init__(self, axes: Any) -> None:
        self._groups = {group.name: group for group in axes.groups}
        self._atoms = axes.alive({}).size
        self._owner = np.full(self._atoms, -1)
        self._names = list(self._groups)
        for number, group in enumerate(axes.groups):
            self._owner[list(group.atoms)] = number
        self._axes: list[tuple[Any, tuple[str, ...]]] = []
        self._known: dict[Any, int] = {}
        self._memo: dict[tuple[int, tuple[int, ...]], int] = {}
        self._calls = [(fixed, tuple(map(self._axis, rows))) for fixed, rows in axes.terms("macs")]
        self._tensors = [(fixed, tuple(map(self._axis, rows))) for fixed, rows in axes.terms("params")]
        self.whole = self.calls({})
        self.alike = self._classes()
        self.kinds = self._kinds()

    def size(self, name: str) -> int:
        """Atoms of a group."""
        return int(self._groups[name].size)

    def places(self, name: str) -> int:
        """How many axes of calls a group sits in: 2 inside a block, many for a residual stream."""
        return sum(name in self._axes[axis][1] for _, axes in self._calls for axis in axes)

    def calls(self, widths: Mapping[str, int]) -> Floats:
        """Multiply-adds of each call, for one image: float64 `[calls]`."""
        return np.array([self._product(call, widths) for call in self._calls])

    def macs(self, widths: Mapping[str, int]) -> float:
        """Multiply-adds of one image."""
        return float(self.calls(widths).sum())

    def params(self, widths: Mapping[str, int]) -> float:
        """Number of parameters."""
        return float(sum(self._product(tensor, widths) for tensor in self._tensors))

    def _product(self, call: tuple[float, tuple[int, ...]], widths: Mapping[str, int]) -> float:
        fixed, axes = call
        return fixed * math.prod(self._kept(axis, widths) for axis in axes)

    def _axis(self, rows: Any) -> int:
        """The number of an axis; axes of equal content share it."""
        key = (rows.shape, rows.tobytes())
        if key not in self._known:
            self._known[key] = len(self._axes)
            owners = np.unique(self._owner[rows])
            self._axes.append((rows, tuple(self._names[i] for i in owners if i >= 0)))
        return self._known[key]

    def _kept(self, axis: int, widths: Mapping[str, int]) -> int:
        rows, names = self._axes[axis]
        own = tuple(widths.get(name, self._groups[name].size) for name in names)
        if (axis, own) not in self._memo:
            alive = np.ones(self._atoms, dtype=bool)
            for name, width in zip(names, own, strict=True):
                alive[list(self._groups[name].atoms[width:])] = False
            self._memo[axis, own] = int(alive[rows].all(1).sum())
        return self._memo[axis, own]

    def _classes(self) -> list[int]:
        seen: dict[Any, int] = {}
        return [seen.setdefault(self._shape(call), len(seen)) for call in self._calls]

    def _shape(self, call: tuple[float, tuple[int, ...]]) -> tuple[float, tuple[int, ...]]:
        fixed, axes = call
        return fixed, tuple(len(self._axes[axis][0]) for axis in axes)

    def _kinds(self) -> list[list[str]]:
        """Groups by size, the calls they are part of, and how."""
        alike: dict[Any, list[str]] = {}
        for name, group in self._groups.items():
            if group.secondary:
                continue
            places = [
                (*self._shape(call), tuple(name in self._axes[axis][1] for axis in call[1]))
                for call in self._calls
                if any(name in self._axes[axis][1] for axis in call[1])
            ]
            alike.setdefault((group.size, tuple(sorted(places))), []).append(name)
        return list(alike.values())
