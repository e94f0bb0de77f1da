"""Star-convex objects: a point, a probability, the distances to the border along 32 rays; and their masks.

A network answers for each point of a grid (every `stride`-th pixel): whether an object's middle is near, and
how far its border is. Here these answers become objects: points above a threshold, thinned, drawn, and cleared
of those that overlap a surer one. Numpy only.
Shape letters: H W pixels, h w points of the grid, R rays, N objects.

Source: Schmidt, Weigert, Broaddus, Myers 2018, "Cell Detection with Star-Convex Polygons", arXiv:1806.03535.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.instances.crops import Crop, Shape
from niwaki.instances.nms import nms

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]

RAYS = 32
"""Directions of an object's outline."""
STEP = 2 * math.pi / RAYS
_ANGLES = np.arange(RAYS) * STEP
DY, DX = np.sin(_ANGLES), np.cos(_ANGLES)
"""Ray k goes `(DY[k], DX[k])` a pixel: the first to the right, then towards the bottom."""
_DEEP = 0.5  # a point within this share of a surer object's outline is of that object


@dataclass(frozen=True, kw_only=True)
class Found:
    """Objects, the surest first.

    Args:
        scores: probabilities float64 `[N]`.
        points: the pixel each was predicted at, (y, x), int64 `[N, 2]`; it names the tile that owns it.
        crops: their masks, cut at the image's border. They may overlap a little.
    """

    scores: npt.NDArray[np.float64]
    points: Ints
    crops: Sequence[Crop]

    def __len__(self) -> int:
        return len(self.scores)


def objects(
    probability: Floats,
    distances: Floats,
    *,
    stride: int,
    shape: Shape,
    threshold: float = 0.5,
    overlap: float = 0.4,
) -> Found:
    """The objects of an image, surest first.

    Args:
        probability: of an object at each point, `[h, w]`; the point (i, j) is the pixel (i, j) * stride.
        distances: from there to the border along each ray, in pixels, `[R, h, w]`.
        shape: (H, W) of the image.
        threshold: probability of points that count.
        overlap: an object goes when it shares more of its pixels, or of a surer one's, than this.
    """
    rows, columns = np.nonzero(probability >= threshold)
    inside = (rows * stride < shape[0]) & (columns * stride < shape[1])
    rows, columns = rows[inside], columns[inside]
    order = np.argsort(-probability[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    reach = np.maximum(distances[:, rows, columns].T.astype(np.float64), 0.5)
    kept = _thinned(rows, columns, reach / stride, (int(probability.shape[0]), int(probability.shape[1])))
    points = np.stack((rows[kept], columns[kept]), 1).astype(np.int64) * stride
    scores = probability[rows[kept], columns[kept]].astype(np.float64)
    cut = [drawn(y, x, far, shape) for (y, x), far in zip(points.tolist(), reach[kept], strict=True)]
    stay = nms(cut, scores, threshold=overlap, shape=shape, by="ios") if cut else np.zeros(0, np.int64)
    return Found(scores=scores[stay], points=points[stay], crops=[cut[k] for k in stay.tolist()])


def _thinned(rows: Ints, columns: Ints, reach: Floats, grid: Shape) -> list[int]:
    """Places of the points that do not lie deep in the outline of one before them; `reach` is in points."""
    taken = np.zeros(grid, bool)
    kept = []
    for k, (y, x) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        if taken[y, x]:
            continue
        kept.append(k)
        top, left, mask = drawn(y, x, reach[k] * _DEEP, grid)
        taken[top : top + mask.shape[0], left : left + mask.shape[1]] |= mask
    return kept


def drawn(y: int, x: int, distances: Floats, shape: Shape) -> Crop:
    """The mask of an outline around the pixel (y, x): pixels whose centre is in the polygon, cut at the image.

    Args:
        distances: along each ray, in pixels, `[R]`.
    """
    vy, vx = distances * DY, distances * DX
    top, bottom = max(-y, math.floor(vy.min())), min(shape[0] - 1 - y, math.ceil(vy.max()))
    left, right = max(-x, math.floor(vx.min())), min(shape[1] - 1 - x, math.ceil(vx.max()))
    reach = max(-top, bottom, -left, right, 1)
    size = 1 << (reach - 1).bit_length()
    sector = _sectors(size)[size + top : size + bottom + 1, size + left : size + right + 1]
    ey, ex = np.roll(vy, -1) - vy, np.roll(vx, -1) - vx
    py, px = np.arange(top, bottom + 1)[:, None], np.arange(left, right + 1)
    # left of the edge that closes the pixel's own sector: inside
    mask = ex[sector] * py - ey[sector] * px >= (ex * vy - ey * vx)[sector] - 1e-9
    mask[-top, -left] = True
    return y + top, x + left, mask


@functools.lru_cache(maxsize=16)
def _sectors(reach: int) -> npt.NDArray[np.intp]:
    """Between which rays each pixel of a square around the middle lies, `[2 reach + 1, 2 reach + 1]`."""
    side = np.arange(-reach, reach + 1)
    angle = np.arctan2(side[:, None], side) % (2 * math.pi)
    return np.asarray((angle / STEP).astype(np.intp) % RAYS)


def outline(labels: npt.NDArray[np.integer[Any]], y: int, x: int) -> npt.NDArray[np.float64]:
    """Distances `[R]` from the pixel (y, x) to the border of the object it is of, in pixels.

    One ray after the other, a pixel at a time: what training computes for all points at once.
    """
    own, found = labels[y, x], np.zeros(RAYS)
    for k in range(RAYS):
        step = 0
        while True:
            v, u = y + round((step + 1) * DY[k]), x + round((step + 1) * DX[k])
            if not (0 <= v < labels.shape[0] and 0 <= u < labels.shape[1]) or labels[v, u] != own:
                break
            step += 1
        found[k] = step + 0.5
    return found
