"""Mask R-CNN through the instances task: anchors, losses, masks drawn, training, tiles, artifact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from niwaki import Artifact, Instances, Spec, evaluate, instances, nets, train
from niwaki.data.samples import Samples
from niwaki.errors import ModelError, NiwakiError, PlanError
from niwaki.instances import regions
from niwaki.nets import mask_rcnn

torch.set_num_threads(1)
TASK, SPEC = Instances(boxes=50, threshold=0.5), Spec(size_hw=(64, 64))
NAME = "torchvision:maskrcnn_resnet18_fpn"


def scene(seed: int, side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Bright discs of radius 7 on a dark ground, apart from each other, and their label map."""
    draw = np.random.default_rng(seed)
    ids = np.zeros((side, side), np.int32)
    ys, xs = np.mgrid[:side, :side]
    for k, (y, x) in enumerate(np.stack(np.meshgrid([11, 32, 53], [11, 32, 53])).reshape(2, -1).T):
        if draw.random() < 0.6:
            y, x = y + draw.integers(-3, 4), x + draw.integers(-3, 4)
            ids[np.hypot(ys - y, xs - x) < 7] = 3 * k + 2  # numbers with gaps
    image = np.where(ids[..., None] > 0, 200, 40) + draw.integers(-10, 10, (side, side, 3))
    return image.astype(np.uint8), ids


def samples(seeds: range) -> Samples:
    scenes = [scene(seed) for seed in seeds]
    return Samples(
        sources=np.stack([image for image, _ in scenes]),
        names=tuple(map(str, seeds)),
        labels=np.zeros(len(scenes), np.int64),
        masks=[ids for _, ids in scenes],
        objects=True,
    )


def network() -> nets.MaskRCNN:
    torch.manual_seed(0)
    model = nets.build(NAME, classes=1)
    assert isinstance(model, nets.MaskRCNN)
    return model


def test_anchors_and_scale_are_those_of_the_objects() -> None:
    model = network()
    fitted = mask_rcnn.fitted(model, samples(range(8)), SPEC)
    assert not bool(model.fitted) and bool(fitted.fitted) and mask_rcnn.fitted(fitted, None, SPEC) is fitted
    assert float(fitted.scale) == pytest.approx(mask_rcnn.GOAL / 13, rel=1e-5)
    cells = fitted.net.rpn.anchor_generator.cells
    width, height = (cells[..., 2:] - cells[..., :2]).unbind(-1)
    np.testing.assert_allclose(
        (width * height).sqrt(), mask_rcnn.GOAL, rtol=0.05
    )  # all objects are of one size
    empty = Samples(sources=np.zeros((1, 64, 64, 3), np.uint8), names=("a",), labels=np.zeros(1, np.int64),
                    masks=[np.zeros((64, 64), np.int32)], objects=True)  # fmt: skip
    with pytest.raises(ModelError) as found:
        mask_rcnn.fitted(model, empty, SPEC)
    assert found.value.code == "model-anchors"


def test_k_means_finds_the_middles() -> None:
    values = np.concatenate([np.full(30, 1.0), np.full(5, 4.0), np.full(10, 9.0)])
    np.testing.assert_allclose(mask_rcnn.k_means(values, 3), [1, 4, 9])


