"""TIFF as a Raster: strips or tiles, classic or BigTIFF, planar or not, pyramids (slides), GeoTIFF tags.

tifffile reads the tags; blocks are read with plain file calls and decoded by codecs.py, one at a time, so that
no more of the file is in memory than is asked for. rasterio would read more kinds, but its wheel carries GEOS,
which is LGPL; this way all parts are of permissive licences.
Shape letters: H W pixels, C channels, h w of a block.
"""

from __future__ import annotations

import io
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.errors import DataError
from niwaki.images import printable
from niwaki.lazy import require
from niwaki.rasters import codecs
from niwaki.rasters.geotags import from_tags
from niwaki.rasters.raster import Pixels, Raster

# tifffile tells its log each thing that is wrong with a damaged file; the error that is raised says it once
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_PALETTE, _WHITE_IS_ZERO = 3, 0
_ALPHA = (1, 2)  # an extra sample that says it is alpha; 0 is a band like any other
_SHOW = (
    "gdal_translate -of COG -co BIGTIFF=IF_SAFER {0} {1}.cog.tif   (or: vips tiffsave {0} {1}.tiled.tif --tile)"
)


def open_tiff(path: Path | bytes, *, level: int = 0, coloured: bool = True, name: str | None = None) -> Raster:
    """A TIFF's first image as a Raster.

    Args:
        path: the file, or its content.
        name: what messages call it; the file's name when not told.
        level: of a pyramid, 0 being the full size.
        coloured: numbers of a palette become its colours.
    Raises:
        DataError: it is damaged, or of a kind that is not read. [tile-corrupt, tile-format]
    """
    tifffile = require("tifffile", extra="tiles")
    name = name or (f"TIFF of {len(path)} bytes" if isinstance(path, bytes) else printable(path.name))
    try:
        with tifffile.TiffFile(io.BytesIO(path) if isinstance(path, bytes) else path) as file:
            levels = _levels(file)
            if not 0 <= level < len(levels):
                raise DataError(
                    f"{name}: has {len(levels)} levels of size, asked for level {level}.", code="tile-format"
                )
            parts = [_Page(file, one, name, coloured=coloured) for one in _pages(levels[level], name)]
            page = parts[0]
            geo = from_tags(file.pages[0].tags, scale=_scale(file.pages[0], levels[level].pages[0]))
    except DataError:
        raise
    except Exception as error:  # a damaged file leads the parser to errors of many kinds
        raise _corrupt(name, error) from error
    content = _content(path)
    for one in parts:
        one.read, _, one.size = content
    return Raster(
        name=name,
        shape=(page.height, page.width, sum(one.shape[2] for one in parts)),
        dtype=page.dtype,
        load=page.load if len(parts) == 1 else _joined(parts),
        block=page.block,
        extra=2 * page.most if len(parts) == 1 else (1 + len(parts)) * page.most,
        nodata=page.nodata,
        geo=geo,
        identity=_identity(path, level),
        photograph=page.photograph and len(parts) == 1,
        close=content[1],
    )


def _pages(level: Any, name: str) -> list[Any]:
    """The pages that are bands of one image: all of them where each is a channel (in OME and ImageJ files, and
    in arrays [C, h, w] as tifffile writes them), else the first; time and depth are no bands."""
    pages = [page.aspage() if hasattr(page, "aspage") else page for page in level.pages[:1]]
    if level.axes not in ("CYX", "QYX") or not 1 < len(level.pages) == level.shape[0]:
        return pages
    count, height, width = level.shape
    if level.axes == "QYX" and 4 * width < min(count, height):
        raise DataError(
            f"{name}: an array [h, w, C] was written as {count} pages of {width} x {height} pixels. Write it "
            "anew: tifffile.imwrite(path, array, photometric='minisblack', planarconfig='contig').",
            code="tile-format",
        )
    return [page.aspage() if hasattr(page, "aspage") else page for page in level.pages]


def _joined(parts: list[_Page]) -> Callable[[int, int, int, int], Pixels]:
    def load(y0: int, y1: int, x0: int, x1: int) -> Pixels:
        return np.concatenate([part.load(y0, y1, x0, x1) for part in parts], axis=2)

    return load


def _identity(path: Path | bytes, level: int) -> Any:
    if isinstance(path, bytes):
        return None
    state = path.stat()
    return [str(path.resolve()), state.st_size, state.st_mtime_ns, level]


def _levels(file: Any) -> list[Any]:
    """The pyramid of the first image, the largest first."""
    return list(file.series[0].levels)


def _scale(full: Any, page: Any) -> tuple[float, float]:
    return full.imagelength / page.imagelength, full.imagewidth / page.imagewidth


Content = tuple[Callable[[int, int], bytes], Callable[[], None], int]


def _content(source: Path | bytes) -> Content:
    """How `count` bytes from an offset on are read, how the file is let go of, and its size in bytes."""
    if isinstance(source, bytes):
        return lambda count, offset: source[offset : offset + count], lambda: None, len(source)
    handle, lock = [os.open(source, os.O_RDONLY)], threading.Lock()

    def close() -> None:
        with lock:
            if handle:
                os.close(handle.pop())

    return lambda count, offset: os.pread(handle[0], count, offset), close, source.stat().st_size


