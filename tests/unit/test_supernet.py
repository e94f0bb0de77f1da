"""The supernet: a path is the network that is cut out, gradients reach what it keeps, and training pays."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tests import zoo
from torch import nn

from niwaki import evaluate, surgery, train
from niwaki.data import Samples
from niwaki.search import supernet
from niwaki.spec import Spec
from niwaki.tasks import Classify

SPEC = Spec(size_hw=(8, 8))
TASK = Classify(("red", "green", "blue"))
EXAMPLE = torch.zeros(2, 3, 8, 8)


class Net(nn.Module):
    """Two convolutions, a residual one, and a layer norm, whose statistics masks would falsify."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        x = (x + self.conv3(x)).mean((2, 3))
        return self.head(self.norm(x))


@pytest.fixture(scope="module")
def data() -> Samples:
    draw = np.random.default_rng(0)
    labels = np.arange(180) % 3
    base = np.eye(3)[labels][:, None, None] * 40 + 90
    images = np.clip(base + draw.integers(-70, 70, (180, 8, 8, 3)), 0, 255).astype(np.uint8)
    return Samples(sources=images, names=tuple(map(str, range(180))), labels=labels)


@pytest.fixture(scope="module")
def net() -> tuple[nn.Module, supernet.Widths]:
    torch.manual_seed(0)
    model = Net()
    return model, supernet.widths(model, surgery.analyse(model, EXAMPLE), shares=(0.25, 0.5, 1.0))


def test_widths_are_multiples_and_nested(net: tuple[nn.Module, supernet.Widths]) -> None:
    _, space = net
    assert sorted(space.choices.values()) == [(4, 8, 16), (8, 16, 32)]
    narrow, wide = space.keep(space.at(0.0)), space.keep(space.at(0.5))
    assert narrow.keys() == wide.keys() and all(set(narrow[g]) < set(wide[g]) for g in narrow)
    assert space.keep(space.at(1.0)) == {}
    assert space.cost(space.at(1.0)) == space.axes.cost({})


def test_a_path_is_the_network_that_is_cut_out(net: tuple[nn.Module, supernet.Widths]) -> None:
    model, space = net
    x = torch.randn(6, 3, 8, 8)
    for place in (0.0, 0.5, 1.0):
        small = surgery.shrink(model, space.axes, space.keep(space.at(place)))
        model.train(), small.train()
        said = supernet._run(model, space, space.at(place), x)
        assert torch.allclose(said, small(x), atol=1e-6)
    wrong = surgery.shrink(
        model, space.axes, {n: list(range(len(k))) for n, k in space.keep(space.at(0)).items()}
    )
    assert not torch.allclose(supernet._run(model, space, space.at(0.0), x), wrong.train()(x), atol=1e-3)


def test_gradients_reach_what_a_path_keeps_and_nothing_else(net: tuple[nn.Module, supernet.Widths]) -> None:
    model, space = net
    model.zero_grad()
    path = space.at(0.0)
    supernet._run(model.train(), space, path, torch.randn(6, 3, 8, 8)).square().sum().backward()
    kept = space.axes.kept_indices(space.keep(path))["conv1.weight"][0]
    touched = model.conv1.weight.grad.abs().sum((1, 2, 3)) > 0
    assert torch.nonzero(touched).flatten().tolist() == kept
    model.zero_grad()


def test_norms_are_measured_on_the_training_images(
    net: tuple[nn.Module, supernet.Widths], data: Samples
) -> None:
    model, space = net
    before = copy.deepcopy(model.state_dict())
    small = supernet.cut(model, space, space.at(0.5), spec=SPEC, train=data, example=EXAMPLE)
    with torch.no_grad():
        seen = small.conv1(torch.from_numpy(SPEC.normalise(data.batch(range(180), SPEC))))
    assert torch.allclose(small.bn1.running_mean, seen.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(small.bn1.running_var, seen.var((0, 2, 3)), rtol=1e-2)
    assert small.bn1.momentum == 0.1 and not any(m.training for m in small.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_paths_spread_over_the_costs(net: tuple[nn.Module, supernet.Widths]) -> None:
    _, space = net
    found = supernet.paths(space, count=6)
    costs = [space.cost(path).macs for path in found]
    assert costs == sorted(costs) and len({repr(path) for path in found}) == len(found) >= 5
    assert found[0] == space.at(0.0) and found[-1] == space.at(1.0)
    assert found == supernet.paths(space, count=6)
    limit = space.cost(space.at(1.0)).macs * 0.5
    within = supernet.paths(space, count=4, limit=limit)
    assert within and all(space.cost(path).macs <= limit for path in within)
    assert supernet.paths(space, count=4, limit=1) == []


def test_training_by_the_sandwich_makes_narrow_paths_work(
    net: tuple[nn.Module, supernet.Widths], data: Samples
) -> None:
    model, space = net

    def narrowest(trained: nn.Module) -> float:
        small = supernet.cut(trained, space, space.at(0.0), spec=SPEC, train=data)
        said = evaluate.probabilities(evaluate.predictor(small, SPEC, TASK), data, SPEC)
        return TASK.score(said, data.labels)["accuracy"]

    known = {
        "task": TASK,
        "spec": SPEC,
        "train": data,
        "epochs": 10,
        "batch": 32,
        "augment": "none",
        "lr": 1e-2,
    }
    slim = supernet.train(model, space, **known)  # type: ignore[arg-type]
    plain = train.fit(model, **known)  # type: ignore[arg-type]
    assert narrowest(slim) > 0.85
    assert narrowest(slim) > narrowest(plain) + 0.1  # else the narrow paths learned nothing of their own


def test_a_path_of_narrower_heads_scales_its_queries_as_its_cut_does() -> None:
    torch.manual_seed(0)
    model, x = zoo.Sdpa().eval(), torch.randn(2, 16, 16, 16)
    with torch.no_grad():  # surgery finds rows by gradients of its own
        axes = surgery.analyse(model, x)
        size = next(g for g in axes.groups if dict(surgery.attention_factors(axes, {g.name: [0]})))
        space = supernet.Widths(
            axes=axes,
            choices={size.name: (size.size // 2, size.size)},
            order={size.name: tuple(range(size.size))},
        )
        small = supernet.cut(model, space, space.at(0.0), spec=SPEC, train=(), example=x)
        torch.testing.assert_close(supernet._run(model, space, space.at(0.0), x), small(x))
