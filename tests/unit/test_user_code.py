"""Networks as users write them: several inputs, by name too, nested outputs, tied and parametrized weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.zoo import Headed, block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from niwaki import diagnose, prune, surgery

DRAW = torch.Generator().manual_seed(0)
IMAGES = prune.drawn((8, 3, 16, 16), DRAW)
TABLE = torch.randn(8, 7, generator=DRAW)


def cut(net: nn.Module, example: Any, **knobs: Any) -> prune.Pruned:
    axes = surgery.analyse(net, example)
    keep = prune.choose(axes, prune.score(net, axes), ratio=0.5)
    return prune.cut(net, axes, keep, example=example, **knobs)


class Two(nn.Module):
    """Images and a table of numbers; a dict with a nested list comes out. `shape` is written into the code."""

    def __init__(self, *, fixed: bool = False) -> None:
        super().__init__()
        self.body, self.side = nn.Sequential(block(3, 16), block(16, 24)), nn.Linear(7, 24)
        self.head, self.other, self.fixed = nn.Linear(24, 5), nn.Linear(24, 2), fixed

    def forward(self, image: Tensor, table: Tensor, gain: Tensor | None = None) -> dict[str, Any]:
        x = self.body(image).mean((2, 3)) + self.side(table).relu()
        if self.fixed:
            x = x.view(-1, 4, 6).transpose(1, 2).reshape(-1, 24)
        x = x if gain is None else x * gain
        return {"out": self.head(x), "more": [self.other(x), (x.mean(1),)]}


@pytest.mark.parametrize(
    ("example", "fixed"),
    [
        ((IMAGES, TABLE), False),
        ({"image": IMAGES, "table": TABLE, "gain": torch.rand(8, 1, generator=DRAW)}, False),
        ((IMAGES, TABLE), True),
        ({"table": TABLE, "image": IMAGES}, True),
    ],
    ids=["in order", "optional", "graph in order", "graph by name"],
)
def test_several_inputs_and_nested_outputs(example: Any, fixed: bool) -> None:
    torch.manual_seed(0)
    net = Two(fixed=fixed).eval()
    out = cut(net, example)
    assert out.result == ("graph" if fixed else "module") and not out.left and out.error <= 1e-4
    got = out.model(**example) if isinstance(example, dict) else out.model(*example)
    assert list(got) == ["out", "more"] and got["out"].shape == (8, 5)
    assert type(got["more"]) is list and type(got["more"][1]) is tuple
    if fixed and len(example) == 2:  # by place as well as by name, for any number of images
        by_place = out.model(IMAGES[:3], TABLE[:3])
        assert torch.allclose(by_place["out"], got["out"][:3], atol=1e-5)


class Pair(nn.Module):
    """A list of two images in, a tuple out."""

    example_inputs = ([IMAGES, IMAGES.flip(3)],)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = block(3, 16), block(3, 16), nn.Linear(16, 5)

    def forward(self, pair: list[Tensor]) -> tuple[Tensor, Tensor]:
        x = self.a(pair[0]) * self.b(pair[1]).sigmoid()
        return self.head(x.mean((2, 3))), x.mean((1, 2, 3))


def test_inputs_in_a_list_and_the_example_of_the_class() -> None:
    torch.manual_seed(0)
    found = diagnose.model(Pair().eval(), budget="params=60%")
    assert found["result"] == "module" and found["proof_error"] <= 1e-4
    assert found["params"]["after"] < found["params"]["before"]


def test_groups_name_their_members_and_why_they_stay() -> None:
    torch.manual_seed(0)

    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = block(16, 16, groups=4), block(16, 24)
            self.b2 = block(24, 24)

        def forward(self, x: Tensor) -> Tensor:
            return self.b2(torch.sort(self.b(self.a(x)), dim=1).values)

    found = diagnose.model(Headed(Sorted(), 16, 24).eval(), channels=0.5, size=(16, 16))
    groups = {group["name"]: group for group in found["groups"]}
    whole = [group for group in groups.values() if group["secondary"]]
    assert whole and all("smaller factor" in g["reason"] and g["after"] == g["before"] for g in whole)
    cut_ones = [group for group in groups.values() if group["after"] < group["before"]]
    assert cut_ones and all(group["reason"] == "" for group in cut_ones)
    head = next(g for g in cut_ones if {"parameter": "head.weight", "axis": 1} in g["members"])
    assert {"parameter": "body.b2.0.weight", "axis": 0} in head["members"]
    assert found["unprunable"][0]["operator"] == "aten.sort.default"
    assert "test_user_code.py" in found["unprunable"][0]["source"]


class Tied(nn.Module):
    """A patch embedding whose weight is also the decoder's, as embedding and output are in language models."""

    def __init__(self, *, fixed: bool) -> None:
        super().__init__()
        self.embed, self.mlp = nn.Linear(48, 24, bias=False), nn.Linear(24, 24)
        self.table, self.back = nn.Embedding(10, 24), nn.Linear(24, 10, bias=False)
        self.back.weight = self.table.weight
        self.decode, self.fixed = nn.Linear(24, 48, bias=False), fixed
        self.decode.weight = nn.Parameter(self.embed.weight.t().clone())

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_unshuffle(x, 4).flatten(2).transpose(1, 2)
        x = self.embed(x) + self.table(torch.arange(16) % 10)
        if self.fixed:
            x = x.reshape(-1, 16, 4, 6).flatten(2)
        return self.back(self.mlp(x).relu()).mean(1)


