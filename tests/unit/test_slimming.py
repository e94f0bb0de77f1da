"""Slimming: scales nobody needs go to zero, needed ones stay, tied ones go together, thin groups are spared."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training import SPEC, TASK, net, same, samples

from niwaki import loop, prune, surgery
from niwaki.errors import PlanError
from niwaki.prune.slimming import Scales, norm_weights, rise, sparsity

EXAMPLE = prune.drawn((8, 3, 8, 8), torch.Generator().manual_seed(0))


def planted() -> nn.Sequential:
    """The second convolution reads the first eight of sixteen channels and does not learn."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 3),
    )
    with torch.no_grad():
        model[3].weight[:, 8:] = 0
    model[3].weight.requires_grad_(False)
    return model


class Stream(nn.Module):
    """Two batch norms add into one stream of 12 channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = (nn.Sequential(nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12)) for _ in range(2))
        self.c, self.head = nn.Sequential(nn.Conv2d(12, 4, 1), nn.BatchNorm2d(4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c((self.a(x) + self.b(x)).relu()).relu().mean((2, 3)))


def given(**changed: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "task": TASK, "spec": SPEC, "train": samples(160), "example": EXAMPLE,
        "epochs": 10, "batch": 32, "lr": 1e-2, "ema": 0.9, "augment": "none",
    }  # fmt: skip
    return {**usual, **changed}


@functools.cache
def slimmed() -> nn.Module:
    return prune.slimming(planted(), **given(strength=2e-3))


def test_planted_useless_scales_go_to_zero_and_needed_ones_stay() -> None:
    scale = slimmed()[1].weight.detach().abs()  # type: ignore[index]
    assert float(scale[8:].max()) < 0.02
    assert float(scale[:8].max()) > 0.3
    weak = prune.slimming(planted(), **given(strength=1e-9))[1].weight  # type: ignore[index]
    assert float(weak[8:].detach().abs().min()) > 0.5  # without the penalty they would not go


def test_the_shape_stays_all_learns_again_and_the_model_given_is_untouched() -> None:
    model = planted()
    before = copy.deepcopy(model)
    out = prune.slimming(model, **given(epochs=1))
    assert same(model, before) and not out.training
    assert {n: (p.shape, p.requires_grad) for n, p in out.named_parameters()} == {
        n: (p.shape, p.requires_grad) for n, p in before.named_parameters()
    }
    assert all(
        p.requires_grad == q.requires_grad for p, q in zip(model.parameters(), before.parameters(), strict=True)
    )


def test_what_went_to_zero_is_what_the_bn_score_takes() -> None:
    small = prune.channels(slimmed(), example=EXAMPLE, score="bn", widths={"0.weight:0": 8}, ratio=0.0)
    wanted = slimmed()[0].weight[:8]  # type: ignore[index]
    assert torch.equal(small[0].weight, wanted)  # type: ignore[index]


def test_tied_scales_count_as_one() -> None:
    model = Stream()
    axes = surgery.analyse(model, EXAMPLE)
    assert norm_weights(axes) == ["a.1.weight", "b.1.weight", "c.1.weight"]
    scales = Scales(axes, [g for g in axes.groups if g.size >= 8])
    assert scales.names == ["a.1.weight", "b.1.weight"] and scales.ties.tolist() == [2.0] * 12
    held = {name: model.get_parameter(name) for name in scales.names}
    with torch.no_grad():
        held["a.1.weight"].fill_(3.0)
        held["b.1.weight"].fill_(-4.0)
    assert torch.allclose(scales(held), torch.full((12,), 12.5**0.5))
    out = prune.slimming(Stream(), **given(strength=2e-2))
    a, b = (out.get_parameter(name).detach().abs() for name in scales.names)
    assert bool(((a < 0.05) & (b < 0.05)).any())
    assert not bool(((a < 0.02) & (b > 0.3) | (a > 0.3) & (b < 0.02)).any()), (a, b)  # none is half gone


def test_the_penalty_is_l1_and_polarising_parts_scales() -> None:
    scales, ties = torch.tensor([0.1, 0.2, 1.5], requires_grad=True), torch.tensor([1.0, 2.0, 1.0])
    assert float(sparsity(scales, ties).detach()) == pytest.approx(2.0)
    (plain,) = torch.autograd.grad(sparsity(scales, ties), scales)
    (parted,) = torch.autograd.grad(sparsity(scales, ties, polarise=0.8), scales)
    assert plain.tolist() == [1, 2, 1]
    assert parted[0] > plain[0] and parted[2] < plain[2]


def test_the_penalty_waits_and_rises() -> None:
    at = [rise(t, delay=0.2, ramp=0.4) for t in (0.0, 0.19, 0.4, 0.6, 1.0)]
    assert at == pytest.approx([0, 0, 0.5, 1, 1])
    assert rise(0.0, delay=0.0, ramp=0.0) == 1


def test_thin_groups_are_spared() -> None:
    out = prune.slimming(planted(), **given(strength=1e-2, thin=9))
    assert float(out[4].weight.detach().abs().min()) > 0.3  # type: ignore[index]
    assert float(out[1].weight.detach().abs()[8:].max()) < 0.02  # type: ignore[index]


def test_broken_off_and_resumed_gives_the_same_bits(tmp_path: Path) -> None:
    rules = given(epochs=2)
    whole = prune.slimming(planted(), **rules)

    def stop(progress: loop.Progress) -> None:
        if progress.step == 6:
            raise KeyboardInterrupt

    kept = {**rules, "checkpoint": tmp_path / "c", "every_s": 0.0}
    with pytest.raises(KeyboardInterrupt):
        prune.slimming(planted(), show=stop, **kept)
    seen: list[int] = []
    assert same(whole, prune.slimming(planted(), show=lambda p: seen.append(p.step), **kept))
    assert min(seen) > 5


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"strength": 0.0}, "slimming-knob"),
        ({"ramp": 1.1}, "slimming-knob"),
        ({"delay": 0.8, "ramp": 0.3}, "slimming-knob"),
        ({"polarise": 1.0}, "slimming-knob"),
        ({"thin": 0}, "slimming-knob"),
        ({"thin": 99}, "slimming-none"),
        ({"t": 0.0}, "train-knob"),
    ],
)
def test_wrong_knobs_are_named(changed: dict[str, Any], code: str) -> None:
    with pytest.raises(PlanError) as caught:
        prune.slimming(planted(), **given(**changed))
    assert caught.value.code == code


def test_a_net_without_batch_norms_is_told_so() -> None:
    with pytest.raises(PlanError) as caught:
        prune.slimming(net(norm=False), **given())
    assert caught.value.code == "slimming-none"
