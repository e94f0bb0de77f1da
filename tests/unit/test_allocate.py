"""search.allocate: a width for each group, by what it costs on a runtime and what it loses."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from niwaki import nets, prune, runtimes, search, surgery, timing
from niwaki.cost import Budget
from niwaki.errors import BudgetError
from niwaki.prune.sensitivity import sensitivity
from niwaki.search import Keep, table
from niwaki.search.counts import Counts, Widths
from niwaki.spec import Spec
from niwaki.tasks import Classify


@functools.cache
def opened(name: str = "niwaki:small") -> tuple[nn.Module, Any, Any]:
    """A small network, its axes and scores."""
    torch.manual_seed(0)
    model = nets.build(name, classes=10).eval()
    axes = surgery.analyse(model, torch.randn(1, 3, 16, 16))
    return model, axes, prune.score(model, axes)


def allocate(text: str, name: str = "niwaki:small", **more: Any) -> search.Found:
    _, axes, scores = opened(name)
    return search.allocate(Budget.parse(text), axes=axes, scores=scores, baseline=axes.cost({}), **more)


class Clock:
    """A runtime: each call has its own speed, the cost rises in steps of channels, timings are noisy."""

    def __init__(self, name: str, *, step: int = 8, noise: float = 0.005, seed: int = 0) -> None:
        _, axes, _ = opened(name)
        self.counts, self.step, self.noise, self.asked = Counts(axes), step, noise, 0
        self.draw = np.random.default_rng(seed)
        speeds = self.draw.uniform(0.3, 3, max(self.counts.alike) + 1)
        self.rate = speeds[self.counts.alike]

    def true(self, widths: Widths) -> float:
        """Share of the unpruned network's time, without noise."""
        up = {n: min(self.counts.size(n), -(-w // self.step) * self.step) for n, w in widths.items()}
        calls = float((self.counts.calls(up) * self.rate).sum() / (self.counts.whole * self.rate).sum())
        shares = [
            up.get(n, self.counts.size(n)) / self.counts.size(n) for kind in self.counts.kinds for n in kind
        ]
        return 0.1 + 0.2 * float(np.mean(shares)) + 0.7 * calls

    def __call__(self, keep: Keep) -> float:
        self.asked += 1
        widths = {name: len(kept) for name, kept in keep.items()}
        return self.true(widths) * (1 + self.noise * float(self.draw.standard_normal()))


@pytest.mark.parametrize("name", ["niwaki:small", "niwaki:resnet20"])
def test_counts_agree_with_the_axes(name: str) -> None:
    _, axes, scores = opened(name)
    counts, draw = Counts(axes), np.random.default_rng(0)
    for _ in range(5):
        widths = {n: int(draw.integers(1, counts.size(n) + 1)) for kind in counts.kinds for n in kind}
        cost = axes.cost({n: prune.best(scores[n], w) for n, w in widths.items()})
        assert (counts.macs(widths), counts.params(widths)) == (cost.macs, cost.params)


def test_groups_of_one_shape_are_one_kind() -> None:
    _, axes, _ = opened("niwaki:resnet20")
    kinds = sorted(map(len, Counts(axes).kinds))
    assert kinds == [1, 1, 1, 1, 1, 2, 2, 3]  # three streams, strided blocks, and blocks that repeat


@pytest.mark.parametrize("name", ["niwaki:small", "niwaki:resnet20"])
@pytest.mark.parametrize("step", [4, 8])
def test_the_table_foretells_networks_it_never_timed(name: str, step: int) -> None:
    clock = Clock(name, step=step)
    least = {n: 4 for kind in clock.counts.kinds for n in kind}

    def measure(widths: Widths) -> float:
        return clock({n: list(range(w)) for n, w in widths.items()})

    found = table.measured(clock.counts, measure, least=least)
    assert found.step == step
    assert clock.asked == len(found.probes) <= table.PROBES
    draw = np.random.default_rng(1)
    errors = []
    for _ in range(30):
        widths = {n: int(draw.choice(table.aligned(clock.counts.size(n), step, 4))) for n in least}
        errors.append(abs(found.cost(widths) / clock.true(widths) - 1))
    assert np.median(errors) < 0.08 and max(errors) < 0.3


def test_a_runtime_without_steps_is_known_for_it() -> None:
    clock = Clock("niwaki:small", step=1, noise=0.0)
    least = {n: 4 for kind in clock.counts.kinds for n in kind}
    found = table.measured(clock.counts, clock.true, least=least)
    assert found.step == 1


def met(clock: Clock, share: int) -> search.Found:
    """The network found for a share of the time, which truly takes that, or up to 5 % less."""
    found = allocate(f"latency={share}%", "niwaki:resnet20", measure=clock)
    true = clock.true({name: len(kept) for name, kept in found.keep.items()})
    assert 0.95 <= true / (share / 100) <= 1.01
    return found


@pytest.mark.parametrize("share", [70, 50, 35])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_latency_is_met_within_five_percent(share: int, seed: int) -> None:
    clock = Clock("niwaki:resnet20", seed=seed)
    found = met(clock, share)
    assert found.multiple == 8
    assert clock.asked <= 1 + table.PROBES + len(found.tried)


class Jumping(Clock):
    """A runtime with another kernel, twice as fast, for one group once it is a step narrower than whole."""

    def true(self, widths: Widths) -> float:
        name = max(self.counts.kinds, key=len)[0]
        narrow = widths.get(name, self.counts.size(name)) < self.counts.size(name)
        return super().true(widths) * (0.6 if narrow else 1.0)


@pytest.mark.parametrize("share", [50, 45])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_latency_is_met_where_one_step_jumps_over_it(share: int, seed: int) -> None:
    met(Jumping("niwaki:resnet20", seed=seed), share)


class Mixed(Clock):
    """A runtime whose cost rises in blocks of 16, and below 16 channels in fours (`step=4`)."""

    def true(self, widths: Widths) -> float:
        return super().true({n: w if w < 16 else -(-w // 16) * 16 for n, w in widths.items()})


def test_finer_widths_are_tried_where_the_narrowest_cost_too_much() -> None:
    clock = Mixed("niwaki:resnet20", step=4, noise=0.0)
    names = [name for kind in clock.counts.kinds for name in kind]
    found = {}
    for width in (16, 4):
        found[width] = clock.true({n: min(width, clock.counts.size(n)) for n in names})
    met(clock, round(100 * (found[16] + found[4]) / 2))


def test_losses_decide_which_groups_go() -> None:
    _, axes, _ = opened("niwaki:resnet20")
    dear = {g.name for g in axes.groups if g.name.startswith("layer3")}

    def losses(levels: dict[str, list[int]]) -> dict[str, list[float]]:
        weight = {name: 100.0 if name in dear else 1.0 for name in levels}
        return {n: [weight[n] * (1 - w / own[-1]) ** 2 for w in own] for n, own in levels.items()}

    found = allocate("macs=60%", "niwaki:resnet20", losses=losses)
    even = search.meet(
        Budget.parse("macs=60%"), axes=axes, scores=opened("niwaki:resnet20")[2], baseline=axes.cost({})
    )
    sizes = {g.name: g.size for g in axes.groups}

    def kept(found: search.Found) -> float:
        return float(np.mean([len(found.keep.get(n, range(sizes[n]))) / sizes[n] for n in dear]))

    assert kept(found) > kept(even) + 0.1
    assert 0.6 * 0.98 <= found.got <= 0.6


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("share", [30, 50, 75])
def test_counted_budgets_are_met(kind: str, share: int) -> None:
    _, axes, _ = opened()
    found = allocate(f"{kind}={share}%")
    assert getattr(axes.cost(found.keep), kind) / getattr(axes.cost({}), kind) == pytest.approx(found.got)
    assert share / 100 * 0.98 <= found.got <= share / 100 and not found.coarser


def test_a_size_is_asked_and_corrected() -> None:
    def measure(keep: Keep) -> float:
        return float(4 * opened()[1].cost(keep).params + 30_000)

    asked = 0.6 * measure({})
    found = allocate(f"size={asked / 1e3:.1f}KB", measure=measure)
    assert 0.95 * asked <= found.got <= asked * 1.001


def test_widths_fixed_by_hand_stay() -> None:
    _, axes, _ = opened()
    name = max(axes.groups, key=lambda g: g.size).name
    found = allocate("macs=50%", keep={name: 20})
    assert len(found.keep[name]) == 20


def test_an_unreachable_budget_names_the_least() -> None:
    for text in ("macs=0.01%", "latency=5%"):
        with pytest.raises(BudgetError, match="narrowest") as caught:
            allocate(text, measure=Clock("niwaki:small"))
        assert caught.value.code == "budget-unreachable"


def test_a_measured_budget_needs_a_measure() -> None:
    with pytest.raises(TypeError, match="measure="):
        allocate("latency=50%")


def test_along_keeps_the_proportions() -> None:
    _, axes, scores = opened()
    found = allocate("macs=40%")
    full = axes.cost({}).macs
    for share in (0.35, 0.6, 0.8):
        other = search.along(found, axes=axes, scores=scores, macs=share * full)
        assert share - 0.08 <= other.cost.macs / full <= share
        assert set(other.keep) <= set(found.keep)


def test_masking_agrees_with_cutting() -> None:
    model, axes, scores = opened()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():  # statistics that are not the identity
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.get_buffer("running_mean").normal_(generator=draw)
                module.get_buffer("running_var").uniform_(0.5, 2, generator=draw)
    images, labels = torch.randn(32, 3, 16, 16, generator=draw), torch.arange(32) % 10

    def loss(net: nn.Module) -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(net.eval()(images), labels))

    before = {name: value.clone() for name, value in model.state_dict().items()}
    levels = {g.name: [g.size // 4, g.size // 2, g.size] for g in axes.groups if g.size >= 8}
    found = sensitivity(model, axes, scores, levels, loss=loss, shares=(0.5, 0.25))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for name, (least, half, whole) in levels.items():
        cut = [
            loss(surgery.shrink(model, axes, {name: prune.best(scores[name], w)})) - loss(model)
            for w in (least, half)
        ]
        expected = [max(0.0, *cut), max(0.0, cut[1]), 0.0]
        assert found[name] == pytest.approx(expected, abs=1e-4)
        assert len(found[name]) == 3 and whole == levels[name][-1]


def test_a_table_of_the_real_runtime(tmp_path: Path) -> None:
    """Real exports, real times: the whole network costs what was timed, and narrower ones less."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4),
    ).eval()  # fmt: skip
    axes = surgery.analyse(model, torch.randn(1, 3, 32, 32))
    scores = prune.score(model, axes)
    onnx, spec = runtimes.load("onnx"), Spec(size_hw=(32, 32))
    image = np.zeros((1, 32, 32, 3), np.uint8)

    def exported(widths: Widths) -> Any:
        keep = {name: prune.best(scores[name], width) for name, width in widths.items()}
        path = tmp_path / "probe.onnx"
        small = surgery.shrink(model, axes, keep) if keep else model
        onnx.export(small, spec, path, task=Classify(tuple("abcd")), prove=False)
        return onnx.open(path)

    whole = exported({})

    def measure(widths: Widths) -> float:
        probe = exported(widths)
        calls = {"whole": lambda: whole(image), "probe": lambda: probe(image)}
        taken = timing.interleave(calls, rounds=60, calls_per_sample=3, warmup=5)
        return float(np.quantile(taken["probe"], 0.2) / np.quantile(taken["whole"], 0.2))

    found = table.measured(Counts(axes), measure, least={g.name: 8 for g in axes.groups}, probes=7)
    assert found.step in table.STEPS and len(found.probes) == 7
    narrow = {g.name: 16 for g in axes.groups}
    assert found.cost({}) == pytest.approx(1, abs=0.15)
    assert found.cost(narrow) < 0.75
