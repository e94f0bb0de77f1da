"""Raster: a scene that is read by window, and the cache that decodes each block of a file once.

A reader (tiff.py, tile/readers.py) says how large the scene is, how it is cut into blocks and how one block is
loaded; all else, such as windows across blocks, is here. Shape letters: H W pixels, C channels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Geo:
    """Where a scene lies on Earth.

    Args:
        tags: GeoTIFF's own tags, copied as they are: {number: (TIFF type, values)}.
        transform: (a, b, c, d, e, f): x = a*column + b*row + c, y = d*column + e*row + f, in units of the CRS,
            of a pixel's upper left corner; None where the file has none.
        epsg: number of the CRS; None where the file names none.
    """

    tags: dict[int, tuple[int, Any]] = field(default_factory=dict)
    transform: tuple[float, float, float, float, float, float] | None = None
    epsg: int | None = None


@dataclass(frozen=True, kw_only=True)
class Raster:
    """A scene `[H, W, C]` read by window.

    Args:
        name: what messages call it.
        block: height and width of the blocks that `load` decodes; (0, 0) where any window is read alike.
        load: `(y0, y1, x0, x1) -> [h, w, C]`; asked for whole blocks, cut at the scene's edge.
        extra: bytes that loading one block takes beside its pixels.
        held: bytes that the scene holds in memory all the time.
        photograph: it says that it is a picture in 8 bits (grey, RGB, a palette, with alpha or without).
        identity: what tells this scene from another, for a run that goes on after a crash; JSON.
        close: lets go of the file.
    """

    name: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    load: Callable[[int, int, int, int], Pixels]
    block: tuple[int, int] = (0, 0)
    extra: int = 0
    held: int = 0
    nodata: float | None = None
    geo: Geo | None = None
    photograph: bool = False
    identity: Any = None
    close: Callable[[], None] = lambda: None

    def need(self, rows: int, columns: int) -> int:
        """Bytes that a cache needs, so that windows of `rows` by any of `columns` decode a block once."""
        pixel = self.shape[2] * self.dtype.itemsize
        if not self.block[0]:
            return 0
        height, width, _ = self.shape
        # a window may begin and end inside a block, which is one block more
        high = min(-(-height // self.block[0]), -(-rows // self.block[0]) + 1)
        wide = min(-(-width // self.block[1]), -(-columns // self.block[1]) + 1)
        block = min(self.block[0], height) * min(self.block[1], width) * pixel
        return high * wide * block + self.extra + block


class Windows:
    """Any window of a Raster, filled up by reflection beyond the scene; blocks are kept while they fit.

    Args:
        keep: bytes of decoded blocks to keep; the one used longest ago goes first.
    """

    def __init__(self, raster: Raster, *, keep: int) -> None:
        self.raster, self._keep = raster, keep
        self._blocks: OrderedDict[tuple[int, int], Pixels] = OrderedDict()
        self._held = 0

    def read(self, y: int, x: int, height: int, width: int) -> Pixels:
        """Pixels `[height, width, C]` from row y, column x on; a new array."""
        scene_h, scene_w, channels = self.raster.shape
        inside_h, inside_w = min(height, scene_h - y), min(width, scene_w - x)
        if not self.raster.block[0]:
            inside = self.raster.load(y, y + inside_h, x, x + inside_w)
        else:
            inside = np.empty((inside_h, inside_w, channels), self.raster.dtype)
            self._assemble(inside, y, x)
        if (inside_h, inside_w) == (height, width):
            return inside
        return inside[_reflected(inside_h, height)][:, _reflected(inside_w, width)]

    def _assemble(self, out: Pixels, y: int, x: int) -> None:
        high, wide = self.raster.block
        height, width = out.shape[:2]
        for row in range(y // high, -(-(y + height) // high)):
            for column in range(x // wide, -(-(x + width) // wide)):
                block = self._block(row, column)
                top, left = row * high, column * wide
                y0, y1 = max(y, top), min(y + height, top + block.shape[0])
                x0, x1 = max(x, left), min(x + width, left + block.shape[1])
                out[y0 - y : y1 - y, x0 - x : x1 - x] = block[y0 - top : y1 - top, x0 - left : x1 - left]

    def _block(self, row: int, column: int) -> Pixels:
        key = (row, column)
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return self._blocks[key]
        (high, wide), (height, width, _) = self.raster.block, self.raster.shape
        y, x = row * high, column * wide
        block = self.raster.load(y, min(y + high, height), x, min(x + wide, width))
        while self._blocks and self._held + block.nbytes > self._keep:
            self._held -= self._blocks.popitem(last=False)[1].nbytes
        if block.nbytes <= self._keep:
            self._blocks[key] = block
            self._held += block.nbytes
        return block


def _reflected(inside: int, size: int) -> npt.NDArray[np.int64]:
    """Indices that fill `inside` pixels up to `size` by reflection without repeating the edge: 0 1 2 1 0 1."""
    if inside == 1:
        return np.zeros(size, np.int64)
    place = np.arange(size) % (2 * inside - 2)
    return np.where(place < inside, place, 2 * inside - 2 - place)
