"""`data.augment`: draws depend on (seed, epoch, sample index) alone, and they change things."""

from __future__ import annotations

import numpy as np
import pytest

from niwaki.data import augment

KNOWN = [[0.6027687359395374, 0.19437406591614825], [0.15651716691184914, 0.5927990677049352]]
KNOWN_ORDER = [6, 5, 2, 0, 1, 4, 3, 7]
BOTH = pytest.mark.parametrize("method", [augment.weak, augment.strong])


def batch(count: int = 12, side: int = 32, channels: int = 3) -> np.ndarray:
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def test_uniforms_are_uniform_and_unlike_across_every_input() -> None:
    draws = augment.uniforms(np.arange(20_000), seed=3, epoch=5, count=4)
    assert draws.shape == (20_000, 4) and draws.min() >= 0 and draws.max() < 1
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(draws.var(axis=0) - 1 / 12).max() < 0.002
    others = [
        augment.uniforms(np.arange(20_000), seed=4, epoch=5, count=4),
        augment.uniforms(np.arange(20_000), seed=3, epoch=6, count=4),
        augment.uniforms(np.arange(20_000) + 1, seed=3, epoch=5, count=4),
        np.roll(draws, 1, axis=1),
    ]
    for other in others:
        assert abs(np.corrcoef(draws[:, 0], other[:, 0])[0, 1]) < 0.03
        assert (draws == other).mean() < 0.001


def test_known_draws_stay_as_they_are() -> None:
    """A resumed run of another version must draw alike: these numbers are part of the contract."""
    draws = augment.uniforms(np.array([0, 7]), seed=1, epoch=2, count=2)
    assert draws.tolist() == KNOWN
    assert augment.order(8, seed=1, epoch=2).tolist() == KNOWN_ORDER


@BOTH
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_does_not_depend_on_its_batch(method, channels: int) -> None:
    images = batch(channels=channels)
    index = np.arange(12) * 1000 + 17
    whole = method(images, index, seed=1, epoch=4, flip=True)
    assert whole.shape == images.shape and whole.dtype == np.uint8
    back = method(images[::-1].copy(), index[::-1], seed=1, epoch=4, flip=True)[::-1]
    assert np.array_equal(whole, back)
    alone = [method(images[i : i + 1], index[i : i + 1], seed=1, epoch=4, flip=True)[0] for i in range(12)]
    assert np.array_equal(whole, np.stack(alone))
    assert not np.array_equal(whole, method(images, index, seed=1, epoch=5, flip=True))
    assert not np.array_equal(whole, method(images, index, seed=2, epoch=4, flip=True))


@BOTH
def test_the_input_is_left_alone_and_empty_batches_pass(method) -> None:
    images = batch()
    before = images.copy()
    method(images, np.arange(12), seed=0, epoch=0, flip=True)
    assert np.array_equal(images, before)
    empty = method(images[:0], np.arange(0), seed=0, epoch=0, flip=True)
    assert empty.shape == (0, 32, 32, 3)


def test_weak_is_a_crop_of_the_reflected_image_mirrored_or_not() -> None:
    images = batch(count=200)
    out = augment.weak(images, np.arange(200), seed=0, epoch=0, flip=True)
    shifts, mirrored = set(), 0
    for image, got in zip(images, out, strict=True):
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
        crops = {
            (y, x, flip): padded[y : y + 32, x : x + 32][:, :: -1 if flip else 1]
            for y in range(9)
            for x in range(9)
            for flip in (False, True)
        }
        found = [key for key, crop in crops.items() if np.array_equal(crop, got)]
        assert len(found) == 1
        shifts.add(found[0][:2])
        mirrored += found[0][2]
    assert 70 < mirrored < 130
    assert {y for y, _ in shifts} == {x for _, x in shifts} == set(range(9))
    unflipped = augment.weak(images, np.arange(200), seed=0, epoch=0, flip=False)
    same = (unflipped == out).all(axis=(1, 2, 3)).sum()
    assert same == 200 - mirrored


def test_strong_changes_every_image_and_mirrors_only_if_told() -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 32).astype(np.uint8)[None, :, None], (32, 32, 3))
    images = np.stack([ramp] * 100)
    slopes = []
    for flip in (False, True):
        out = augment.strong(images, np.arange(100), seed=0, epoch=0, flip=flip).astype(float)
        assert (out != images).any(axis=(1, 2, 3)).all()
        slopes.append(out[:, :, 20:].mean(axis=(1, 2, 3)) - out[:, :, :12].mean(axis=(1, 2, 3)))
    assert (slopes[0] > 0).all()
    assert 30 < (slopes[1] < 0).sum() < 70


def test_strong_keeps_a_flat_image_flat_but_for_tone_and_hole() -> None:
    """The border is reflected, never black: a grey image is one grey but for the hole."""
    images = np.full((60, 24, 40, 3), 90, dtype=np.uint8)
    out = augment.strong(images, np.arange(60), seed=0, epoch=0, flip=True)
    holes = 0
    for image in out:
        values = set(np.unique(image).tolist())
        assert len(values - {128}) <= 1 and len(values) <= 2
        assert all(62 <= v <= 128 for v in values)
        holes += 128 in values
    assert 18 <= holes <= 42


@BOTH
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (8, 8), (7, 31)])
def test_any_size(method, shape: tuple[int, int]) -> None:
    images = np.zeros((5, *shape, 1), dtype=np.uint8)
    assert method(images, np.arange(5), seed=0, epoch=0, flip=True).shape == images.shape


def test_order_is_a_permutation_that_epochs_and_seeds_change() -> None:
    first = augment.order(1000, seed=0, epoch=0)
    assert sorted(first.tolist()) == list(range(1000))
    assert np.array_equal(first, augment.order(1000, seed=0, epoch=0))
    assert not np.array_equal(first, augment.order(1000, seed=0, epoch=1))
    assert not np.array_equal(first, augment.order(1000, seed=1, epoch=0))
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.1
