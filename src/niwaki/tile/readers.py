"""Opening a scene: arrays, .npy, TIFF, Zarr, and pictures that fit into memory; each becomes a Raster.

What cannot be read by window, such as JPEG and PNG, is decoded whole, and refused above the budget with the
memory it takes and the command that makes a format of it that can be read by window.
Shape letters: H W pixels, C channels.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from niwaki.bands import Stack
from niwaki.errors import DataError
from niwaki.images import decode, head, printable, stored
from niwaki.lazy import require
from niwaki.rasters.raster import Pixels, Raster
from niwaki.rasters.tiff import open_tiff

Source = str | Path | np.ndarray[Any, Any] | Stack

_TIFFS = frozenset([".tif", ".tiff", ".gtiff", ".svs", ".ndpi", ".scn", ".btf", ".tf8", ".ome"])
_KINDS = "GeoTIFF or any TIFF, slides, .zarr, .npy, JPEG, PNG, or an array"
_TAKEN = {"1": 3, "L": 2, "I;16": 4, "I;16B": 4, "I": 8, "RGB": 7, "": 22}
"""Bytes for a pixel while a picture is decoded, by Pillow's mode: what Pillow holds and what is made of it."""
_MB = 1 << 20
_WHOLE = 256 << 20


def open_source(source: Source, *, memory: int, level: int = 0) -> Raster:
    """The scene behind an array or path.

    Args:
        memory: bytes that a format may take that is decoded whole.
        level: of a pyramid, 0 being the full size.
    Raises:
        DataError: it is not there, damaged, of a kind that is not read, or does not fit.
            [image-missing, tile-corrupt, tile-format, tile-whole]
    """
    if isinstance(source, np.ndarray):
        return of_array(source)
    if isinstance(source, Stack):
        return of_stack(source, memory=memory, level=level)
    path = Path(source)
    if not path.exists():
        raise DataError(f"{printable(str(path))}: there is no such file.", code="image-missing")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return of_npy(path)
    if suffix in _TIFFS:
        return open_tiff(path, level=level)
    if suffix == ".zarr" or (path.is_dir() and ((path / "zarr.json").exists() or (path / ".zarray").exists())):
        return of_zarr(path, level=level)
    return of_picture(path, memory=memory)


def class_map(source: Source) -> Raster:
    """A class map as numbers, also where the file has colours for them."""
    if isinstance(source, str | Path) and Path(source).suffix.lower() in _TIFFS and Path(source).exists():
        return open_tiff(Path(source), coloured=False)
    return open_source(source, memory=_WHOLE)


