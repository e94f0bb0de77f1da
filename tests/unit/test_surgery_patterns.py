"""Surgery on every known trap: the cut is proven, and a wrong cut is caught."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from tests.zoo import Headed, block, patterns
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from niwaki import prune, surgery
from niwaki.errors import ModelError, PlanError

EXAMPLE = prune.drawn((8, 3, 16, 16), torch.Generator().manual_seed(0))
PATTERNS = patterns()


def chosen(net: nn.Module, ratio: float) -> tuple[surgery.Axes, dict[str, list[int]]]:
    axes = surgery.analyse(net, EXAMPLE)
    return axes, prune.choose(axes, prune.score(net, axes), ratio=ratio)


@pytest.mark.parametrize("name", PATTERNS)
def test_cut_is_proven_and_counted(name: str) -> None:
    net = PATTERNS[name]
    before = copy.deepcopy(net.state_dict())
    for ratio in (0.25, 0.5, 0.75):
        axes, keep = chosen(net, ratio)
        out = prune.cut(net, axes, keep, example=EXAMPLE)
        assert not out.left and out.error <= 1e-4
        assert out.proofs[0].ok
        cost = axes.cost(keep)
        assert cost.params == sum(p.numel() for p in out.model.parameters())
        assert cost.macs == counted_macs(out.model) or "attention" in name
        assert type(out.model) is type(net)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def counted_macs(net: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(EXAMPLE[:1])
    return int(counter.get_total_flops()) // 2


@pytest.mark.parametrize("name", PATTERNS)
def test_permuted_indices_are_caught(name: str) -> None:
    net = prune.redrawn(PATTERNS[name], EXAMPLE)
    axes, keep = chosen(net, 0.5)
    kept = axes.kept_indices(keep)
    traced = axes.traced
    right = prune.compare(traced, net, surgery.shrink(net, axes, keep), kept, EXAMPLE)
    assert right.ok
    for parameter, axis in sorted((p, a) for p, by_axis in kept.items() for a in by_axis):
        wrong = {p: dict(by_axis) for p, by_axis in kept.items()}
        indices = list(wrong[parameter][axis])
        random.Random(1).shuffle(indices)
        if indices == kept[parameter][axis] or parameter == "body.k.bias":
            continue  # softmax does not change when all keys move by the same
        wrong[parameter][axis] = indices
        mutant = surgery.shrink(net, axes, keep, kept=wrong)
        error = prune.compare(traced, net, mutant, kept, EXAMPLE).error
        assert error > 5e-4, f"{parameter}:{axis} scrambled, yet the proof says {error:.1e}"


def test_other_indices_are_caught() -> None:
    net = prune.redrawn(PATTERNS["squeeze-excite"], EXAMPLE)
    axes, keep = chosen(net, 0.5)
    group = next(g for g in axes.groups if g.name in keep)
    other = [i for i in range(group.size) if i not in keep[group.name]][: len(keep[group.name])]
    mutant = surgery.shrink(net, axes, {**keep, group.name: other})
    assert prune.compare(axes.traced, net, mutant, axes.kept_indices(keep), EXAMPLE).error > 1e-3


def test_a_constant_output_proves_nothing() -> None:
    net = copy.deepcopy(PATTERNS["depthwise"])
    nn.init.zeros_(net.head.weight)
    axes, keep = chosen(net, 0.5)
    small = surgery.shrink(net, axes, keep)
    proof = prune.compare(axes.traced, net, small, axes.kept_indices(keep), EXAMPLE)
    assert proof.error <= 1e-4 and not proof.ok


@pytest.mark.parametrize("name", ["chunk GLU", "channel shuffle", "C2f by chunk", "C2f by split"])
def test_half_means_half(name: str) -> None:
    net = PATTERNS[name]
    small = prune.channels(net, example=EXAMPLE, ratio=0.5)
    for before, after in zip(net.modules(), small.modules(), strict=True):
        if isinstance(before, nn.Conv2d):
            assert after.out_channels == before.out_channels // 2


def test_attention_keeps_its_scale() -> None:
    net = PATTERNS["scaled_dot_product_attention"]
    axes = surgery.analyse(net, EXAMPLE)
    heads = next(g for g in axes.groups if g.size == 6 and "q.weight" in g.name)
    small = surgery.shrink(net, axes, {heads.name: [0, 2, 4]}, example=EXAMPLE)
    assert small.body.head_dim == 3 and small.body.num_heads == 4
    proof = prune.compare(axes.traced, net, small, axes.kept_indices({heads.name: [0, 2, 4]}), EXAMPLE)
    assert proof.error <= 1e-4


def test_cutting_nothing_changes_nothing() -> None:
    for name in ("C2f by split", "attention"):
        net = PATTERNS[name]
        axes = surgery.analyse(net, EXAMPLE)
        same = surgery.shrink(net, axes, {})
        assert torch.equal(same(EXAMPLE), net(EXAMPLE))


class Odd(nn.Module):
    """An operator without a rule between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = block(16, 16), block(16, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.sort(self.a(x), dim=1).values)