@pytest.mark.parametrize("fixed", [False, True])
def test_tied_weights_are_cut_once_and_stay_tied(fixed: bool) -> None:
    torch.manual_seed(0)
    net = Tied(fixed=fixed).eval()
    out = cut(net, IMAGES)
    assert out.result == ("graph" if fixed else "module") and out.error <= 1e-4
    small = out.model
    assert small.get_parameter("back.weight") is small.get_parameter("table.weight")
    assert small.get_parameter("table.weight").shape == (10, 12)
    assert set(small.state_dict()) == set(net.state_dict())
    copied = copy.deepcopy(small)
    assert copied.get_parameter("back.weight") is copied.get_parameter("table.weight")
    assert [n for n, _ in copied.named_parameters()] == [n for n, _ in net.named_parameters()]


def normed(layer: Any) -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(block(16, 32), layer(nn.Conv2d(32, 32, 3, padding=1)), nn.ReLU(), block(32, 24))
    return Headed(body, 16, 24).eval()


@pytest.mark.parametrize(
    ("layer", "operator"),
    [
        (parametrizations.weight_norm, "aten._weight_norm.default"),
        (parametrizations.spectral_norm, "aten.mv.default"),
        (parametrizations.orthogonal, "aten."),
    ],
    ids=["weight_norm", "spectral_norm", "orthogonal"],
)
def test_parametrized_weights_stay_whole_and_are_named(layer: Any, operator: str) -> None:
    net = normed(layer)
    axes = surgery.analyse(net, IMAGES)
    out = cut(net, IMAGES)
    assert not out.left and out.error <= 1e-4
    names = [one for one in axes.unprunable if one["operator"].startswith(operator)]
    assert names
    parametrized = [n for g in axes.groups for n, _ in g.members if "parametrizations" in n]
    assert parametrized == []
    assert out.model.get_submodule("body.3.0").weight.shape[0] == 12


@pytest.mark.parametrize(
    "name", ["resnet18_fpn", pytest.param("lraspp_mobilenet_v3_large", marks=pytest.mark.bench)]
)
def test_a_detector_backbone_and_a_segmentation_network(name: str) -> None:
    """The rest of torchvision is in benchmarks/coverage_torchvision.py."""
    from torchvision import models
    from torchvision.models.detection import backbone_utils

    torch.manual_seed(0)
    if name == "resnet18_fpn":
        net = backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    else:
        net = models.get_model(name, weights=None, weights_backbone=None)
    example = torch.zeros(1, 3, 32, 32)
    out = cut(net.eval(), example)
    assert out.result == "module" and not out.left and out.error <= 1e-4
    assert type(out.model) is type(net)
    assert list(out.model(example)) == list(net(example))


class Halves(nn.Module):
    """A layer cut in two parts of one size, which an attribute each holds: each may then be of either."""

    def __init__(self) -> None:
        super().__init__()
        self.right = self.left = 8
        self.both = nn.Linear(24, 16)
        self.wide, self.thin = nn.Linear(8, 24), nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(self.both(x).relu(), [self.left, self.right], dim=-1)
        return x + self.wide(left).sigmoid() * self.thin(right)


def test_attributes_of_many_modules_are_found_where_each_allows_several_values() -> None:
    """Six modules with nine choices each: 531 441 together, of which all but one fail."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 24), *(Halves() for _ in range(6)), nn.Linear(24, 5)).eval()
    example = torch.randn(8, 3, 4, 4)
    axes = surgery.analyse(net, example)
    halves = [g for g in axes.groups if len(g.members) == 3]
    assert len(halves) == 12
    keep = {g.name: [0, 2, 5] if any("wide" in n for n, _ in g.members) else [1, 3, 4, 6, 7] for g in halves}
    done = prune.cut(net, axes, keep, example=example)
    assert done.result == "module" and done.error <= 1e-4
    assert [(m.left, m.right) for m in done.model if isinstance(m, Halves)] == [(3, 5)] * 6


class Gated(nn.Module):
    """Three gates out of one layer, each cut out by itself and spread over all channels, as in FocalNet."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.both = 16, nn.Conv2d(16, 16 + 3, 3)
        self.levels = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x, gates = torch.split(self.both(x), [self.width, 3], dim=1)
        return sum(F.gelu(level(x)) * gates[:, i : i + 1] for i, level in enumerate(self.levels))


def test_a_channel_that_is_broadcast_by_itself_stays() -> None:
    torch.manual_seed(0)
    done = cut(Headed(Gated(), 16, 16).eval(), IMAGES)
    assert done.result == "module" and done.error <= 1e-4
    assert done.model.body.both.out_channels == 8 + 3
