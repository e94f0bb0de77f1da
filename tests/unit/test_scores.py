"""Scores and rankings against known answers and brute force, on networks small enough to check by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from training import SPEC, TASK, samples

from niwaki import Classify, nets, plan, prune, surgery
from niwaki.errors import PlanError
from niwaki.prune.alike import keys
from niwaki.prune.places import places

EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DATA = samples(40)


class Net(nn.Module):
    """A convolution with a norm, a residual block, and a head. Masks switch channels for the brute force."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.up, self.down = nn.Conv2d(width, 5, 3, padding=1), nn.Conv2d(5, width, 1)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.down(self.up(x).relu())
        return self.head(x.mean((2, 3)))

    def masked(self, x: Tensor, stream: Tensor, hidden: Tensor) -> Tensor:
        """The same where these channels are multiplied by masks, for everything that reads them."""
        x = self.norm(self.stem(x)).relu()
        hid = self.up(x * stream[:, None, None]).relu() * hidden[:, None, None]
        return self.head((x + self.down(hid)).mean((2, 3)) * stream)


class Attention(nn.Module):
    """Self-attention over pixels, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 24), nn.Linear(8, 8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head, self.heads = nn.Linear(8, 3), 2

    def forward(self, x: Tensor) -> Tensor:
        return self.masked(x)

    def masked(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        a = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(a.transpose(1, 2).reshape(b, n, c))
        units = nn.functional.gelu(self.up(self.norm(x)))
        x = x + self.down(units if hidden is None else units * hidden)
        return self.head(x.mean(1))


def made(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """The model with every weight drawn anew, norms too."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.5)
    return model.eval()


def images(count: int) -> tuple[Tensor, Tensor]:
    batch = DATA.batch(range(count), SPEC)
    return torch.from_numpy(SPEC.normalise(batch)), torch.from_numpy(DATA.labels[:count])


def evidence(model: nn.Module, axes: Any, count: int = 40, **more: Any) -> prune.Evidence:
    return prune.gather(model, axes, task=TASK, spec=SPEC, samples=DATA.at(range(count)), **more)


