"""PointRend: points where they must lie, the least sure pixels and no others, learned, pruned, exported."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit import shapes
from torch import Tensor, nn

from niwaki import Artifact, Classify, Segment, Spec, evaluate, nets, prune, runtimes, surgery, train
from niwaki.data.samples import Samples
from niwaki.errors import ModelError
from niwaki.losses.points import nearest
from niwaki.losses.terms import VOID
from niwaki.nets.point_rend import PointRend, margin, point_rend, sampled, uncertain

torch.set_num_threads(1)
TASK, SPEC = Segment(shapes.CLASSES), Spec(size_hw=shapes.SIZE)


class Coarse(nn.Module):
    """A segmentation network whose map is an eighth of the image's size, or as much as it has stages."""

    def __init__(self, classes: int = 3, stages: int = 3) -> None:
        super().__init__()
        widths = (3, 12, 16, 24)[: stages + 1]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in itertools.pairwise(widths)
        )
        self.head = nn.Conv2d(widths[-1], classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.head(x)


def rendered(seed: int = 0) -> PointRend:
    torch.manual_seed(seed)
    return point_rend(Coarse(), width=16)


def samples(seeds: range) -> Samples:
    scenes = [shapes.scene(seed) for seed in seeds]
    masks = [mask for _, mask in scenes]
    return Samples(
        sources=np.stack([image for image, _ in scenes]),
        names=tuple(map(str, seeds)),
        labels=np.zeros(len(masks), np.int64),
        masks=masks,
        counts=np.stack([np.bincount(mask.ravel(), minlength=3) for mask in masks]),
    )


def test_the_finest_features_before_the_maps_become_coarser_are_taken() -> None:
    assert rendered().fine == "stages.1"  # a quarter of the image's size
    assert rendered()(torch.zeros(2, 3, 50, 66)).shape == (2, 3, 50, 66)  # sides that no stride divides
    torch.manual_seed(0)
    assert point_rend(Coarse(), fine="stages.0.0").layers[0].in_channels == 12 + 3


def test_places_follow_the_rule_by_which_maps_are_enlarged() -> None:
    maps = torch.randn(2, 3, 5, 7)
    height, width = 10, 14
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    where = torch.stack([(2 * xs + 1) / width - 1, (2 * ys + 1) / height - 1], 2).reshape(1, -1, 2)
    grown = nn.functional.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)
    got = sampled(maps, where.expand(2, -1, -1))[..., 0]
    torch.testing.assert_close(got, grown.flatten(2), atol=1e-5, rtol=1e-4)
    target = torch.randint(0, 3, (2, height, width))
    target[:, 0, 0] = 255
    got = nearest(target, where.expand(2, -1, -1))[..., 0]
    torch.testing.assert_close(got, target.masked_fill(target == 255, VOID).flatten(1))


def test_the_margin_is_the_best_class_above_the_second() -> None:
    logits = torch.tensor([[[3.0, 1.0], [1.0, 1.0], [2.5, -4.0]]])
    torch.testing.assert_close(margin(logits), torch.tensor([[0.5, 0.0]]))
    logits = torch.randn(2, 4, 50)
    two = logits.topk(2, dim=1).values
    torch.testing.assert_close(margin(logits), two[:, 0] - two[:, 1])


def test_the_least_sure_pixels_are_refined_and_no_others() -> None:
    model, image = rendered().eval(), torch.randn(2, 3, 48, 64)
    nn.init.normal_(model.predict.weight, std=1.0)
    with torch.no_grad():
        coarse, fine = model.seen(image)
        before = nn.functional.interpolate(coarse, size=(48, 64), mode="bilinear", align_corners=False)
        after = model._refined(before, coarse, fine)
    changed = (after != before).any(1).flatten(1)
    count = 48 * 64 // 32
    assert bool((changed.sum(1) <= count).all()) and bool((changed.sum(1) >= 0.8 * count).all())
    least = margin(before.flatten(2))
    for image_changed, image_margin in zip(changed, least, strict=True):
        assert image_margin[image_changed].max() <= image_margin.sort().values[count - 1]
    surest = least.topk(1, largest=False, dim=1).indices  # the least sure pixel takes all of the new value
    y, x = surest // 64, surest % 64
    where = torch.stack([(2 * x + 1) / 64 - 1, (2 * y + 1) / 48 - 1], 2)
    wanted = model.at(coarse, fine, where)[..., 0]
    got = after.flatten(2).gather(2, surest[:, None].expand(-1, 3, -1))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_a_rounding_error_moves_the_output_by_no_more_than_a_small_multiple() -> None:
    model, image = rendered().eval().double(), torch.randn(4, 3, 48, 64, dtype=torch.float64)
    nn.init.normal_(model.predict.weight, std=1.0)
    with torch.no_grad():
        moved = [
            (model(image + size * torch.randn_like(image)) - model(image)).abs().max() for size in (1e-9, 1e-12)
        ]
    assert moved[0] < 1e-3 and moved[1] < 1e-6  # continuous: a jump would be as large for both


