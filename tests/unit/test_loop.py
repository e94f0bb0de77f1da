"""The training loop: learns, repeats itself, leaves its input alone, weighs samples as it says."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training import SPEC, TASK, farthest, knobs, net, same, samples

from niwaki import batches, distill, evaluate, loop, optim, train
from niwaki.batches import Batch
from niwaki.distill.hinton import soft_loss
from niwaki.errors import PlanError

QUICK: dict[str, Any] = {"epochs": 3, "batch": 16, "lr": 5e-3}


def objective(model: nn.Module, batch: Batch) -> Tensor:
    return TASK.loss(model(batch.images), batch.target)


def trained(model: nn.Module, **changed: Any) -> nn.Module:
    """A copy trained by the bare generator."""
    model = copy.deepcopy(model)
    for _ in loop.steps(model, objective, train=samples(), spec=SPEC, knobs=knobs(**changed)):
        pass
    return model


def accuracy(model: nn.Module) -> float:
    unseen = samples(200, seed=9)
    says = evaluate.probabilities(evaluate.predictor(model, SPEC, TASK), unseen, SPEC)
    return TASK.score(says, unseen.labels)["accuracy"]


def test_fit_learns_and_leaves_its_input_alone() -> None:
    model = net().train()
    before, mode = copy.deepcopy(model), torch.random.get_rng_state()
    better = train.fit(model, task=TASK, spec=SPEC, train=samples(200), epochs=8, batch=16, lr=1e-2)
    assert same(model, before) and model.training and not better.training
    assert torch.equal(mode, torch.random.get_rng_state())
    assert accuracy(better) > 0.9 > accuracy(model) + 0.2
    weight = better.get_parameter("3.weight")
    assert weight.is_contiguous() and weight.device.type == "cpu" and weight.grad is None


def test_zero_epochs_give_an_equal_copy() -> None:
    model = net()
    again = train.fit(model, task=TASK, spec=SPEC, train=samples(), epochs=0)
    assert again is not model and same(again, model) and not again.training


@pytest.mark.parametrize("augment", ["none", "weak", "strong"])
def test_same_seed_same_bits_other_seed_others(augment: str) -> None:
    model = net(dropout=0.3)
    first = trained(model, augment=augment)
    torch.manual_seed(123)  # what the caller drew before does not matter
    assert same(first, trained(model, augment=augment))
    assert not same(first, trained(model, augment=augment, seed=1))


def test_progress_tells_the_truth() -> None:
    seen = list(loop.steps(net(), objective, train=samples(), spec=SPEC, knobs=knobs()))
    assert [p.step for p in seen] == list(range(1, 13)) and {p.steps for p in seen} == {12}
    assert [p.epoch for p in seen if p.epoch_ended] == [1, 2, 3]
    assert seen[-1].eta == 0 and all(p.eta > 0 for p in seen[:-1])
    assert max(p.lr for p in seen) == pytest.approx(5e-3 * math.sqrt(16 / 128), rel=1e-6)
    assert seen[-1].lr < 0.1 * max(p.lr for p in seen)


def test_score_is_of_the_averaged_weights_and_reaches_show() -> None:
    seen: list[loop.Progress] = []
    better = train.fit(
        net(), task=TASK, spec=SPEC, train=samples(), val=samples(200, seed=9), show=seen.append,
        **QUICK,
    )  # fmt: skip
    assert seen[-1].score == accuracy(better)
    assert seen[0].score is None and seen[0].stage == "train"


@pytest.mark.parametrize("parts", [2, 3, 16])
def test_accumulation_gives_the_big_batch(parts: int) -> None:
    model = net(norm=False)
    assert farthest(trained(model), trained(model, accumulate=parts)) < 1e-5
    assert farthest(trained(model), trained(model, seed=2)) > 1e-3


def test_class_weights_weigh_the_loss() -> None:
    model = net(norm=False)
    once = next(iter(loop.steps(
        copy.deepcopy(model), objective, train=samples(), spec=SPEC,
        knobs=knobs(batch=50, augment="none", class_weights=(1.0, 5.0, 2.0)),
    )))  # fmt: skip
    data = samples()
    images = torch.from_numpy(SPEC.normalise(data.batch(range(50), SPEC)))
    labels = torch.from_numpy(data.labels)
    expected = nn.functional.cross_entropy(model(images), labels, weight=torch.tensor([1.0, 5.0, 2.0]))
    assert once.loss == pytest.approx(expected.item(), rel=1e-5)


def test_norms_and_biases_do_not_decay() -> None:
    groups = optim.make(net(), weight_decay=0.1).param_groups
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert {p.ndim for p in groups[1]["params"]} == {1}


def test_frozen_parameters_stay() -> None:
    model = net()
    model.get_parameter("0.weight").requires_grad_(False)
    better = trained(model)
    assert torch.equal(model.get_parameter("0.weight"), better.get_parameter("0.weight"))
    assert not torch.equal(model.get_parameter("3.weight"), better.get_parameter("3.weight"))


def test_average_without_decay_is_the_last_weights() -> None:
    model = net()
    average = optim.Average(model, decay=0.0)
    with torch.no_grad():
        model.get_parameter("0.weight").add_(1)
    average.update(50)
    assert same(average.module, model)
    slow = optim.Average(net(), decay=0.999)
    slow_before = slow.module.get_parameter("0.weight").clone()
    slow.update(0)
    assert torch.equal(slow_before, slow.module.get_parameter("0.weight"))


def test_rate_rises_then_falls() -> None:
    rates = [optim.rate(step, 100, 1.0, 128) for step in range(100)]
    top = int(np.argmax(rates))
    assert rates[top] == 1.0 and rates[:5] == sorted(rates[:5])
    assert rates[top:] == sorted(rates[top:], reverse=True) and 0 < rates[-1] < 0.01
    assert optim.rate(0, 1, 1.0, 128) == 1.0


@pytest.mark.parametrize("count", [1, 5, 16, 17, 50])
def test_an_epoch_visits_each_sample_once(count: int) -> None:
    parts = batches.order(count, batch=16, seed=3, epoch=1)
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1 and max(map(len, parts)) <= 16


def test_normalise_is_the_specs() -> None:
    images = samples().batch(range(7), SPEC)
    ours = batches.normalise(images, SPEC, device=torch.device("cpu"))
    assert np.array_equal(ours.numpy(), SPEC.normalise(images))


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", -1), ("batch", -1), ("lr", 0.0), ("lr", math.nan), ("weight_decay", 1.0),
     ("seed", -1), ("ema", 1.0), ("accumulate", 17), ("augment", "wild"),
     ("class_weights", (1.0, 0.0))],
)  # fmt: skip
def test_knobs_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(PlanError, match=name) as caught:
        knobs(**{name: value})
    assert caught.value.code == "train-knob"


def test_what_cannot_be_trained() -> None:
    frozen = net()
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    for model, count, changed in (
        (net(), 0, {}),
        (frozen, 5, {}),
        (net(), 50, {"class_weights": (1.0,)}),
    ):
        with pytest.raises(PlanError) as caught:
            next(iter(loop.steps(
                model, objective, train=samples(count), spec=SPEC, knobs=knobs(**changed)
            )))  # fmt: skip
        assert caught.value.code == "train-knob"


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    model = net()
    with torch.no_grad():
        model.get_parameter("7.weight").fill_(math.nan)
    with pytest.raises(PlanError) as caught:
        trained(model)
    assert caught.value.code == "train-nonfinite"


def test_soft_loss_is_hintons() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(1)
    soft = soft_loss(student, teacher, t=3.0)
    torch.testing.assert_close(soft, expected)
    assert float(soft_loss(teacher, teacher, t=3.0).sum()) == 0


def test_distillation_learns_from_the_teacher_alone() -> None:
    teacher = train.fit(net(), task=TASK, spec=SPEC, train=samples(200), epochs=8, batch=16, lr=1e-2)
    before = copy.deepcopy(teacher).train()
    teacher.train()  # a teacher in training mode is neither changed nor asked in that mode
    lies = samples(200)
    object.__setattr__(lies, "labels", (lies.labels + 1) % 3)
    student = distill.logits(
        net(seed=5), task=TASK, spec=SPEC, train=lies, teacher=teacher, alpha=1.0, epochs=8,
        batch=16, lr=1e-2,
    )  # fmt: skip
    assert accuracy(student) > 0.9 and not student.training
    assert same(teacher, before) and teacher.training
    assert all(p.grad is None for p in teacher.parameters())


def test_distillation_knobs() -> None:
    for wrong in ({"t": 0.0}, {"alpha": 1.1}):
        with pytest.raises(PlanError):
            distill.logits(net(), task=TASK, spec=SPEC, train=samples(), teacher=net(), **wrong)


def test_predictor_leaves_modes_alone_and_batch_size_does_not_matter() -> None:
    model = net(dropout=0.5).train()
    model.get_submodule("1").eval()
    modes = [m.training for m in model.modules()]
    predict = evaluate.predictor(model, SPEC, TASK)
    one = evaluate.probabilities(predict, samples(), SPEC, batch=50)
    two = evaluate.probabilities(predict, samples(), SPEC, batch=7)
    assert modes == [m.training for m in model.modules()]
    np.testing.assert_allclose(one, two, atol=1e-6)
    np.testing.assert_allclose(one.sum(1), 1, atol=1e-5)
    assert evaluate.probabilities(predict, samples(0), SPEC).shape == (0, 0)


@pytest.mark.parametrize(("count", "batch"), [(3, 8), (42, 8), (400, 16), (1000, 32), (1437, 64), (50_000, 64)])
def test_an_epoch_of_few_images_has_many_small_steps(count: int, batch: int) -> None:
    assert loop.Knobs().for_images(count).batch == batch
    assert loop.Knobs(batch=5).for_images(count).batch == 5
