"""Adding weighted tiles up in a band of rows as high as one tile, and taking finished rows out of it.

A band holds sums of one column strip of the scene. Tiles come row by row; once a row of tiles is in, the rows
above the next row of tiles are final: they are taken out and their place is used again.
Shape letters: K classes, T rows of a tile, w columns of the strip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

FLUSHED = 1 << 16
"""Pixels that are taken out at a time."""


_PIECE = 1 << 14
"""Pixels that are weighted and added at a time."""


class Band:
    """Sums float32 `[K, T, w]` of columns `x0` to `x1`; row r of the scene lies at `r % T`.

    Args:
        tile: rows and columns of a tile.
        mask: also keep which pixels hold no data.
    """

    def __init__(self, classes: int, tile: tuple[int, int], x0: int, x1: int, *, mask: bool) -> None:
        self.x0, self.x1 = x0, x1
        self._rows = tile[0]
        self._sums = np.zeros((classes, tile[0], x1 - x0), np.float32)
        self._weighted = np.empty(max(_PIECE, tile[1]), np.float32)
        self._void = np.zeros((tile[0], x1 - x0), bool) if mask else None

    def add(self, tile: Floats, y: int, x: int, weights_y: Floats, weights_x: Floats) -> bool:
        """Whether all numbers were finite; the tile `[K, T, T]` at (y, x) is added with its weights.

        Rows and columns of weight zero are left out, so a tile may reach beyond the scene.
        """
        top, bottom = _extent(weights_y)
        left, right = _extent(weights_x)
        left, right = max(left, self.x0 - x), min(right, self.x1 - x)
        if left >= right:
            return True
        columns = slice(x + left - self.x0, x + right - self.x0)
        total = 0.0
        for first, last, place in self._pieces(y + top, y + bottom, right - left):
            rows = slice(first - y, last - y)
            weights = weights_y[rows, None] * weights_x[None, left:right]
            part = self._weighted[: weights.size].reshape(weights.shape)
            for sums, values in zip(self._sums, tile, strict=True):
                np.multiply(values[rows, left:right], weights, out=part)
                sums[place : place + last - first, columns] += part
                total += float(part.sum())
        return math.isfinite(total)

    def _pieces(self, y0: int, y1: int, width: int) -> Iterator[tuple[int, int, int]]:
        """As `_places`, in pieces that stay in the processor's cache while they are weighted and added."""
        step = max(1, len(self._weighted) // width)
        for first, last, place in self._places(y0, y1):
            for low in range(first, last, step):
                yield low, min(low + step, last), place + low - first

    def void(self, where: npt.NDArray[np.bool_], y: int, x: int) -> None:
        """Remembers the pixels `[h, w]` at (y, x) that hold no data."""
        if self._void is None:
            return
        left, right = max(0, self.x0 - x), min(where.shape[1], self.x1 - x)
        if left >= right:
            return
        columns = slice(x + left - self.x0, x + right - self.x0)
        for first, last, place in self._places(y, y + len(where)):
            self._void[place : place + last - first, columns] |= where[first - y : last - y, left:right]

    def take(self, y0: int, y1: int) -> Iterator[tuple[int, Floats, npt.NDArray[np.bool_] | None]]:
        """Row, sums `[K, n, w]` and pixels without data `[n, w]` of rows y0 to y1, in parts, from the top; each
        part is a view that is emptied when the next is asked for."""
        step = max(1, FLUSHED // max(1, self.x1 - self.x0))
        for first, last, place in self._places(y0, y1):
            for low in range(first, last, step):
                rows = slice(place + low - first, place + min(low + step, last) - first)
                void = None if self._void is None else self._void[rows]
                yield low, self._sums[:, rows], void
                self._sums[:, rows] = 0
                if void is not None:
                    void[:] = False

    def _places(self, y0: int, y1: int) -> Iterator[tuple[int, int, int]]:
        """First row, end and place in the ring of the pieces that rows y0 to y1 lie in."""
        while y0 < y1:
            place = y0 % self._rows
            end = min(y1, y0 + self._rows - place)
            yield y0, end, place
            y0 = end


def _extent(weights: Floats) -> tuple[int, int]:
    """First and end of what is not zero."""
    held = np.flatnonzero(weights)
    return (int(held[0]), int(held[-1]) + 1) if len(held) else (0, 0)


def best(sums: Floats) -> npt.NDArray[Any]:
    """The class of the largest number of each pixel, `[K, n, w]` to `[n, w]`; of equal ones the first.

    uint8, or uint16 above 255 classes, so that the largest number is free for pixels without data. One class
    alone is a probability: 1 where it is at least a half.
    """
    kind = np.dtype(np.uint8 if len(sums) <= 255 else np.uint16)
    if len(sums) == 1:
        return np.asarray(sums[0] >= 0.5).astype(kind)
    # class by class: numpy's argmax over the first axis walks memory across and takes longer
    top = sums[0].copy()
    index = np.zeros(top.shape, kind)
    for k in range(1, len(sums)):
        better = sums[k] > top
        np.copyto(top, sums[k], where=better)
        index[better] = k
    return index
