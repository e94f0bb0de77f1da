"""Cloud-Optimised GeoTIFF: tiled, with overviews, all directories first and the smallest overview's pixels
next.

Two passes over files, one tile in memory: overviews are made from the scratch level by level, as scratches of
their own, then tiles are compressed from the smallest level up, and the directories in front are filled in.
Above 4 GB the file is a BigTIFF. Sources: TIFF 6.0; OGC Cloud Optimized GeoTIFF 1.0 (21-026); GDAL's nodata
tag 42113.
Shape letters: H W pixels, K planes.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from niwaki.errors import RuntimeFailed
from niwaki.lazy import require
from niwaki.rasters.raster import Geo
from niwaki.tile.scratch import Raw

Pixels = npt.NDArray[Any]
Palette = tuple[tuple[int, int, int], ...]
Tag = tuple[int, int, Any]
"""Number, TIFF type, and values; or bytes of type 2."""

TILE = 512
_FORMATS = {1: "B", 2: "s", 3: "H", 4: "I", 12: "d", 16: "Q"}
_CLASSIC_MOST = 4_000_000_000


def write(
    raw: Raw,
    path: Path,
    *,
    geo: Geo | None = None,
    nodata: float | None = None,
    palette: Palette = (),
    memory: int = 1 << 26,
    big: bool | None = None,
) -> None:
    """Writes a scratch `[H, W]` or `[K, H, W]` as a Cloud-Optimised GeoTIFF, deflated.

    Args:
        geo: tags of the CRS and transform, copied.
        nodata: the value of pixels without data.
        palette: colours of classes, for one plane of uint8.
        memory: bytes that rows waiting to be compressed may take.
        big: BigTIFF; unless told, where the file may grow above 4 GB.
    Raises:
        RuntimeFailed: read back, it is none. [tile-invalid]
    """
    levels = _overviews(raw, nodata)
    if big is None:  # deflate adds less than a thousandth to what it cannot pack
        big = is_big(sum(level.size for level in levels))
    directories = [_tags(level, k, geo, nodata, palette, big=big) for k, level in enumerate(levels)]
    try:
        with path.open("wb") as file:
            places = _reserve(file, directories, big)
            for k in range(len(levels) - 1, -1, -1):
                offsets, counts = _tiles(file, levels[k], nodata, memory)
                _set(directories[k], offsets, counts)
            for tags, place, after in zip(directories, places, [*places[1:], 0], strict=True):
                file.seek(place)
                file.write(_directory(tags, place, after, big))
        if found := faults(path):
            raise RuntimeFailed(
                f"{path.name}: what was written is no Cloud-Optimised GeoTIFF: {found[0]}. Look at the disk, "
                "and write it again.",
                code="tile-invalid",
            )
    finally:
        for level in levels[1:]:
            level.close()
            level.path.unlink(missing_ok=True)


def is_big(size: int) -> bool:
    """Whether so many bytes of pixels may come to more than a classic TIFF holds, whatever deflate does."""
    return size * 1.002 + 1e6 > _CLASSIC_MOST


def faults(path: Path) -> list[str]:
    """What makes a file no Cloud-Optimised GeoTIFF: its tiles, overviews, and the order of its parts."""
    tifffile = require("tifffile", extra="tiles")
    found = []
    with tifffile.TiffFile(path) as file:
        pages = list(file.pages)
        first = min(min(page.dataoffsets) for page in pages)
        if any(page.offset > first for page in pages):
            found.append("not all directories lie before the pixels")
        for k, page in enumerate(pages):
            if not page.is_tiled:
                found.append(f"level {k} is not tiled")
            if k and not (page.is_reduced and max(page.shape[-2:]) < max(pages[k - 1].shape[-2:])):
                found.append(f"level {k} is no overview of the one before")
            if k and min(pages[k - 1].dataoffsets) < max(page.dataoffsets):
                found.append(f"the pixels of level {k - 1} lie before those of level {k}")
        if max(pages[-1].shape[-2:]) > TILE:
            found.append("no overview fits one tile")
    return found


def _overviews(raw: Raw, nodata: float | None) -> list[Raw]:
    """The scratch and its halvings, until one tile holds all."""
    levels = [raw]
    while max(levels[-1].shape[-2:]) > TILE:
        above = levels[-1]
        height, width = above.shape[-2:]
        shape = (*above.shape[:-2], -(-height // 2), -(-width // 2))
        level = Raw(raw.path.with_name(f"overview{len(levels)}.npy"), shape, raw.dtype)
        rows = max(2, (1 << 20) // width // 2 * 2)
        for plane in range(raw.planes):
            for y in range(0, height, rows):
                block = halved(above.read(y, min(y + rows, height), 0, width, plane))
                level.put_plane(plane, y // 2, block)
        levels.append(level)
    return levels


def halved(block: Pixels) -> Pixels:
    """Half the rows and columns, rounded up: of 2 x 2 classes the most frequent, the first of equally frequent
    ones; of floats the mean of those that are not nan."""
    padded = np.pad(block, [(0, n % 2) for n in block.shape], mode="edge")
    a, b, c, d = padded[::2, ::2], padded[::2, 1::2], padded[1::2, ::2], padded[1::2, 1::2]
    if block.dtype.kind == "f":
        four = np.stack((a, b, c, d))
        held = ~np.isnan(four)
        count = held.sum(0)
        total = np.where(held, four, 0).sum(0, dtype=block.dtype)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(block.dtype)
    first = (a == b) | (a == c) | (a == d)
    second = (b == c) | (b == d)
    return np.where(first, a, np.where(second, b, np.where(c == d, c, a)))


def _tags(
    raw: Raw, level: int, geo: Geo | None, nodata: float | None, palette: Palette, *, big: bool
) -> list[Tag]:
    """All tags of a level, with places for offsets and counts."""
    height, width = raw.shape[-2:]
    planes = raw.planes
    blocks = planes * -(-height // TILE) * -(-width // TILE)
    coloured = bool(palette) and planes == 1 and raw.dtype == np.uint8
    kind = {"u": 1, "i": 2, "f": 3}[raw.dtype.kind]
    long = 16 if big else 4
    tags: list[Tag] = [
        (256, 4, (width,)),
        (257, 4, (height,)),
        (258, 3, (8 * raw.dtype.itemsize,) * planes),
        (259, 3, (8,)),
        (262, 3, (3 if coloured else 1,)),
        (277, 3, (planes,)),
        (284, 3, (2 if planes > 1 else 1,)),
        (322, 3, (TILE,)),
        (323, 3, (TILE,)),
        (324, long, (0,) * blocks),
        (325, 4, (0,) * blocks),
        (339, 3, (kind,) * planes),
    ]
    if level:
        tags.append((254, 4, (1,)))
    if planes > 1:
        tags.append((338, 3, (0,) * (planes - 1)))
    if coloured:
        colours = np.zeros((256, 3), np.uint16)
        colours[: len(palette)] = np.asarray(palette[:256], np.uint16) * 257
        tags.append((320, 3, tuple(colours.T.ravel().tolist())))
    if nodata is not None:
        text = "nan" if np.isnan(nodata) else f"{nodata:g}"
        tags.append((42113, 2, text.encode() + b"\0"))
    if geo is not None and not level:
        tags += [(number, kind, _values(kind, value)) for number, (kind, value) in geo.tags.items()]
    return sorted(tags, key=lambda tag: tag[0])


def _values(kind: int, value: Any) -> Any:
    if kind == 2:
        return (value.encode() if isinstance(value, str) else bytes(value)).rstrip(b"\0") + b"\0"
    return tuple(value)


def _reserve(file: BinaryIO, directories: list[list[Tag]], big: bool) -> list[int]:
    """Writes the head and room for the directories; where each begins."""
    head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) if big else struct.pack("<2sHI", b"II", 42, 8)
    places, place = [], len(head)
    file.write(head)
    for tags in directories:
        places.append(place)
        room = _directory(tags, place, 0, big)
        file.write(room)
        place += len(room)
    return places


def _directory(tags: list[Tag], place: int, after: int, big: bool) -> bytes:
    """A directory that lies at `place`, with its values behind it; `after` is where the next one lies."""
    entry, word = (20, 8) if big else (12, 4)
    values_at = place + (8 if big else 2) + entry * len(tags) + word
    entries, values = b"", b""
    for number, kind, value in tags:
        count = len(value)
        data = value if kind == 2 else struct.pack(f"<{count}{_FORMATS[kind]}", *value)
        if len(data) > word:
            where = struct.pack("<Q" if big else "<I", values_at + len(values))
            values += data + b"\0" * (-len(data) % 8)
        else:
            where = data.ljust(word, b"\0")
        entries += struct.pack("<HHQ" if big else "<HHI", number, kind, count) + where
    length = struct.pack("<Q" if big else "<H", len(tags))
    made = length + entries + struct.pack("<Q" if big else "<I", after) + values
    return made + b"\0" * (-(place + len(made)) % 8)


def _tiles(file: BinaryIO, raw: Raw, nodata: float | None, memory: int) -> tuple[list[int], list[int]]:
    """Compresses all tiles of a level to the file's end; their offsets and lengths."""
    offsets, counts = [], []
    height, width = raw.shape[-2:]
    # as many columns of a row of tiles at a time as a quarter of the memory holds
    columns = max(1, memory // 4 // (TILE * TILE * raw.dtype.itemsize)) * TILE
    for plane in range(raw.planes):
        for y in range(0, height, TILE):
            for left in range(0, width, columns):
                band = raw.read(y, min(y + TILE, height), left, min(left + columns, width), plane)
                for x in range(0, band.shape[1], TILE):
                    part = band[:, x : x + TILE]
                    if part.shape != (TILE, TILE):
                        whole = np.full((TILE, TILE), 0 if nodata is None else nodata, raw.dtype)
                        whole[: part.shape[0], : part.shape[1]] = part
                        part = whole
                    data = zlib.compress(np.ascontiguousarray(part).data, 6)
                    offsets.append(file.tell())
                    counts.append(len(data))
                    file.write(data)
    return offsets, counts


def _set(tags: list[Tag], offsets: list[int], counts: list[int]) -> None:
    for k, (number, kind, _) in enumerate(tags):
        if number in (324, 325):
            tags[k] = (number, kind, tuple(offsets if number == 324 else counts))
