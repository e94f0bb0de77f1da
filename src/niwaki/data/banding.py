"""What the bands of a data set are: found from its files' heads, named by bands.txt, measured on train.

    B02                 bands.txt: a line is a band; with it a set is bands, whatever its files look like
    B08 0 10000         with the values that become black and white, instead of those measured

A set is of bands when a file is no photograph (docs/data.md): another number of bands than 1, 3 or 4, more than
8 bits, .npy, several files an image. Files that differ from most are Problems. Shape letters: h w pixels, C
bands."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki import bands, images
from niwaki.bands import Kind, Source, Stack
from niwaki.data.masks import Readable
from niwaki.data.samples import Bands, Problem, Samples
from niwaki.dense_metrics import IGNORE
from niwaki.errors import DataError

FILE = "bands.txt"
IMAGES = 256
"""Training images that are measured at most."""
_PIXELS = 4096
_NUMBERS = 16 * 2**20
_OUTER, _MARGIN = 0.1, 0.1
Void = npt.NDArray[np.bool_] | None
"""Pixels `[h, w]` without data; None where all have some."""
Item = tuple[str, Source | npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Banding:
    """How the images of a set are read.

    Args:
        wide: they have more than 8 bits.
        names: of the bands; empty where they have none.
        told: range of each band from bands.txt, None where it is measured.
    """

    channels: int
    wide: bool
    names: tuple[str, ...] = ()
    told: tuple[tuple[float, float] | None, ...] = ()

    def check(self, name: str, pixels: npt.NDArray[Any]) -> None:
        """Raises where an image is not as most are. [bands-differ]"""
        wide = pixels.dtype != np.uint8
        if (pixels.shape[-1], wide) != (self.channels, self.wide):
            raise differs(name, pixels.shape[-1], wide, self)

    def problem(self, name: str, pixels: npt.NDArray[Any]) -> Problem | None:
        """The same as a Problem; None where all is well."""
        try:
            self.check(name, pixels)
        except DataError as error:
            return Problem(path=name, code=error.code, message=str(error))
        return None


def names_of(content: bytes | None, where: str) -> Banding | None:
    """The bands that a bands.txt names, how many bits they have left open (wide is False); None without one.

    Raises:
        DataError: it is no list of bands. [bands-file]
    """
    if content is None:
        return None
    names, told = [], []
    for number, line in enumerate(content.decode("utf-8-sig", errors="replace").splitlines(), 1):
        words = line.replace(",", " ").split()
        if not words:
            continue
        try:
            low, high = map(float, words[1:]) if len(words) > 1 else (math.nan, math.nan)
            if len(words) > 1 and not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError
        except ValueError as error:
            raise _bad_file(where, f"line {number} is {line.strip()!r}") from error
        names.append(words[0])
        told.append((low, high) if len(words) > 1 else None)
    if not names or len(set(names)) < len(names):
        raise _bad_file(where, "it names a band twice" if names else "it names none")
    return Banding(channels=len(names), wide=False, names=tuple(names), told=tuple(told))


def found(items: Sequence[Item], named: Banding | None) -> tuple[Banding | None, list[str]]:
    """How the images of a set are read as bands, None where they are photographs; and warnings.

    Args:
        named: what bands.txt says.
    """
    kinds = [bands.kind(source, name=name) for name, source in items]
    if named is None and not _are_bands(kinds):
        # the few that are no photographs become Problems
        return None, _alpha(kinds)
    heads = Counter((kind.channels, kind.wide) for kind in kinds if kind is not None)
    if named is not None:
        fitting = [is_wide for (channels, is_wide), _ in heads.most_common() if channels == named.channels]
        return replace(named, wide=fitting[0] if fitting else False), []
    (channels, wide), _ = max(heads.items(), key=lambda item: (item[1], item[0]))
    stack = next((source for _, source in items if isinstance(source, Stack)), None)
    names = stack.names if stack is not None and len(stack.names) == channels else ()
    return Banding(channels=channels, wide=wide, names=names), []


def _alpha(kinds: Sequence[Kind | None]) -> list[str]:
    """A warning where TIFFs say that their fourth band is alpha, as GDAL writes of any fourth band."""
    many = sum(kind is not None and kind.channels == 4 for kind in kinds)
    what = f"{many} TIFFs call their fourth band alpha, so it was put over white"
    return [f"{what}; if it is infrared, name the bands in {FILE}"] if many else []


def _are_bands(kinds: Sequence[Kind | None]) -> bool:
    """Half of the files are no photographs, or all are 16-bit grey, which is either."""
    bare = sum(kind is not None and not kind.photograph for kind in kinds)
    if 0 < len(kinds) <= 2 * bare:
        return True
    return bool(kinds) and all(kind is not None and kind.wide for kind in kinds)


def looked(source: Source, name: str, banding: Banding | None) -> tuple[bytes, tuple[int, int], Void]:
    """An image's bytes, its height and width, and where it has no data, after it was decoded once.

    Raises:
        DataError: it cannot be used, or is not as most are. [image-*, bands-*]
    """
    content = bands.content(source, name=name)
    if banding is None:
        if (channels := bands.no_photograph(source, name=name)) is not None:
            raise DataError(
                f"{name}: has {bands.counted(channels)}, most files are photographs. Take it out, or name "
                f"the bands of all in {FILE}.",
                code="bands-differ",
            )
        height, width = images.decode(content, channels=3, name=name).shape[:2]
        return content, (height, width), None
    pixels, nodata = bands.read(source if isinstance(source, Stack) else content, name=name)
    banding.check(name, pixels)
    return content, (pixels.shape[0], pixels.shape[1]), bands.empty(pixels, nodata)


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """A mask whose pixels have no class where the image has no data."""

    mask: Readable
    image: Source
    name: str

    def read(self) -> npt.NDArray[np.integer]:
        """Its classes uint8 `[h, w]`, 255 where there is none, or no data.

        Raises:
            DataError: mask or image cannot be read. [image-*, mask-*]
        """
        classes = self.mask.read()
        void = bands.empty(*bands.read(self.image, name=self.name))
        return classes if void is None else np.where(void, IGNORE, classes).astype(classes.dtype)


def measured(train: Samples, banding: Banding, *, nodata: float | None = None) -> Bands:
    """Range, mean and deviation of each band, over pixels with data of up to `IMAGES` training images.

    8 bits keep the range 0..255. Else it reaches from the 0.1 % to the 99.9 % quantile and a tenth of that
    beyond on both sides, but not beyond what was seen.

    Args:
        nodata: value of pixels without data, where sources are arrays; files say it themselves.
    """
    rows = np.unique(np.linspace(0, len(train) - 1, min(len(train), IMAGES)).round().astype(int))
    each = max(16, min(_PIXELS, _NUMBERS // (banding.channels * max(1, len(rows)))))
    values = np.concatenate([_drawn(train, int(row), each, nodata) for row in rows])
    if not len(values):
        values = np.zeros((1, banding.channels), np.float32)
    scale = tuple(told or one for told, one in zip(_told(banding), _ranges(values, banding.wide), strict=True))
    levels = bands.stretched(values, scale) / 255
    return Bands(
        names=banding.names,
        scale=scale,
        mean=tuple(round(float(mean), 6) for mean in levels.mean(0)),
        std=tuple(max(0.01, round(float(std), 6)) for std in levels.std(0)),
    )


def marked(fingerprint: str, found: Bands | None) -> str:
    """A set's fingerprint with names and ranges of its bands in it: with other ones it is another set."""
    if found is None:
        return fingerprint
    return hashlib.sha256(f"{fingerprint} {found.names} {found.scale}".encode()).hexdigest()


