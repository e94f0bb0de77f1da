"""Which true and predicted objects share pixels: the sparse table that every instance metric is made from.

Built in one pass over the pixels of a label map, or from the boxes of masks that may overlap; nothing is
ever of size true objects times predicted ones. Tables of tiles add up (`joined`), so images of any size stream.
Shape letters: T true objects, P predicted ones, S pairs that share a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.errors import DataError
from niwaki.instances.crops import Crop, Masks, Shape, crops
from niwaki.instances.labels import checked

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Areas of all objects and the pixels that pairs of them share.

    Args:
        truth, predicted: the objects' numbers, int64 `[T]` and `[P]`, rising; places where they are masks.
        truth_area, predicted_area: their pixels, int64 `[T]`, `[P]`.
        pair: places in `truth` and `predicted` of each pair, int64 `[S, 2]`.
        shared: pixels of each pair, int64 `[S]`, above 0.
    """

    truth: Ints
    predicted: Ints
    truth_area: Ints
    predicted_area: Ints
    pair: Ints
    shared: Ints

    @property
    def iou(self) -> Floats:
        """Intersection over union of each pair, `[S]`, above 0 and at most 1."""
        union = self.truth_area[self.pair[:, 0]] + self.predicted_area[self.pair[:, 1]] - self.shared
        return self.shared / union


def pairs(truth: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> Pairs:
    """The table of two label maps `[H, W]`; their numbers may be any, 0 is background.

    Raises:
        DataError: no label maps, or of different sizes. [masks-labels, masks-shape]
    """
    if checked(truth).shape != checked(predicted).shape:
        raise DataError(
            f"pairs: truth {list(truth.shape)} and prediction {list(predicted.shape)} differ in size.",
            code="masks-shape",
        )
    t_numbers, t_place, t_area = np.unique(truth, return_inverse=True, return_counts=True)
    p_numbers, p_place, p_area = np.unique(predicted, return_inverse=True, return_counts=True)
    key = t_place.ravel().astype(np.int64) * len(p_numbers) + p_place.ravel()
    found, shared = np.unique(key, return_counts=True)
    both = np.stack(np.divmod(found, max(1, len(p_numbers))), 1)
    t_on, p_on = t_numbers != 0, p_numbers != 0
    objects = t_on[both[:, 0]] & p_on[both[:, 1]] if len(both) else np.zeros(0, bool)
    t_new, p_new = np.cumsum(t_on) - 1, np.cumsum(p_on) - 1
    both = both[objects]
    return Pairs(
        truth=t_numbers[t_on].astype(np.int64),
        predicted=p_numbers[p_on].astype(np.int64),
        truth_area=t_area[t_on],
        predicted_area=p_area[p_on],
        pair=np.stack((t_new[both[:, 0]], p_new[both[:, 1]]), 1),
        shared=shared[objects],
    )


def joined(parts: Sequence[Pairs]) -> Pairs:
    """One table of the tables of an image's tiles, whose numbers are the image's; tiles must not overlap."""
    truth, t_area = _summed([(p.truth, p.truth_area) for p in parts])
    predicted, p_area = _summed([(p.predicted, p.predicted_area) for p in parts])
    numbers = [
        np.stack((p.truth[p.pair[:, 0]], p.predicted[p.pair[:, 1]]), 1) for p in parts if len(p.pair)
    ] or [np.zeros((0, 2), np.int64)]
    rows, place = np.unique(np.concatenate(numbers), axis=0, return_inverse=True)
    shared = np.zeros(len(rows), np.int64)
    np.add.at(shared, place.ravel(), np.concatenate([p.shared for p in parts if len(p.pair)] or [shared]))
    pair = np.stack((np.searchsorted(truth, rows[:, 0]), np.searchsorted(predicted, rows[:, 1])), 1)
    return Pairs(
        truth=truth, predicted=predicted, truth_area=t_area, predicted_area=p_area, pair=pair, shared=shared
    )


def _summed(parts: Sequence[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    numbers = np.concatenate([n for n, _ in parts] or [np.zeros(0, np.int64)])
    kept, place = np.unique(numbers, return_inverse=True)
    total = np.zeros(len(kept), np.int64)
    np.add.at(total, place, np.concatenate([a for _, a in parts] or [total]))
    return kept, total


def pairs_of_masks(truth: Masks, predicted: Masks, *, shape: Shape | None = None) -> Pairs:
    """The table of two sets of masks that may overlap: dense, crops or RLE, as `resolve_overlaps` takes them.

    Raises:
        DataError: masks of no known form, or of different image sizes. [masks-form, masks-shape]
    """
    true_crops, size = crops(truth, shape=shape)
    predicted_crops, other = crops(predicted, shape=shape or size)
    if size != other:
        raise DataError(f"pairs: the truth is of {size} pixels, the prediction of {other}.", code="masks-shape")
    boxes = _boxes(predicted_crops)
    pair: list[tuple[int, int]] = []
    shared: list[int] = []
    for t, crop in enumerate(true_crops):
        for p in _meeting(crop, boxes).tolist():
            count = _common(crop, predicted_crops[p])
            if count:
                pair.append((t, p))
                shared.append(count)
    return Pairs(
        truth=np.arange(len(true_crops)),
        predicted=np.arange(len(predicted_crops)),
        truth_area=_areas(true_crops),
        predicted_area=_areas(predicted_crops),
        pair=np.asarray(pair, np.int64).reshape(-1, 2),
        shared=np.asarray(shared, np.int64),
    )


def _areas(cut: Sequence[Crop]) -> Ints:
    return np.asarray([int(np.count_nonzero(mask)) for _, _, mask in cut], np.int64)


def _boxes(cut: Sequence[Crop]) -> Ints:
    """Top, left, bottom, right of each crop, int64 `[N, 4]`."""
    found = [(y, x, y + mask.shape[0], x + mask.shape[1]) for y, x, mask in cut]
    return np.asarray(found, np.int64).reshape(-1, 4)


def _meeting(crop: Crop, boxes: Ints) -> Ints:
    y, x, mask = crop
    bottom, right = y + mask.shape[0], x + mask.shape[1]
    apart = (boxes[:, 0] >= bottom) | (boxes[:, 2] <= y) | (boxes[:, 1] >= right) | (boxes[:, 3] <= x)
    return np.flatnonzero(~apart)


def _common(one: Crop, other: Crop) -> int:
    """Pixels that two crops share."""
    (y, x, a), (v, u, b) = one, other
    top, left = max(y, v), max(x, u)
    bottom, right = min(y + a.shape[0], v + b.shape[0]), min(x + a.shape[1], u + b.shape[1])
    first = a[top - y : bottom - y, left - x : right - x]
    second = b[top - v : bottom - v, left - u : right - u]
    return int(np.count_nonzero((first > 0) & (second > 0)))
