"""Images of any number of bands and any bits: read from TIFF, .npy or several files, brought to 8 bits,
resized.

Models take 8 bits a band. What a file holds in 16 bits or as numbers of another kind is stretched once, here,
from the range that the Spec states for each band (`stretched`): training, calibration, prediction, tiles and
serving all do it so. Eight bits are enough because the range is the band's own: a step is a 255th of what the
band was seen to take, its rounding 0.11 % of that, below the noise of sensors; and one type of input is what
every runtime takes and what int8 models round to in any case. Numpy, Pillow and (for TIFF) tifffile. Shape
letters: h w pixels, C bands.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from niwaki import images
from niwaki.errors import DataError, NiwakiError
from niwaki.rasters.raster import Raster, Windows
from niwaki.rasters.tiff import open_tiff

Pixels = npt.NDArray[Any]
ImageU8 = npt.NDArray[np.uint8]
Range = tuple[float, float]

TIFFS, ARRAYS = frozenset([".tif", ".tiff", ".gtiff", ".btf", ".tf8"]), frozenset([".npy"])
"""Endings of files that may hold bands."""
MAX_BYTES = 2**30
"""Bytes that one image may take once it is decoded; larger ones are scenes, read by window."""
_NPY, _TIFF = b"\x93NUMPY", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SHOWN = ({"red", "r", "b4", "b04"}, {"green", "g", "b3", "b03"}, {"blue", "b", "b2", "b02"})
_DARK, _BRIGHT = 2, 98


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Bands of one image that lie in several files: one file a band, or one a date.

    Args:
        files: a path or content of each, in the order of the bands.
        names: what each adds, such as `B02`; as many as files.
    """

    files: tuple[Path | bytes, ...]
    names: tuple[str, ...]


Source = Path | str | bytes | Stack
"""What is read: a file's path, its content, or several files."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a file's head says of its bands.

    Args:
        wide: more than 8 bits, or no whole numbers from 0 on.
        photograph: what `images.decode` reads as it should be read.
    """

    channels: int
    wide: bool
    photograph: bool


def kind(source: Source | Pixels, *, name: str | None = None) -> Kind | None:
    """How many bands a file has, from its head alone; None for a photograph's format, or where it cannot be
    told.

    A TIFF of 8 bits that calls itself grey, RGB, a palette or CMYK is a photograph, alpha included; one 16-bit
    band can be read as either.
    """
    if isinstance(source, np.ndarray):
        one = Kind(
            channels=source.shape[-1], wide=source.dtype != np.uint8, photograph=source.dtype == np.uint8
        )
        return (
            one if one.channels in (1, 3, 4) else Kind(channels=one.channels, wide=one.wide, photograph=False)
        )
    try:
        if isinstance(source, Stack):
            found = [_head(part, name) for part in source.files]
            wide = any(dtype != np.uint8 for _, dtype, _ in found)
            return Kind(channels=sum(shape[2] for shape, _, _ in found), wide=wide, photograph=False)
        if not _may_hold_bands(source):
            return None
        shape, dtype, photograph = _head(source, name)
    except NiwakiError:
        return None  # reading it will say what is wrong
    grey = shape[2] == 1 and dtype == np.uint16 and _is_tiff(source)
    return Kind(channels=shape[2], wide=dtype != np.uint8, photograph=photograph or grey)


def no_photograph(source: Source, *, name: str | None = None) -> int | None:
    """The number of bands of what `images.decode` would refuse or read wrongly, None for all else: several
    files, .npy, or another number of bands than 1 or 3 without a word of alpha."""
    found = kind(source, name=name)
    if found is None or found.photograph:
        return None
    plain = found.channels in (1, 3) and not isinstance(source, Stack) and _is_tiff(source)
    return None if plain else found.channels


def read(source: Source, *, name: str | None = None) -> tuple[Pixels, float | None]:
    """An image's bands as the file holds them `[h, w, C]`, and the value of pixels without data, where it says.

    A Stack's files are put one behind the other; a coarser one is repeated up to the finest, whose size must be
    a multiple of its own (10 m, 20 m and 60 m bands of a satellite).

    Raises:
        DataError: it is no image that can be used, or its files do not fit together. [image-*, bands-size]
    """
    if isinstance(source, Stack):
        return _stacked(source, name or "image")
    name = name or images.label(source)
    content = images.load(source, name=name)
    if content.startswith(_NPY):
        return _array(content, name), None
    if content.startswith(_TIFF):
        return _tiff(content, name)
    stored = images.stored(content, name=name, colours=True)
    return (stored[..., None] if stored.ndim == 2 else stored), None


