"""Where tiles lie and how much each counts: overlapping windows whose weights sum to exactly one.

The weight of a pixel in a tile is the product of one number for its row and one for its column, so nothing
larger than an axis is ever held, and each tile can be weighted before it is added: no final division.
Each axis' weights are whole multiples of 1/4096 that sum to one at every position, so the product of two is a
multiple of 2^-24 and float32 adds up the weights of any pixel without rounding: what all tiles agree on
comes out unchanged.
Shape letters: H W pixels of the scene.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from niwaki.errors import SpecError

Floats = npt.NDArray[np.float32]

STEPS = 4096
"""Steps of a weight between 0 and 1 along one axis; its square is what float32 counts exactly."""
BLENDS = ("hann", "gauss", "linear", "mean", "crop")


@dataclass(frozen=True)
class Axis:
    """The windows along one axis of a scene of `size` pixels.

    Args:
        starts: first pixel of each window, rising.
        tile: pixels a window has; more than `size` where the scene is smaller than a tile.
        weights: float32 `[windows, tile]`, what each counts at each of its pixels.
    """

    size: int
    tile: int
    starts: tuple[int, ...]
    weights: Floats

    def final(self, window: int) -> int:
        """First pixel that a window after this one still adds to; all before it are final."""
        return self.starts[window + 1] if window + 1 < len(self.starts) else self.size

    def reach(self, low: int, high: int) -> range:
        """The windows that weigh on pixels `low` to `high`."""
        held = [
            k
            for k, start in enumerate(self.starts)
            if start < high
            and start + self.tile > low
            and self.weights[k, max(0, low - start) : high - start].any()
        ]
        return range(held[0], held[-1] + 1)


def axis(size: int, *, tile: int, overlap: int, blend: str = "hann", multiple: int = 1) -> Axis:
    """The windows along an axis; neighbours share at least `overlap` pixels.

    Every window but the last starts at a multiple of `tile - overlap`; the last is moved in, so that it ends
    where the scene ends.

    Args:
        size: pixels of the scene along the axis.
        overlap: 0 to below `tile`.
        blend: "hann", "gauss" (sigma of an eighth of the tile), "linear" and "mean" fade from one tile into
            the next; "crop" cuts in the middle of the overlap, each pixel coming from one tile.
        multiple: all starts are multiples of it; the scene is then thought to be filled up to one.
    Raises:
        SpecError: a number is out of range, or there is no such blend. [tile-window]
    """
    _check(size, tile, overlap, blend, multiple)
    whole = -(-size // multiple) * multiple
    step = max(multiple, (tile - overlap) // multiple * multiple)
    last = max(0, whole - tile)
    starts = (*range(0, last, step), last)
    if blend == "crop":
        return Axis(size, tile, starts, _cut(starts, size, tile))
    return Axis(size, tile, starts, _faded(starts, size, tile, _profile(tile, blend)))


def _profile(tile: int, blend: str) -> npt.NDArray[np.float64]:
    """How much a window counts at each of its pixels before it is normalised; above zero everywhere."""
    place = (np.arange(tile) + 0.5) / tile
    if blend == "hann":
        return np.asarray(np.sin(np.pi * place) ** 2)
    if blend == "gauss":
        return np.asarray(np.exp(-0.5 * ((place - 0.5) / 0.125) ** 2))
    if blend == "linear":
        return np.asarray(np.minimum(place, 1 - place))
    return np.ones(tile)


def _faded(starts: tuple[int, ...], size: int, tile: int, profile: npt.NDArray[np.float64]) -> Floats:
    """Normalised weights, as differences of a rounded running sum: they sum to one whatever is rounded."""
    total = np.zeros(size)
    for start in starts:
        total[start : start + tile] += profile[: size - start]
    running = np.zeros(size)
    weights = np.zeros((len(starts), tile), np.float32)
    for k, start in enumerate(starts):
        here = slice(start, min(start + tile, size))
        before = np.rint(running[here] / total[here] * STEPS)
        running[here] += profile[: size - start]
        after = np.rint(running[here] / total[here] * STEPS)
        weights[k, : size - start] = (after - before) / STEPS
    return weights


def _cut(starts: tuple[int, ...], size: int, tile: int) -> Floats:
    """Weights of 0 and 1: neighbours are cut in the middle of what they share."""
    # not moved where the scene ends inside a tile: the tile sees beyond its end, and is as right there as
    # elsewhere
    middles = ((start + before + tile) // 2 for before, start in itertools.pairwise(starts))
    cuts = [0, *(min(size, middle) for middle in middles), size]
    weights = np.zeros((len(starts), tile), np.float32)
    for k, start in enumerate(starts):
        weights[k, max(0, cuts[k] - start) : cuts[k + 1] - start] = 1
    return weights


def _check(size: int, tile: int, overlap: int, blend: str, multiple: int) -> None:
    if (
        size < 1
        or tile < 1
        or not 0 <= overlap < tile
        or multiple < 1
        or tile % multiple
        or (tile - overlap < multiple)
    ):
        raise SpecError(
            f"tiles: got a scene of {size} pixels, tile={tile}, overlap={overlap}, multiple={multiple}; "
            "expected an "
            "overlap from 0 to below the tile, and a tile that is a multiple of the network's stride.",
            code="tile-window",
        )
    if blend not in BLENDS:
        raise SpecError(f"tiles: no blend {blend!r}, expected one of {', '.join(BLENDS)}.", code="tile-window")