def brute(model: Net, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Per-image derivatives with respect to explicit masks: residual stream [N, 6], hidden units [N, 5]."""
    x, y = images(count)
    rows = []
    for i in range(count):
        masks = torch.ones(6, requires_grad=True), torch.ones(5, requires_grad=True)
        loss = TASK.loss(model.masked(x[i : i + 1], *masks), y[i : i + 1]).sum()
        rows.append([g.double().numpy() for g in torch.autograd.grad(loss, masks)])
    return np.stack([r[0] for r in rows]), np.stack([r[1] for r in rows])


STREAM, HIDDEN = "stem.weight:0", "up.weight:0"


@pytest.fixture(scope="module")
def net() -> tuple[Net, Any]:
    model = made(Net())
    return model, surgery.analyse(model, EXAMPLE)  # type: ignore[return-value]


def test_the_network_has_the_groups_that_these_tests_think_of(net: tuple[Net, Any]) -> None:
    assert {g.name: g.size for g in net[1].groups} == {STREAM: 6, HIDDEN: 5}


def test_mask_gradients_are_those_of_explicit_masks_image_by_image(net: tuple[Net, Any]) -> None:
    model, axes = net
    found = evidence(model, axes)
    stream, hidden = brute(model, 40)
    np.testing.assert_allclose(found.gradients[STREAM], stream, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.gradients[HIDDEN], hidden, rtol=1e-3, atol=1e-5)


def test_mask_gradients_are_weight_times_gradient_over_what_reads_the_channel(net: tuple[Net, Any]) -> None:
    model, axes = net
    x, y = images(32)
    model.zero_grad()
    TASK.loss(model(x), y).mean().backward()
    down = (model.down.weight * model.down.weight.grad).sum((0, 2, 3)).detach().double().numpy()
    stream = sum((w * w.grad).sum(d) for w, d in ((model.up.weight, (0, 2, 3)), (model.head.weight, 0)))
    found = evidence(model, axes, 32)
    np.testing.assert_allclose(found.gradients[HIDDEN].mean(0), down, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.gradients[STREAM].mean(0), stream.detach().numpy(), rtol=1e-3, atol=1e-6)
    taylor = prune.score(model, axes, by="taylor", evidence=found, normalise="none")
    np.testing.assert_allclose(taylor[HIDDEN], down**2, rtol=2e-3)


def test_taylor_tells_the_change_of_the_loss_when_a_channel_hardly_counts(net: tuple[Net, Any]) -> None:
    model = made(Net(), seed=3)
    with torch.no_grad():
        model.down.weight *= 1e-3  # so that the first order is all there is
    axes = surgery.analyse(model, EXAMPLE)
    x, y = images(32)
    before = TASK.loss(model(x), y).double().mean().detach()
    change = []
    for i in range(5):
        mask = torch.ones(5)
        mask[i] = 0
        with torch.no_grad():
            after = TASK.loss(model.masked(x, torch.ones(6), mask), y).double().mean()
        change.append(float(after - before))
    scores = prune.score(model, axes, by="taylor", evidence=evidence(model, axes, 32), normalise="none")
    np.testing.assert_allclose(scores[HIDDEN], np.square(change), rtol=0.05, atol=1e-14)


def test_taylor_squares_each_batch_of_32_and_fisher_each_image(net: tuple[Net, Any]) -> None:
    model, axes = net
    found = evidence(model, axes, 40)
    stream, hidden = brute(model, 40)
    got = {by: prune.score(model, axes, by=by, evidence=found, normalise="none") for by in ("taylor", "fisher")}
    two = [part.mean(0) ** 2 for part in np.array_split(stream, 2)]
    np.testing.assert_allclose(got["taylor"][STREAM], np.mean(two, axis=0), rtol=5e-3)
    loop = sum(0.5 * row**2 for row in hidden) / 40
    np.testing.assert_allclose(got["fisher"][HIDDEN], loop, rtol=5e-3)
    coupled_first = 0.5 * np.mean(stream**2, axis=0)  # layers are summed before the square
    np.testing.assert_allclose(got["fisher"][STREAM], coupled_first, rtol=5e-3)


def test_evidence_does_not_depend_on_the_batch_and_is_the_same_each_time(net: tuple[Net, Any]) -> None:
    model, axes = net
    before = {name: value.clone() for name, value in model.state_dict().items()}
    a, b, c = (evidence(model, axes, 33, batch=size) for size in (32, 7, 32))
    for group in axes.groups:
        np.testing.assert_allclose(a.gradients[group.name], b.gradients[group.name], rtol=1e-3, atol=1e-6)
        assert np.array_equal(a.gradients[group.name], c.gradients[group.name])
        for statistic in a.activity:
            np.testing.assert_allclose(a.activity[statistic][group.name], b.activity[statistic][group.name])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_network_of_fixed_batch_is_read_one_image_at_a_time(net: tuple[Net, Any]) -> None:
    import dataclasses

    model, axes = net
    fixed = surgery.axes.walk(dataclasses.replace(axes.traced, dynamic=False))
    stream, _ = brute(model, 9)
    np.testing.assert_allclose(evidence(model, fixed, 9).gradients[STREAM], stream, rtol=1e-3, atol=1e-5)


class Mixing(Net):
    """Images of one batch disturb each other: the batch's mean goes into each."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - 0.5 * x.mean(0, keepdim=True))


def test_images_that_disturb_each_other_are_read_one_at_a_time() -> None:
    model = made(Mixing())
    axes = surgery.analyse(model, EXAMPLE)
    many, few = evidence(model, axes, 9), evidence(model, axes, 3)
    np.testing.assert_allclose(many.gradients[STREAM][:3], few.gradients[STREAM], rtol=1e-4, atol=1e-7)


def test_hidden_units_and_heads_of_attention_have_gradients() -> None:
    model = made(Attention())
    axes = surgery.analyse(model, EXAMPLE)
    found = evidence(model, axes, 20)
    x, y = images(20)
    rows = []
    for i in range(20):
        mask = torch.ones(12, requires_grad=True)
        rows.append(
            torch.autograd.grad(TASK.loss(model.masked(x[i : i + 1], mask), y[i : i + 1]).sum(), mask)[0]
        )
    np.testing.assert_allclose(found.gradients["up.weight:0"], torch.stack(rows).numpy(), rtol=1e-3, atol=1e-5)
    assert all((np.abs(gradients).max(0) > 0).all() for gradients in found.gradients.values())
    assert any(
        place.call.target is torch.ops.aten.scaled_dot_product_attention.default for place in places(axes)
    )


def test_activities_are_those_of_the_inputs_of_the_reading_layer(net: tuple[Net, Any]) -> None:
    model, axes = net
    x, _ = images(40)
    seen: list[Tensor] = []
    handle = model.down.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(x)
    handle.remove()
    value = seen[0].double().transpose(0, 1).flatten(1)
    known = {
        "activation": value.abs().mean(1), "nonzero": (value != 0).double().mean(1),
        "variance": value.var(1, unbiased=False),
    }  # fmt: skip
    found = evidence(model, axes)
    for by, wanted in known.items():
        scores = prune.score(model, axes, by=by, evidence=found)[HIDDEN]
        np.testing.assert_allclose(scores, wanted / wanted.mean(), rtol=1e-4)


def test_norms_know_their_answers() -> None:
    model = Net()
    with torch.no_grad():
        for layer in (model.stem, model.down, model.up, model.head):
            layer.weight.fill_(1.0)
        model.up.weight[2] = 3.0
        model.down.weight[:, 2] = 0.0
    axes = surgery.analyse(model, EXAMPLE)
    for by in ("l1", "l2"):
        scores = prune.score(model, axes, by=by)
        up, down = np.array([1, 1, 3, 1, 1]) / 1.4, np.array([1, 1, 0, 1, 1]) / 0.8
        np.testing.assert_allclose(scores[HIDDEN], (up + down) / 2)


def test_fpgm_drops_the_duplicates_and_keeps_the_small_outlier() -> None:
    model = made(Net(), seed=1)
    with torch.no_grad():
        model.up.weight.mul_(4.0)
        model.up.weight[3] = model.up.weight[1]
        model.up.weight[4] = model.up.weight[1]
    axes = surgery.analyse(model, EXAMPLE)
    scores = prune.score(model, axes, by="fpgm")[HIDDEN]
    assert set(np.argsort(scores)[:3]) == {1, 3, 4}
    rows = model.up.weight.detach().double().flatten(1)
    wanted = np.array([[float((a - b).norm()) for b in rows] for a in rows]).sum(1)
    np.testing.assert_allclose(scores, wanted / wanted.mean(), rtol=1e-6)


def test_bn_is_the_scale_and_falls_back_where_there_is_none(net: tuple[Net, Any]) -> None:
    model, axes = net
    raw = prune.score(model, axes, by="bn", normalise="none")
    np.testing.assert_allclose(raw[STREAM], model.norm.weight.detach().abs().double().numpy())
    mean = float(model.norm.weight.detach().abs().mean())
    np.testing.assert_allclose(raw[HIDDEN], prune.score(model, axes, by="l2")[HIDDEN] * mean, rtol=1e-6)


def test_bn_without_norms_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    with pytest.raises(PlanError, match="has none") as caught:
        prune.score(model, surgery.analyse(model, EXAMPLE), by="bn")
    assert caught.value.code == "prune-score"


def permuted(model: Net, order: list[int]) -> Net:
    """The same function with its hidden units in another order."""
    other = Net()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.up.weight.copy_(model.up.weight[order])
        other.up.bias.copy_(model.up.bias[order])
        other.down.weight.copy_(model.down.weight[:, order])
    return other.eval()


@settings(max_examples=5, deadline=None)
@given(order=st.permutations(range(5)), seed=st.integers(0, 9))
def test_scores_move_with_the_channels(order: list[int], seed: int) -> None:
    model = made(Net(), seed=seed)
    other = permuted(model, order)
    axes = surgery.analyse(model, EXAMPLE)
    seen, seen_other = evidence(model, axes, 12), evidence(other, axes, 12)
    for by in set(prune.SCORES) - {"random"}:
        one = prune.score(model, axes, by=by, evidence=seen)
        two = prune.score(other, axes, by=by, evidence=seen_other)
        np.testing.assert_allclose(two[HIDDEN], one[HIDDEN][order], rtol=1e-3, atol=1e-6, err_msg=by)
        np.testing.assert_allclose(two[STREAM], one[STREAM], rtol=1e-3, atol=1e-6, err_msg=by)


def test_normalisations_are_what_they_say(net: tuple[Net, Any]) -> None:
    model, axes = net
    found = evidence(model, axes)

    def scores(normalise: str) -> np.ndarray:
        return prune.score(model, axes, by="fisher", evidence=found, normalise=normalise)[HIDDEN]

    raw = scores("none")
    np.testing.assert_allclose(scores("mean"), raw / raw.mean())
    np.testing.assert_allclose(scores("max").max(), 1)
    np.testing.assert_allclose(scores("sum").sum(), 1)
    gauss = scores("gaussian")
    assert abs(gauss.mean()) < 1e-9 and abs(gauss.std() - 1) < 1e-9
    pixels, full = 64, axes.cost({})
    np.testing.assert_allclose(scores("macs"), raw / (pixels * (6 * 9 + 6) / full.macs))
    np.testing.assert_allclose(scores("params"), raw / ((6 * 9 + 1 + 6) / full.params))
    read = pixels * 6 + pixels * 5 + 6  # what up, down and head read
    np.testing.assert_allclose(scores("memory"), raw / (pixels / read), rtol=1e-6)


@pytest.mark.parametrize(
    ("knobs", "code"),
    [
        ({"by": "l3"}, "prune-score"),
        ({"normalise": "mode"}, "prune-normalise"),
        ({"by": "taylor"}, "prune-evidence"),
    ],
)
def test_what_does_not_exist_is_refused(net: tuple[Net, Any], knobs: dict[str, str], code: str) -> None:
    with pytest.raises(PlanError) as caught:
        prune.score(*net, **knobs)
    assert caught.value.code == code


def test_evidence_needs_images_and_a_loss(net: tuple[Net, Any]) -> None:
    model, axes = net
    with pytest.raises(PlanError, match="0 images"):
        prune.gather(model, axes, task=TASK, spec=SPEC, samples=DATA.at([]))
    broken = made(Net())
    with torch.no_grad():
        broken.head.bias[0] = torch.nan
    with pytest.raises(PlanError, match="finite"):
        evidence(broken, axes)


def test_blocks_alike_have_one_key_and_others_do_not() -> None:
    model = nets.build("niwaki:small", classes=10)
    axes = surgery.analyse(model, torch.randn(2, 3, 16, 16))
    key = keys(axes)
    inside = [g.name for g in axes.groups if g.name.endswith("body.0.weight:0")]
    stream = [g.name for g in axes.groups if g.name not in inside]
    assert len(inside) == 6 and stream
    assert len({key[name] for name in inside}) == 1
    assert not {key[name] for name in inside} & {key[name] for name in stream}


def test_heads_head_sizes_hidden_units_and_the_stream_are_unlike() -> None:
    axes = surgery.analyse(made(Attention()), EXAMPLE)
    key = keys(axes)
    assert len(axes.groups) >= 4
    assert len(set(key.values())) == len(axes.groups)


def test_isomorphic_ranks_like_with_like() -> None:
    model = nets.build("niwaki:small", classes=10)
    axes = surgery.analyse(model, torch.randn(2, 3, 16, 16))
    scores = prune.score(model, axes)
    inside = {g.name for g in axes.groups if g.name.endswith("body.0.weight:0")}
    loud = {name: s * (100 if name in inside else 1) for name, s in scores.items()}
    choose: dict[str, Any] = {"ratio": 0.4, "min_width": 0.0}
    size = {g.name: g.size for g in axes.groups}

    def gone(keep: dict[str, list[int]], names: set[str]) -> float:
        return 1 - sum(len(keep.get(n, range(size[n]))) for n in names) / sum(size[n] for n in names)

    alike = prune.choose(axes, loud, scope="isomorphic", **choose)
    assert alike == prune.choose(axes, scores, scope="isomorphic", **choose)
    assert gone(alike, inside) == pytest.approx(0.4, abs=0.02)
    together = prune.choose(axes, loud, scope="global", **choose)
    assert gone(together, inside) < gone(alike, inside) - 0.1


def test_ratios_by_pattern_in_both_forms() -> None:
    model = nets.build("niwaki:small", classes=10)
    axes = surgery.analyse(model, torch.randn(2, 3, 16, 16))
    scores = prune.score(model, axes)
    size = {g.name: g.size for g in axes.groups}
    for scope in prune.SCOPES:
        keep = prune.choose(
            axes, scores, ratio=0.25, scope=scope, ratios={"stages.0.body.*": 0.75, "stages.*.body.0.*": 0.5}
        )
        text = prune.choose(
            axes, scores, ratio=0.25, scope=scope, ratios=["stages.0.body.*=0.75", "stages.*.body.0.*=0.5"]
        )
        assert keep == text
        assert len(keep["stages.2.body.0.weight:0"]) == size["stages.2.body.0.weight:0"] // 2
    local = prune.choose(axes, scores, ratio=0.25, ratios={"stages.1.body.0.weight": 0.0})
    assert "stages.1.body.0.weight:0" not in local
    assert len(local["stages.3.body.0.weight:0"]) == size["stages.3.body.0.weight:0"] * 3 // 4


@pytest.mark.parametrize(
    ("ratios", "code"),
    [(["x"], "prune-ratio"), (["stem.*=one"], "prune-ratio"), ({"stem.*": 1.0}, "prune-ratio"),
     ({"nothing.*": 0.5}, "prune-skip"), (["=0.5"], "prune-ratio")],
)  # fmt: skip
def test_wrong_ratios_are_refused(net: tuple[Net, Any], ratios: Any, code: str) -> None:
    model, axes = net
    with pytest.raises(PlanError) as caught:
        prune.choose(axes, prune.score(model, axes), ratio=0.5, ratios=ratios)
    assert caught.value.code == code


def test_the_step_takes_its_images_from_the_bench_and_says_when_there_are_none() -> None:
    model = made(Net(12))
    step = plan.step(
        "prune.channels", score="fisher", scope="isomorphic", normalise="macs", ratios=["up.*=0.4"]
    )
    line = plan.Plan(step)
    assert plan.Plan.from_toml(line.to_toml()) == line
    with pytest.raises(PlanError, match="calib") as caught:
        line.run(model, plan.Bench(example=EXAMPLE, task=TASK, spec=SPEC))
    assert caught.value.code == "prune-evidence"
    small = line.run(model, plan.Bench(example=EXAMPLE, task=TASK, spec=SPEC, calib=DATA))
    assert small.up.out_channels == 3 and small.stem.out_channels == 6


def test_a_task_of_other_classes_can_be_judged() -> None:
    model = made(Net())
    axes = surgery.analyse(model, EXAMPLE)
    found = prune.gather(model, axes, task=Classify(("a", "b", "c")), spec=SPEC, samples=DATA.at(range(4)))
    assert found.images == 4


def test_the_program_on_the_page_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "scores.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    counts = [sum(p.numel() for p in names[net].parameters()) for net in ("small", "model")]
    assert counts[0] < 0.6 * counts[1]


def test_equal_scores_go_too_and_all_groups_alike() -> None:
    axes = surgery.analyse(Net(), EXAMPLE)
    level = {group.name: np.ones(group.size) for group in axes.groups}
    kept = prune.choose(axes, level, ratio=0.5, scope="global")
    assert sorted(len(kept[group.name]) for group in axes.groups) == [3, 3]  # of 5 and 6


def test_widths_by_name_are_exact_or_refused() -> None:
    axes = surgery.analyse(Net(width=40), EXAMPLE)
    scores = {group.name: np.arange(float(group.size)) for group in axes.groups}
    wide = max(axes.groups, key=lambda group: group.size).name
    for width in (1, 3, 39):
        kept = prune.choose(axes, scores, ratio=0, multiple=8, keep={wide: width})
        assert kept == {wide: list(range(40 - width, 40))}
    for knobs in ({"keep": {wide: 0}}, {"keep": {wide: 41}}, {"multiple": 0}, {"min_width": 1.5}):
        with pytest.raises(PlanError) as caught:
            prune.choose(axes, scores, ratio=0.5, **knobs)
        assert caught.value.code == "prune-width"


def test_a_group_left_whole_is_not_rounded() -> None:
    axes = surgery.analyse(Net(width=19), EXAMPLE)
    scores = {group.name: np.arange(float(group.size)) for group in axes.groups}
    wide = max(axes.groups, key=lambda group: group.size).name
    kept = prune.choose(axes, scores, ratio=0.5, multiple=8, min_width=0, skip=[wide])
    assert wide not in kept