def content(source: Source, *, name: str) -> bytes:
    """All bytes of an image, of several files one behind the other: what its hash is taken of.

    Raises:
        DataError: as `images.load`. [image-*]
    """
    if isinstance(source, Stack):
        return b"".join(images.load(part, name=name) for part in source.files)
    return images.load(source, name=name)


def stretched(pixels: Pixels, scale: Sequence[Range] | None, *, name: str = "image") -> ImageU8:
    """Bands `[..., C]` in 8 bits: each band's low becomes 0, its high 255, linearly, rounded and cut off.

    Args:
        scale: (low, high) of each band; None: 8 bits stay, 16 bits are divided by 257 and rounded.
    Raises:
        DataError: no scale, and the type has no range of its own. [image-unsupported]
    """
    if scale is None:
        if pixels.dtype == np.uint8:
            return pixels
        if pixels.dtype == np.uint16:
            return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
        raise DataError(
            f"{name}: holds {pixels.dtype}, which has no range of its own. State one: Spec(scale=((low, high), "
            "...)).",
            code="image-unsupported",
        )
    if pixels.dtype == np.uint8 and all((low, high) == (0, 255) for low, high in scale):
        return pixels
    ends = np.asarray(scale, np.float64)
    factor = (255 / (ends[:, 1] - ends[:, 0])).astype(np.float32)
    out = (pixels.astype(np.float32) - ends[:, 0].astype(np.float32)) * factor
    np.clip(np.nan_to_num(out, copy=False), 0, 255, out=out)
    return np.asarray(np.rint(out, out=out), np.uint8)


def resized(image: ImageU8, size_hw: tuple[int, int]) -> ImageU8:
    """An image uint8 `[h, w, C]` stretched to `[H, W, C]` by Pillow's antialiased bilinear filter; bands alone
    are resized as those of a colour picture are, to the bit."""
    height, width = size_hw
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    if image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR), np.uint8)
    out = np.empty((height, width, image.shape[2]), np.uint8)
    for band in range(image.shape[2]):
        flat = Image.fromarray(np.ascontiguousarray(image[..., band]))
        out[..., band] = np.asarray(flat.resize((width, height), Image.Resampling.BILINEAR))
    return out


def empty(pixels: Pixels, nodata: float | None) -> npt.NDArray[np.bool_] | None:
    """Which pixels `[h, w]` hold no data: all their bands are `nodata`; None where none does."""
    if nodata is None:
        return None
    void = np.isnan(pixels) if np.isnan(nodata) and pixels.dtype.kind == "f" else np.equal(pixels, nodata)
    whole = np.asarray(void.all(axis=2))
    return whole if whole.any() else None


def shown(channels: int, names: Sequence[str] = ()) -> tuple[int, int, int]:
    """Which bands are red, green and blue in a picture: those so named (B4, B3, B2 count), else the first
    three."""
    low = [name.lower() for name in names]
    found = [next((k for k, name in enumerate(low) if name in wanted), None) for wanted in _SHOWN]
    if None not in found:
        return tuple(found)  # type: ignore[return-value]
    return (0, min(1, channels - 1), 2 if channels > 2 else 0)


def counted(channels: int) -> str:
    """`1 band`, `5 bands`."""
    return "1 band" if channels == 1 else f"{channels} bands"


def picture(image: ImageU8, names: Sequence[str] = ()) -> ImageU8:
    """An image of bands `[h, w, C]` to look at, uint8 `[h, w, 3]`: three bands (`shown`), each from its 2nd to
    its 98th percentile."""
    chosen: npt.NDArray[np.float32] = image[..., list(shown(image.shape[-1], names))].astype(np.float32)
    low, high = np.percentile(chosen, (_DARK, _BRIGHT), axis=(0, 1))
    stretch = (chosen - low) * (255 / np.maximum(high - low, 1))
    return np.asarray(np.rint(stretch.clip(0, 255)), np.uint8)


