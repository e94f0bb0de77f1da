"""Losses: against what they are by definition, on labels and on masks; mixes by text; heads of a training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.unit import shapes
from torch import Tensor, nn

from niwaki import Classify, Segment, Spec, batches, losses, step, train
from niwaki.data.samples import Samples
from niwaki.errors import PlanError
from niwaki.losses.terms import VOID, edges
from niwaki.plan import Plan

torch.set_num_threads(1)
TASK = Segment(shapes.CLASSES)
COUNTS = np.array([900, 90, 10])
ALL = [name if name not in ("balanced",) else "balanced(power=1)" for name in losses.NAMES]


def example(batch: int = 3, size: tuple[int, int] = (9, 11)) -> tuple[Tensor, Tensor]:
    """Logits `[B, 3, h, w]` and masks with pixels without a class."""
    draw = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(batch, 3, *size, generator=draw)
    target = torch.randint(0, 3, (batch, *size), generator=draw)
    target[:, 0, :4] = 255
    return logits, target


@pytest.mark.parametrize("name", ALL)
def test_every_loss_falls_with_the_truth_and_ignores_what_has_no_class(name: str) -> None:
    logits, target = example()
    loss = losses.mix(name, task=TASK, counts=COUNTS)
    got = loss(logits.requires_grad_(), target)
    assert got.shape == (3,) and bool((got >= 0).all())
    (slope,) = torch.autograd.grad(got.sum(), logits)
    assert slope.isfinite().all() and slope.abs().sum() > 0
    assert slope[:, :, 0, :4].abs().max() == 0  # no class, no pull
    sure = 12 * nn.functional.one_hot(target.clamp_max(2), 3).permute(0, 3, 1, 2).float()
    assert loss(sure, target).sum() < 0.3 * got.detach().sum()
    nothing = torch.full_like(target, 255)
    assert loss(logits.detach(), nothing).isfinite().all()


@pytest.mark.parametrize("name", [n for n in ALL if n != "boundary"])
def test_every_loss_takes_labels(name: str) -> None:
    loss = losses.mix(name, task=Classify(("a", "b", "c")), counts=COUNTS)
    assert loss(torch.randn(4, 3), torch.tensor([0, 1, 2, 2])).shape == (4,)


def test_cross_entropy_is_the_tasks_own() -> None:
    logits, target = example()
    own = TASK.loss(logits, target)
    torch.testing.assert_close(losses.mix("cross-entropy", task=TASK)(logits, target), own)
    by_hand = nn.functional.cross_entropy(logits[0][:, target[0] != 255].T, target[0][target[0] != 255])
    torch.testing.assert_close(own[0], by_hand)


def test_logits_are_resized_to_the_mask() -> None:
    logits, target = example(size=(8, 8))
    small = logits[:, :, ::2, ::2]
    grown = nn.functional.interpolate(small, size=(8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(TASK.loss(small, target), TASK.loss(grown, target))


def test_focal_with_gamma_0_is_cross_entropy() -> None:
    logits, target = example()
    one, other = (losses.mix(n, task=TASK)(logits, target) for n in ("focal(gamma=0)", "cross-entropy"))
    torch.testing.assert_close(one, other)


def test_dice_and_lovasz_by_definition() -> None:
    logits, target = example(batch=1)
    valid = target[0] != 255
    p, g = logits[0].softmax(0)[:, valid], target[0][valid]
    dice, lovasz = [], []
    for k in range(3):
        truth = (g == k).float()
        dice.append(1 - (2 * (p[k] * truth).sum() + 1) / (p[k].sum() + truth.sum() + 1))
        errors, order = (truth - p[k]).abs().sort(descending=True)
        seen = [truth[order[: i + 1]] for i in range(len(errors))]
        union = [1 - (truth.sum() - s.sum()) / (truth.sum() + (1 - s).sum()) for s in seen]
        lovasz.append(sum(e * (u - v) for e, u, v in zip(errors, union, [0.0, *union[:-1]], strict=True)))
    torch.testing.assert_close(losses.mix("dice", task=TASK)(logits, target)[0], sum(dice) / 3)
    torch.testing.assert_close(losses.mix("lovasz", task=TASK)(logits, target)[0], sum(lovasz) / 3)


def test_lovasz_of_a_hard_prediction_is_one_minus_iou() -> None:
    _, target = example(batch=1)
    guess = torch.where(target == 2, 1, target.clamp_max(2))
    hard = 60 * nn.functional.one_hot(guess, 3).permute(0, 3, 1, 2).float()
    tally = TASK.tally()
    tally.add(hard.softmax(1).numpy(), target.numpy())
    assert losses.mix("lovasz", task=TASK)(hard, target)[0] == pytest.approx(
        1 - tally.score()["miou"], abs=1e-4
    )


def test_ohem_leaves_out_what_is_sure() -> None:
    target = torch.zeros(1, 1, 4, dtype=torch.long)
    logits = torch.zeros(1, 2, 1, 4)
    logits[0, 0] = torch.tensor([[5.0, 5.0, 0.0, -1.0]])  # two sure, two hard
    hard = nn.functional.softplus(torch.tensor([0.0, 1.0])).mean()
    torch.testing.assert_close(losses.ohem(logits, target)[0], hard)
    logits[0, 0] = 5.0
    assert losses.ohem(logits, target, least=0.25)[0] == pytest.approx(math.log1p(math.exp(-5)), rel=1e-4)


def test_ohem_by_image_keeps_the_batchs_mean() -> None:
    logits, target = example(batch=4)
    plain = losses.mix("cross-entropy", task=TASK)(logits, target)
    got = losses.mix("ohem-images(keep=0.5)", task=TASK)(logits, target)
    assert int((got > 0).sum()) == 2
    torch.testing.assert_close(got.mean(), plain.topk(2).values.mean())


def test_balanced_weighs_rare_classes_more_and_adjusted_shifts_them() -> None:
    counts = torch.tensor([90.0, 10.0])
    logits, target = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])
    logits[0, 0, 0, 0] = 3.0  # the frequent one right, the rare one undecided
    easy, rare = nn.functional.softplus(torch.tensor(-3.0)), math.log(2)
    got = losses.balanced(logits, target, counts=counts, power=1.0)[0]
    torch.testing.assert_close(got, (easy / 9 + rare) / (1 + 1 / 9))
    none = losses.balanced(logits, target, counts=counts, power=0.0)[0]
    torch.testing.assert_close(none, (easy + rare) / 2)
    moved = losses.adjusted(torch.zeros(1, 2), torch.tensor([1]), counts=counts)
    torch.testing.assert_close(moved[0], torch.tensor(-math.log(0.1)))
    even = losses.balanced(logits, target, counts=torch.tensor([1e8, 1e7]), beta=0.999)[0]
    torch.testing.assert_close(even, none)  # what the docstring warns of: counts of pixels


def test_edges_lie_between_classes_and_not_beside_what_has_none() -> None:
    mask = torch.tensor([[0, 0, 0, 1, 1, VOID, VOID, VOID, 2, 2]]).expand(3, -1)[None]
    assert edges(mask)[0, 1].tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 0, 0]
    assert edges(mask, width=2)[0, 1].tolist()[:5] == [0, 1, 1, 1, 1]


def test_a_mix_adds_its_terms_by_weight() -> None:
    logits, target = example()
    whole = losses.mix("2*ohem(sure=0.8, least=0.1)+0.5 * dice", task=TASK)(logits, target)
    parts = [losses.mix(n, task=TASK)(logits, target) for n in ("ohem(sure=0.8,least=0.1)", "dice")]
    torch.testing.assert_close(whole, 2 * parts[0] + 0.5 * parts[1])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cross-entrop", "did you mean 'cross-entropy'"),
        ("focal(gama=2)", "'gama=2' is none of its knobs (gamma)"),
        ("focal(gamma=x)", "'x' is no number"),
        ("dice +", "is no term"),
        ("balanced(counts=3)", "is none of its knobs"),
        ("2e999*dice", "not finite"),
    ],
)
def test_texts_that_are_no_loss(text: str, says: str) -> None:
    with pytest.raises(PlanError, match=r"Expected terms") as found:
        losses.mix(text, task=TASK, counts=COUNTS)
    assert found.value.code == "loss-text" and says in str(found.value)


def test_boundary_needs_masks() -> None:
    with pytest.raises(PlanError, match="masks"):
        losses.mix("boundary", task=Classify(("a", "b")), counts=COUNTS)


class Net(nn.Module):
    """A segmentation network of two convolutions."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


