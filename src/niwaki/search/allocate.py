"""A budget turned into one width for each group: what it costs against what it loses, checked on real files.

Where `budget.meet` walks a one-dimensional family of networks (one ratio for all), here every group has its own
width: the sum of sensitivities is least within the budget (`knapsack`). `macs` and `params` are counted; a
`latency` or `size` comes from measured costs (`table`), is asked of a real file, and corrected until it is met.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from niwaki.cost import Budget, Cost
from niwaki.search import correct, knapsack, table
from niwaki.search.budget import MARGIN, WITHIN, Found, Keep, Scores, unreachable
from niwaki.search.counts import Counts, Widths

SENSITIVITY = "sensitivity"
"""The scope of `prune.channels` by which `niwaki fit` allocates."""
FINE = (32, 64, 128)
"""Widths a group may take where costs are counted, at most; more of them while they are too coarse."""
NEAR = 0.05
"""A network this little below the budget will do, before widths that suit the runtime less are tried."""
MOST = 20
"""Real networks asked before finer widths are given up."""
Losses = dict[str, list[float]]
Levels = dict[str, list[int]]


def allocate(
    budget: Budget,
    *,
    axes: Any,
    scores: Scores,
    baseline: Cost,
    measure: Callable[[Keep], float] | None = None,
    probe: Callable[[Keep], float] | None = None,
    losses: Callable[[Levels], Mapping[str, Sequence[float]]] | None = None,
    probes: int = table.PROBES,
    multiple: int | None = None,
    **choose: Any,
) -> Found:
    """Widths of least summed loss within the budget, one for each group.

    Args:
        axes, scores: of `surgery.analyse` and `prune.score`; the atoms of the highest scores stay.
        baseline: cost of the uncompressed model; shares are taken of it.
        measure: for `size` and `latency`: the cost of a candidate in the budget's own terms, `{}` the unpruned.
        probe: the same for the table, where a quicker answer will do; default `measure`.
        losses: what each group loses at each width, such as `prune.sensitivity`; default `by_scores`.
        probes: networks timed for the table, at most.
        multiple: widths are multiples of it; default: the step that was measured.
        choose: further knobs of `prune.choose` (min_width, skip, keep).
    Raises:
        BudgetError: even the narrowest network costs more. [budget-unreachable]
    Source: a knapsack over measured latencies: Shen et al., HALP, arXiv:2110.10811; here the costs are those of
        whole networks, and what neighbouring groups cost together is kept.
    """
    counts = Counts(axes)
    least, fixed = _least(axes, scores, choose)
    space = _Space(axes, scores, counts, least, fixed)
    if budget.kind in ("macs", "params"):
        return _counted(space, budget, baseline, losses or space.by_scores, multiple)
    if measure is None:
        raise TypeError(f"search.allocate: a {budget.kind} budget needs measure=.")
    return _measured(space, budget, measure, probe or measure, losses or space.by_scores, probes, multiple)


def along(found: Found, *, axes: Any, scores: Scores, macs: float) -> Found:
    """The widest network within `macs` whose groups lose channels in the proportions of `found`."""
    from niwaki import prune

    sizes = {name: len(scores[name]) for name in found.keep}

    def at(part: float) -> Keep:
        """`found` at 1, the whole network at 0; beyond 1 each group loses more, but never all."""
        keep: Keep = {}
        for name, kept in found.keep.items():
            width = sizes[name] - part * (sizes[name] - len(kept))
            width = max(round(width / found.multiple) * found.multiple, min(len(kept), found.multiple))
            if width < sizes[name]:
                keep[name] = prune.best(scores[name], width)
        return keep

    low, high = 0.0, 2.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if (axes.cost(at(middle)).macs or 0) <= macs else (middle, high)
    cost = axes.cost(at(high))
    return Found(keep=at(high), cost=cost, got=float(cost.macs or 0), multiple=found.multiple)


class _Space:
    """The networks that may be chosen, and their names in atoms."""

    def __init__(
        self, axes: Any, scores: Scores, counts: Counts, least: Mapping[str, int], fixed: Widths
    ) -> None:
        self.axes, self.scores, self.counts = axes, scores, counts
        self.least, self.fixed = least, fixed

    def keep(self, widths: Mapping[str, int]) -> Keep:
        """The atoms that stay at these widths."""
        from niwaki import prune

        both = {**self.fixed, **widths}
        narrower = {name: width for name, width in both.items() if width < len(self.scores[name])}
        return {name: prune.best(self.scores[name], width) for name, width in sorted(narrower.items())}

    def levels(self, step: int) -> Levels:
        """The widths each group may take."""
        own = {name: table.aligned(self.counts.size(name), step, low) for name, low in self.least.items()}
        return {name: widths for name, widths in own.items() if len(widths) > 1}

    def fine(self, multiple: int | None, parts: int) -> Levels:
        """Widths in steps of about one of so many parts of each group."""
        levels = {}
        for name, low in self.least.items():
            size = self.counts.size(name)
            step = multiple or 1
            while step * parts < size:
                step *= 2
            levels[name] = table.aligned(size, step, low)
        return {name: widths for name, widths in levels.items() if len(widths) > 1}

    def by_scores(self, levels: Levels) -> Losses:
        """Losses without data: minus the logarithm of the share of squared score that stays, for each place
        that the group sits in."""
        out: Losses = {}
        for name, widths in levels.items():
            scores = self.scores[name] - min(0.0, self.scores[name].min())  # gaussian ones are centred
            kept = np.cumsum(np.sort(np.square(scores))[::-1])
            shares = [kept[w - 1] / kept[-1] if w else 1e-3 for w in widths]
            places = self.counts.places(name)
            out[name] = [places * max(0.0, float(-np.log(max(share, 1e-3)))) for share in shares]
        return out


def _least(axes: Any, scores: Scores, choose: Mapping[str, Any]) -> tuple[dict[str, int], Widths]:
    """The narrowest width of each group that may be pruned, and the widths that were fixed by hand."""
    from niwaki import prune

    knobs = {name: value for name, value in choose.items() if name != "scope"}
    fixed = dict(knobs.get("keep") or {})
    narrowest = prune.choose(axes, scores, ratio=0.999, **knobs)
    return {name: len(kept) for name, kept in narrowest.items() if name not in fixed}, fixed


def _counted(
    space: _Space,
    budget: Budget,
    baseline: Cost,
    losses: Callable[[Levels], Mapping[str, Sequence[float]]],
    multiple: int | None,
) -> Found:
    count = space.counts.macs if budget.kind == "macs" else space.counts.params

    def cost(widths: Widths) -> float:
        return count({**space.fixed, **widths})

    tried: list[Found] = []
    for fine in FINE:
        levels = space.fine(multiple, fine)
        limit = budget.limit(baseline)
        widths = knapsack.within(cost, levels, losses(levels), limit, low=limit * (1 - WITHIN))
        if widths is not None:
            measure = _share_of(space, budget, baseline)
            tried.append(_found(space, widths, multiple or 1, measure))
            if not tried[-1].keep or tried[-1].got >= budget.value * (1 - WITHIN):
                break
    if not tried:
        least = cost({name: own[0] for name, own in levels.items()})
        raise unreachable(budget.text, least / count({}), relative=True)
    return _best(budget, tried, budget.value)


def _share_of(space: _Space, budget: Budget, baseline: Cost) -> Callable[[Keep], float]:
    return lambda keep: budget.got(space.axes.cost(keep), baseline)


def _found(space: _Space, widths: Widths, multiple: int, got: float | Callable[[Keep], float]) -> Found:
    keep = space.keep(widths)
    measured = got(keep) if callable(got) else got
    return Found(keep=keep, cost=space.axes.cost(keep), got=measured, multiple=multiple)


def _point(found: Found) -> dict[str, Any]:
    cost = found.cost
    return {"macs": cost.macs, "params": cost.params, "got": found.got, "multiple": found.multiple}


def _measured(
    space: _Space,
    budget: Budget,
    measure: Callable[[Keep], float],
    probe: Callable[[Keep], float],
    losses: Callable[[Levels], Mapping[str, Sequence[float]]],
    probes: int,
    multiple: int | None,
) -> Found:
    """The table, the knapsack, and real files until one lies within the window."""
    margin = MARGIN if budget.kind == "latency" else 0.0
    top, low = budget.value * (1 - margin), budget.value * (1 - WITHIN)
    start = _found(space, {}, 1, measure)
    if start.got <= top:
        return replace(start, tried=(_point(start),))
    costs = table.measured(
        space.counts, lambda widths: probe(space.keep(widths)), least=space.least, probes=probes
    )
    step = multiple or costs.step
    tried = [start]
    while True:
        levels = space.levels(step)
        asked = correct.corrected(
            costs.cost,
            levels,
            losses(levels),
            lambda widths: measure(space.keep(widths)),
            whole=start.got,
            window=(low, top),
        )
        tried += [_found(space, one.widths, step, one.got) for one in asked[1:]]
        near = any(budget.value * (1 - NEAR) <= found.got <= top for found in tried)
        if near or multiple or step == 1 or len(tried) > MOST:
            return _best(budget, tried, top)
        step //= 2  # blocks this wide are too coarse, or even the narrowest cost too much


def _best(budget: Budget, tried: list[Found], top: float) -> Found:
    """The closest below what was asked."""
    fits = [found for found in tried if found.got <= top]
    if not fits:
        raise unreachable(budget.text, min(found.got for found in tried), relative=budget.relative)
    found = max(fits, key=lambda one: one.got)
    coarser = found.got < budget.value * (1 - WITHIN)
    return replace(found, coarser=coarser, tried=tuple(_point(one) for one in tried))
