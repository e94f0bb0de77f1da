"""Compensation: exact where it can be, in means where it cannot, and nothing else touched."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training import SPEC, TASK, net, same, samples

from niwaki import errors, plan, prune, surgery
from niwaki.job import points
from niwaki.job.folder import opened
from niwaki.prune import activations, least_squares
from niwaki.surgery.trace import trace

torch.set_num_threads(1)


def images(count: int = 48, *, seed: int = 1, size: int = 8) -> Tensor:
    """Smooth and grainy images float32 `[N, 3, size, size]`."""
    return prune.drawn((count, 3, size, size), torch.Generator().manual_seed(seed))


def halved(
    model: nn.Module, example: Tensor, **knobs: object
) -> tuple[nn.Module, surgery.Axes, dict[str, list[int]]]:
    """The model with its first half of every group, its axes and what was kept."""
    axes = surgery.analyse(model, example)
    keep = {g.name: list(range(g.size // 2)) for g in axes.groups if not g.secondary}
    return surgery.shrink(model, axes, keep, example=example), axes, keep


class Doubled(nn.Module):
    """A layer whose second half of channels is made from the first, and one that reads all of them."""

    def __init__(self, first: nn.Module, between: nn.Module, reader: nn.Module, *, mixed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.between, self.reader = first, between, reader
        half = first.weight.shape[0] // 2
        mix = torch.randn(half, half) if mixed else 2 * torch.eye(half)
        with torch.no_grad():
            for tensor in (first.weight, first.bias):
                tensor[half:] = torch.einsum("oi,i...->o...", mix, tensor[:half])

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.reader(self.between(self.first(x)))
        return out


def conv(i: int, o: int, **more: object) -> nn.Conv2d:
    return nn.Conv2d(i, o, 3, padding=1, **more)  # type: ignore[arg-type]


CASES = {
    "linear": lambda: Doubled(nn.Linear(8, 12), nn.Identity(), nn.Linear(12, 5), mixed=True),
    "relu": lambda: Doubled(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 5, bias=False), mixed=False),
    "conv": lambda: Doubled(conv(3, 8), nn.Identity(), conv(8, 5), mixed=True),
    "conv, batch norm": lambda: Doubled(
        conv(3, 8), nn.ReLU(), nn.Sequential(conv(8, 5, bias=False), nn.BatchNorm2d(5)), mixed=False
    ),
    "dilated, strided": lambda: Doubled(
        conv(3, 8), nn.ReLU(), nn.Conv2d(8, 5, (3, 2), stride=(2, 1), dilation=2, padding=(2, 1)), mixed=False
    ),
    "same": lambda: Doubled(conv(3, 8), nn.ReLU(), nn.Conv2d(8, 5, 4, padding="same"), mixed=False),
}


@pytest.mark.parametrize("name", CASES)
def test_exact_where_dropped_channels_are_made_of_kept_ones(name: str) -> None:
    model = CASES[name]().eval()
    x = torch.randn(64, 8) if isinstance(model.first, nn.Linear) else images()
    small, axes, keep = halved(model, x[:2])
    found = prune.compensate(model, small, axes, keep, inputs=x, ridge=0.0)
    fresh = torch.randn(16, 8) if x.dim() == 2 else images(16, seed=9)
    with torch.no_grad():
        wanted, got, cut = (m(fresh) for m in (model, found.model, small))
    assert float((wanted - cut).std() / wanted.std()) > 0.2
    assert float((wanted - got).abs().max() / wanted.std()) < 2e-4
    assert set(found.left) == ({"reader.weight"} if name == "relu" else set())  # it has no bias
    assert found.images == len(x)


def test_exact_for_grouped_convolutions() -> None:
    torch.manual_seed(0)
    first, reader = conv(3, 16), conv(16, 8, groups=2)
    with torch.no_grad():
        for tensor in (first.weight, first.bias):
            tensor[4:8], tensor[12:] = 2 * tensor[:4], 0.5 * tensor[8:12]
    model = nn.Sequential(first, nn.ReLU(), reader, nn.Flatten(), nn.Linear(512, 3)).eval()
    axes = surgery.analyse(model, images(2))
    inner = [g for g in axes.groups if ("2.weight", 1) in g.members]
    assert inner
    keep = {g.name: list(range(g.size // 2)) for g in inner}
    small = surgery.shrink(model, axes, keep, example=images(2))
    found = prune.compensate(model, small, axes, keep, inputs=images(), ridge=0.0)
    fresh = images(16, seed=9)
    with torch.no_grad():
        wanted, got, cut = (m(fresh) for m in (model, found.model, small))
    assert float((wanted - cut).std() / wanted.std()) > 0.1
    assert float((wanted - got).abs().max() / wanted.std()) < 1e-3


def test_mean_folds_the_dropped_channels_into_the_bias() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4)).eval()
    x = torch.randn(40, 6)
    small, axes, keep = halved(model, x[:2])
    found = prune.compensate(model, small, axes, keep, inputs=x, how="mean")
    with torch.no_grad():
        dropped = model[1](model[0](x))[:, 5:].mean(0)
        wanted = model[2].bias + model[2].weight[:, 5:] @ dropped
    assert torch.allclose(found.model[2].bias, wanted, atol=1e-6)
    assert torch.equal(found.model[2].weight, small[2].weight)
    assert found.layers == ("2.weight",)


def test_a_layer_without_bias_moves_the_norm_behind_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 6, bias=False), nn.BatchNorm2d(6)).eval()
    small, axes, keep = halved(model, images(2))
    found = prune.compensate(model, small, axes, keep, inputs=images(), how="mean")
    with torch.no_grad():
        wanted, got, cut = (m(images()).mean((0, 2, 3)) for m in (model, found.model, small))
    assert not torch.allclose(wanted, cut, atol=1e-2)
    assert torch.allclose(wanted, got, atol=1e-5)
    assert found.model.state_dict().keys() == model.state_dict().keys()


class Tied(nn.Module):
    """One weight in two layers, a bare layer, a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.bare = conv(3, 8), conv(8, 8, bias=False)
        self.tied = conv(8, 8)
        self.up, self.head = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.bare(self.stem(x).relu()).relu()
        x = self.tied(self.tied(x).relu()).relu()
        return self.head(self.up(x).relu().mean((2, 3)))