SPEC = Spec(size_hw=(24, 32))


def samples(count: int = 12) -> Samples:
    scenes = [shapes.scene(seed, SPEC.size_hw) for seed in range(count)]
    return Samples(
        sources=np.stack([image for image, _ in scenes]),
        names=tuple(map(str, range(count))),
        labels=np.zeros(count, np.int64),
        masks=[mask for _, mask in scenes],
        counts=np.stack([np.bincount(mask.ravel(), minlength=3) for _, mask in scenes]),
    )


def trained(**knobs: object) -> nn.Module:
    torch.manual_seed(0)
    return train.fit(Net(), task=TASK, spec=SPEC, train=samples(), epochs=2, batch=4, flip=True, **knobs)


def test_heads_of_a_training_are_dropped_and_change_it() -> None:
    plain, headed = trained(), trained(auxiliary=("body",), edges=("body.0",))
    assert type(headed) is Net and headed.state_dict().keys() == plain.state_dict().keys()
    assert not torch.equal(headed.head.weight, plain.head.weight)
    again = trained(auxiliary=("body",), edges=("body.0",))
    assert torch.equal(headed.head.weight, again.head.weight)
    assert not headed.body._forward_hooks and not headed.training


def test_heads_that_cannot_be() -> None:
    for places in (("nowhere",), ("",)):
        with pytest.raises(PlanError, match="auxiliary") as found:
            trained(auxiliary=places)
        assert found.value.code == "loss-auxiliary"
    labels = {"task": Classify(("a", "b", "c")), "spec": SPEC, "train": samples()}
    with pytest.raises(PlanError, match="labels"):
        train.fit(Net(), **labels, auxiliary=("body",))


