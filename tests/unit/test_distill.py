"""Distillation from features and attention maps: each lowers its own distance and touches nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_compensate import Attention
from torch import Tensor, nn
from torch.nn import functional as F
from training import SPEC, TASK, net, same, samples

from niwaki import distill, plan
from niwaki.distill import attention_maps, feature_maps, inside
from niwaki.errors import PlanError

torch.set_num_threads(1)
TRAINING: dict[str, Any] = {"epochs": 4, "batch": 16, "lr": 1e-2, "ema": 0.0, "augment": "none"}


class Narrow(nn.Module):
    """A student half as wide as `net`, with names of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.two(self.one(x).relu()).relu().flatten(1))


def given(**more: Any) -> dict[str, Any]:
    return {"task": TASK, "spec": SPEC, "train": samples(96), **TRAINING, **more}


def apart(student: nn.Module, teacher: nn.Module, names: tuple[str, str], distance: Any) -> float:
    x = torch.from_numpy(SPEC.normalise(samples(64, seed=5).batch(range(64), SPEC)))
    with torch.no_grad(), inside.outputs(student, names[:1]) as own, inside.outputs(teacher, names[1:]) as told:
        student(x)
        teacher(x)
    return float(distance(own[names[0]], told[names[1]]).mean())


def test_features_of_narrower_students_come_closer() -> None:
    student, teacher, names = Narrow(), net().eval(), ("two", "3")
    before = copy.deepcopy(student), copy.deepcopy(teacher)
    got = distill.features(student, teacher=teacher, layers=("two",), of_teacher=("3",), beta=100.0, **given())
    assert same(before[0], student)
    assert same(before[1], teacher)
    assert type(got) is Narrow
    assert not got.training
    distance = feature_maps._maps_apart
    assert apart(got, teacher, names, distance) < 0.6 * apart(student, teacher, names, distance)


def test_fitnets_of_equal_widths_needs_no_projection() -> None:
    student, teacher = net(seed=3), net().eval()
    got = distill.features(student, teacher=teacher, layers=("3",), kind="fitnets", beta=10.0, **given())
    distance = feature_maps._features_apart
    assert apart(got, teacher, ("3", "3"), distance) < 0.5 * apart(student, teacher, ("3", "3"), distance)


def test_fitnets_projection_learns_and_is_dropped() -> None:
    student, teacher = Narrow(), net().eval()
    losses: list[float] = []
    got = distill.features(
        student, teacher=teacher, layers=("two",), of_teacher=("3",), kind="fitnets", beta=100.0,
        show=lambda p: losses.append(p.loss) if p.epoch_ended else None, **given(),
    )  # fmt: skip
    assert losses[-1] < 0.6 * losses[0]
    assert got.state_dict().keys() == student.state_dict().keys()


def test_tokens_are_positions_too() -> None:
    tokens, pixels = torch.randn(2, 6, 5), torch.randn(2, 5, 2, 3)
    assert feature_maps._rows(tokens).shape == feature_maps._rows(pixels).shape == (2, 6, 5)
    assert torch.equal(feature_maps._rows(pixels)[:, 4], pixels[:, :, 1, 1])


def test_attention_comes_closer_across_numbers_of_heads() -> None:
    student, teacher = Attention(heads=2), Attention(heads=4).eval()
    with torch.no_grad():
        student.qkv.weight.normal_(0, 0.3)
    before = copy.deepcopy(student), copy.deepcopy(teacher)
    got = distill.attention(student, teacher=teacher, beta=100.0, **given())
    assert same(before[0], student)
    assert same(before[1], teacher)
    x = torch.from_numpy(SPEC.normalise(samples(64, seed=5).batch(range(64), SPEC)))

    def distance(model: nn.Module) -> float:
        maps = []
        for each in (model, teacher):
            with torch.no_grad(), attention_maps._Attention() as seen:
                each(x)
            maps.append(seen.maps[-1])
        return float(attention_maps._attention_apart(*maps).mean())

    assert distance(got) < 0.6 * distance(student)


@pytest.mark.parametrize("kind", ["fused", "causal", "mask", "added", "grouped", "by hand"])
def test_maps_are_those_the_call_works_with(kind: str) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 5, 8), torch.eye(5).expand(2, 4, 5, 5)
    more: dict[str, Any] = {}
    if kind == "causal":
        more = {"is_causal": True}
    elif kind == "mask":
        more = {"attn_mask": torch.ones(5, 5, dtype=torch.bool).triu()}
    elif kind == "added":
        more = {"attn_mask": torch.randn(5, 5), "scale": 0.3}
    elif kind == "grouped":
        k, v, more = k[:, :2], v[:, :2], {"enable_gqa": True}
    with attention_maps._Attention() as seen:
        if kind == "by hand":
            got = (q @ k.mT).softmax(-1) @ v
        else:
            got = F.scaled_dot_product_attention(q, k, v, **more)
    assert torch.allclose(seen.maps[0], got.mean(1), atol=1e-5)  # values are the identity, so outputs are maps


def test_refusals() -> None:
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (distill.features, {"layers": ("9",)}, "distill-layers"),
        (distill.features, {}, "distill-layers"),
        (distill.features, {"layers": ("3",), "of_teacher": ("0",)}, "distill-layers"),
        (distill.features, {"layers": ("3",), "of_teacher": ("0", "3")}, "distill-layers"),
        (distill.features, {"layers": ("7",)}, "distill-layers"),
        (distill.features, {"layers": ("3",), "kind": "hints"}, "train-knob"),
        (distill.features, {"layers": ("3",), "beta": 0.0}, "train-knob"),
        (distill.attention, {}, "distill-layers"),
        (distill.attention, {"last": -1}, "train-knob"),
    ]
    for step, knobs, code in wrong:
        with pytest.raises(PlanError) as caught:
            step(net(), teacher=net(), **given(**knobs))
        assert caught.value.code == code, (step, knobs)


def test_as_steps_of_a_plan() -> None:
    made = plan.Plan(
        plan.step("distill.features", layers=("3",), epochs=1, batch=32),
        plan.step("distill.attention", last=0, epochs=1),
    )
    assert plan.Plan.from_toml(made.to_toml()) == made
    bench = plan.Bench(spec=SPEC, task=TASK, train=samples(), teacher=net())
    assert not same(plan.Plan(made.steps[0]).run(net(seed=1), bench), net(seed=1))
