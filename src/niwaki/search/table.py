"""What widths cost on a runtime, measured: whole networks are timed, costs of groups are read off.

`measured` asks a callback, so it knows neither files nor clocks. It
1. finds the step of the runtime's cost: all wide groups are set to half, and to 1, 2, 4, 8, 16 channels more;
   the largest block whose first channel already costs half of the whole block is the step;
2. times the network with one kind of group narrowed (groups of identical structure and shape together), the
   kinds with the most multiply-adds first, at half and at a quarter, as long as probes are left;
3. fits what all these times have in common: a cost of each class of calls per multiply-add, of each kind of
   group per channel, and a fixed one, none negative. A call between two groups costs the product of their
   widths, so the fit holds where several groups are narrow at once. What is left at the probes of one kind is
   added to that kind's curve.

Fitted towards a prior (time in proportion to multiply-adds), so few probes suffice and kinds that were never
timed still have a cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from niwaki.search.counts import Counts, Widths

Floats = npt.NDArray[np.float64]
Measure = Callable[[Widths], float]

PROBES = 24
"""Networks timed for one table, unless told otherwise."""
STEPS = (16, 8, 4, 2, 1)
SHARES = (0.5, 0.25)
"""Where each kind of group is timed."""
NOISE = 0.01
"""Spread that a timing is taken to have, as a share; it says how far the fit trusts a probe over the prior."""
_PRIOR = {"calls": 0.7, "kinds": 0.2, "fixed": 0.1}
_LOOSE = 1.0
"""Spread of the prior, as a share of each cost, ..."""
_LEAST = 0.01
"""... and at least this share of the whole network's cost."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One timed network: its widths and what it cost."""

    widths: Widths
    got: float


@dataclass(kw_only=True)
class Table:
    """Costs at any widths: `cost(widths)`, in the units that were measured.

    Args:
        step: channels by which this runtime's cost rises.
        probes: every network timed, the whole one first.
        coefficients: cost of each feature when the network is whole.
    """

    counts: Counts
    step: int
    probes: tuple[Probe, ...]
    coefficients: Floats
    curves: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)

    def cost(self, widths: Mapping[str, int]) -> float:
        """What a network of these widths costs."""
        fitted = float(features(self.counts, widths) @ self.coefficients)
        share = fitted / float(self.coefficients.sum())  # a curve was measured in a whole network
        for name, (places, left) in self.curves.items():
            width = widths.get(name, places[-1])
            if width < places[-1]:
                fitted += share * float(np.interp(width, places, left))
        return max(fitted, 0.0)

    def costs(self, levels: Mapping[str, Sequence[int]]) -> dict[str, list[float]]:
        """`{group: cost at each of its widths}`, all others whole."""
        return {name: [self.cost({name: w}) for w in own] for name, own in levels.items()}


def measured(counts: Counts, measure: Measure, *, least: Mapping[str, int], probes: int = PROBES) -> Table:
    """The table of a network on a runtime, from at most `probes` timed networks.

    Args:
        measure: the cost of a network of given widths; `{}` is the whole one.
        least: the narrowest width of each group that may be pruned; other groups are left whole.
    """
    taken = [Probe(widths={}, got=measure({}))]
    step = _step(counts, measure, least, taken)
    for widths in _designs(counts, least, step):
        if len(taken) >= probes:
            break
        if all(widths != probe.widths for probe in taken):
            taken.append(Probe(widths=widths, got=measure(widths)))
    return fitted(counts, taken, step=step)


def fitted(counts: Counts, probes: Sequence[Probe], *, step: int) -> Table:
    """The table that agrees with these probes, the first of which is the whole network."""
    coefficients = _fit(counts, probes)
    table = Table(counts=counts, step=step, probes=tuple(probes), coefficients=coefficients)
    table.curves = _curves(table)
    return table


