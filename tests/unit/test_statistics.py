"""Batch norm statistics taken anew."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from training import SPEC, TASK, net, same, samples

from niwaki import plan, train
from niwaki.errors import PlanError

torch.set_num_threads(1)


def norm_of(model: nn.Module) -> nn.BatchNorm2d:
    return next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_they_are_the_averages_over_the_batches() -> None:
    model, data = net(), samples(64)
    with torch.no_grad():
        norm_of(model).running_mean.fill_(7.0)
    before = copy.deepcopy(model)
    got = train.statistics(model, spec=SPEC, train=data, images=64, batch=16)
    assert same(before, model)
    assert not got.training
    assert norm_of(got).momentum == norm_of(model).momentum
    x = torch.from_numpy(SPEC.normalise(data.batch(range(64), SPEC)))
    with torch.no_grad():
        y = model[0](x)
    assert torch.allclose(norm_of(got).running_mean, y.mean((0, 2, 3)), atol=1e-5)
    whole = train.statistics(model, spec=SPEC, train=data, images=64, batch=64)
    assert torch.allclose(norm_of(whole).running_var, y.transpose(0, 1).flatten(1).var(1), rtol=1e-4)
    weights = [(a, b) for (n, a), b in zip(before.named_parameters(), got.parameters(), strict=True)]
    assert all(torch.equal(a, b) for a, b in weights)


def test_only_norms_train_and_the_same_comes_twice() -> None:
    model = net(dropout=0.9).train()
    one, two = (train.statistics(model, spec=SPEC, train=samples(), images=40, batch=8) for _ in range(2))
    assert same(one, two)
    other = train.statistics(model, spec=SPEC, train=samples(), images=40, batch=8, seed=1)
    assert not same(one, other)


def test_it_mends_what_statistics_broke() -> None:
    data = samples(200)
    model = train.fit(net(), task=TASK, spec=SPEC, train=data, epochs=6, ema=0.0, batch=16, lr=1e-2)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        norm_of(broken).running_mean.add_(3.0)
        norm_of(broken).running_var.mul_(9.0)
    x = torch.from_numpy(SPEC.normalise(data.batch(range(200), SPEC)))
    mended = plan.Plan(plan.step("train.statistics", images=200)).run(broken, plan.Bench(spec=SPEC, train=data))
    with torch.no_grad():
        wanted, far, near = (m(x) for m in (model, broken, mended))
    assert (near - wanted).pow(2).mean() < 0.05 * (far - wanted).pow(2).mean()


@pytest.mark.parametrize(
    ("model", "knobs", "code"),
    [
        (net(norm=False), {}, "train-no-statistics"),
        (nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), {}, "train-no-statistics"),
        (net(), {"batch": 1}, "train-knob"),
        (net(), {"images": 0}, "train-knob"),
    ],
)
def test_refusals(model: nn.Module, knobs: dict[str, int], code: str) -> None:
    with pytest.raises(PlanError) as caught:
        train.statistics(model, spec=SPEC, train=samples(), **knobs)
    assert caught.value.code == code
