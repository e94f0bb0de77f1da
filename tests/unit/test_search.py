"""search.meet: within the budget, close to it, honest where it cannot be."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from niwaki import nets, prune, search, surgery
from niwaki.cost import Budget
from niwaki.errors import BudgetError
from niwaki.search import Keep


@functools.cache
def opened(name: str) -> tuple[Any, Any]:
    """Axes and scores of a small network."""
    torch.manual_seed(0)
    model: nn.Module
    if name == "coarse":
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(432, 2)
        )
    else:
        model = nets.build(name, classes=10)
    axes = surgery.analyse(model, torch.randn(1, 3, 16, 16))
    return axes, prune.score(model, axes)


def meet(text: str, name: str = "niwaki:small", **more: Any) -> search.Found:
    axes, scores = opened(name)
    return search.meet(Budget.parse(text), axes=axes, scores=scores, baseline=axes.cost({}), **more)


@pytest.mark.parametrize("name", ["niwaki:small", "niwaki:resnet20"])
@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("share", [25, 40, 50, 75, 90])
def test_counts_are_met_within_two_percent(name: str, kind: str, share: int) -> None:
    axes, _ = opened(name)
    found = meet(f"{kind}={share}%", name)
    counted = getattr(axes.cost(found.keep), kind) / getattr(axes.cost({}), kind)
    assert counted == pytest.approx(found.got)
    assert share / 100 * 0.98 <= found.got <= share / 100
    assert not found.coarser


def test_an_absolute_count_is_met() -> None:
    found = meet("params=0.06M")
    assert 58_800 <= found.got <= 60_000


def test_widths_are_aligned_where_that_meets_the_budget() -> None:
    axes, _ = opened("niwaki:small")
    found = meet("macs=50%")
    assert found.multiple > 1
    sizes = {group.name: group.size for group in axes.groups}
    for name, kept in found.keep.items():
        assert len(kept) % found.multiple == 0 or len(kept) == sizes[name]


def test_one_multiple_is_kept_to() -> None:
    found = meet("macs=50%", multiples=(1,))
    assert found.multiple == 1
    assert any(len(kept) % 2 for kept in found.keep.values())


def test_the_same_search_finds_the_same_widths() -> None:
    assert meet("macs=37%") == meet("macs=37%")


def test_all_of_it_is_kept_when_the_budget_allows() -> None:
    found = meet("macs=100%")
    assert found.keep == {} and found.got == 1.0


def test_coarse_channels_give_the_next_point_below() -> None:
    axes, _ = opened("coarse")
    found = meet("macs=60%", "coarse")
    assert found.coarser and found.got <= 0.6
    limit = 0.6 * axes.cost({}).macs
    for group in axes.groups:
        for atom in set(range(group.size)) - set(found.keep.get(group.name, range(group.size))):
            wider = {**found.keep, group.name: sorted([*found.keep[group.name], atom])}
            assert axes.cost(wider).macs > limit


def test_an_unreachable_count_names_the_least() -> None:
    with pytest.raises(BudgetError, match="narrowest") as caught:
        meet("macs=0.01%")
    assert caught.value.code == "budget-unreachable" and caught.value.exit_code == 3


class Clock:
    """A runtime of known speed: `time(counted cost, keep)`, and how often it was asked."""

    def __init__(self, time: Callable[[Any, Keep], float]) -> None:
        self.axes, _ = opened("niwaki:small")
        self.time, self.asked = time, 0
        self.full = self.axes.cost({})

    def __call__(self, keep: Keep) -> float:
        self.asked += 1
        return self.time(self.axes.cost(keep), keep)


def share_of(cost: Any) -> float:
    """Multiply-adds as a share of the uncompressed network's."""
    axes, _ = opened("niwaki:small")
    return float(cost.macs / axes.cost({}).macs)


@pytest.mark.parametrize("share", [30, 50, 65])
@pytest.mark.parametrize("power", [0.6, 1.0, 1.4])
@pytest.mark.parametrize("fixed", [0.02, 0.2])
def test_a_measured_budget_is_met_within_seven_exports(share: int, power: float, fixed: float) -> None:
    clock = Clock(lambda cost, _: 0.8 * (fixed + (1 - fixed) * share_of(cost) ** power))
    found = meet(f"latency={share}%", measure=clock)
    assert clock.asked <= search.EXPORTS + 1  # the start is exported anyway
    assert share / 100 * 0.98 <= found.got <= share / 100
    assert len(found.tried) == clock.asked


def test_noise_does_not_break_the_limit() -> None:
    draw = np.random.default_rng(0)
    for _ in range(10):
        clock = Clock(lambda cost, _: (0.1 + 0.8 * share_of(cost)) * (1 + 0.02 * draw.standard_normal()))
        found = meet("latency=50%", measure=clock)
        assert 0.45 <= found.got <= 0.5
        assert clock.asked <= search.EXPORTS + 2


def test_a_runtime_of_coarse_steps_gives_the_next_point_below() -> None:
    clock = Clock(lambda cost, _: 0.35 if share_of(cost) < 0.5 else 0.7)
    found = meet("latency=50%", measure=clock)
    assert found.got == 0.35 and found.coarser


def test_widths_that_the_runtime_likes_are_chosen() -> None:
    def slow_when_unaligned(cost: Any, keep: Keep) -> float:
        odd = sum(len(kept) % 8 > 0 for kept in keep.values())
        return float(share_of(cost) * (1 + 0.1 * odd))

    assert meet("latency=50%", measure=Clock(slow_when_unaligned)).multiple == 8

    def slow_when_aligned(cost: Any, keep: Keep) -> float:
        even = sum(len(kept) % 8 == 0 for kept in keep.values())
        return float(share_of(cost) * (1 + 0.1 * even))

    assert meet("latency=50%", measure=Clock(slow_when_aligned)).multiple == 1


def test_nothing_goes_when_the_unpruned_network_meets_a_latency() -> None:
    clock = Clock(lambda cost, _: 0.4 * share_of(cost))
    found = meet("latency=50%", measure=clock)
    assert found.keep == {} and clock.asked == 1 and not found.coarser


def test_an_unreachable_latency_names_the_least() -> None:
    with pytest.raises(BudgetError, match="narrowest") as caught:
        meet("latency=5%", measure=Clock(lambda cost, _: 0.3 + 0.6 * share_of(cost)))
    assert caught.value.code == "budget-unreachable"


def test_size_is_asked_of_params() -> None:
    clock = Clock(lambda cost, _: float(cost.params + 20_000))
    asked = 0.5 * clock.full.params + 20_000
    found = meet(f"size={asked / 1000:.0f}KB", measure=clock)
    assert 0.98 * asked <= found.got <= asked + 500


def test_a_measured_budget_needs_a_measure() -> None:
    with pytest.raises(TypeError, match="measure="):
        meet("size=1MB")


def test_widest_counts_macs_or_params() -> None:
    axes, scores = opened("niwaki:small")
    found = search.widest(axes, scores, kind="params", limit=60_000)
    assert 58_800 <= axes.cost(found.keep).params <= 60_000