def _drawn(train: Samples, row: int, most: int, nodata: float | None) -> npt.NDArray[np.float32]:
    """Evenly spread pixels with data of an image, float32 `[most or fewer, C]`."""
    source = train.sources[row]
    if isinstance(source, np.ndarray):
        pixels = source
    else:
        pixels, nodata = bands.read(source, name=train.names[row])
    void = bands.empty(pixels, nodata)
    flat = pixels.reshape(-1, pixels.shape[-1]) if void is None else pixels[~void]
    # steps of another length than a row, or a column alone would be seen
    step = max(1, len(flat) // most) | 1
    drawn = flat[::step][:most].astype(np.float32)
    return np.asarray(drawn[np.isfinite(drawn).all(1)])


def _told(banding: Banding) -> tuple[tuple[float, float] | None, ...]:
    return banding.told or (None,) * banding.channels


def _ranges(values: npt.NDArray[np.float32], wide: bool) -> list[tuple[float, float]]:
    if not wide:
        return [(0.0, 255.0)] * values.shape[1]
    low, high = np.percentile(values, (_OUTER, 100 - _OUTER), axis=0)
    reach = _MARGIN * (high - low)
    low, high = np.maximum(low - reach, values.min(0)), np.minimum(high + reach, values.max(0))
    high = np.where(high > low, high, low + 1)  # a band that is all alike
    return [(float(np.float32(a)), float(np.float32(b))) for a, b in zip(low, high, strict=True)]


def differs(name: str, channels: int, wide: bool, banding: Banding) -> DataError:
    """The error of an image that is not as most are. [bands-differ]"""
    here, most = (
        f"{bands.counted(n)} of {'more than 8' if w else '8'} bits" for n, w in _both(channels, wide, banding)
    )
    return DataError(
        f"{name}: has {here}, expected {most} as in {FILE} or most files. Convert it, or take it out.",
        code="bands-differ",
    )


def _both(channels: int, wide: bool, banding: Banding) -> list[tuple[int, bool]]:
    return [(channels, wide), (banding.channels, banding.wide)]


def _bad_file(where: str, why: str) -> DataError:
    return DataError(
        f"{where}: {FILE} cannot be used: {why}. Expected a line `NAME` or `NAME LOW HIGH` for each band.",
        code="bands-file",
    )
