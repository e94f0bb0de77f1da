"""Gates: the distribution against draws, the cost against counting, the budget reached, the fold exact."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.zoo import Sdpa, patterns
from torch import Tensor, nn
from training import SPEC, TASK, knobs, net, same, samples

from niwaki import loop, prune, surgery
from niwaki.batches import Batch
from niwaki.errors import BudgetError, ParityError, PlanError
from niwaki.prune import hard_concrete
from niwaki.prune.expected import Expected
from niwaki.prune.gated import Gated, difference, folded, gateable
from niwaki.prune.gates import Budgeted, _speed, closed, open_groups, within

EXAMPLE = prune.drawn((8, 3, 8, 8), torch.Generator().manual_seed(0))
WIDE = prune.drawn((8, 3, 16, 16), torch.Generator().manual_seed(0))
PATTERNS = patterns()
FOLDED = ("chunk GLU", "cat(x, x)", "squeeze-excite", "grouped convolution", "flatten to linear",
          "norms over channels", "scaled_dot_product_attention")  # fmt: skip


class TinyViT(nn.Module):
    """Patches of 2, one block of attention and hidden units, mean, head: 8 x 8 images, 3 classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body, self.head = nn.Conv2d(3, 16, 1), Sdpa(), nn.Linear(24, 3)
        self.body.embed = nn.Conv2d(16, 24, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def given(**changed: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "task": TASK, "spec": SPEC, "train": samples(80), "example": EXAMPLE,
        "epochs": 3, "batch": 16, "lr": 5e-3,
    }  # fmt: skip
    return {**usual, **changed}


@functools.cache
def pattern(name: str) -> tuple[nn.Module, surgery.Axes]:
    return PATTERNS[name], surgery.analyse(PATTERNS[name], WIDE)


@functools.cache
def small_net() -> tuple[nn.Module, surgery.Axes]:
    return net(), surgery.analyse(net(), EXAMPLE)


def share_of(axes: surgery.Axes, keep: surgery.Keep, kind: str) -> float:
    return float(getattr(axes.cost(keep), kind) / getattr(axes.cost({}), kind))


@pytest.mark.parametrize("log_alpha", [-3.0, -1.0, 0.0, 2.0])
def test_expected_l0_is_what_draws_give(log_alpha: float) -> None:
    torch.manual_seed(0)
    gates = hard_concrete.drawn(torch.full((200_000,), log_alpha), torch.rand(200_000))
    told = float(hard_concrete.open_probability(torch.tensor(log_alpha)))
    assert float((gates > 0).float().mean()) == pytest.approx(told, abs=4 * (told * (1 - told) / 2e5) ** 0.5)
    assert float(gates.min()) == 0 and float(gates.max()) == 1
    without_stretch = float(torch.sigmoid(torch.tensor(log_alpha)))  # what a forgotten correction would say
    assert abs(float((gates > 0).float().mean()) - without_stretch) > 0.02


def test_settled_gates_are_closed_open_and_between() -> None:
    assert hard_concrete.settled(torch.tensor([-6.0, 0.0, 6.0])).tolist() == pytest.approx([0, 0.5, 1])


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("name", ["squeeze-excite", "grouped convolution", "scaled_dot_product_attention"])
def test_expected_cost_at_zero_and_one_is_the_counted_one(name: str, kind: str) -> None:
    _, axes = pattern(name)
    expected = Expected(axes, axes.groups, kind=kind)
    for seed in range(3):
        draw = np.random.default_rng(seed)
        keep = {g.name: sorted(draw.choice(g.size, max(1, g.size // 3), False).tolist()) for g in axes.groups}
        alive = torch.cat([torch.isin(torch.arange(g.size), torch.tensor(keep[g.name])) for g in axes.groups])
        assert float(expected(alive.float())) == pytest.approx(share_of(axes, keep, kind), rel=1e-6)
    assert float(expected(torch.ones(len(alive)))) == pytest.approx(1)


def test_expected_cost_is_the_mean_over_draws_and_has_a_gradient() -> None:
    _, axes = pattern("scaled_dot_product_attention")
    expected = Expected(axes, axes.groups, kind="macs")
    draw = torch.Generator().manual_seed(0)
    chance = torch.rand(sum(g.size for g in axes.groups), generator=draw).double().requires_grad_()
    told = expected(chance).detach()
    drawn = [expected((torch.rand(len(chance), generator=draw) < chance).double()) for _ in range(1000)]
    assert float(told) == pytest.approx(float(torch.stack(drawn).mean()), rel=0.03)
    assert torch.autograd.gradcheck(expected, (chance,), fast_mode=True)


@pytest.mark.parametrize("name", FOLDED)
def test_gated_at_hard_zeros_is_the_smaller_model(name: str) -> None:
    model, axes = pattern(name)
    left = gateable(model, axes, axes.groups, WIDE)
    groups = [group for group in axes.groups if group.name not in left]
    gated = Gated(model, axes, groups).eval()
    with torch.no_grad():
        gated.theta.copy_(torch.randn(len(gated.theta), generator=torch.Generator().manual_seed(1)) * 2 - 2)
    keep = {group.name: list(range(1, group.size, 2)) for group in groups}
    small = closed(gated, axes, keep, example=WIDE)
    assert difference(gated, gated.hard(keep), small, WIDE) <= 1e-4
    assert sum(p.numel() for p in small.parameters()) == axes.cost(keep).params
    assert difference(gated, gated.hard({}), small, WIDE) > 1e-3  # other gates are another network


def test_a_fold_that_forgets_a_site_is_caught() -> None:
    model, axes = pattern("squeeze-excite")
    gated = Gated(model, axes, axes.groups).eval()
    with torch.no_grad():
        gated.theta.sub_(torch.arange(len(gated.theta)) % 3)
    keep = {group.name: list(range(1, group.size, 2)) for group in axes.groups}
    assert difference(gated, gated.hard(keep), closed(gated, axes, keep, example=WIDE), WIDE) <= 1e-4
    place = gated._sites.index(("body.b.0.weight", 1))
    small = surgery.shrink(folded(gated, keep), axes, keep)
    gated.get_buffer(f"site{place}").fill_(len(gated.theta))  # that convolution now reads all, gates or not
    assert difference(gated, gated.hard(keep), small, WIDE) > 1e-2


def test_a_gate_on_the_wrong_rows_is_refused() -> None:
    model, axes = pattern("scaled_dot_product_attention")
    groups = open_groups(model, axes, example=WIDE, skip=("stem.*", "body.fc1.*"))
    gated = Gated(model, axes, groups).eval()
    keep = {group.name: list(range(1, group.size, 2)) for group in groups}
    closed(gated, axes, keep, example=WIDE)
    site = gated.get_buffer("site0")
    site.copy_(site.flip(0))
    with pytest.raises(ParityError):
        closed(gated, axes, keep, example=WIDE)


def test_heads_and_their_sizes_are_gated_and_normed_streams_are_not() -> None:
    model = TinyViT()
    axes = surgery.analyse(model, EXAMPLE)
    left = gateable(model, axes, axes.groups, EXAMPLE)
    sizes = {g.size for g in axes.groups if g.name not in left and g.name.startswith("body.")}
    assert sizes == {4, 6, 48}  # heads, dimensions of a head, hidden units
    assert [g.size for g in axes.groups if g.name in left] == [24]  # a layer norm runs over it
    norms, axes = pattern("norms over channels")
    reasons = gateable(norms, axes, axes.groups, WIDE)
    assert "mean combines it without a weight" in reasons.values()


def constrained(target: float) -> Budgeted:
    model, axes = small_net()
    groups = open_groups(model, axes, example=EXAMPLE)
    return Budgeted(
        Gated(copy.deepcopy(model), axes, groups, speed=_speed(knobs(epochs=10, batch=16), 80)),
        Expected(axes, groups, kind="macs"),
        target=target, ramp=0.5, calls=8 * 10,
    )  # fmt: skip


@pytest.mark.parametrize("target", [0.3, 0.7])
def test_the_lagrangian_reaches_its_target(target: float) -> None:
    learner = constrained(target)

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        return TASK.loss(model(batch.images), batch.target) + learner.penalty()

    rules = knobs(epochs=10, batch=16)
    assert float(learner.share().detach()) == pytest.approx(0.95, abs=0.04)
    for _ in loop.steps(learner, objective, train=samples(120), spec=SPEC, knobs=rules):
        pass
    assert float(learner.share().detach()) == pytest.approx(target, rel=0.02)


@pytest.mark.parametrize(("make", "budget"), [(net, "params=40%"), (TinyViT, "macs=50%")])
def test_the_step_gives_a_smaller_model_on_budget(make: Callable[[], nn.Module], budget: str) -> None:
    model = make()
    before = copy.deepcopy(model.state_dict())
    small = prune.gates(model, budget=budget, **given())
    kind, asked = budget.split("=")
    full, got = (getattr(surgery.analyse(m, EXAMPLE).cost({}), kind) for m in (model, small))
    limit = float(asked[:-1]) / 100 * full
    assert 0.93 * limit <= got <= limit
    assert type(small) is type(model) and not small.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_broken_off_and_resumed_gives_the_same_bits(tmp_path: Path) -> None:
    whole = prune.gates(net(dropout=0.2), budget="macs=50%", **given())

    def stop(progress: loop.Progress) -> None:
        if progress.step == 8:
            raise KeyboardInterrupt

    part = given(checkpoint=tmp_path / "c", every_s=0.0)
    with pytest.raises(KeyboardInterrupt):
        prune.gates(net(dropout=0.2), budget="macs=50%", show=stop, **part)
    seen: list[int] = []
    resumed = prune.gates(net(dropout=0.2), budget="macs=50%", show=lambda p: seen.append(p.step), **part)
    assert min(seen) > 6
    assert same(whole, resumed)


def test_a_teacher_changes_what_is_learned() -> None:
    alone = prune.gates(net(), **given(epochs=1))
    taught = prune.gates(net(), teacher=net(seed=1), **given(epochs=1))
    assert not same(alone, taught)


def test_ranks_become_widths_to_the_budget() -> None:
    _, axes = pattern("squeeze-excite")
    draw = np.random.default_rng(0)
    ranks = {g.name: draw.normal(size=g.size) for g in axes.groups}
    limit = 0.5 * axes.cost({}).macs
    for multiple in (1, 4):
        keep = within(axes, axes.groups, ranks, kind="macs", limit=limit, multiple=multiple)
        assert 0.9 * limit < axes.cost(keep).macs <= limit
        assert all(len(kept) % multiple == 0 for kept in keep.values())
        for name, kept in keep.items():
            gone = np.delete(ranks[name], kept)
            assert ranks[name][kept].min() >= gone.max()
    assert within(axes, axes.groups, ranks, kind="macs", limit=2 * limit) == {}


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"budget": "latency=50%"}, "gates-budget"),
        ({"budget": "half"}, "budget-syntax"),
        ({"ramp": 0.0}, "gates-knob"),
        ({"min_width": 1.0}, "gates-knob"),
        ({"multiple": 0}, "gates-knob"),
        ({"skip": ("nothing.*",)}, "prune-skip"),
        ({"skip": ("*",)}, "gates-none"),
        ({"alpha": 2.0}, "train-knob"),
        ({"lr": -1.0}, "train-knob"),
    ],
)
def test_wrong_knobs_are_named(changed: dict[str, Any], code: str) -> None:
    with pytest.raises(PlanError) as caught:
        prune.gates(net(), **given(**changed))
    assert caught.value.code == code


def test_a_budget_out_of_reach_is_said_before_training() -> None:
    def never(progress: loop.Progress) -> None:
        raise AssertionError("it trained")

    with pytest.raises(BudgetError) as caught:
        prune.gates(net(), budget="macs=1%", show=never, **given())
    assert caught.value.code == "budget-unreachable"
