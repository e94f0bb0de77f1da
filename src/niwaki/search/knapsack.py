"""One width for each group: the least summed loss within a cost. Exact dynamic programming, plain numpy.

The multiple-choice knapsack: of each group exactly one option is taken, options have a cost and a loss. State
`best[b]`: the least loss of the groups so far whose costs, in whole bins, sum to at most b. Groups come one by
one, so time is groups x options x bins and memory groups x bins. Costs are rounded up to bins: a choice never
costs more than the limit, and leaves at most (groups x bin) of it unused; with costs in whole bins it is exact.

Real costs are not a sum over groups, as a layer between two groups costs their product. `within` therefore
solves with the costs of each group alone while the others stay as they are, asks the true cost of what comes
out, and goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Widths = dict[str, int]
Levels = Mapping[str, Sequence[int]]
"""The widths a group may take, by group, rising."""
Losses = Mapping[str, Sequence[float]]
"""What each of those widths loses."""

BINS = 2000
_PAIRS = 200
"""Pairs of changes whose true cost is asked."""
_ROUNDS = 6
"""Rounds of solving around the last solution; more changed nothing in any network tried."""


class Knapsack:
    """All solutions at once: `pick(limit)` gives the choice of least loss within any limit up to `most`."""

    def __init__(
        self,
        costs: Sequence[Sequence[float]],
        losses: Sequence[Sequence[float]],
        *,
        most: float,
        bins: int = BINS,
    ) -> None:
        """`costs`, `losses`: of each group's options; `most`: the largest limit that will be asked for."""
        self._floor = float(sum(min(own) for own in costs))
        self._unit = max(most - self._floor, 1e-12) / bins
        self._steps = [self._whole(np.asarray(own, np.float64)) for own in costs]
        best = np.zeros(bins + 1)
        self._taken = []
        for steps, own in zip(self._steps, losses, strict=True):
            best, taken = _add(best, steps, np.asarray(own, np.float64))
            self._taken.append(taken)
        self.best = best

    def _whole(self, costs: Floats) -> npt.NDArray[np.int64]:
        steps = (costs - costs.min()) / self._unit
        whole: npt.NDArray[np.int64] = np.ceil(steps - 1e-6).astype(np.int64)
        return whole

    def pick(self, limit: float) -> list[int]:
        """The option of each group; [] where not even the cheapest options fit."""
        room = int(np.floor((limit - self._floor) / self._unit + 1e-6))
        if room < 0:
            return []
        room = min(room, len(self.best) - 1)
        out = []
        for taken, steps in zip(reversed(self._taken), reversed(self._steps), strict=True):
            option = int(taken[room])
            out.append(option)
            room -= int(steps[option])
        return out[::-1]


def _add(best: Floats, steps: npt.NDArray[np.int64], losses: Floats) -> tuple[Floats, npt.NDArray[np.int64]]:
    """The state after one more group, and which of its options each state took."""
    after = np.full_like(best, np.inf)
    taken = np.zeros(len(best), np.int64)
    for option, (step, loss) in enumerate(zip(steps.tolist(), losses.tolist(), strict=True)):
        if step >= len(best):
            continue
        reached = np.full_like(best, np.inf)
        reached[step:] = best[: len(best) - step] + loss
        better = reached < after
        after[better], taken[better] = reached[better], option
    return after, taken


def within(
    cost: Callable[[Widths], float], levels: Levels, losses: Losses, limit: float, *, low: float = 0.0
) -> Widths | None:
    """Widths of least summed loss whose cost is at most `limit`; None where even the narrowest cost more.

    Args:
        low: what the cost should reach; a choice below it is changed in two groups to get there, at the least
            loss, as losses are estimates and a budget is there to be used.
        cost: of a network of these widths; need not be a sum over groups, but wider never costs less.
        levels, losses: the widths that each group may take, rising, and what each loses.
    """
    narrow = {name: min(own) for name, own in levels.items()}
    at = {name: max(own) for name, own in levels.items()}
    if cost(at) <= limit:
        return at
    if cost(narrow) > limit:
        return None
    found, least = narrow, _loss(narrow, levels, losses)
    for _ in range(_ROUNDS):
        new = _solved(cost, levels, losses, limit, at)
        new = _filled(cost, levels, losses, limit, new)
        loss = _loss(new, levels, losses)
        if loss < least:
            found, least = new, loss
        if new == at:
            break
        at = new
    return found if cost(found) >= low else _used(cost, levels, losses, (low, limit), found)


def _used(
    cost: Callable[[Widths], float],
    levels: Levels,
    losses: Losses,
    window: tuple[float, float],
    widths: Widths,
) -> Widths:
    """The widths with two groups changed so that the cost lies in the window; as they are where none does."""
    here = cost(widths)
    moves = [(name, w) for name, own in levels.items() for w in own if w != widths[name]]
    extra = np.array([cost({**widths, name: w}) - here for name, w in moves])
    worse = np.array([_loss({**widths, name: w}, levels, losses) for name, w in moves])
    both = here + extra[:, None] + extra  # where the two groups meet in a layer, only about
    slack = 0.02 * window[1]
    first, second = np.nonzero(np.triu((both >= window[0] - slack) & (both <= window[1] + slack), 1))
    order = np.argsort(worse[first] + worse[second], kind="stable")[:_PAIRS]
    for i, j in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if moves[i][0] != moves[j][0]:
            trial = {**widths, moves[i][0]: moves[i][1], moves[j][0]: moves[j][1]}
            if window[0] <= cost(trial) <= window[1]:
                return trial
    return widths


def _loss(widths: Widths, levels: Levels, losses: Losses) -> float:
    return sum(losses[name][list(own).index(widths[name])] for name, own in levels.items())


def _solved(
    cost: Callable[[Widths], float], levels: Levels, losses: Losses, limit: float, at: Widths
) -> Widths:
    """The best choice by the costs around `at` that truly costs at most `limit`."""
    names = list(levels)
    costs = [[cost({**at, name: width}) for width in levels[name]] for name in names]
    here = cost(at)
    costs = [[value - here for value in own] for own in costs]
    knapsack = Knapsack(costs, [losses[name] for name in names], most=sum(max(own) for own in costs))

    def choice(room: float) -> Widths:
        picked = knapsack.pick(room)
        return {name: levels[name][option] for name, option in zip(names, picked, strict=True)}

    low, high = sum(min(own) for own in costs), sum(max(own) for own in costs)
    found = choice(low + 1e-9 * abs(low))
    for _ in range(14):  # how much the sum of costs must be, for the true cost to be the limit
        middle = (low + high) / 2
        trial = choice(middle)
        if cost(trial) <= limit:
            found, low = trial, middle
        else:
            high = middle
    return found


def _filled(
    cost: Callable[[Widths], float], levels: Levels, losses: Losses, limit: float, widths: Widths
) -> Widths:
    """The same widths with steps given back while there is room, the most loss saved per cost first."""
    room = limit - cost(widths)
    while room > 0:
        gains = []
        for name, own in levels.items():
            place = list(own).index(widths[name])
            for wider in range(place + 1, len(own)):
                trial = {**widths, name: own[wider]}
                extra = cost(trial) - (limit - room)
                saved = losses[name][place] - losses[name][wider]
                if extra > room:
                    break
                if saved >= 0:
                    gains.append((saved / max(extra, 1e-12), name, own[wider], extra))
        if not gains:
            break
        _, name, width, extra = max(gains, key=lambda gain: (gain[0], gain[1], gain[2]))
        widths = {**widths, name: width}
        room -= extra
    return widths
