"""How a scene is cut so that all that is held fits the memory given: column strips and batches.

Every buffer is counted before the first is made: sums, tiles read and predicted, blocks decoded, the reader's
own needs. The model's working memory is not in the budget: it belongs to the runtime and is there after the
first tile.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from niwaki.errors import BudgetError
from niwaki.rasters.raster import Raster
from niwaki.tile.stitch import FLUSHED
from niwaki.tile.windows import Axis

MB = 1 << 20
_SMALL = MB
"""Bytes for all that is small: journal, lists, names."""


@dataclass(frozen=True)
class Strip:
    """Columns `x0` to `x1` of the scene, and the windows of the column axis that weigh on them."""

    x0: int
    x1: int
    windows: range


@dataclass(frozen=True)
class Layout:
    """How a scene is walked: strips from left to right, `batch` tiles at a time, `cache` bytes of blocks.

    `need` is the bytes held at once.
    """

    strips: tuple[Strip, ...]
    batch: int
    cache: int
    need: int


def layout(
    raster: Raster, rows: Axis, columns: Axis, *, classes: int, memory: int, batch: int, void: bool
) -> Layout:
    """The fewest strips, then the largest batch up to `batch`, that fit `memory` bytes.

    Args:
        void: pixels without data are kept apart.
    Raises:
        BudgetError: not even one tile a time in the narrowest strips fits; the memory needed is named.
            [tile-memory]
    """
    for count in _counts(len(columns.starts)):
        strips = cut(columns, count)
        # a smaller batch costs less than a strip more, at whose border tiles are predicted twice
        size = batch
        while size:
            need, cache = _need(raster, rows, columns, strips, classes, size, void)
            if need <= memory:
                return Layout(strips, size, cache, need)
            size //= 2
    mend = "or a smaller tile"
    if cache > need // 2:  # one block of the file holds much of it
        high, wide = raster.block
        stem = Path(raster.name).stem
        mend = (
            f"or convert the file, whose blocks are {high} x {wide} pixels: gdal_translate -of COG "
            f"{raster.name} {stem}.cog.tif"
        )
    raise BudgetError(
        f"{raster.name}: memory_mb={memory // MB} is too little: tiles of {rows.tile} x {columns.tile} "
        f"pixels with {classes} classes need {-(-need // MB)} MB. Give that much, {mend}.",
        code="tile-memory",
    )


def cut(columns: Axis, count: int) -> tuple[Strip, ...]:
    """`count` strips of about as many windows each; a strip begins where a window does."""
    windows = len(columns.starts)
    firsts = sorted({k * windows // count for k in range(count)})
    edges = [*(columns.starts[k] for k in firsts), columns.size]
    return tuple(Strip(x0, x1, columns.reach(x0, x1)) for x0, x1 in itertools.pairwise(edges) if x0 < x1)


def _counts(windows: int) -> list[int]:
    """Numbers of strips to try: all small ones, then by a quarter more, so that many windows are no long
    search."""
    counts, count = [], 1
    while count < windows:
        counts.append(count)
        count = max(count + 1, count * 5 // 4)
    return [*counts, windows]


def _need(
    raster: Raster, rows: Axis, columns: Axis, strips: tuple[Strip, ...], classes: int, batch: int, void: bool
) -> tuple[int, int]:
    """Bytes held at once in the widest strip, and those of them that cache blocks."""
    tile = rows.tile * columns.tile
    wide = max(strip.x1 - strip.x0 for strip in strips)
    read = max(columns.starts[s.windows[-1]] + columns.tile - columns.starts[s.windows[0]] for s in strips)
    pixel = raster.shape[2] * raster.dtype.itemsize
    cache = raster.need(rows.tile, min(read, columns.size))
    sums = 4 * classes * rows.tile * wide + (rows.tile * wide if void else 0)
    # two batches wait while one is predicted; each is scaled to 8 bits, and masked where there is no data
    images = batch * tile * (3 * pixel + 2 * raster.shape[2] + (2 if void else 0))
    # what the model gives, the copy that a session makes, and the batch before, which is being added
    given = 3 * 4 * batch * classes * tile
    flushed = (4 + 2 + 2 + 1) * max(FLUSHED, wide) + 4 * classes * max(FLUSHED, wide)
    weights = 4 * (rows.weights.size + columns.weights.size)
    return sums + images + given + flushed + weights + cache + raster.held + _SMALL, cache
