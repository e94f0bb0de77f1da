"""`Samples`: batches with and without the cache, subsets that keep the classes' shares."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from niwaki.data import Samples, samples
from niwaki.errors import DataError
from niwaki.spec import Spec

SPEC = Spec(size_hw=(8, 10))


def pixels(count: int, side: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def made(sources: object, count: int) -> Samples:
    labels = np.arange(count, dtype=np.int64) % 3
    return Samples(sources=sources, names=tuple(f"i{k}" for k in range(count)), labels=labels)


def test_sides_are_the_median_of_the_stored_sizes(tmp_path: Path) -> None:
    """Of paths, bytes and arrays, from their heads; of bands that Pillow does not read, from the file."""
    shapes = [(20, 30), (20, 30), (40, 60), (90, 33), (10, 10)]
    images = [np.zeros((*shape, 3), np.uint8) for shape in shapes]
    paths = on_disk(tmp_path, images)  # type: ignore[arg-type]
    for sources in (paths, [path.read_bytes() for path in paths], images):
        assert made(sources, 5).sides() == {"height": 20, "width": 30}
    assert made(pixels(70), 70).sides() == {"height": 12, "width": 12}
    np.save(tmp_path / "bands.npy", np.zeros((17, 19, 5), np.uint16))
    assert made([tmp_path / "bands.npy"], 1).sides() == {"height": 17, "width": 19}
    assert made([], 0).sides() == {"height": 0, "width": 0}


def on_disk(folder: Path, images: np.ndarray) -> list[Path]:
    paths = [folder / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def test_paths_bytes_and_arrays_give_the_same_batch(tmp_path: Path) -> None:
    images = pixels(40)
    paths = on_disk(tmp_path, images)
    index = [3, 3, 39, 0, *range(20)]
    want = np.stack([SPEC.read(paths[i]) for i in index])
    for sources in (paths, [p.read_bytes() for p in paths], list(images), images):
        found = made(sources, 40)
        assert np.array_equal(found.batch(index, SPEC), want)
        assert np.array_equal(found.batch(index, SPEC), want)  # from the cache
        assert np.array_equal(found.batch(np.array(index), SPEC), want)


def test_the_cache_changes_nothing_and_ends_at_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = on_disk(tmp_path, pixels(6))
    want = made(paths, 6).batch(range(6), SPEC)
    monkeypatch.setattr(samples, "CACHE_BYTES", 3 * 8 * 10 * 3 + 7)
    limited = made(paths, 6)
    assert np.array_equal(limited.batch(range(6), SPEC), want)
    for path in paths[:3]:
        path.unlink()
    assert np.array_equal(limited.batch([2, 4, 1], SPEC), want[[2, 4, 1]])  # 0, 1, 2 are kept
    paths[5].unlink()
    with pytest.raises(DataError) as caught:
        limited.batch([5], SPEC)
    assert caught.value.code == "image-missing" and "i5" in str(caught.value)


def test_a_batch_belongs_to_the_caller(tmp_path: Path) -> None:
    found = made(on_disk(tmp_path, pixels(2)), 2)
    for sources in (found, made(pixels(2, side=8), 2)):
        spec = Spec(size_hw=(8, 8))
        before = sources.batch([0, 1], spec)
        for _ in range(2):
            sources.batch([0, 1], spec)[:] = 0
        assert np.array_equal(sources.batch([0, 1], spec), before)


def test_each_spec_has_its_own_cache_and_grey_works() -> None:
    found = made(pixels(4), 4)
    grey = Spec(size_hw=(8, 10), mean=(0.5,), std=(0.5,), channels=1)
    assert found.batch([1], SPEC).shape == (1, 8, 10, 3)
    assert found.batch([1], grey).shape == (1, 8, 10, 1)
    assert found.batch([], SPEC).shape == (0, 8, 10, 3)
    file = io.BytesIO()
    Image.fromarray(pixels(4)[1]).save(file, "PNG")
    assert np.array_equal(found.batch([1], grey)[0], grey.read(file.getvalue()))


def test_take_keeps_the_shares_of_the_classes() -> None:
    labels = np.repeat([0, 1, 2], [700, 290, 10])
    found = Samples(
        sources=list(range(1000)),
        names=tuple(map(str, range(1000))),
        labels=labels.astype(np.int64),
    )
    part = found.take(100)
    assert np.bincount(part.labels).tolist() == [70, 29, 1]
    assert [str(s) for s in part.sources] == list(part.names)
    assert list(part.sources) == sorted(part.sources)
    assert part.names == found.take(100).names != found.take(100, seed=1).names
    assert np.bincount(found.take(20).labels).tolist() == [14, 5, 1]
    assert np.bincount(found.take(3).labels).tolist() == [1, 1, 1]
    assert len(found.take(2)) == 2 and len(found.take(0)) == 0
    assert found.take(1000) is found and found.take(5000) is found


def test_at_keeps_arrays_whole() -> None:
    part = made(pixels(5), 5).at([4, 0])
    assert isinstance(part.sources, np.ndarray) and part.names == ("i4", "i0")
    assert np.array_equal(part.sources, pixels(5)[[4, 0]])