def aligned(size: int, step: int, least: int) -> list[int]:
    """The widths worth having of a group: multiples of the step, from `least`, and the whole; a group thinner
    than two steps has finer ones."""
    while step > 1 and size < 2 * step:
        step //= 2
    first = max(step, -(-least // step) * step) if least else 0
    return sorted({*range(first, size, step), size})


def features(counts: Counts, widths: Mapping[str, int]) -> Floats:
    """Shares that remain of each class of calls and of each kind's channels, then 1; all 1 when whole."""
    classes = np.asarray(counts.alike, dtype=int)
    now, before = (np.bincount(classes, weights=v) for v in (counts.calls(widths), counts.whole))
    kinds = [
        float(np.mean([widths.get(name, counts.size(name)) / counts.size(name) for name in kind]))
        for kind in counts.kinds
    ]
    return np.array([*(now / np.maximum(before, 1)), *kinds, 1.0])


def _prior(counts: Counts) -> Floats:
    """The cost of each feature as a share of the whole before anything is measured."""
    classes = np.asarray(counts.alike, dtype=int)
    shares = np.bincount(classes, weights=counts.whole) / max(counts.whole.sum(), 1)
    kinds = np.array([_weight(counts, kind) for kind in counts.kinds])
    kinds = kinds / kinds.sum() if kinds.sum() > 0 else kinds
    prior = np.array([*(_PRIOR["calls"] * shares), *(_PRIOR["kinds"] * kinds), _PRIOR["fixed"]])
    return np.asarray(prior / prior.sum(), np.float64)


def _weight(counts: Counts, kind: Sequence[str]) -> float:
    """Multiply-adds that go when a kind is halved."""
    return float(counts.whole.sum()) - counts.macs({name: counts.size(name) // 2 for name in kind})


def _fit(counts: Counts, probes: Sequence[Probe]) -> Floats:
    """Costs of the features, none negative: least squares over the probes, each to its noise, and the prior."""
    whole = probes[0].got
    prior = _prior(counts) * whole
    noise = NOISE * np.array([max(probe.got, 1e-12) for probe in probes])
    rows = np.stack([features(counts, probe.widths) for probe in probes]) / noise[:, None]
    wanted = np.array([probe.got for probe in probes]) / noise
    spread = np.maximum(_LOOSE * prior, _LEAST * whole)
    matrix = np.concatenate([rows, np.diag(1 / spread)])
    return _positive(matrix, np.concatenate([wanted, prior / spread]), prior)


def _positive(matrix: Floats, wanted: Floats, start: Floats, *, sweeps: int = 2000) -> Floats:
    """argmin |matrix x - wanted| over x >= 0, coordinate by coordinate from a start."""
    gram, target = matrix.T @ matrix, matrix.T @ wanted
    x = start.copy()
    for _ in range(sweeps):
        moved = 0.0
        for i in range(len(x)):
            new = max(0.0, x[i] + (target[i] - gram[i] @ x) / gram[i, i])
            moved = max(moved, abs(new - x[i]))
            x[i] = new
        if moved <= 1e-9 * max(x.max(), 1e-12):
            break
    return x


def _curves(table: Table) -> dict[str, tuple[list[int], list[float]]]:
    """What the fit leaves open at the probes of one kind alone, for each of its groups."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for kind in table.counts.kinds:
        left = {table.counts.size(kind[0]): 0.0}
        for probe in table.probes:
            if probe.widths and set(probe.widths) <= set(kind) and len(set(probe.widths.values())) == 1:
                modelled = float(features(table.counts, probe.widths) @ table.coefficients)
                share = max(modelled / float(table.coefficients.sum()), 1e-9)
                left[min(probe.widths.values())] = (probe.got - modelled) / len(probe.widths) / share
        if len(left) > 1:
            places = sorted(left)
            curves |= {name: (places, [left[width] for width in places]) for name in kind}
    return curves


def _step(counts: Counts, measure: Measure, least: Mapping[str, int], taken: list[Probe]) -> int:
    """The step of this runtime's cost; its probes are added to `taken`."""
    top = _block(counts, least)
    if top == 1:
        return 1
    wide = {name: counts.size(name) for name in least if counts.size(name) >= 2 * top}
    base = {name: size // 2 // top * top for name, size in wide.items()}

    def at(more: int) -> float:
        widths = {name: width + more for name, width in base.items()}
        widths = {name: width for name, width in widths.items() if width < wide[name]}
        for probe in taken:
            if probe.widths == widths:
                return probe.got
        taken.append(Probe(widths=widths, got=measure(widths)))
        return taken[-1].got

    first, one = at(0), at(1)
    for block in (b for b in STEPS if 1 < b <= top):
        rise = at(block) - first
        if one - first >= 0.5 * rise or rise < NOISE * first:
            return block
    return 1


def _block(counts: Counts, least: Mapping[str, int]) -> int:
    """The largest step that can be told: groups of twice its size make up half of what can go."""
    weights = {name: _weight(counts, [name]) for name in least}
    for block in STEPS:
        if 2 * sum(w for name, w in weights.items() if counts.size(name) >= 2 * block) >= sum(weights.values()):
            return block
    return 1


def _designs(counts: Counts, least: Mapping[str, int], step: int) -> list[Widths]:
    """Networks to time: all groups at a quarter, then each kind alone, heavy kinds first."""
    kinds = [[name for name in kind if name in least] for kind in counts.kinds]
    kinds = sorted((kind for kind in kinds if kind), key=lambda kind: -_weight(counts, kind))
    every = [name for kind in kinds for name in kind]
    designs = [_at(counts, every, 0.25, least, step), _at(counts, every, 0.5, least, step)]
    for share in SHARES:
        designs += [_at(counts, kind, share, least, step) for kind in kinds]
    return [widths for widths in designs if widths]


def _at(counts: Counts, names: Sequence[str], share: float, least: Mapping[str, int], step: int) -> Widths:
    """These groups at about a share of their size, on widths worth having."""
    out = {}
    for name in names:
        size = counts.size(name)
        width = min(aligned(size, step, least[name]), key=lambda w: abs(w - share * size))
        if width < size:
            out[name] = width
    return out
