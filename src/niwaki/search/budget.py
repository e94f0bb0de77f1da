"""A budget turned into widths. Widths are searched by cost alone; accuracy is recovered once, afterwards.

`macs` and `params` are counted, so the search is exact and always the same. `size` and `latency`
are asked of a real export: `measure(keep)` makes the candidate and gives its cost in the budget's
own terms, and a line through what was measured so far says which count to try next (bytes are
about affine in parameters, time in multiply-adds). Candidates come from one function in all cases:
the widest network within a count.

A found point costs at most what was asked, and within 2 % of it unless `coarser` says that
channels are coarser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.cost import Budget, Cost
from niwaki.errors import BudgetError

Keep = dict[str, list[int]]
Scores = dict[str, npt.NDArray[np.float64]]

WITHIN = 0.02
"""A point may lie this share below what was asked, and never above."""
MULTIPLES = (8, 4, 2, 1)
"""Widths tried, best for runtimes first: their kernels work on whole blocks of channels."""
EXPORTS = 10
"""At most so many candidates are exported for a measured budget."""
MARGIN = 0.55 * WITHIN
"""How far below the limit a measured time must lie, as the finished file is timed once more."""
_MOST = 0.999
_FILL_LIMIT = 400
_PROXY = {"macs": "macs", "params": "params", "size": "params", "latency": "macs"}


@dataclass(frozen=True, kw_only=True)
class Found:
    """Widths that meet a budget.

    Args:
        keep: kept atoms of each group that gets smaller; empty when nothing has to go.
        cost: counted macs and params.
        got: the cost in the budget's own terms, a share, count, bytes or ms.
        multiple: widths are multiples of this where the group allows it.
        coarser: more than 2 % below what was asked: channels are coarser, or, for a time, noise and the
            number of exports left no closer point.
        tried: every point asked for, `{"macs", "params", "got", "multiple"}`, in order.
    """

    keep: Keep
    cost: Cost
    got: float
    multiple: int = 1
    coarser: bool = False
    tried: tuple[dict[str, Any], ...] = ()


def meet(
    budget: Budget,
    *,
    axes: Any,
    scores: Scores,
    baseline: Cost,
    measure: Callable[[Keep], float] | None = None,
    multiples: Sequence[int] = MULTIPLES,
    **choose: Any,
) -> Found:
    """The widest network within the budget.

    Args:
        axes, scores: of `surgery.analyse` and `prune.score`.
        baseline: cost of the uncompressed model; shares are taken of it.
        measure: for `size` and `latency`: the cost of a candidate in the budget's own terms. `{}`
            is the unpruned network.
        multiples: widths to try, the best for the runtime first; one entry fixes it.
        choose: further knobs of `prune.choose` (scope, min_width, skip).
    Raises:
        BudgetError: even the narrowest network costs more. [budget-unreachable]
    """
    field = _PROXY[budget.kind]
    space = _Space(axes, scores, field, choose)
    if budget.kind in ("macs", "params"):
        return _counted(space, budget, baseline, multiples)
    if measure is None:
        raise TypeError(f"search.meet: a {budget.kind} budget needs measure=.")
    return _Measured(space, budget, measure, multiples).search()


def widest(axes: Any, scores: Scores, *, kind: str, limit: float, multiple: int = 1, **choose: Any) -> Found:
    """The widest network whose `macs` or `params` are at most `limit`, by counting alone.

    Raises:
        BudgetError: even the narrowest network costs more. [budget-unreachable]
    """
    space = _Space(axes, scores, kind, choose)
    keep = space.within(limit, multiple)
    cost = space.axes.cost(keep)
    return Found(keep=keep, cost=cost, got=float(space.of(keep)), multiple=multiple)


class _Space:
    """Candidates by count: the one-dimensional family of networks that a search walks along."""

    def __init__(self, axes: Any, scores: Scores, field: str, choose: dict[str, Any]) -> None:
        self.axes, self.scores, self.field, self.choose = axes, scores, field, choose
        self.full = self.of({})

    def of(self, keep: Keep) -> int:
        return int(getattr(self.axes.cost(keep), self.field))

    def cut(self, ratio: float, multiple: int) -> Keep:
        from niwaki import prune

        keep: Keep = prune.choose(self.axes, self.scores, ratio=ratio, multiple=multiple, **self.choose)
        return keep

    def floor(self, multiple: int) -> int:
        """The least count that can be reached."""
        return self.of(self.cut(_MOST, multiple))

    def within(self, limit: float, multiple: int) -> Keep:
        """The widest candidate that counts at most `limit`."""
        if self.full <= limit:
            return {}
        least = self.floor(multiple)
        if least > limit:
            asked = f"{self.field}={limit / self.full:.2%}"
            raise unreachable(asked, least / self.full, relative=True)
        low, high = 0.0, _MOST  # low costs too much, high fits
        while high - low > 1e-3:
            middle = (low + high) / 2
            if self.of(self.cut(middle, multiple)) <= limit:
                high = middle
            else:
                low = middle
        keep = self.cut(high, multiple)
        while True:  # finer blocks only for what the coarser ones leave open
            keep = self._fill(keep, limit, multiple)
            if multiple == 1 or self.of(keep) >= limit * (1 - WITHIN):
                return keep
            multiple //= 2

    def _fill(self, keep: Keep, limit: float, multiple: int) -> Keep:
        """The candidate with dropped channels given back, highest score first, while the count allows."""
        count = self.of(keep)
        for name, block in self._dropped(keep, multiple):
            if count >= limit * (1 - WITHIN / 4):
                break
            wider = {**keep, name: sorted([*keep[name], *block])}
            if len(wider[name]) == len(self.scores[name]):
                del wider[name]  # whole again
            wider_count = self.of(wider)
            if count < wider_count <= limit:
                keep, count = wider, wider_count
        return keep

    def _dropped(self, keep: Keep, multiple: int) -> list[tuple[str, list[int]]]:
        blocks: list[tuple[float, str, list[int]]] = []
        for name, kept in sorted(keep.items()):
            score = np.asarray(self.scores[name])
            gone = sorted(set(range(len(score))) - set(kept), key=lambda atom: (-score[atom], atom))
            first = -len(kept) % multiple or multiple
            for block in _blocks(gone, first, multiple):
                blocks.append((-float(score[block].mean()), name, block))
        blocks.sort(key=lambda entry: entry[:2])
        return [(name, block) for _, name, block in blocks[:_FILL_LIMIT]]


def _blocks(items: list[int], first: int, size: int) -> Iterator[list[int]]:
    if items:
        yield items[:first]
    for start in range(first, len(items), size):
        yield items[start : start + size]


def unreachable(asked: str, least: float, *, relative: bool) -> BudgetError:
    """The error that says how far down one can get."""
    cost = f"{least:.1%} of the uncompressed model" if relative else f"{least:.6g}"
    return BudgetError(
        f"budget {asked}: the narrowest network tried still costs {cost}. Ask for more, or lower min_width.",
        code="budget-unreachable",
    )


def _counted(space: _Space, budget: Budget, baseline: Cost, multiples: Sequence[int]) -> Found:
    """The first multiple that comes within 2 %, else the closest of all."""
    limit, best, tried = budget.limit(baseline), None, []
    failure: BudgetError | None = None
    for multiple in multiples:
        try:
            keep = space.within(limit, multiple)
        except BudgetError as error:
            failure = error
            continue
        cost = space.axes.cost(keep)
        found = Found(keep=keep, cost=cost, got=budget.got(cost, baseline), multiple=multiple)
        tried.append(_point(found))
        if best is None or found.got > best.got:
            best = found
        if not keep or found.got >= budget.value * (1 - WITHIN):
            return replace(found, tried=tuple(tried))
    if best is None:
        assert failure is not None
        raise failure
    return replace(best, coarser=True, tried=tuple(tried))


def _point(found: Found) -> dict[str, Any]:
    cost = found.cost
    return {"macs": cost.macs, "params": cost.params, "got": found.got, "multiple": found.multiple}


class _Measured:
    """The search for a budget that only a real export can answer."""

    AIM = 1 - 0.75 * WITHIN
    """Where in the allowed window to aim: low in it, for noise above the limit costs more than below."""

    def __init__(
        self,
        space: _Space,
        budget: Budget,
        measure: Callable[[Keep], float],
        multiples: Sequence[int],
    ) -> None:
        self.space, self.budget, self.measure = space, budget, measure
        self.multiples = tuple(multiples)
        self.top = budget.value * (1 - MARGIN * (budget.kind == "latency"))
        self.tried: list[Found] = []

    def search(self) -> Found:
        """The candidate closest below what was asked, after at most `EXPORTS` exports."""
        start = self._try({}, 1)
        if start.got <= self.top:
            return self._done(start)
        multiple = self._like(self._first(start.got))
        finer = [m for m in self.multiples if m < multiple]
        while len(self.tried) <= EXPORTS and not self._close():
            keep = self._next(multiple)
            if keep is not None:
                self._try(keep, multiple)
            elif finer:  # blocks this wide are too coarse to come within 2 %
                multiple = finer.pop(0)
            else:
                break
        return self._done(self._best(multiple))

    def _try(self, keep: Keep, multiple: int) -> Found:
        cost = self.space.axes.cost(keep)
        found = Found(keep=keep, cost=cost, got=self.measure(keep), multiple=multiple)
        self.tried.append(found)
        return found

    def _count(self, found: Found) -> int:
        return int(getattr(found.cost, self.space.field))

    def _first(self, full: float) -> float:
        """A first count to try: a tenth of the cost is taken to be fixed."""
        share = max(0.02, (self.budget.value * self.AIM / full - 0.1) / 0.9)
        return share * self.space.full

    def _like(self, limit: float) -> int:
        """The multiple that this runtime likes: the cheapest of two widths of about one count."""
        several = self.multiples if self.budget.kind == "latency" else self.multiples[-1:]
        candidates = []
        for multiple in dict.fromkeys((several[0], several[-1])):
            limit_here = max(limit, self.space.floor(multiple))
            keep = self.space.within(limit_here, multiple)
            if not any(keep == found.keep for found in self.tried):
                found = self._try(keep, multiple)
                candidates.append((found.got / self._count(found), -multiple))
        return -min(candidates)[1] if candidates else several[-1]

    def _close(self) -> bool:
        least = self.budget.value * (1 - WITHIN)
        return any(least <= found.got <= self.top for found in self.tried)

    def _line(self, multiple: int) -> list[tuple[float, float]]:
        """(count, got) of what may be compared: the start and tries at least as aligned, by count."""
        points = {self._count(f): f.got for f in self.tried if not f.keep or f.multiple >= multiple}
        return sorted(points.items())

    def _next(self, multiple: int) -> Keep | None:
        """The candidate where the line through the nearest measurements meets the aim; None at the end."""
        asked = self.budget.value
        points = self._line(multiple)
        below = [p for p in points if p[1] <= self.top]
        above = [p for p in points if p[1] > self.top and (not below or p[0] > below[-1][0])]
        least = self.space.floor(multiple)
        if not below:
            if points[0][0] <= least:
                raise self._unreachable()
            target = _cross(points[0], points[1] if len(points) > 1 else None, asked * self.AIM)
            target = min(target, 0.9 * points[0][0])
        elif not above:
            return None  # noise turned the order round: nothing between is left to try
        else:
            target = _cross(below[-1], above[0], asked * self.AIM)
            inside = 0.05 * (above[0][0] - below[-1][0])
            target = min(max(target, below[-1][0] + inside), above[0][0] - inside)
        keep = self.space.within(max(target, least), multiple)
        return None if any(keep == found.keep for found in self.tried) else keep

    def _best(self, multiple: int) -> Found:
        fits = [found for found in self.tried if found.got <= self.top]
        if fits:
            return max(fits, key=lambda found: found.got)
        keep = self.space.cut(_MOST, multiple)
        narrowest = self._try(keep, multiple)
        if narrowest.got > self.top:
            raise self._unreachable()
        return narrowest

    def _unreachable(self) -> BudgetError:
        least = min(found.got for found in self.tried)
        return unreachable(self.budget.text, least, relative=self.budget.relative)

    def _done(self, found: Found) -> Found:
        coarser = bool(found.keep) and found.got < self.budget.value * (1 - WITHIN)
        return replace(found, coarser=coarser, tried=tuple(map(_point, self.tried)))


def _cross(a: tuple[float, float], b: tuple[float, float] | None, aim: float) -> float:
    """The count at which the line through two (count, got) points reads `aim`; through 0 when there is one."""
    if b is None or b[1] <= a[1]:
        return a[0] * aim / a[1]
    return a[0] + (aim - a[1]) * (b[0] - a[0]) / (b[1] - a[1])