def of_stack(stack: Stack, *, memory: int, level: int = 0) -> Raster:
    """Files of bands as one scene; all must be cut into the same blocks of the same size.

    Raises:
        DataError: they are not of one grid and type, or one cannot be read. [bands-size, image-missing, tile-*]
    """
    parts = []
    for file in stack.files:
        if isinstance(file, bytes):
            raise DataError("A scene of bands is read from files, got bytes.", code="tile-format")
        parts.append(open_source(file, memory=memory // len(stack.files), level=level))
    first = parts[0]
    for part, band in zip(parts, stack.names, strict=True):
        if (part.shape[:2], part.block, part.dtype) != (first.shape[:2], first.block, first.dtype):
            raise DataError(
                f"{part.name}: band {band} is {_grid(part)}, {first.name} is {_grid(first)}. Bring them to one "
                "grid: gdalbuildvrt -separate scene.vrt B*.tif; gdal_translate -of COG scene.vrt scene.tif.",
                code="bands-size",
            )

    def load(y0: int, y1: int, x0: int, x1: int) -> Pixels:
        return np.concatenate([part.load(y0, y1, x0, x1) for part in parts], axis=2)

    def close() -> None:
        for part in parts:
            part.close()

    nodata = {part.nodata for part in parts}
    channels = sum(part.shape[2] for part in parts)
    return replace(
        first,
        shape=(*first.shape[:2], channels),
        load=load,
        # all bands of a block wait until they are put together
        extra=max(part.extra for part in parts) + _block_bytes(first, channels),
        held=sum(part.held for part in parts),
        nodata=nodata.pop() if len(nodata) == 1 else None,
        identity=[part.identity for part in parts],
        close=close,
    )


def _grid(raster: Raster) -> str:
    height, width, _ = raster.shape
    return f"{width} x {height} pixels of {raster.dtype} in blocks of {raster.block[1]} x {raster.block[0]}"


def _block_bytes(raster: Raster, channels: int) -> int:
    return raster.block[0] * raster.block[1] * channels * raster.dtype.itemsize


def chosen(raster: Raster, bands: Sequence[int]) -> Raster:
    """The same scene with these of its bands, the first being 1; all of them where none is named.

    Raises:
        DataError: it has no such band. [bands-count]
    """
    if not bands:
        return raster
    channels = raster.shape[2]
    if not all(1 <= band <= channels for band in bands):
        raise DataError(
            f"{raster.name}: has bands 1 to {channels}, asked for {', '.join(map(str, bands))}.",
            code="bands-count",
        )
    index = [band - 1 for band in bands]
    return replace(
        raster,
        shape=(*raster.shape[:2], len(index)),
        load=lambda y0, y1, x0, x1: np.ascontiguousarray(raster.load(y0, y1, x0, x1)[..., index]),
        extra=raster.extra + _block_bytes(raster, channels),
    )


def of_array(array: Pixels, *, name: str = "array") -> Raster:
    """An array `[H, W]` or `[H, W, C]` as a scene; a memory map is read from its file, not mapped in."""
    shaped = _shaped(array, name)
    if isinstance(array, np.memmap) and array.mode in ("r", "r+", "w+") and array.flags.c_contiguous:
        base = array.base if isinstance(array.base, np.memmap) else array
        if array.filename and base.shape == array.shape:  # a view of a part begins elsewhere in the file
            array.flush()
            return _of_file(Path(str(array.filename)), array.dtype, shaped.shape, array.offset, name)

    def load(y0: int, y1: int, x0: int, x1: int) -> Pixels:
        return np.array(shaped[y0:y1, x0:x1])

    probe = np.ascontiguousarray(shaped[:: max(1, len(shaped) // 16)])
    identity = [name, list(shaped.shape), str(shaped.dtype), zlib.crc32(probe.view(np.uint8).data)]
    return Raster(name=name, shape=shaped.shape, dtype=shaped.dtype, load=load, identity=identity)


def of_npy(path: Path) -> Raster:
    """A .npy file `[H, W]` or `[H, W, C]`, read by window."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise _corrupt(path.name, error) from error
    shaped = _shaped(array, printable(path.name))
    if not array.flags.c_contiguous:
        raise DataError(
            f"{printable(path.name)}: is stored column by column. Save numpy.ascontiguousarray of it.",
            code="tile-format",
        )
    return _of_file(path, array.dtype, shaped.shape, array.offset, printable(path.name))


def _of_file(path: Path, dtype: np.dtype[Any], shape: tuple[int, int, int], offset: int, name: str) -> Raster:
    """Rows of pixels that lie in a file one after the other: read, not mapped, so that none stays in memory."""
    _, width, channels = shape
    pixel = channels * dtype.itemsize
    handle = os.open(path, os.O_RDONLY)

    def load(y0: int, y1: int, x0: int, x1: int) -> Pixels:
        out = np.empty((y1 - y0, x1 - x0, channels), dtype)
        for row in range(y0, y1):
            data = os.pread(handle, (x1 - x0) * pixel, offset + (row * width + x0) * pixel)
            if len(data) < (x1 - x0) * pixel:
                raise _corrupt(name, ValueError(f"row {row} is not there"))
            out[row - y0] = np.frombuffer(data, dtype).reshape(-1, channels)
        return out.astype(dtype.newbyteorder("="), copy=False)

    state = path.stat()
    identity = [str(path.resolve()), state.st_size, state.st_mtime_ns]
    native = dtype.newbyteorder("=")
    return Raster(
        name=name, shape=shape, dtype=native, load=load, identity=identity, close=lambda: _close(handle)
    )


def _close(handle: int) -> None:
    try:
        os.close(handle)
    except OSError:  # closed already
        return


def of_zarr(path: Path, *, level: int = 0) -> Raster:
    """A Zarr array, or the level of an OME-Zarr group; read by chunk."""
    zarr = require("zarr", extra="tiles")
    name = printable(path.name)
    try:
        held = zarr.open(path, mode="r")
        array = held if hasattr(held, "shape") else held[sorted(held.array_keys())[level]]
    except Exception as error:  # zarr's errors share no base
        raise _corrupt(name, error) from error
    order = _axes(array.shape, name)

    def load(y0: int, y1: int, x0: int, x1: int) -> Pixels:
        place: list[Any] = [0] * array.ndim
        place[order[0]], place[order[1]] = slice(y0, y1), slice(x0, x1)
        if order[2] is not None:
            place[order[2]] = slice(None)
        try:
            block = np.asarray(array[tuple(place)])
        except Exception as error:
            raise _corrupt(name, error) from error
        if order[2] is None:
            return block[..., None]
        return np.ascontiguousarray(np.moveaxis(block, 0, -1) if order[2] < order[0] else block)

    channels = 1 if order[2] is None else array.shape[order[2]]
    shape = (array.shape[order[0]], array.shape[order[1]], channels)
    chunk = (array.chunks[order[0]], array.chunks[order[1]])
    pixels = chunk[0] * chunk[1] * channels * array.dtype.itemsize
    return Raster(
        name=name,
        shape=shape,
        dtype=array.dtype.newbyteorder("="),
        load=load,
        block=chunk,
        extra=3 * pixels,  # stored bytes, decoded chunk and its copy
        identity=[
            str(path.resolve()),
            list(array.shape),
            *_state(path / array.path if path.is_dir() else path),
        ],
    )


def _state(path: Path) -> list[int]:
    """Numbers that change where a file, or any file below a folder, is written: the folder's own time says
    nothing of its chunks. One look at each, and each will be read in any case."""
    files, total, newest, mixed = 0, 0, 0, 0
    for folder, _, names in os.walk(path) if path.is_dir() else [(str(path.parent), [], [path.name])]:
        for name in names:
            state = Path(folder, name).stat()
            files, total, newest = files + 1, total + state.st_size, max(newest, state.st_mtime_ns)
            # an order of files is not promised, so what tells each apart is added up
            mixed += zlib.crc32(f"{folder}/{name} {state.st_size} {state.st_mtime_ns}".encode(errors="replace"))
    return [files, total, newest, mixed]


def _axes(shape: tuple[int, ...], name: str) -> tuple[int, int, int | None]:
    """Which axes are rows, columns and channels; channels are the short one of three, others must be 1 long."""
    long = [k for k, n in enumerate(shape) if n > 1]
    if len(long) == 2:
        return long[0], long[1], None
    if len(long) == 3:
        if shape[long[2]] <= shape[long[0]]:
            return long[0], long[1], long[2]
        return long[1], long[2], long[0]
    raise DataError(
        f"{name}: has shape {list(shape)}, expected [H, W], [H, W, C] or [C, H, W].", code="tile-format"
    )


def of_picture(path: Path, *, memory: int) -> Raster:
    """A JPEG, PNG or another picture that Pillow reads, decoded whole."""
    name = printable(path.name)
    try:
        width, height, mode = head(path)
    except Exception as error:
        raise DataError(
            f"{name}: is no scene that is read, expected {_KINDS}. Convert it: {_command(name)}.",
            code="tile-format",
        ) from error
    need = width * height * _TAKEN.get(mode, _TAKEN[""]) + path.stat().st_size
    if need > memory:
        raise _whole(name, str(-(-need // _MB)), memory)
    most = width * height
    if mode.startswith("I"):  # numbers of more than 8 bits are the model's Spec's to scale, as those of a TIFF
        pixels = stored(path, most=most)
        if pixels.dtype.itemsize > 2 and pixels.min() >= 0 and pixels.max() < 2**16:
            pixels = pixels.astype(np.uint16)
    else:
        pixels = decode(path, channels=1 if mode in ("1", "L") else 3, most=most)
    return replace(of_array(pixels, name=name), held=pixels.nbytes)


def _whole(name: str, need: str, memory: int) -> DataError:
    return DataError(
        f"{name}: a format that is not read by window takes {need} MB decoded whole, more than the "
        f"{memory // _MB} MB left for it. Convert it: {_command(name)}; or give more memory.",
        code="tile-whole",
    )


def _command(name: str) -> str:
    stem = Path(name).stem
    return f"gdal_translate -of COG {name} {stem}.tif   (or: vips tiffsave {name} {stem}.tif --tile)"


def _shaped(array: Pixels, name: str) -> Pixels:
    if array.ndim not in (2, 3) or min(array.shape) < 1 or array.dtype.kind not in "uif":
        raise DataError(
            f"{name}: got {array.dtype} {list(array.shape)}, expected numbers [H, W] or [H, W, C].",
            code="tile-format",
        )
    return array if array.ndim == 3 else array[..., None]


def _corrupt(name: str, error: Exception) -> DataError:
    reason = printable(str(error) or type(error).__name__)[:200]
    return DataError(
        f"{printable(name)}: is damaged or breaks off early ({reason}). Fetch or write it again.",
        code="tile-corrupt",
    )
