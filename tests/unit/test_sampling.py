"""CutMix with negative images, and sampling by hard examples: what is drawn, and that it resumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit import shapes
from torch import nn

from niwaki import Plan, Segment, Spec, batches, step, train
from niwaki.data import cutmix
from niwaki.data.samples import Samples
from niwaki.errors import PlanError, RunError

torch.set_num_threads(1)
TASK, SPEC = Segment(shapes.CLASSES), Spec(size_hw=(24, 32))


def samples(count: int = 12, *, negatives: int = 4) -> Samples:
    """Scenes, the first of which are ground alone."""
    scenes = [shapes.scene(seed, SPEC.size_hw) for seed in range(count)]
    images, masks = np.stack([i for i, _ in scenes]), np.stack([m for _, m in scenes])
    masks[:negatives], images[:negatives] = 0, 90
    return Samples(
        sources=images,
        names=tuple(map(str, range(count))),
        labels=np.zeros(count, np.int64),
        masks=list(masks),
        counts=np.stack([np.bincount(mask.ravel(), minlength=3) for mask in masks]),
    )


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))


def trained(data: Samples | None = None, **knobs: object) -> nn.Module:
    given = {"task": TASK, "spec": SPEC, "train": data or samples(), "epochs": 4, "batch": 4, "flip": True}
    return train.fit(net(), **{**given, **knobs})


def test_images_of_ground_alone_are_negative() -> None:
    counts = np.array([[9, 0, 0], [8, 1, 0], [0, 0, 0], [5, 0, 0]])
    assert cutmix.negatives(counts).tolist() == [0, 3]  # one without any class is none


def test_partners_are_negative_as_often_as_asked() -> None:
    draws = np.random.default_rng(0).random((4000, cutmix.DRAWS))
    empty = np.array([3, 7])
    chosen = cutmix.partners(draws, 40, empty=empty, share=0.5)
    assert np.isin(chosen, empty).mean() == pytest.approx(0.5 + 0.5 * 2 / 40, abs=0.03)
    assert len(np.unique(cutmix.partners(draws, 40, empty=empty, share=0.0))) == 40
    assert set(cutmix.partners(draws, 40, empty=empty, share=1.0)) == {3, 7}


def test_a_rectangle_holds_the_other_image_and_its_classes() -> None:
    images = np.full((200, 24, 32, 3), 10, np.uint8)
    masks, other = np.ones((200, 24, 32), np.uint8), np.full((200, 24, 32), 2, np.uint8)
    draws = np.random.default_rng(1).random((200, cutmix.DRAWS))
    before = images.copy()
    mixed, classes = cutmix.pasted(images, masks, np.full_like(images, 210), other, draws, share=0.5)
    np.testing.assert_array_equal(images, before)
    touched = (mixed != 10).any((1, 2, 3))
    assert touched.mean() == pytest.approx(0.5, abs=0.1)
    assert (classes[~touched] == 1).all() and set(np.unique(classes)) == {1, 2}
    theirs = mixed[..., 0]  # where both weigh the same, at 110, classes change too
    assert (classes[theirs > 110] == 2).all() and (classes[theirs < 110] == 1).all()
    assert set(np.unique(mixed)) - {10, 210}  # and the border is soft
    area = (classes[touched] == 2).mean((1, 2))
    assert area.min() < 0.1 and area.max() > 0.5


def test_cutmix_changes_a_training_and_refuses_what_it_cannot_mix() -> None:
    plain, mixed, empty = trained(), trained(cutmix=0.5), trained(cutmix=0.5, negatives=1.0)
    weights = [model[0].weight for model in (plain, mixed, empty)]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    assert torch.equal(trained(cutmix=0.5, negatives=1.0)[0].weight, weights[2])
    with pytest.raises(PlanError, match="nothing but the first class") as found:
        trained(samples(negatives=0), cutmix=0.5, negatives=0.5)
    assert found.value.code == "train-knob"
    data = samples()
    labels = Samples(sources=data.sources, names=data.names, labels=data.labels)
    with pytest.raises(PlanError, match="class maps"):
        trained(labels, cutmix=0.5)
    with pytest.raises(PlanError, match=r"in 0\.\.1"):
        trained(cutmix=1.5)


def test_hard_examples_come_more_often() -> None:
    hardness = batches.Hardness(10)
    losses = torch.ones(10)
    losses[3] = 11.0
    for epoch in range(3):
        assert (hardness.chances(epoch) is None) == (epoch < 2)
        for half in (torch.arange(5), torch.arange(5, 10)):
            hardness.add(half, losses[half])
        hardness.step()
        hardness.close(epoch)
    chances = hardness.chances(3)
    assert chances is not None and chances.sum() == pytest.approx(1)
    assert chances[3] == pytest.approx(0.5 / 10 + 0.5 * 11 / 20) and chances[0] == pytest.approx(
        0.05 + 0.5 / 20
    )
    hardness.close(3)  # an epoch that met none: losses stay
    np.testing.assert_array_equal(hardness.chances(5), chances)
    again = batches.Hardness(10)
    again.take(hardness.to_json())
    np.testing.assert_array_equal(again.chances(5), chances)
    assert batches.Hardness(0).chances(7) is None


@pytest.mark.parametrize("knobs", [{"sampling": "hard"}, {"cutmix": 0.7, "negatives": 0.5}])
def test_a_training_goes_on_to_the_same_bits(knobs: dict[str, object], tmp_path: Path) -> None:
    whole = trained(**knobs)
    assert not torch.equal(whole[0].weight, trained()[0].weight)
    for stop_at in (5, 10):  # within the second epoch and the fourth
        file = tmp_path / f"{stop_at}.ckpt"

        def stop(progress: object, at: int = stop_at) -> None:
            if progress.step == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trained(**knobs, checkpoint=file, show=stop)
        again = trained(**knobs, checkpoint=file)
        assert torch.equal(whole[0].weight, again[0].weight) and torch.equal(whole[2].weight, again[2].weight)
        with pytest.raises(RunError) as found:
            trained(checkpoint=file)  # another training's
        assert found.value.code == "checkpoint-other"


def test_a_plan_records_them() -> None:
    plan = Plan(step("train.fit", sampling="hard", cutmix=0.5, negatives=0.25, epochs=1))
    again = Plan.from_toml(plan.to_toml())
    assert again == plan and again.steps[0].knobs["negatives"] == 0.25