def _may_hold_bands(source: Path | str | bytes) -> bool:
    if isinstance(source, bytes):
        return source.startswith((_NPY, *_TIFF))
    return Path(source).suffix.lower() in TIFFS | ARRAYS


def _is_tiff(source: Path | str | bytes) -> bool:
    return source.startswith(_TIFF) if isinstance(source, bytes) else Path(source).suffix.lower() in TIFFS


def _head(source: Path | str | bytes, name: str | None) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Shape `[h, w, C]`, type of the pixels, and whether it is a photograph."""
    if _may_hold_bands(source) and not _is_tiff(source):
        array = _array(images.load(source, name=name), name or images.label(source))
        return array.shape, array.dtype, False
    if _is_tiff(source):
        raster = open_tiff(source if isinstance(source, bytes) else Path(source), name=name)
        raster.close()
        return raster.shape, raster.dtype, raster.photograph
    stored = images.stored(source, name=name, colours=True)
    return (*stored.shape[:2], 1 if stored.ndim == 2 else 3), stored.dtype, True


def _tiff(content: bytes, name: str) -> tuple[Pixels, float | None]:
    try:
        raster = open_tiff(content, name=name)
        _check_size(raster, name)
        return Windows(raster, keep=0).read(0, 0, *raster.shape[:2]), raster.nodata
    except DataError as error:
        if error.code != "tile-corrupt":
            raise
        raise DataError(str(error), code="image-corrupt") from error


def _check_size(raster: Raster, name: str) -> None:
    height, width, channels = raster.shape
    need = height * width * channels * raster.dtype.itemsize
    if need > MAX_BYTES or height * width > images.MAX_PIXELS:
        raise DataError(
            f"{name}: the image is too large: {width} x {height} x {channels} pixels are {need >> 20} MB. "
            "It is a scene: cut it with niwaki.tile.crops, predict it with niwaki predict SCENE -o mask.tif.",
            code="image-oversized",
        )


def _array(content: bytes, name: str) -> Pixels:
    """A .npy file's numbers `[h, w, C]`; nothing of it is unpickled."""
    try:
        array: Pixels = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # a damaged head leads numpy's parser to errors of many kinds
        reason = images.printable(str(error))[:200]
        raise DataError(
            f"{name}: the .npy file is damaged, or holds no plain numbers ({reason}).", code="image-corrupt"
        ) from error
    shape = array.shape
    if array.ndim not in (2, 3) or 0 in shape or array.dtype.kind not in "uif":
        raise _no_image(name, array, "")
    if array.ndim == 3 and shape[0] * 4 < min(shape[1:]):
        raise _no_image(name, array, " It looks like [C, h, w]: save numpy.moveaxis(array, 0, -1).")
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return native[..., None] if array.ndim == 2 else native


def _no_image(name: str, array: Pixels, hint: str) -> DataError:
    return DataError(
        f"{name}: holds {array.dtype} {list(array.shape)}, expected numbers [h, w] or [h, w, C].{hint}",
        code="image-unsupported",
    )


def _stacked(stack: Stack, name: str) -> tuple[Pixels, float | None]:
    parts = [read(part, name=f"{name}, {band}") for part, band in zip(stack.files, stack.names, strict=True)]
    height, width = max((pixels.shape[:2] for pixels, _ in parts), key=lambda shape: shape[0] * shape[1])
    out = []
    for (pixels, _), band in zip(parts, stack.names, strict=True):
        down, across = height // pixels.shape[0], width // pixels.shape[1]
        if (down * pixels.shape[0], across * pixels.shape[1]) != (height, width):
            raise DataError(
                f"{name}: band {band} is {pixels.shape[1]} x {pixels.shape[0]} pixels, the finest is {width} x "
                f"{height}, which is no multiple. Bring them to one grid (gdalwarp -ts {width} {height}).",
                code="bands-size",
            )
        out.append(pixels if down == across == 1 else pixels.repeat(down, 0).repeat(across, 1))
    values = {nodata for _, nodata in parts}
    return np.concatenate(out, axis=2), values.pop() if len(values) == 1 else None
