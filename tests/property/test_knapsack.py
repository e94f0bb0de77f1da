"""The knapsack against brute force, and against a cost that is no sum over groups."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.search import knapsack
from niwaki.search.knapsack import Knapsack

groups = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 20)), min_size=1, max_size=4), min_size=1, max_size=4
)


def brute(options: list[list[tuple[int, int]]], limit: float) -> float | None:
    """The least loss of all combinations within the limit."""
    fitting = [
        sum(loss for _, loss in chosen)
        for chosen in itertools.product(*options)
        if sum(cost for cost, _ in chosen) <= limit
    ]
    return min(fitting, default=None)


@given(options=groups, limit=st.integers(0, 36))
@settings(max_examples=150, deadline=None)
def test_it_is_as_good_as_brute_force(options: list[list[tuple[int, int]]], limit: int) -> None:
    costs = [[float(cost) for cost, _ in own] for own in options]
    losses = [[float(loss) for _, loss in own] for own in options]
    floor = sum(map(min, costs))
    solver = Knapsack(costs, losses, most=floor + 40, bins=40)  # bins of one
    picked, least = solver.pick(limit), brute(options, limit)
    if least is None:
        assert picked == []
        return
    assert sum(own[i] for own, i in zip(costs, picked, strict=True)) <= limit
    assert sum(own[i] for own, i in zip(losses, picked, strict=True)) == least


@given(options=groups, limit=st.floats(0, 36), scale=st.floats(0.01, 100))
@settings(max_examples=100, deadline=None)
def test_rounding_never_breaks_the_limit(
    options: list[list[tuple[int, int]]], limit: float, scale: float
) -> None:
    costs = [[scale * (cost + 0.37) for cost, _ in own] for own in options]
    losses = [[float(loss) for _, loss in own] for own in options]
    picked = Knapsack(costs, losses, most=sum(map(max, costs)), bins=50).pick(scale * limit)
    if picked:
        spent = sum(own[i] for own, i in zip(costs, picked, strict=True))
        assert spent <= scale * limit * (1 + 1e-4)
    else:
        assert sum(map(min, costs)) > scale * limit * (1 - 1e-4)


def chain(widths: dict[str, int], sizes: dict[str, int]) -> float:
    """Layers between neighbouring groups: products of widths."""
    row = [1.0, *(widths[name] / sizes[name] for name in sizes), 1.0]
    return sum(a * b for a, b in itertools.pairwise(row))


@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.3, 0.5, 0.8]))
@settings(max_examples=60, deadline=None)
def test_products_of_groups_are_solved_close_to_brute_force(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    sizes = {f"g{i}": 32 for i in range(4)}
    levels = {name: [8, 16, 24, 32] for name in sizes}
    losses: dict[str, Any] = {
        name: [weight * -math.log(w / 32) for w in levels[name]]
        for name, weight in zip(sizes, rng.uniform(0.2, 3, 4), strict=True)
    }

    def cost(widths: dict[str, int]) -> float:
        return chain(widths, sizes)

    limit = share * cost(sizes)
    combinations = (dict(zip(sizes, chosen, strict=True)) for chosen in itertools.product(*levels.values()))
    every = [(total(w, levels, losses), cost(w)) for w in combinations]
    fitting = [loss for loss, value in every if value <= limit]
    found = knapsack.within(cost, levels, losses, limit)
    if not fitting:
        assert found is None
        return
    assert found is not None and cost(found) <= limit
    ranks = sorted(fitting)
    assert total(found, levels, losses) <= max(1.25 * ranks[0], ranks[min(2, len(ranks) - 1)]) + 1e-9


def total(widths: dict[str, int], levels: dict[str, list[int]], losses: dict[str, list[float]]) -> float:
    """The summed loss of a choice."""
    return sum(losses[name][levels[name].index(width)] for name, width in widths.items())
