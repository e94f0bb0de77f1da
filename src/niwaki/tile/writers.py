"""Where a prediction goes: an array, or a file that is made from the scratch once all pixels are there.

A file appears under its name only when it is whole: it is written under another name in the scratch's folder
and moved. Shape letters: H W pixels, K classes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from niwaki.bands import Stack
from niwaki.errors import DataError
from niwaki.images import printable
from niwaki.rasters.raster import Geo, Raster
from niwaki.tile import cog, geojson, png
from niwaki.tile.readers import Source
from niwaki.tile.scratch import Raw, Scratch, raw_bytes

Pixels = npt.NDArray[Any]
Palette = tuple[tuple[int, int, int], ...]

_SUFFIXES = {
    "classes": (".tif", ".tiff", ".npy", ".zarr", ".png", ".geojson"),
    "probabilities": (".tif", ".tiff", ".npy", ".zarr"),
    "objects": (".npy", ".tif", ".tiff", ".zarr", ".png", ".json", ".geojson"),
}


_AXES = ["y", "x"]


class Sink(Protocol):
    """What takes finished rows."""

    def write(self, y: int, x: int, block: Pixels) -> None:
        """Puts `[n, w]` or `[K, n, w]` at row y, column x."""

    def done(self, x0: int, x1: int, y: int) -> bool:
        """Whether the strip of columns x0 to x1 was on disk down to row y when this began."""

    def mark(self, x0: int, x1: int, y: int) -> None:
        """The strip of columns x0 to x1 is whole down to row y."""

    def finish(self, memory: int) -> None:
        """All is there; makes what was asked for, within so many bytes of memory."""


def check(sink: str | Path | Pixels, *, output: str, source: Source) -> None:
    """Nothing, when such output can be written there.

    Raises:
        DataError: the file's ending or folder is none that is written to, or it would take the place of the
            scene, or of a folder that is no prediction. [tile-sink, tile-overwrite]
    """
    if isinstance(sink, np.ndarray):
        return
    path = Path(sink)
    fault = ""
    if path.suffix.lower() not in _SUFFIXES[output]:
        fault = f"{output} are written to {', '.join(_SUFFIXES[output])}"
    elif not path.parent.is_dir():
        fault = "its folder is not there"
    elif path.is_dir() and path.suffix.lower() != ".zarr":
        fault = "it is a folder"
    if fault:
        raise DataError(f"{printable(str(path))}: cannot be written: {fault}.", code="tile-sink")
    apart(path, source)
    _replaceable(path)


def apart(sink: str | Path, source: Source) -> None:
    """Nothing, when what is written there leaves the scene as it is.

    Raises:
        DataError: it is a file of the scene, or a folder in or around one. [tile-overwrite]
    """
    out = Path(sink).resolve()
    for file in _files(source):
        held = file.resolve()
        if (
            out == held
            or out in held.parents
            or held in out.parents
            or (out.exists() and held.exists() and out.samefile(held))
        ):
            raise DataError(
                f"{printable(str(sink))}: is the scene that is read, or a folder in or around it: "
                f"{printable(str(file))} would be lost. Write to another name.",
                code="tile-overwrite",
            )


def _files(source: Source) -> list[Path]:
    """The files behind a scene."""
    if isinstance(source, np.ndarray):
        named = source.filename if isinstance(source, np.memmap) else None
        return [Path(str(named))] if named else []
    if isinstance(source, Stack):
        return [file for file in source.files if isinstance(file, Path)]
    return [Path(source)]


def _replaceable(path: Path) -> None:
    """Nothing, where no folder is there, or an empty one, or a Zarr array as `_zarr` writes them.

    Raises:
        DataError: it holds something else. [tile-overwrite]
    """
    if not path.is_dir() or not any(path.iterdir()):
        return
    try:
        held = json.loads((path / "zarr.json").read_bytes())
        if held["node_type"] == "array" and held["dimension_names"][-2:] == _AXES:
            return
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DataError(
        f"{printable(str(path))}: is a folder that is no prediction of niwaki, and is not replaced. Take it "
        "away, or write to another name.",
        code="tile-overwrite",
    )


@contextlib.contextmanager
def opened(
    sink: str | Path | Pixels,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    raster: Raster,
    identity: Any,
    palette: Palette,
) -> Iterator[Sink]:
    """The sink to write to. When the run breaks off, a scratch that has an identity stays to go on with.

    Raises:
        DataError: an array of another shape, or of a type that does not hold what is written. [tile-sink]
        RunError: no room, or another process writes there. [tile-disk, tile-busy]
    """
    if isinstance(sink, np.ndarray):
        # floats may be of another size; numbers of classes must all have a place
        holds = sink.dtype.kind == "f" if dtype.kind == "f" else np.can_cast(dtype, sink.dtype, "safe")
        if sink.shape != shape or not holds:
            raise DataError(
                f"sink: got an array {sink.dtype} {list(sink.shape)}, expected {dtype} {list(shape)}.",
                code="tile-sink",
            )
        yield _Array(sink)
        return
    path = Path(sink)
    if path.suffix.lower() == ".geojson":
        geojson.projection(raster.geo)  # told before hours are spent
    write = _maker(path, raster.geo, raster.nodata is not None, palette)
    finishing = 0 if path.suffix.lower() == ".npy" else int(raw_bytes(shape, dtype) * 5 / 3)
    scratch = Scratch(path, shape, dtype, identity=identity, finishing=finishing, resume=identity is not None)
    try:
        yield _File(scratch, write)
    except BaseException:
        if identity is None:
            scratch.remove()
        raise
    finally:
        scratch.close()


class _Array:
    """Rows put into an array in memory."""

    def __init__(self, array: Pixels) -> None:
        self.array = array

    def write(self, y: int, x: int, block: Pixels) -> None:
        self.array[..., y : y + block.shape[-2], x : x + block.shape[-1]] = block

    def done(self, x0: int, x1: int, y: int) -> bool:
        return False

    def mark(self, x0: int, x1: int, y: int) -> None:
        return

    def finish(self, memory: int) -> None:
        return


class _File:
    """Rows put into a scratch, out of which the file is made."""

    def __init__(self, scratch: Scratch, make: Callable[[Raw, Path, int], None]) -> None:
        self.scratch, self.make = scratch, make

    def write(self, y: int, x: int, block: Pixels) -> None:
        with self.scratch.guarded():
            self.scratch.raw.write(y, x, block)

    # both ends of the strip: another memory cuts other strips, which may begin at the same column
    def done(self, x0: int, x1: int, y: int) -> bool:
        return f"{x0}-{x1}:{y}" in self.scratch.journal

    def mark(self, x0: int, x1: int, y: int) -> None:
        self.scratch.mark(f"{x0}-{x1}:{y}")

    def finish(self, memory: int) -> None:
        out = self.scratch.out
        made = self.scratch.folder / f"made{out.suffix}"
        for left in (made, made.with_name("before")):  # by a run that was killed
            if left.is_dir():
                shutil.rmtree(left)
        with self.scratch.guarded():
            self.make(self.scratch.raw, made, memory)
            _moved(made, out)
        self.scratch.remove()


def _moved(made: Path, out: Path) -> None:
    """Puts what was made in the place of what was there, on disk before it bears the name."""
    if made.is_file():
        handle = os.open(made, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    elif out.is_dir():
        _replaceable(out)  # hours have passed since it was asked for
        out.replace(made.with_name("before"))  # goes with the scratch
    made.replace(out)


def _maker(path: Path, geo: Geo | None, void: bool, palette: Palette) -> Callable[[Raw, Path, int], None]:
    suffix = path.suffix.lower()

    def make(raw: Raw, made: Path, memory: int) -> None:
        nodata = _nodata(raw.dtype) if void else None
        if suffix == ".npy":
            raw.sync()
            made.unlink(missing_ok=True)
            os.link(raw.path, made)
        elif suffix == ".png":
            png.write(raw, made, palette=palette)
        elif suffix == ".zarr":
            _zarr(raw, made, nodata)
        elif suffix == ".geojson":
            geojson.write(raw, made, geo=geo, nodata=nodata)
        else:
            cog.write(raw, made, geo=geo, nodata=nodata, palette=palette, memory=memory)

    return make


def _nodata(dtype: np.dtype[Any]) -> float:
    return float("nan") if dtype.kind == "f" else float(np.iinfo(dtype).max)


def _zarr(raw: Raw, path: Path, nodata: float | None, *, chunk: int = 512) -> None:
    """A Zarr array of chunks of 512 pixels, written chunk by chunk."""
    from niwaki.lazy import require

    zarr = require("zarr", extra="tiles")
    height, width = raw.shape[-2:]
    planes = raw.shape[:-2]
    names = [*(["class"] if planes else []), *_AXES]
    fill: Any = {} if nodata is None else {"fill_value": nodata if raw.dtype.kind == "f" else int(nodata)}
    array = zarr.create_array(
        path,
        shape=raw.shape,
        chunks=(*(1 for _ in planes), min(chunk, height), min(chunk, width)),
        dtype=raw.dtype,
        dimension_names=names,
        **fill,
    )
    for plane in range(raw.planes):
        for y in range(0, height, chunk):
            for x in range(0, width, chunk):
                y1, x1 = min(y + chunk, height), min(x + chunk, width)
                place = (*((plane,) if planes else ()), slice(y, y1), slice(x, x1))
                array[place] = raw.read(y, y1, x, x1, plane)
