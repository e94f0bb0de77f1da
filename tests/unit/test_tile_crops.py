"""Crops of a big scene as a DataSet: what is read, splits apart, classes met alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import niwaki as nw
from niwaki import tile
from niwaki.errors import DataError

CLASSES = ("sea", "land", "ice")


@pytest.fixture
def pair() -> tuple[Any, Any]:
    draw = np.random.default_rng(0)
    scene = draw.integers(0, 256, (400, 500, 3)).astype(np.uint8)
    mask = (scene[..., 0] > 128).astype(np.uint8)
    mask[:30, :30] = 2  # a rare class
    mask[:, 450:] = 255
    return scene, mask


def corner(name: str) -> tuple[int, int]:
    y, x = name.split(":")[1].split(",")
    return int(y), int(x)


def test_crops_are_those_of_scene_and_mask(pair: Any, tmp_path: Path) -> None:
    scene, mask = pair
    np.save(tmp_path / "s.npy", scene)
    np.save(tmp_path / "m.npy", mask)
    data = tile.crops(tmp_path / "s.npy", tmp_path / "m.npy", classes=CLASSES, crop=32, val=0.2, test=0.2)
    spec = nw.Spec(size_hw=(32, 32))
    assert data.task == nw.Segment(CLASSES)
    for split in (data.train, data.val, data.test):
        rows = np.arange(len(split))
        images, targets = split.batch(rows, spec), split.targets(rows, spec)
        for k, name in enumerate(split.names):
            y, x = corner(name)
            assert (images[k] == scene[y : y + 32, x : x + 32]).all()
            assert (targets[k] == mask[y : y + 32, x : x + 32]).all()
            assert split.counts is not None
            assert split.counts[k].tolist() == [(targets[k] == c).sum() for c in range(3)]
            assert (targets[k] != 255).mean() >= 0.5
    again = tile.crops(tmp_path / "s.npy", tmp_path / "m.npy", classes=CLASSES, crop=32, val=0.2, test=0.2)
    assert again.splits_json() == data.splits_json()


@pytest.mark.parametrize("gap", [0, 1, 24])
def test_splits_share_no_pixel_and_keep_the_gap(pair: Any, gap: int) -> None:
    data = tile.crops(*pair, classes=CLASSES, crop=24, block=96, gap=gap)
    owner = np.full((400, 500), -1)
    boxes: dict[int, list[tuple[int, int]]] = {}
    for k, split in enumerate((data.train, data.val, data.test)):
        boxes[k] = [corner(name) for name in split.names]
        for y, x in boxes[k]:
            here = owner[y : y + 24, x : x + 24]
            assert ((here == -1) | (here == k)).all()
            here[:] = k
    for k, ours in boxes.items():
        others = [box for j, held in boxes.items() if j != k for box in held]
        for y, x in ours:
            for v, u in others:
                assert max(abs(y - v), abs(x - u)) - 24 >= gap


def test_rare_classes_are_met_as_often(pair: Any) -> None:
    data = tile.crops(*pair, classes=CLASSES, crop=16, draws=300, val=0.1, test=0.1, seed=1)
    plain = tile.crops(*pair, classes=CLASSES, crop=16, val=0.1, test=0.1, seed=1)
    assert len(data.train) == 300
    assert data.train.counts is not None
    assert plain.train.counts is not None
    assert plain.train.counts[:, 2].any()
    drawn, every = ((counts[:, 2] > 0).mean() for counts in (data.train.counts, plain.train.counts))
    assert drawn >= 1 / 3 > every


def test_what_does_not_fit_is_refused(pair: Any) -> None:
    scene, mask = pair
    for wrong in ({"crop": 0}, {"crop": 32, "block": 40, "gap": 20}):
        with pytest.raises(DataError) as caught:
            tile.crops(scene, mask, classes=CLASSES, **wrong)
        assert caught.value.code == "tile-format"
    for other in (mask[1:], mask.astype(np.float32), scene):
        with pytest.raises(DataError) as caught:
            tile.crops(scene, other, classes=CLASSES, crop=32)
        assert caught.value.code == "tile-format"
    with pytest.raises(DataError) as caught:
        tile.crops(scene, np.full_like(mask, 255), classes=CLASSES, crop=32)
    assert caught.value.code == "data-few-images"
