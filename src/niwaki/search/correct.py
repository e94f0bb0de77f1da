"""From a table's answer to a real network within the budget: ask, correct, ask again.

The first answers come from the knapsack, its aim corrected by measured over predicted. Once one network lies
below the budget and one above, the next is taken on the way from one to the other, group by group: the two then
differ in ever fewer groups, so that it ends even where the table is wrong. Where one step of one group leads
from far below the budget to above it (a width at which a runtime takes another kernel), that group stays below,
and what is left of the budget goes to the others; or else it stays above, and the others pay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from niwaki.search import knapsack
from niwaki.search.knapsack import Levels, Losses, Widths

CHECKS = 10
"""Real networks asked after the table."""
DOWN = 4
"""So many more while all of them cost too much."""
NUDGE, NUDGES = 0.004, 5
"""Where the best widths within an aim were asked already: how far it is moved, and how often."""
Predict = Callable[[Widths], float]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A network that was asked for: its widths, and its cost as predicted and as measured."""

    widths: Widths
    predicted: float
    got: float


def corrected(
    predict: Predict,
    levels: Levels,
    losses: Losses,
    ask: Callable[[Widths], float],
    *,
    whole: float,
    window: tuple[float, float],
) -> list[Asked]:
    """All networks asked for, the last of them in the window where one was found; first the whole one.

    Args:
        predict: the table's cost of widths.
        ask: the real cost.
        whole: the real cost of the whole network.
        window: lowest and highest cost that will do.
    """
    low, top = window
    asked = [Asked(widths={}, predicted=predict({}), got=whole)]
    for number in range(CHECKS + DOWN):
        below = any(one.got <= top for one in asked)
        if (below and number >= CHECKS) or any(low <= one.got <= top for one in asked):
            break
        widths = _next(predict, levels, losses, asked, window)
        if widths is None:
            break
        asked.append(Asked(widths=widths, predicted=predict(widths), got=ask(widths)))
    if all(one.got > top for one in asked):
        widths = {name: own[0] for name, own in levels.items()}
        asked.append(Asked(widths=widths, predicted=predict(widths), got=ask(widths)))
    return asked


def _next(
    predict: Predict,
    levels: Levels,
    losses: Losses,
    asked: Sequence[Asked],
    window: tuple[float, float],
) -> Widths | None:
    """What to ask next; None at the end."""
    low, top = window
    wanted = (low + top) / 2
    below = [one for one in asked[1:] if one.got <= top]
    above = [one for one in asked[1:] if one.got > top]
    if below and above:
        ends = max(below, key=lambda one: one.got), min(above, key=lambda one: one.got)
        return _between(predict, levels, ends, wanted) or _around(predict, levels, losses, asked, ends, wanted)
    last = min(asked[1:] or asked, key=lambda one: abs(one.got - wanted))
    aim = last.predicted * wanted / last.got
    return _unasked(predict, levels, losses, asked, aim, side=1 if below else -1)


def _unasked(
    predict: Predict, levels: Levels, losses: Losses, asked: Sequence[Asked], aim: float, *, side: int
) -> Widths | None:
    """The best widths within the aim that were not asked yet; it is moved up (`side` 1) or down (-1) a little
    where they were; None where there are none."""
    known = [one.widths for one in asked]
    for nudge in range(NUDGES):
        limit = aim * (1 + NUDGE * nudge * side)
        widths = knapsack.within(predict, levels, losses, limit, low=limit * (1 - 2 * NUDGE))
        if widths is None or widths not in known:
            return widths
    return None


def _between(predict: Predict, levels: Levels, ends: tuple[Asked, Asked], wanted: float) -> Widths | None:
    """On the way from the network below to the one above, where the line through both says `wanted`."""
    below, above = ends
    way = _way(levels, below.widths, above.widths)
    if not way:
        return None
    here, there = predict(below.widths), predict(above.widths)
    share = (wanted - below.got) / (above.got - below.got)
    if there <= here:  # the table has it the other way round: half of the way, then
        return way[len(way) // 2]
    return min(way, key=lambda widths: abs((predict(widths) - here) / (there - here) - share))


def _around(
    predict: Predict,
    levels: Levels,
    losses: Losses,
    asked: Sequence[Asked],
    ends: tuple[Asked, Asked],
    wanted: float,
) -> Widths | None:
    """Where one step of a group jumps over the budget: that group held below, the others wider than in the
    network below; or else held above, the others narrower than in the network above."""
    below, above = ends
    held = {name for name, width in above.widths.items() if width > below.widths[name]}
    for end, side in ((below, 1), (above, -1)):
        at = end.widths
        free = {
            name: [w for w in own if w == at[name] or (name not in held and (w - at[name]) * side > 0)]
            for name, own in levels.items()
        }
        lost = {name: [losses[name][list(levels[name]).index(w)] for w in own] for name, own in free.items()}
        widths = _unasked(predict, free, lost, asked, end.predicted * wanted / end.got, side=side)
        if widths is not None:
            return widths
    return None


def _way(levels: Levels, start: Widths, end: Widths) -> list[Widths]:
    """The networks from one to the other, both left out: one group after the other, one level at a time."""
    at, way = dict(start), []
    for name, own in levels.items():
        first, last = own.index(start[name]), own.index(end[name])
        for place in range(first, last, 1 if last > first else -1):
            at = {**at, name: own[place + (1 if last > first else -1)]}
            way.append(at)
    return way[:-1]