def test_training_draws_most_points_where_the_map_is_least_sure() -> None:
    coarse = torch.zeros(1, 2, 8, 8)
    coarse[:, 0] = torch.linspace(-4, 4, 8)  # sure on the left and the right, not in the middle
    torch.manual_seed(0)
    x = uncertain(coarse, 200)[0, :, 0]
    assert x.shape == (200,) and bool((x.abs() <= 1).all())
    assert (x.abs() < 0.35).float().mean() > 0.7 and (x.abs() > 0.6).float().mean() > 0.05


def fitted(**knobs: object) -> nn.Module:
    given = {"task": TASK, "spec": SPEC, "train": samples(range(24)), "batch": 4, "flip": True, "lr": 3e-2}
    return train.fit(rendered(), **given, ema=0.0, **knobs)


def test_points_are_learned_and_make_the_map_better() -> None:
    model = fitted(epochs=16)
    assert isinstance(model, PointRend) and not model.training
    scores = [
        evaluate.tally(evaluate.predictor(one, SPEC, TASK), samples(range(100, 116)), SPEC, TASK).score()
        for one in (model, model.network)
    ]
    assert scores[0]["miou"] > scores[1]["miou"] + 0.05
    assert scores[0]["boundary_f"] > scores[1]["boundary_f"]


def test_a_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, heads = fitted(epochs=2), fitted(epochs=2, auxiliary=("network.stages.2",), point_weight=0.5)
    assert not torch.equal(whole.predict.weight, heads.predict.weight)
    assert heads.state_dict().keys() == whole.state_dict().keys()

    def stop(progress: object) -> None:
        if progress.step == 8:
            raise KeyboardInterrupt

    file = tmp_path / "training.ckpt"
    with pytest.raises(KeyboardInterrupt):
        fitted(epochs=2, checkpoint=file, show=stop)
    again = fitted(epochs=2, checkpoint=file)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.slow
def test_it_is_pruned_with_proof_and_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, example = point_rend(Coarse(stages=2), fine="stages.0", width=16).eval(), torch.randn(4, 3, 32, 32)
    spec = Spec(size_hw=(32, 32))
    axes = surgery.analyse(model, example)
    assert not axes.unprunable
    assert {"layers.0.weight:0", "layers.1.weight:0"} <= {group.name for group in axes.groups}
    keep = prune.choose(axes, prune.score(model, axes), ratio=0.5)
    done = prune.cut(model, axes, keep, example=example)
    assert done.result == "module" and not done.left and isinstance(done.model, PointRend)
    images, onnx = samples(range(8)).batch(range(8), spec), runtimes.load("onnx")
    wanted = evaluate.predictor(done.model, spec, TASK)(images)
    for precision, most in (("float32", 1e-5), ("int8", 0.05)):
        path = onnx.export(
            done.model, spec, tmp_path / f"{precision}.onnx", task=TASK, precision=precision, calib=images
        )
        assert np.abs(onnx.open(path)(images) - wanted).mean() < most


def test_by_name_and_in_an_artifact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nets.build("niwaki:light_context+pointrend", classes=3).eval()
    assert isinstance(model, PointRend) and all(name.startswith("network.") for name in model.auxiliary)
    named = nets.build(f"niwaki:light_context+pointrend@{model.fine}", classes=3)
    assert named.state_dict().keys() == model.state_dict().keys()
    builder = "niwaki:light_context+pointrend"
    kept = Artifact.save(tmp_path / "a.niwaki", model, spec=SPEC, task=TASK, builder=builder)
    image = torch.randn(1, 3, *shapes.SIZE)
    torch.testing.assert_close(kept.model()(image), model(image), atol=0, rtol=0)


@pytest.mark.parametrize(
    "name", ["niwaki:small+pointrend", "niwaki:light_context+pointrend@nowhere", "niwaki:fast_scnn+pointrend@x"]
)
def test_networks_that_can_have_none(name: str) -> None:
    with pytest.raises(ModelError) as found:
        nets.build(name, classes=3)
    assert found.value.code == "model-points" and "pointrend@MODULE" in str(found.value)
    with pytest.raises(ModelError, match="is not known"):
        nets.build("niwaki:fast_scnn+pointrendx", classes=3)


class Twice(nn.Module):
    """A layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.last(self.again(self.again(x).relu()).relu().mean((2, 3)))


def test_a_layer_that_is_called_twice_runs_on_whole_numbers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    onnx, model, spec = runtimes.load("onnx"), Twice().eval(), Spec(size_hw=(16, 16))
    task = Classify(tuple("abcd"))
    path = onnx.export(model, spec, tmp_path / "a.onnx", task=task, precision="int8", calib=images)
    wanted = evaluate.predictor(model, spec, task)(images)
    for exact in (True, False):  # ONNX Runtime writes weights anew in the first case
        np.testing.assert_allclose(onnx.open(path, exact=exact)(images), wanted, atol=0.05)