def test_class_weights_of_masks_are_refused() -> None:
    with pytest.raises(PlanError, match="balanced"):
        trained(class_weights=(1.0, 2.0, 3.0))


def test_a_plan_records_the_loss() -> None:
    plan = Plan(step("train.fit", loss="ohem + 0.5*dice", auxiliary=("body",), epochs=1))
    again = Plan.from_toml(plan.to_toml())
    assert again == plan and again.steps[0].knobs["loss"] == "ohem + 0.5*dice"


def test_sampling_by_class_meets_rare_classes_more_often() -> None:
    data = samples(40)
    data.counts[:] = (9, 9, 0)
    data.counts[:2, 2] = 5  # two of forty images have class 2
    chances = batches.by_class(data)
    assert chances.sum() == pytest.approx(1) and chances[0] == pytest.approx(chances[1])
    assert chances[0] / chances[5] == pytest.approx((1 / 2 + 2 / 40) / (2 / 40))
    drawn = np.concatenate([
        np.concatenate(batches.order(40, batch=8, seed=1, epoch=e, chances=chances)) for e in range(50)
    ])  # fmt: skip
    assert len(drawn) == 2000 and np.isin(drawn, [0, 1]).mean() == pytest.approx(2 * chances[0], abs=0.05)
    again = batches.order(40, batch=8, seed=1, epoch=3, chances=chances)
    np.testing.assert_array_equal(np.concatenate(again), drawn[120:160])
    plain, other = trained(), trained(sampling="classes")
    assert not torch.equal(plain.head.weight, other.head.weight)
    with pytest.raises(PlanError, match="classes or hard"):
        trained(sampling="rare")
