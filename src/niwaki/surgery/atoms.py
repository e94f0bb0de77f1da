"""Atoms: the yes-or-no unknowns behind every channel, and what ties them.

Each index of each tensor axis is an *element*. An element is kept if all atoms in its row are kept, so an axis
is an int array `[size, k]` of atom numbers (a row is a conjunction, padded with `KEPT`), or None when all of it
is always kept. Atom 0 is `KEPT`: whatever is tied to it stays. Merging two axes in a view gives rows with the
atoms of both; splitting one replaces its atoms by conjunctions of new ones. Tying more than needed is always
safe: it only makes pruning coarser, never wrong.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Axis = Ints | None
KEPT = 0


class Atoms:
    """A union-find over atoms in which an atom may also stand for a conjunction of others."""

    def __init__(self) -> None:
        self._parent = np.zeros(1024, dtype=np.int64)
        self._compound = np.zeros(1024, dtype=bool)  # whether an atom stands for others
        self._count = 1
        self._stands_for: dict[int, tuple[int, ...]] = {}
        self.factors: list[tuple[Axis, Axis]] = []  # axes whose product is one axis

    def fresh(self, size: int) -> Axis:
        """An axis of `size` new atoms; None for a size of 1, which is never pruned."""
        if size <= 1:
            return None
        while self._count + size > len(self._parent):
            self._parent = np.concatenate([self._parent, np.zeros_like(self._parent)])
            self._compound = np.concatenate([self._compound, np.zeros_like(self._compound)])
        new = np.arange(self._count, self._count + size)
        self._parent[new] = new
        self._count += size
        return new[:, None]

    @property
    def count(self) -> int:
        """One more than the highest atom number."""
        return self._count

    def find(self, atom: int) -> int:
        """The atom that speaks for this one."""
        parent = self._parent
        while parent[atom] != atom:
            parent[atom] = parent[parent[atom]]
            atom = int(parent[atom])
        return atom

    def row(self, atoms: tuple[int, ...]) -> tuple[int, ...]:
        """A conjunction in its shortest form: representatives, without `KEPT` or repeats, in order."""
        out: list[int] = []
        for atom in atoms:
            root = self.find(atom)
            parts = self.row(self._stands_for[root]) if root in self._stands_for else (root,)
            out += [part for part in parts if part != KEPT and part not in out]
        return tuple(out)

    def resolve(self, axis: Axis) -> Axis:
        """The same axis in representatives; None when nothing in it can go. Columns keep their places."""
        if axis is None:
            return None
        columns: list[Ints] = []
        for column in self._roots(axis).T:
            for part in self._expanded(column):
                if part.any() and not any(np.array_equal(part, known) for known in columns):
                    columns.append(part)
        return np.stack(columns, axis=1) if columns else None

    def _expanded(self, column: Ints) -> list[Ints]:
        compound = self._compound[column]
        if not compound.any():
            return [column]
        if compound.all() and (table := self._table(column)) is not None:
            return list(table.T)
        atoms = dict.fromkeys(column.tolist())
        place = {atom: i for i, atom in enumerate(atoms)}
        padded = _pad([self.row((atom,)) for atom in atoms])
        return [] if padded is None else list(padded[[place[atom] for atom in column.tolist()]].T)

    def _table(self, column: Ints) -> Ints | None:
        """The rows behind a column of compound atoms at once, where all are alike: as many single, different
        atoms in each, none of them kept; else None."""
        rows = [self._stands_for[atom] for atom in column.tolist()]
        if len(set(map(len, rows))) > 1:
            return None
        table = self._roots(np.array(rows, dtype=np.int64))
        ordered = np.sort(table, axis=1)
        plain = table.all() and not self._compound[table].any() and (ordered[:, 1:] != ordered[:, :-1]).all()
        return table if plain else None

    def _stand_for(self, atom: int, row: tuple[int, ...]) -> None:
        self._stands_for[atom] = row
        self._compound[atom] = True

    def _roots(self, axis: Ints) -> Ints:
        while True:
            parents = self._parent[axis]
            if np.array_equal(parents, axis):
                return axis
            axis = parents

    def keep(self, axis: Axis) -> None:
        """Tie a whole axis to `KEPT`."""
        axis = self.resolve(axis)
        if axis is not None:
            for atom in sorted(set(axis.ravel().tolist())):
                self._union(atom, KEPT)

    def tie(self, a: Axis, b: Axis) -> None:
        """Make two axes of one size keep the same elements."""
        if a is b:
            return
        a, b = self.resolve(a), self.resolve(b)
        if a is None or b is None:
            self.keep(a if b is None else b)
        elif not (self._adopt(a, b) or self._adopt(b, a)):
            same = (a == b).all(1) if a.shape == b.shape else np.zeros(len(a), bool)
            for row_a, row_b in zip(a[~same], b[~same], strict=True):
                self._tie_rows(tuple(map(int, row_a)), tuple(map(int, row_b)))

    def _adopt(self, a: Ints, b: Ints) -> bool:
        """Tie in one go where every atom of `b` is single, distinct and younger than its partner."""
        if a.shape[1] > 1 or b.shape[1] > 1:
            return False
        old, young = a[:, 0], b[:, 0]
        if (young <= old).any() or len(set(young.ravel().tolist())) < len(young):
            return False
        self._parent[young] = old
        return True

    def _tie_rows(self, a: tuple[int, ...], b: tuple[int, ...]) -> None:
        a, b = self.row(a), self.row(b)
        only_a = tuple(x for x in a if x not in b)
        only_b = tuple(x for x in b if x not in a)
        if not only_a and not only_b:
            return
        if len(a) == 1 and len(only_b) == len(b) > 1:
            self._stand_for(a[0], b)
        elif len(b) == 1 and len(only_a) == len(a) > 1:
            self._stand_for(b[0], a)
        elif len(only_a) == len(only_b):
            for x, y in zip(only_a, only_b, strict=True):
                self._union(x, y)
        else:
            self._union_all((*a, *b) if a and b else (*a, *b, KEPT))

    def _union_all(self, atoms: tuple[int, ...]) -> None:
        for atom in atoms[1:]:
            self._union(atoms[0], atom)

    def _union(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        if a == b:
            return
        if a in self._stands_for or b in self._stands_for:
            self._tie_rows((a,), (b,))
            return
        low, high = min(a, b), max(a, b)
        self._parent[high] = low

    def merge(self, axes: list[tuple[int, Axis]]) -> Axis:
        """Axes given as (size, axis), outermost first, flattened into one, row-major."""
        parts = [(size, self.resolve(axis)) for size, axis in axes]
        if all(axis is None for _, axis in parts):
            return None
        out = np.zeros((1, 0), dtype=np.int64)
        for size, axis in parts:
            inner = np.zeros((size, 0), dtype=np.int64) if axis is None else axis
            left = np.repeat(out, size, axis=0)
            right = np.tile(inner, (len(out), 1))
            out = np.concatenate([left, right], axis=1)
        return out

    def split(self, axis: Axis, sizes: list[int]) -> list[Axis]:
        """One axis cut row-major into axes of the given sizes, outermost first."""
        axis = self.resolve(axis)
        if axis is None:
            return [None] * len(sizes)
        columns: list[list[Ints]] = [[] for _ in sizes]
        for column in axis.T:
            for place, part in self._split_column(column.reshape(sizes)):
                columns[place].append(part)
        return [np.stack(parts, axis=1) if parts else None for parts in columns]

    def _split_column(self, grid: Ints) -> list[tuple[int, Ints]]:
        varies = [d for d in range(grid.ndim) if (grid != np.take(grid, [0], axis=d)).any()]
        if not varies:
            varies = [d for d in range(grid.ndim) if grid.shape[d] > 1][-1:] if grid.any() else []
            if varies:  # one atom behind the whole axis: it belongs to every part, so it stays
                self._union(int(grid.flat[0]), KEPT)
            return []
        if len(varies) == 1:
            take: list[slice | int] = [0] * grid.ndim
            take[varies[0]] = slice(None)
            return [(varies[0], grid[tuple(take)])]
        fresh = {d: self.fresh(grid.shape[d]) for d in varies}
        if not self._stand_for_all(grid, fresh):
            self._tie_grid(grid, varies, fresh)
        self.factors += itertools.combinations(fresh.values(), 2)
        return [(d, new[:, 0]) for d, new in fresh.items() if new is not None]

    def _stand_for_all(self, grid: Ints, fresh: dict[int, Axis]) -> bool:
        """Lets each atom of a grid stand for its row of new ones, where all are different, single and free."""
        atoms = grid.ravel().tolist()
        if KEPT in atoms or len(set(atoms)) < len(atoms) or self._compound[grid].any():
            return False
        rows = np.stack(
            [np.broadcast_to(_along(new, d, grid.ndim), grid.shape).ravel() for d, new in fresh.items()], axis=1
        )
        self._stands_for.update(zip(atoms, map(tuple, rows.tolist()), strict=True))
        self._compound[grid] = True
        return True

    def _tie_grid(self, grid: Ints, varies: list[int], fresh: dict[int, Axis]) -> None:
        for place in np.ndindex(*grid.shape):
            if grid[place] == KEPT:
                for d, new in fresh.items():
                    self._union(int(new[place[d], 0]), KEPT)  # type: ignore[index]
            else:
                row = tuple(int(fresh[d][place[d], 0]) for d in varies)  # type: ignore[index]
                self._tie_rows((int(grid[place]),), row)


def _along(axis: Axis, d: int, dims: int) -> Ints:
    """A single column laid along dimension `d`."""
    assert axis is not None  # an axis that varies has more than one element
    return axis[:, 0].reshape([-1 if i == d else 1 for i in range(dims)])


def _pad(rows: list[tuple[int, ...]]) -> Axis:
    width = max(map(len, rows), default=0)
    if width == 0:
        return None
    return np.array([(*row, *[KEPT] * (width - len(row))) for row in rows], dtype=np.int64)
