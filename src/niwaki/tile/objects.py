"""Objects of scenes of any size: read by window, numbered in a map that lies on disk where memory is too small,
written whole or not at all. What finds them is niwaki.instances.

Shape letters: H W pixels, T pixels of a tile's side, C channels.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki import files, instances
from niwaki.errors import DataError
from niwaki.images import to_channels
from niwaki.instances.tiled import Find, Tiled
from niwaki.rasters.raster import Raster, Windows
from niwaki.tile import geojson, pixels, writers
from niwaki.tile.budget import MB
from niwaki.tile.readers import Source, chosen, open_source
from niwaki.tile.scene import Progress, check_bands
from niwaki.tile.scratch import full

Numbers = npt.NDArray[np.int64]
PNG_MOST = 2**16 - 1
_ROWS = 256


class Scene:
    """A scene as slices of pixels u8 `[H, W, C]`, which is what `instances.tiled` asks for.

    Args:
        keep: bytes of decoded blocks to keep.
        scale: as in `tile.predict`.
        channels: of the model; grey becomes colours and colours grey, where the scene is a photograph.
    """

    def __init__(self, raster: Raster, *, keep: int, scale: pixels.Scale, channels: int) -> None:
        self._windows = Windows(raster, keep=keep)
        self._scaled = pixels.scaler(raster.dtype, scale)
        self._channels = channels
        self.shape = (*raster.shape[:2], channels)

    def __getitem__(self, place: tuple[slice, slice]) -> npt.NDArray[np.uint8]:
        (y0, y1, _), (x0, x1, _) = (part.indices(side) for part, side in zip(place, self.shape, strict=False))
        taken = self._scaled(self._windows.read(y0, x0, y1 - y0, x1 - x0))
        return taken if taken.shape[2] == self._channels else to_channels(taken, self._channels)


@contextlib.contextmanager
def opened(
    source: Source,
    *,
    channels: int,
    tile: int,
    memory_mb: float = 512,
    scale: pixels.Scale = "bits",
    bands: Sequence[int] = (),
    level: int = 0,
) -> Iterator[tuple[Scene, Raster]]:
    """A scene to find objects in, and its raster.

    Args:
        source, bands, level, scale: as in `tile.predict`.
        channels: that the model takes.
        tile: side of the windows that will be read.
        memory_mb: half of it holds decoded pixels.
    Raises:
        DataError: the scene cannot be read, or has other bands. [image-missing, bands-count, tile-*]
        SpecError: the scale is none, or pixels of this type need one. [tile-scale]
    """
    raster = chosen(open_source(source, memory=int(memory_mb * MB / 2), level=level), bands)
    with contextlib.closing(raster):
        have = raster.shape[2]
        picture = raster.dtype.itemsize == 1 and {have, channels} == {1, 3}
        if not picture and not (raster.photograph and have in (2, 4) and channels in (1, 3)):
            check_bands(_Takes(channels), raster)
        keep = min(raster.need(tile, raster.shape[1]), int(memory_mb * MB / 2))
        yield Scene(raster, keep=keep, scale=scale, channels=channels), raster


class _Takes:
    """Something that takes so many bands."""

    def __init__(self, channels: int) -> None:
        self.channels = channels


def found_in(
    find: Find,
    scene: Scene,
    *,
    out: Numbers,
    tile: int,
    context: int,
    show: Callable[[Progress], None] | None = None,
) -> Tiled:
    """The objects of a scene, as `instances.tiled` finds them; `show` is called after each tile."""
    began = time.perf_counter()

    def told(done: int, tiles: int) -> None:
        seconds = time.perf_counter() - began
        if show is not None:
            show(Progress(done=done, tiles=tiles, seconds=seconds, eta=seconds / done * (tiles - done)))

    return instances.tiled(find, scene, tile=tile, context=context, slack=min(8, context), out=out, show=told)


@contextlib.contextmanager
def label_map(shape: tuple[int, int], beside: Path, *, memory_mb: float) -> Iterator[Numbers]:
    """int64 `[H, W]` of zeros: in memory where a quarter of it is enough, else in a file that goes afterwards.

    Raises:
        RunError: the disk has not the room. [tile-disk]
    """
    size = 8 * shape[0] * shape[1]
    if size <= memory_mb * MB / 4:
        yield np.zeros(shape, np.int64)
        return
    path = beside.with_name(f".{beside.name}.{os.getpid()}.labels")
    try:
        with path.open("wb") as file:
            try:  # all at once: a mapped file on a full disk would end the process without a word
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise full(beside, need=size, free=shutil.disk_usage(path.parent).free) from error
        yield np.memmap(path, np.int64, "r+", shape=shape)
    finally:
        path.unlink(missing_ok=True)


def check(out: Path, source: Source, raster: Raster) -> None:
    """Nothing, when objects of that scene can be written there: asked before they are looked for.

    Raises:
        DataError: see `writers.check`; or polygons are asked of a scene that does not say where it lies.
            [tile-sink, tile-overwrite, tile-geo]
    """
    writers.check(out, output="objects", source=source)
    writers.apart(_instead(out), source)
    if out.suffix.lower() == ".geojson":
        geojson.projection(raster.geo)


def write(found: Tiled, out: Path, *, raster: Raster, memory_mb: float) -> Path:
    """The file that was written, whole or not at all: `out`; or .npy beside it, where it is a PNG and there are
    more objects than a PNG numbers.

    .npy, .zarr int64; .tif (COG) uint32; .png uint16; .json COCO results; .geojson polygons in WGS 84.

    Raises:
        RunError: no room, or another process writes there. [tile-disk, tile-busy]
    """
    suffix = out.suffix.lower()
    if suffix in (".json", ".geojson"):
        # of an object that others cover whole there is nothing to write
        scores = [float(found.scores[int(k) - 1]) for k in np.unique(found.labels) if k]
        if suffix == ".json":
            files.write_json(out, instances.to_coco(found.labels, image=0, scores=scores))
            return out
        project = geojson.projection(raster.geo)
        files.write_json(out, instances.to_geojson(found.labels, scores=scores, project=project))
        return out
    if suffix == ".png" and len(found.scores) > PNG_MOST:
        out, suffix = _instead(out), ".npy"
    kind: Any = {".png": np.uint16, ".tif": np.uint32, ".tiff": np.uint32}.get(suffix, np.int64)
    if len(found.scores) > np.iinfo(kind).max:
        raise DataError(f"{out.name}: holds no {len(found.scores)} numbers. Write .npy.", code="tile-sink")
    shape, dtype = found.labels.shape, np.dtype(kind)
    plain = replace(raster, nodata=None)  # 0 is where no object is, with data or without
    with writers.opened(out, shape, dtype, raster=plain, identity=None, palette=()) as sink:
        for y in range(0, shape[0], _ROWS):
            sink.write(y, 0, np.asarray(found.labels[y : y + _ROWS]).astype(kind))
        sink.finish(int(memory_mb * MB / 4))
    return out


def _instead(out: Path) -> Path:
    return out.with_name(f"{out.name}.npy")


def kinds(labels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """0 background, 1 object, 2 the line around an object, u8 `[H, W]`: what a viewer shows."""
    from niwaki import overlays

    here = labels > 0
    return np.where(overlays.borders(labels) & here, 2, here).astype(np.uint8)