class _Page:
    """What is needed of one page's tags to read its blocks; `read` and `size` are the file's."""

    read: Callable[[int, int], bytes]
    size: int

    def __init__(self, file: Any, page: Any, name: str, *, coloured: bool) -> None:
        self.name = name
        self.height, self.width = int(page.imagelength), int(page.imagewidth)
        self.samples, self.planar = int(page.samplesperpixel), page.planarconfig == 2
        self.compression, self.predictor = int(page.compression), int(page.predictor)
        self.photometric = int(page.photometric)
        self.order = file.byteorder
        self.stored = page.dtype
        self.tables = page.jpegtables
        self.offsets, self.counts = page.dataoffsets, page.databytecounts
        self._check(page)
        rows = min(int(page.rowsperstrip or self.height), self.height)
        self.block = (int(page.tilelength), int(page.tilewidth)) if page.is_tiled else (rows, self.width)
        self.tiled = bool(page.is_tiled)
        self.across, self.down = -(-self.width // self.block[1]), -(-self.height // self.block[0])
        planes = self.samples if self.planar else 1
        if len(self.offsets) < self.across * self.down * planes:
            raise ValueError("fewer blocks than the image needs")
        self.palette = page.colormap if coloured and self.photometric == _PALETTE else None
        self.dtype = np.dtype(np.uint8) if self.palette is not None else np.dtype(self.stored).newbyteorder("=")
        channels = 3 if self.palette is not None else self.samples
        self.shape = (self.height, self.width, channels)
        self.nodata = _nodata(page)
        self.most = self.block[0] * self.block[1] * self.samples * self.dtype.itemsize
        self.photograph = _photograph(page)

    def _check(self, page: Any) -> None:
        """Raises for what is not read, before a pixel is."""
        kinds = (*codecs.BYTES, *codecs.PICTURES)
        reason = ""
        if self.compression not in kinds:
            reason = f"compression {page.compression!r}"
        elif (
            self.stored is None
            or page.bitspersample not in (8, 16, 32, 64)
            or np.dtype(self.stored).kind not in "uif"
        ):
            reason = f"{page.bitspersample} bits a sample of format {page.sampleformat!r}"
        elif self.predictor not in (1, codecs.HORIZONTAL, codecs.FLOATING):
            reason = f"predictor {self.predictor}"
        elif page.imagedepth > 1:
            reason = "a volume"
        if reason:
            raise DataError(
                f"{self.name}: this kind of TIFF is not read: {reason}. Convert it: "
                f"{_SHOW.format(self.name, Path(self.name).stem)}.",
                code="tile-format",
            )

    def load(self, y0: int, y1: int, x0: int, x1: int) -> Pixels:
        """The block whose corner is (y0, x0), cut at the edge of the scene: `[y1 - y0, x1 - x0, C]`."""
        place = y0 // self.block[0] * self.across + x0 // self.block[1]
        try:
            if self.planar:
                per = self.across * self.down
                planes = [self._decoded(place + k * per, y1 - y0, 1) for k in range(self.samples)]
                block = np.concatenate(planes, axis=2)
            else:
                block = self._decoded(place, y1 - y0, self.samples)
        except DataError:
            raise
        except Exception as error:  # damaged blocks lead the decoders to errors of many kinds
            raise _corrupt(self.name, error) from error
        return self._coloured(np.ascontiguousarray(block[: y1 - y0, : x1 - x0]))

    def _decoded(self, place: int, rows: int, samples: int) -> Pixels:
        high = self.block[0] if self.tiled else rows
        shape = (high, self.block[1], samples)
        offset, count = self.offsets[place], self.counts[place]
        if not count:  # a sparse file leaves out blocks that hold nothing
            return np.full(shape, 0 if self.nodata is None else self.nodata, self.stored)
        if offset + count > self.size:
            raise ValueError(f"block {place} ends at byte {offset + count} of a file of {self.size}")
        data = self.read(count, offset)
        if self.compression in codecs.PICTURES:
            block = codecs.picture(data, self.compression, tables=self.tables, photometric=self.photometric)
            if block.shape[0] < rows or block.shape[1:] != shape[1:] or block.dtype != self.stored:
                raise ValueError(f"block {place} is {block.dtype} {block.shape}, expected {shape}")
            return block
        size = int(np.prod(shape)) * np.dtype(self.stored).itemsize
        raw = codecs.unpack(data, self.compression, size)
        if self.predictor == codecs.FLOATING:
            return codecs.undo_floating(raw, shape, np.dtype(self.stored).itemsize)
        kind = np.dtype(self.stored).newbyteorder(self.order)
        block = np.frombuffer(raw, kind).reshape(shape).astype(kind.newbyteorder("="), copy=False)
        return codecs.undo(block, self.predictor)

    def _coloured(self, block: Pixels) -> Pixels:
        if self.palette is not None:
            table: npt.NDArray[np.uint8] = (np.asarray(self.palette) >> 8).astype(np.uint8).T
            return table[np.minimum(block[..., 0], len(table) - 1)]
        if self.photometric == _WHITE_IS_ZERO and self.dtype.kind == "u":
            return np.asarray(np.iinfo(self.dtype).max - block)
        return block


def _photograph(page: Any) -> bool:
    """Whether it is a picture in 8 bits: grey, RGB, a palette or CMYK, with alpha or without."""
    if page.bitspersample != 8 or np.dtype(page.dtype).kind != "u":
        return False
    if page.photometric in (0, 1, 2):
        more = [int(kind) for kind in page.extrasamples]
        plain = page.samplesperpixel - len(more) in (1, 3)
        return plain and more in ([], *([kind] for kind in _ALPHA))
    return int(page.samplesperpixel) <= 4


def _nodata(page: Any) -> float | None:
    tag = page.tags.get(42113)
    try:
        return None if tag is None else float(str(tag.value).strip("\0 "))
    except ValueError:
        return None


def _corrupt(name: str, error: Exception) -> DataError:
    reason = printable(str(error) or type(error).__name__)[:200]
    return DataError(
        f"{name}: the TIFF is damaged or breaks off early ({reason}). Fetch or write it again.",
        code="tile-corrupt",
    )