@pytest.mark.parametrize("box", [(10, 20, 30, 50), (0.5, 3.25, 11.75, 9.5), (-4, -6, 8, 9)])
def test_a_mask_is_drawn_over_its_box(box: tuple[float, ...]) -> None:
    v, u = np.mgrid[: regions.SIDE, : regions.SIDE]
    disc = (np.hypot(v - 13.5, u - 13.5) < 14).astype(np.float32)
    y, x, mask = regions.draw(np.array(box), disc.ravel(), (40, 60))
    drawn = np.zeros((40, 60), bool)
    drawn[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    ys, xs = np.mgrid[:40, :60] + 0.5  # middles of pixels, as parts of the box
    far = np.hypot((ys - box[0]) / (box[2] - box[0]) - 0.5, (xs - box[1]) / (box[3] - box[1]) - 0.5)
    assert drawn[far < 0.45].all() and not drawn[far > 0.55].any()


def test_truth_as_boxes_gives_the_objects_back() -> None:
    ids = scene(3)[1]
    out = np.zeros((50, regions.WIDTH), np.float32)
    for row, number in zip(out, np.unique(ids[ids > 0]), strict=False):
        rows, columns = np.nonzero(ids == number)
        top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
        at = [
            (low + (np.arange(regions.SIDE) + 0.5) * (high - low) / regions.SIDE).astype(int)
            for low, high in ((top, bottom), (left, right))
        ]
        row[:5] = (0.9, top, left, bottom, right)
        row[5:] = (ids[np.ix_(*at)] == number).ravel()
    (labels,) = TASK.decode(out[None], shape=(64, 64))
    assert labels.max() == len(np.unique(ids)) - 1
    assert instances.mean_precision(instances.pairs(ids, labels), thresholds=(0.8,)) == 1.0


def test_the_loss_of_an_image_does_not_depend_on_its_batch() -> None:
    model, data = mask_rcnn.fitted(network(), samples(range(4)), SPEC).eval(), samples(range(4))
    for module in (model.net.rpn, model.net.roi_heads):
        module.training = True
    images = torch.from_numpy(SPEC.normalise(data.batch(range(4), SPEC)))
    target = torch.from_numpy(data.targets(range(4), SPEC))
    target[2] = 0  # an image without objects
    torch.manual_seed(0)
    together = model.losses(images, target)
    torch.manual_seed(0)
    alone = model.losses(images[:1], target[:1])
    assert together.shape == (4,) and bool(together.isfinite().all())
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_it_learns_and_predicts_whole_images_and_tiles(tmp_path: Path) -> None:
    given = {"task": TASK, "spec": SPEC, "train": samples(range(8)), "batch": 2, "flip": True}
    model = train.fit(network(), **given, epochs=5, lr=1e-2, ema=0.0, augment="none")
    predict, test = evaluate.predictor(model, SPEC, TASK), samples(range(100, 104))
    score = evaluate.tally(predict, test, SPEC, TASK).score()
    assert score["ap50"] > 0.5
    wide = np.concatenate([image for image, _ in (scene(100), scene(101))], axis=1)
    found = instances.tiled(instances.finder(predict, TASK), wide, tile=64, context=16)
    true = np.concatenate([scene(100)[1], scene(101)[1] + 100 * (scene(101)[1] > 0)], axis=1)
    assert instances.mean_precision(instances.pairs(true, found.labels), thresholds=(0.5,)) > 0.5
    saved = Artifact.save(tmp_path / "m.niwaki", model, spec=SPEC, task=TASK, builder=NAME)
    again = Artifact.open(tmp_path / "m.niwaki")
    assert again.task == TASK and bool(saved.model().fitted)
    images = test.batch(range(2), SPEC)
    np.testing.assert_array_equal(evaluate.predictor(again.model(), SPEC, TASK)(images), predict(images))
    with pytest.raises(NiwakiError) as refused:
        again.export("onnx")
    assert refused.value.code == "export-boxes"


def test_what_it_does_not_do_is_refused() -> None:
    with pytest.raises(PlanError, match=r"Instances\(boxes=300\)"):
        train.fit(network(), task=Instances(), spec=SPEC, train=samples(range(2)), epochs=1)
    with pytest.raises(PlanError, match="no loss of their own"):
        TASK.loss(torch.zeros(1), torch.zeros(1))
    for name, kinds in (("torchvision:maskrcnn_vgg_fpn", 1), (NAME, 2)):
        with pytest.raises(ModelError) as found:
            nets.build(name, classes=kinds)
        assert found.value.code == "model-unknown"
    assert Instances.from_json(TASK.to_json()) == TASK