@pytest.mark.parametrize("how", ["mean", "least-squares"])
def test_what_cannot_be_fitted_is_named(how: str) -> None:
    model = Tied().eval()
    small, axes, keep = halved(model, images(2))
    found = prune.compensate(model, small, axes, keep, inputs=images(), how=how)
    assert "shared" in found.left["tied.weight"] or "neither" in found.left["tied.weight"]
    assert "neither" in found.left["bare.weight"]
    assert ("up.weight" in found.left) == (how == "least-squares")
    assert ("bare.weight" in found.layers) == (how == "least-squares")
    assert "head.weight" in found.layers


def test_nothing_else_is_touched_and_the_same_comes_twice() -> None:
    model = net().eval()
    small, axes, keep = halved(model, images(2))
    before, cut = copy.deepcopy(model), copy.deepcopy(small)
    one, two = (prune.compensate(model, small, axes, keep, inputs=images()) for _ in range(2))
    assert same(before, model)
    assert same(cut, small)
    assert same(one.model, two.model)
    assert not same(one.model, small)
    assert one.to_json() == two.to_json()
    assert set(one.to_json()) == {"how", "images", "layers", "left"}


class Attention(nn.Module):
    """Self-attention over the rows of an image, and a classifier."""

    def __init__(self, *, heads: int = 4, size: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.head_dim = heads, size
        width = heads * size
        self.embed, self.qkv = nn.Linear(24, width), nn.Linear(width, 3 * width)
        self.proj, self.head = nn.Linear(width, width), nn.Linear(width, 5)
        with torch.no_grad():
            self.qkv.weight *= 3

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images `[B, 3, 8, 8]`."""
        x = self.embed(x.permute(0, 2, 1, 3).flatten(2))
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)
        return self.head((x + self.proj(mixed)).mean(1))


def test_queries_keep_the_scale_that_surgery_gave_them() -> None:
    """With only head sizes cut, qkv gets what it always got and must stay as the surgery left it."""
    model = Attention(heads=2, size=16).eval()
    axes = surgery.analyse(model, images(2))
    sizes = next(g for g in axes.groups if ("qkv.weight", 0) in g.members and g.size >= 16)
    keep = {sizes.name: list(range(sizes.size // 2))}
    small = surgery.shrink(model, axes, keep, example=images(2))
    found = prune.compensate(model, small, axes, keep, inputs=images())
    assert torch.equal(found.model.qkv.weight, small.qkv.weight)
    assert found.layers[0] == "proj.weight"
    assert _error(model, found.model) < 0.8 * _error(model, small)


def _error(model: nn.Module, other: nn.Module) -> float:
    with torch.no_grad():
        wanted, got = (m(images(32, seed=5)) for m in (model, other))
    return float((wanted - got).pow(2).mean() / wanted.var())


def test_fresh_images_come_closer_to_the_original() -> None:
    model = Attention().eval()
    small, axes, keep = halved(model, images(2))
    errors_by = {
        how: _error(model, prune.compensate(model, small, axes, keep, inputs=images(128), how=how).model)
        for how in ("mean", "least-squares")
    }
    assert errors_by["least-squares"] < 0.5 * _error(model, small)
    assert errors_by["least-squares"] < errors_by["mean"]


def test_memory_bounds_the_images() -> None:
    model = net().eval()
    small, axes, keep = halved(model, images(2))
    each = activations.bytes_per_image(axes.traced)
    assert 2 * 8 * 8 * 8 * 4 <= each <= 4 * 8 * 8 * 8 * 4  # a convolution's input and output, 8 channels of 8x8
    found = prune.compensate(model, small, axes, keep, inputs=images(), memory=20 * each)
    assert 10 <= found.images <= 20


def test_walk_drops_what_nothing_needs() -> None:
    traced = trace(net().eval(), images(2))
    calls = [n for n in traced.graph.nodes if "conv" in str(n.target) or "linear" in str(n.target)]
    walk = activations.Walk(traced, [(images(4),)], {calls[-1]})
    assert walk.take(calls[-1])[0].shape == (4, 3)
    assert {n.op for n in walk._values[0]} == {"placeholder"}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_patches_times_weight_is_the_convolution(rank: int, groups: int) -> None:
    torch.manual_seed(0)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    layer = kind(4, 6, 3, stride=2, padding=1, dilation=2, groups=groups, bias=False)
    x = torch.randn(3, 4, *[9, 8, 7][:rank])
    node = next(n for n in trace(layer, x).graph.nodes if "conv" in str(n.target))
    y = layer(x).detach()
    for rows, wanted in least_squares._rows(node, layer.weight.detach(), x, y, groups):
        got = torch.einsum("rgd,god->rgo", rows, layer.weight.detach().reshape(groups, 6 // groups, -1))
        assert torch.allclose(got, wanted, atol=1e-5)


def test_wrong_knobs_are_refused() -> None:
    model = net().eval()
    small, axes, keep = halved(model, images(2))
    for knobs in ({"how": "median"}, {"how": "none"}, {"ridge": -1.0}, {"inputs": images(0)}):
        with pytest.raises(errors.PlanError) as caught:
            prune.compensate(model, small, axes, keep, **{"inputs": images(), **knobs})
        assert caught.value.code == "prune-compensate"


def test_as_a_knob_of_the_step() -> None:
    model = net().eval()
    text = '[[step]]\ndo = "prune.channels"\nratio = 0.5\ncompensate = "least-squares"\n'
    made = plan.Plan.from_toml(text)
    assert plan.Plan.from_toml(made.to_toml()) == made
    calib = samples(64)
    bench = plan.Bench(spec=SPEC, task=TASK, calib=calib)
    got = made.run(model, bench)
    plain = plan.Plan(plan.step("prune.channels", ratio=0.5)).run(model, bench)
    x = torch.from_numpy(SPEC.normalise(samples(32, seed=3).batch(range(32), SPEC)))
    with torch.no_grad():
        wanted, near, far = (m(x) for m in (model, got, plain))
    assert (wanted - near).pow(2).mean() < 0.5 * (wanted - far).pow(2).mean()
    with pytest.raises(errors.PlanError) as caught:
        made.run(model, plan.Bench(spec=SPEC))
    assert caught.value.code == "plan-need"


def test_a_run_keeps_its_compensation(tmp_path: Path) -> None:
    """What `niwaki fit` does after the proof: recorded, and the same bits when it is taken up again."""
    model = net().eval()
    small, axes, keep = halved(model, images(2))
    run = {"arguments": {}, "data": "", "versions": {}, "threads": 1}
    base = SimpleNamespace(model=model)
    widths = SimpleNamespace(axes=axes, compensate="least-squares")
    found = SimpleNamespace(keep=keep)

    def taken_up() -> tuple[nn.Module, dict[str, Any]]:
        with opened(tmp_path / "run", run) as folder:
            work = SimpleNamespace(folder=folder, calib=samples(64), spec=SPEC)
            got = points._compensated(work, base, widths, "asked", small, found)
            assert any("compensated" in note for note in folder.notes)
        return got

    first, facts = taken_up()
    assert facts["how"] == "least-squares"
    assert facts["layers"]
    assert not same(first, small)
    again, told = taken_up()
    assert told == facts
    assert same(again, first)
    (tmp_path / "run" / "stages" / "asked-compensated.safetensors").unlink()
    assert same(taken_up()[0], first)
    widths.compensate = "none"
    assert points._compensated(None, base, widths, "asked", small, found) == (small, None)


class Two(nn.Module):
    """Two inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.facts, self.head = conv(3, 8), nn.Linear(4, 8), nn.Linear(16, 3)

    def forward(self, image: Tensor, facts: Tensor) -> dict[str, Tensor]:
        """Logits of images and facts together."""
        seen, known = self.image(image).relu().mean((2, 3)), self.facts(facts).relu()
        return {"logits": self.head(torch.cat([seen, known], 1))}


def test_several_inputs_by_name() -> None:
    model, x = Two().eval(), {"image": images(64), "facts": torch.randn(64, 4)}
    example = {name: value[:2] for name, value in x.items()}
    small, axes, keep = halved(model, example)
    found = prune.compensate(model, small, axes, keep, inputs=x)
    with torch.no_grad():
        wanted, got, cut = (m(**x)["logits"] for m in (model, found.model, small))
    assert found.images == 64
    assert (wanted - got).pow(2).mean() < 0.5 * (wanted - cut).pow(2).mean()
