"""Rounds of pruning and training as a Plan: the ratios multiply to what was asked; the Plan is the record."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from training import SPEC, TASK, net, samples

from niwaki import plan
from niwaki.errors import PlanError
from niwaki.plan import Bench, Plan, rounds, step


def gone(line: Plan) -> list[float]:
    """Shares of the original's channels that are gone after each round."""
    left = [1 - item.knobs["ratio"] for item in line if item.do == "prune.channels"]
    return [1 - math.prod(left[: i + 1]) for i in range(len(left))]


@pytest.mark.parametrize("pace", ["linear", "geometric", "cubic"])
@pytest.mark.parametrize("times", [1, 4])
def test_ratios_rise_to_what_was_asked(pace: str, times: int) -> None:
    line = rounds(
        step("prune.channels", multiple=2), step("train.fit", epochs=2), times=times, to=0.6, pace=pace
    )
    shares = gone(line)
    assert shares[-1] == pytest.approx(0.6)
    assert shares == sorted(shares) and len(shares) == times
    assert [item.do for item in line] == ["prune.channels", "train.fit"] * times
    assert all(item.knobs["multiple"] == 2 for item in line if item.do == "prune.channels")


def test_paces_differ_as_named() -> None:
    firsts = {
        pace: gone(rounds(step("prune.channels"), times=4, to=0.6, pace=pace))[0]
        for pace in ("linear", "geometric", "cubic")
    }
    assert firsts["linear"] == pytest.approx(0.15)
    assert firsts["linear"] < firsts["geometric"] < firsts["cubic"]


def test_the_plan_runs_and_stands_in_toml() -> None:
    line = rounds(step("prune.channels"), step("train.fit", epochs=1, batch=32), times=2, to=0.75)
    assert Plan.from_toml(line.to_toml()) == line
    wide = nn.Sequential(*list(net())[:1], nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 3))
    bench = Bench(spec=SPEC, task=TASK, train=samples(32), example=torch.randn(2, 3, 8, 8))
    small = line.run(wide, bench)
    assert len(next(small.parameters())) == 2


@pytest.mark.parametrize("wrong", [{"times": 0}, {"to": 0.0}, {"to": 1.0}, {"pace": "quick"}])
def test_wrong_rounds_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(PlanError) as caught:
        rounds(step("prune.channels"), **wrong)  # type: ignore[arg-type]
    assert caught.value.code == "plan-rounds"


def test_a_step_without_a_ratio_is_named() -> None:
    with pytest.raises(PlanError) as caught:
        rounds(step("train.fit"), to=0.5)
    assert caught.value.code == "plan-knob"
    assert "ratio" not in plan.knobs("train.fit")
