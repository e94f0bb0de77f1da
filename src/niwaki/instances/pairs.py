"""Which true and predicted objects share pixels: the sparse table that every instance metric is made from.

Built in one pass over the pixels of a label map, or from the boxes of masks that may overlap; nothing is
ever of size true objects times predicted ones. Tables of tiles add up (`joined`), so images of any size stream.
Shape letters: T true objects, P predicted ones, S pairs that share a pixel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.errors import DataError
from niwaki.instances.crops import Crop, Masks, Shape, crops
from niwaki.instances.labels import checked

_PART = 4096
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
    pair: list[tuple[int, int]] = []
    shared: list[int] = []
    for those, others in meeting(_boxes(true_crops), _boxes(predicted_crops)):
        for t, p in zip(those.tolist(), others.tolist(), strict=True):
            count = _common(true_crops[t], predicted_crops[p])
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


def meeting(one: Ints, other: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Places in `one` `[N, 4]` and in `other` `[M, 4]` of all boxes that share a pixel, in order, part by part.

    The others are sorted into grids by the corner where they begin, boxes of each power of two of lengths into
    one whose cells are as large: those that reach a box begin in it or one cell before it, so what is looked at
    grows with what is found, and one huge box does not widen the search for all.
    """
    origin = np.minimum(one[:, :2].min(0), other[:, :2].min(0)) if len(one) and len(other) else np.zeros(2, int)
    grids = [_Grid(other, members, kind, origin) for kind, members in _kinds(other)]
    for first in range(0, len(one), _PART):
        part = one[first : first + _PART]
        found = [grid.near(part) for grid in grids]
        if not found:
            return
        t, p = (np.concatenate(column) for column in zip(*found, strict=True))
        meets = (part[t, :2] < other[p, 2:]).all(1) & (other[p, :2] < part[t, 2:]).all(1)
        t, p = t[meets], p[meets]
        order = np.lexsort((p, t))
        yield t[order] + first, p[order]


def _kinds(boxes: Ints) -> list[tuple[int, Ints]]:
    """Places of boxes whose longer side is at most 2^k and more than half of that, by k."""
    longer = (boxes[:, 2:] - boxes[:, :2]).max(1, initial=1)
    size = np.ceil(np.log2(longer)).astype(np.int64)
    return [(kind, np.flatnonzero(size == kind)) for kind in np.unique(size).tolist()]


class _Grid:
    """Boxes `members` of at most 2^k a side, by the cell of 2^k a side that they begin in."""

    def __init__(self, boxes: Ints, members: Ints, kind: int, origin: Ints) -> None:
        self._kind, self._origin = kind, origin
        rows, columns = ((boxes[members, :2] - origin) >> kind).T
        self._last = int(rows.max()), int(columns.max())
        keys = rows * (self._last[1] + 1) + columns
        order = np.argsort(keys, kind="stable")
        self._keys, self._members = keys[order], members[order]

    def near(self, boxes: Ints) -> tuple[Ints, Ints]:
        """Places of boxes, and of members that begin in the cells from which they may reach them."""
        first = np.maximum(0, (boxes[:, :2] - self._origin >> self._kind) - 1)
        last = np.minimum(self._last, boxes[:, 2:] - 1 - self._origin >> self._kind)
        # the cells of a row lie one after the other
        box, row = _ranges(first[:, 0], last[:, 0] + 1)
        wide = self._last[1] + 1
        low = np.searchsorted(self._keys, row * wide + first[box, 1], side="left")
        high = np.searchsorted(self._keys, row * wide + last[box, 1], side="right")
        which, place = _ranges(low, high)
        return box[which], self._members[place]


def _ranges(low: Ints, high: Ints) -> tuple[Ints, Ints]:
    """All whole numbers from each `low` to below its `high`, and the place of the pair that each is of."""
    count = np.maximum(0, high - low)
    which = np.repeat(np.arange(len(low)), count)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + low[which]


def _common(one: Crop, other: Crop) -> int:
    """Pixels that two crops share."""
    (y, x, a), (v, u, b) = one, other
    top, left = max(y, v), max(x, u)
    bottom, right = min(y + a.shape[0], v + b.shape[0]), min(x + a.shape[1], u + b.shape[1])
    first = a[top - y : bottom - y, left - x : right - x]
    second = b[top - v : bottom - v, left - u : right - u]
    return int(np.count_nonzero((first > 0) & (second > 0)))
