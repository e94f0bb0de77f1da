"""Polygons as masks: pixels whose centres lie inside, by the even-odd rule. Numpy only.

A polygon is COCO's: `[x1, y1, x2, y2, ...]`, in pixels from the image's upper left corner. Shape letters: H W
pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.errors import DataError

Crop = tuple[int, int, npt.NDArray[Any]]


def is_polygons(item: Any) -> bool:
    """Whether an object is given as a list of polygons."""
    return isinstance(item, list | tuple) and len(item) > 0 and all(isinstance(p, list | tuple) for p in item)


def crop(polygons: Sequence[Sequence[float]], shape: tuple[int, int], *, place: int = 0) -> Crop:
    """The pixels that lie in any of an object's polygons, as a crop cut at the image's border.

    Args:
        shape: (H, W) of the image.
        place: of the object, for messages.
    Raises:
        DataError: one is no list of at least three corners. [masks-form]
    """
    corners = []
    for polygon in polygons:
        try:
            points = np.asarray(polygon, np.float64)
        except (TypeError, ValueError):
            points = np.zeros(0)
        if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
            raise DataError(
                f"masks[{place}]: a polygon of {len(polygon)} numbers, expected [x1, y1, x2, y2, x3, y3, ...], "
                "all finite.",
                code="masks-form",
            )
        corners.append(points.reshape(-1, 2))
    every = np.concatenate(corners)
    left, top = (max(0, math.floor(v)) for v in every.min(0))
    right, bottom = (min(side, math.ceil(v)) for v, side in zip(every.max(0), shape[::-1], strict=True))
    if bottom <= top or right <= left:
        return 0, 0, np.zeros((0, 0), bool)
    drawn = [inside((p - (left, top)).ravel().tolist(), (bottom - top, right - left)) for p in corners]
    return top, left, np.logical_or.reduce(drawn)


def inside(polygon: Sequence[float], size_hw: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Pixels whose centres lie in a polygon `[x1, y1, x2, y2, ...]` by the even-odd rule, bool `[h, w]`."""
    height, width = size_hw
    points = np.asarray(polygon, np.float64).reshape(-1, 2)
    centres = np.arange(height) + 0.5
    crossed = np.zeros((height, width + 1), np.int64)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        rows = np.flatnonzero((y0 <= centres) != (y1 <= centres))
        if len(rows):
            at = x0 + (centres[rows] - y0) / (y1 - y0) * (x1 - x0)
            np.add.at(crossed, (rows, np.clip(np.ceil(at - 0.5), 0, width).astype(np.int64)), 1)
    return np.asarray(crossed.cumsum(1)[:, :-1] % 2 == 1)
