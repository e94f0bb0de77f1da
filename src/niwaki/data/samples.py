"""What a data set is once it is read: Samples (one split), DataSet (three of them) and Problem.

Shape letters: N images of a split, B of a batch, H W pixels, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from niwaki import bands, images
from niwaki.bands import Stack
from niwaki.data.masks import Readable, resized
from niwaki.spec import Spec
from niwaki.tasks import Classify, Instances, Segment, Task

ImageU8 = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Item = TypeVar("Item")
Result = TypeVar("Result")

CACHE_BYTES = 2 * 10**9
"""Resized bytes one Samples keeps in memory for one Spec; what does not fit is decoded again."""

_FEW = 16  # below this many images a thread pool costs more than it saves


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something left out of a data set: its path in the set, a stable code, and what to do."""

    path: str
    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Bands:
    """What a Spec must say of images that are bands: names (or none), the values that become 0 and 255, and
    mean and deviation of each where white is 1."""

    names: tuple[str, ...]
    scale: tuple[tuple[float, float], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def spec(self, size_hw: tuple[int, int]) -> Spec:
        """The Spec of a model of that input size for such images."""
        return Spec(
            size_hw=size_hw,
            mean=self.mean,
            std=self.std,
            channels=len(self.mean),
            scale=self.scale,
            bands=self.names,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """One split: where its images are, their names and labels. Nothing is decoded until `batch`.

    Args:
        sources: for each image a path, a file's bytes, several files (a Stack), or pixels `[h, w, C]`: u8 as a
            model takes them, else as a file would hold them; or all of them as one array `[N, h, w, C]`.
        names: a path or id for each, unique in the data set.
        labels: int64 `[N]`, positions in `DataSet.classes`; all 0 where there are masks.
        masks: for each image where its mask is: what has a `read()`, as `data.masks.Mask`, or its pixels
            `[h, w]`; None where images have labels.
        counts: pixels of each class in each mask, int64 `[N, K]`; None without masks.
        objects: masks tell objects apart: numbers, not classes; int32.
    """

    sources: Sequence[Path | bytes | Stack | npt.NDArray[Any]] | npt.NDArray[Any]
    names: tuple[str, ...]
    labels: Ints
    masks: Sequence[Readable | npt.NDArray[np.integer]] | None = None
    counts: Ints | None = None
    objects: bool = False
    _cache: dict[tuple[Any, ...], _Cache] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, index: Sequence[int] | Ints, spec: Spec) -> ImageU8:
        """Decoded and resized images uint8 `[B, H, W, C]`, by position; a cache changes nothing.

        Raises:
            DataError: an image has become unreadable since the set was read. [image-*]
        """
        rows = np.asarray(index, dtype=np.int64)
        shape = (*spec.size_hw, spec.channels)
        whole = self.sources if isinstance(self.sources, np.ndarray) else None
        if whole is not None and whole.shape[1:] == shape and whole.dtype == np.uint8:
            return np.asarray(whole[rows], dtype=np.uint8)
        key = (*shape, spec.scale)
        if key not in self._cache:
            self._cache[key] = _Cache(len(self), shape)
        cache = self._cache[key]
        missing = [int(row) for row in np.unique(rows) if not cache.holds(row)]
        if not missing:
            return cache.store[rows]
        decoded = in_threads(lambda row: self._read(row, spec), missing)
        fresh = dict(zip(missing, decoded, strict=True))
        batch = np.empty((len(rows), *shape), dtype=np.uint8)
        for place, row in enumerate(rows):
            batch[place] = fresh[row] if row in fresh else cache.store[row]
        for row, image in fresh.items():
            cache.keep(row, image)
        return batch

    def targets(self, index: Sequence[int] | Ints, spec: Spec) -> npt.NDArray[np.integer]:
        """What is true of the images at these positions: labels int64 `[B]`, or masks uint8 `[B, H, W]`, whose
        pixels are positions in `DataSet.classes` or 255 for none, or of objects int32 numbers; resized by the
        nearest pixel.

        Raises:
            DataError: a mask has become unreadable since the set was read. [image-*, mask-*]
        """
        rows = np.asarray(index, dtype=np.int64)
        if self.masks is None:
            return self.labels[rows]
        shape = spec.size_hw
        if shape not in self._cache:
            self._cache[shape] = _Cache(len(self), shape, np.int32 if self.objects else np.uint8)
        cache = self._cache[shape]
        batch = np.empty((len(rows), *shape), cache.store.dtype)
        for place, row in enumerate(rows.tolist()):
            if not cache.holds(row):
                mask = self.masks[row]
                pixels = mask if isinstance(mask, np.ndarray) else mask.read()
                batch[place] = resized(pixels, shape)
                cache.keep(row, batch[place])
            else:
                batch[place] = cache.store[row]
        return batch

    def _read(self, row: int, spec: Spec) -> ImageU8:
        return spec.pack(self.pixels(row, spec))

    def pixels(self, row: int, spec: Spec) -> ImageU8:
        """One image at its own size in a model's 8 bits: uint8 `[h, w, C]`.

        Raises:
            DataError: it cannot be read, or has another number of bands. [image-*, bands-*]
        """
        source = self.sources[row]
        if not isinstance(source, np.ndarray):
            return spec.pixels(source, name=self.names[row])
        if not spec.banded:
            return images.to_channels(source, spec.channels)
        if source.dtype == np.uint8 and source.shape[-1] == spec.channels:
            return source
        return spec.adapted(source, name=self.names[row])

    def sides(self, *, most: int = 64) -> dict[str, int]:
        """Median `height` and `width` of the images as they are stored, of `most` of them evenly spread: what
        an artifact's manifest holds as `images`, so that `predict -o` can tell of a scene's other scale.

        Raises:
            DataError: an image has become unreadable since the set was read. [image-*]
        """
        count = min(most, len(self))
        rows = [row * len(self) // count for row in range(count)]
        sizes = np.array([_size(self.sources[row]) for row in rows]).reshape(-1, 2)
        height, width = np.median(sizes, axis=0).astype(int).tolist() if len(sizes) else (0, 0)
        return {"height": height, "width": width}

    def take(self, count: int, *, seed: int = 0) -> Samples:
        """A subset of `count` images (all, if there are fewer), in their order, stratified.

        Each class gets its share by largest remainder, and at least one image where `count` allows.
        """
        if count >= len(self):
            return self
        order = np.random.default_rng(seed).permutation(len(self))
        chosen: list[int] = []
        for label, quota in _quotas(self.labels, max(0, count)).items():
            chosen += order[self.labels[order] == label][:quota].tolist()
        return self.at(sorted(chosen))

    def at(self, index: Sequence[int] | Ints) -> Samples:
        """The images at these positions, as Samples."""
        rows = np.asarray(index, dtype=np.int64)
        whole = self.sources if isinstance(self.sources, np.ndarray) else None
        return Samples(
            sources=[self.sources[row] for row in rows] if whole is None else whole[rows],
            names=tuple(self.names[row] for row in rows),
            labels=self.labels[rows],
            masks=None if self.masks is None else [self.masks[row] for row in rows],
            counts=None if self.counts is None else self.counts[rows],
            objects=self.objects,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSet:
    """Three splits and what was found on the way: train learns, val chooses, test only reports.

    Args:
        classes: names of the labels, in the order of a model's outputs.
        problems: everything left out, each with its reason.
        warnings: what was kept but should be known: a class with one image, duplicates, ...
        fingerprint: hex sha256 over classes, names, bytes' hashes, labels and splits.
        flip: whether a mirrored image keeps its label.
        bands: what was found of the images' bands; None for photographs.
    """

    classes: tuple[str, ...]
    train: Samples
    val: Samples
    test: Samples
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]
    fingerprint: str
    flip: bool
    bands: Bands | None = None

    @property
    def task(self) -> Task:
        """What a model of this set's classes answers: a label an image, a class a pixel, or objects."""
        if self.train.objects:
            return Instances(self.classes)
        return Classify(self.classes) if self.train.masks is None else Segment(self.classes)

    def splits_json(self) -> dict[str, Any]:
        """Names of each split as JSON data; `data.read(path, splits=it)` splits alike."""
        return {
            "classes": list(self.classes),
            "fingerprint": self.fingerprint,
            "train": list(self.train.names),
            "val": list(self.val.names),
            "test": list(self.test.names),
        }


def _size(source: Any) -> tuple[int, int]:
    """Height and width of an image, from its head where Pillow reads that."""
    if isinstance(source, np.ndarray):
        return int(source.shape[0]), int(source.shape[1])
    first = source.files[0] if isinstance(source, Stack) else source
    try:
        width, height, _ = images.head(first)
    except Exception:  # whatever Pillow raises: bands, or damaged, and then the reader says how
        shape = bands.read(source)[0].shape
        return int(shape[0]), int(shape[1])
    return height, width


class _Cache:
    """Resized images by position, as far as `CACHE_BYTES` reach."""

    def __init__(
        self, count: int, shape: tuple[int, ...], kind: type[np.uint8] | type[np.int32] = np.uint8
    ) -> None:
        rows = min(count, CACHE_BYTES // (int(np.prod(shape)) * np.dtype(kind).itemsize))
        self.store: npt.NDArray[Any] = np.empty(
            (rows, *shape), dtype=kind
        )  # the system gives pages when written
        self._filled = np.zeros(rows, dtype=bool)

    def holds(self, row: int) -> bool:
        return row < len(self._filled) and bool(self._filled[row])

    def keep(self, row: int, image: npt.NDArray[Any]) -> None:
        if row < len(self._filled):
            self.store[row] = image
            self._filled[row] = True  # after the pixels: another thread may look in between


def _quotas(labels: Ints, count: int) -> dict[int, int]:
    """How many of each class to take so that they sum to `count` (at most len(labels))."""
    classes, sizes = np.unique(labels, return_counts=True)
    shares = sizes * count / max(1, len(labels))
    quotas = np.floor(shares).astype(np.int64)
    if count >= len(classes):
        quotas = np.maximum(quotas, 1)
    while quotas.sum() > count:  # those lifted to 1 are paid for by classes that have more
        quotas[np.argmax(np.where(quotas > 1, quotas - shares, -np.inf))] -= 1
    while quotas.sum() < count:
        quotas[np.argmax(np.where(quotas < sizes, shares - quotas, -np.inf))] += 1
    return {int(k): int(n) for k, n in zip(classes, quotas, strict=True)}


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """`work` of each item, in order; in threads when there are many. Ctrl-C leaves at once."""
    items = list(items)
    if len(items) < _FEW:
        return [work(item) for item in items]
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