def test_an_unknown_operator_is_named_and_left_whole() -> None:
    net = Headed(Odd(), 16, 24).eval()
    axes = surgery.analyse(net, EXAMPLE)
    assert axes.unprunable[0]["operator"] == "aten.sort.default"
    assert "test_surgery_patterns.py" in axes.unprunable[0]["source"]
    small = prune.channels(net, example=EXAMPLE, ratio=0.5)
    assert small.body.a[0].out_channels == 16
    assert small.body.b[0].out_channels == 12


class Stubborn(nn.Module):
    """A size in the code itself, where no attribute can mend it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = block(16, 32), block(32, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.b(x.view(x.shape[0], 8, 4, 16, 16).transpose(1, 2).reshape(x.shape[0], 32, 16, 16))


def test_a_group_that_cannot_be_mended_is_left_whole_and_named() -> None:
    net = Headed(Stubborn(), 16, 24).eval()
    axes = surgery.analyse(net, EXAMPLE)
    keep = prune.choose(axes, prune.score(net, axes), ratio=0.5)
    out = prune.cut(net, axes, keep, example=EXAMPLE, result="module")
    assert list(out.left) == [g.name for g in axes.groups if g.name.startswith("body.a") and g.name in keep]
    assert out.model.body.b[0].out_channels == 12
    with pytest.raises(ModelError, match="does not run at its new sizes"):
        surgery.shrink(net, axes, keep, example=EXAMPLE)


def test_skip_and_widths() -> None:
    net = PATTERNS["depthwise"]
    small = prune.channels(net, example=EXAMPLE, ratio=0.5, skip=("body.1.*",))
    assert small.body[1][0].weight.shape == (24, 32, 3, 3)
    small = prune.channels(net, example=EXAMPLE, ratio=0.0, widths={"stem.0.weight:0": 5})
    assert small.stem[0].out_channels == 5
    with pytest.raises(PlanError, match="matches no parameter"):
        prune.channels(net, example=EXAMPLE, skip=("nothing*",))


@pytest.mark.parametrize(
    ("keep", "code"),
    [
        ({"stem.0.weight:0": []}, "prune-empty"),
        ({"stem.0.weight:0": [16]}, "prune-range"),
        ({"stem.0.weight:0": [1, 1]}, "prune-range"),
        ({"nothing:0": [1]}, "prune-range"),
    ],
)
def test_bad_indices_are_refused(keep: dict[str, list[int]], code: str) -> None:
    net = PATTERNS["depthwise"]
    with pytest.raises(ModelError) as raised:
        surgery.shrink(net, surgery.analyse(net, EXAMPLE), keep)
    assert raised.value.code == code


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = block(3, 16), nn.Linear(16, 5)
            self.a, self.b = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.b(self.a(self.stem(x)).relu()).mean((2, 3)))

    net = Tied().eval()
    axes = surgery.analyse(net, EXAMPLE)
    out = prune.cut(net, axes, prune.choose(axes, prune.score(net, axes), ratio=0.5), example=EXAMPLE)
    assert out.model.b.weight is out.model.a.weight and out.model.a.weight.shape == (8, 8, 1, 1)
