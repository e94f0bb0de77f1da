"""Objects of images of any size, tile by tile: each object is told of by at least one tile, and drawn once.

A tile sees its core and `context` pixels around it; cores cover the image without a gap. A tile tells of each
object whose mask has a pixel in its core (or within `slack` of it, as tiles do not see quite the same), so none
is lost, wherever its point is said to lie; what comes twice is known by its overlap. The tile in whose core the
point lies goes first, objects that a window's edge cuts last. Memory is one window, the objects at the cores'
borders of three rows of tiles, and the label map, which may lie on disk. Numpy only.
Shape letters: H W pixels, T pixels of a tile's side, C channels, N objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from niwaki.errors import PlanError
from niwaki.instances.crops import Crop
from niwaki.instances.stars import Found

if TYPE_CHECKING:
    from niwaki.instances.task import Instances

ImageU8 = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]
Find = Callable[[ImageU8], Found]
Predict = Callable[[ImageU8], npt.NDArray[np.float32]]
Range = tuple[int, int]


class Pixels(Protocol):
    """Anything that gives pixels `[h, w, C]` by slices: an array, a memory map, a Zarr array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C)."""

    def __getitem__(self, place: Any, /) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Tiled:
    """The objects of an image.

    Args:
        labels: int64 `[H, W]`, 0 background, then k + 1 for the k-th object; the surer one has a pixel of two.
        scores: probabilities float64 `[N]`.
        points: where each was predicted, (y, x), int64 `[N, 2]`.
        cut: objects that reach the edge of their window inside the image: larger than the context, so their
            masks may lack a part.
    """

    labels: Numbers
    scores: npt.NDArray[np.float64]
    points: Numbers
    cut: int


def tiled(
    find: Find,
    image: Pixels,
    *,
    tile: int = 256,
    context: int = 64,
    slack: int = 8,
    overlap: float = 0.4,
    out: Numbers | None = None,
    show: Callable[[int, int], None] | None = None,
) -> Tiled:
    """The objects of an image of any size.

    Args:
        find: the objects of one window u8 `[T, T, C]`, points and crops counted from its corner; see `finder`.
        tile: T, the side of a window. An image that is smaller is padded with its median colour.
        context: pixels around a core, at least as far as the largest object reaches from its point.
        slack: pixels that two tiles may see an object's edge apart.
        overlap: of two tiles' objects that share more than this of the smaller one, the later goes.
        out: where the label map is written, int64 `[H, W]` of zeros, such as a `numpy.memmap`; None: memory.
        show: called after each tile with how many are done, and of how many.
    Raises:
        PlanError: context and slack leave no core, or `out` is none such. [instances-tile]
    """
    height, width = int(image.shape[0]), int(image.shape[1])
    _check(tile, context, slack, out, (height, width))
    canvas = _Canvas(np.zeros((height, width), np.int64) if out is None else out, overlap)
    rows, columns = list(cores(height, tile, context)), list(cores(width, tile, context))
    later = _Later(canvas)
    for r, (core_y, y) in enumerate(rows):
        for c, (core_x, x) in enumerate(columns):
            found = find(_padded(np.asarray(image[y : y + tile, x : x + tile]), tile))
            where = _Window((y, x), (core_y, core_x), tile, (height, width), slack, r * len(columns) + c)
            for one in where.kept(found):
                if one.own and not one.cut:
                    canvas.add(one)
                else:
                    later.wait(one)
            if show is not None:
                show(r * len(columns) + c + 1, len(rows) * len(columns))
        later.row_ended()
    later.row_ended(last=True)
    return Tiled(labels=canvas.labels, scores=canvas.all_scores(), points=canvas.all_points(), cut=canvas.cut)


def finder(predict: Predict, task: Instances) -> Find:
    """`find` of a predictor (a module's, or an opened export) whose input is of the tile's size."""

    def find(window: ImageU8) -> Found:
        return task.found(predict(window[None])[0], (window.shape[0], window.shape[1]))

    return find


def cores(side: int, tile: int, context: int) -> Iterator[tuple[Range, int]]:
    """Along one axis the cores, which tile it without a gap, and where the window of each begins."""
    step = tile - 2 * context
    begin = 0
    while begin < side:
        start = max(0, min(begin - context, side - tile))
        end = side if start + tile >= side else begin + step if begin else tile - context
        yield (begin, end), start
        begin = end


def _padded(window: ImageU8, tile: int) -> ImageU8:
    """The window at the tile's size; what is added has the median colour: mostly background, and no objects."""
    if window.shape[:2] == (tile, tile):
        return window
    out = np.empty((tile, tile, window.shape[2]), window.dtype)
    out[:] = np.median(window, axis=(0, 1)).astype(window.dtype)
    out[: window.shape[0], : window.shape[1]] = window
    return out


@dataclass(frozen=True)
class _Object:
    """One object of one tile: its mask in the image, and whether it is the tile's own, and whole."""

    y: int
    x: int
    mask: npt.NDArray[np.bool_]
    score: float
    point: Range
    tile: int
    own: bool
    cut: bool


@dataclass(frozen=True)
class _Window:
    """Where a tile lies: its corner, its core by axis, its side, the image's shape, its number."""

    corner: Range
    core: tuple[Range, Range]
    side: int
    shape: Range
    slack: int
    number: int

    def kept(self, found: Found) -> Iterator[_Object]:
        """The objects that this tile may have to tell of: each whose mask comes within slack of the core.

        Every pixel is in the core of some tile, so an object that is there is told of by one tile at least.
        """
        # an object that the image's border cuts may have its point beyond it
        last = (self.shape[0] - 1, self.shape[1] - 1)
        points = np.clip(found.points + np.array(self.corner), 0, last)
        for crop, score, point in zip(found.crops, found.scores, points.tolist(), strict=True):
            own = all(low <= at < high for at, (low, high) in zip(point, self.core, strict=True))
            if own or self._meets(crop):
                y, x = crop[0] + self.corner[0], crop[1] + self.corner[1]
                # not what was padded
                mask = crop[2][: max(0, self.shape[0] - y), : max(0, self.shape[1] - x)]
                yield _Object(
                    y, x, mask, float(score), (point[0], point[1]), self.number, own, self._cuts(crop)
                )

    def _meets(self, crop: Crop) -> bool:
        """Whether a mask has a pixel in the core, or within slack of it."""
        place = []
        for at, start, (low, high) in zip(crop[:2], self.corner, self.core, strict=True):
            begin, end = (edge - start - at for edge in (low - self.slack, high + self.slack))
            place.append(slice(max(0, begin), max(0, end)))
        return bool(crop[2][tuple(place)].any())

    def _cuts(self, crop: Crop) -> bool:
        """Whether a mask touches an edge of the window that is none of the image's."""
        return any(
            (at <= 0 and start > 0) or (at + size >= self.side and start + self.side < end)
            for at, size, start, end in zip(crop[:2], crop[2].shape, self.corner, self.shape, strict=True)
        )


class _Later:
    """Objects that go in when no neighbour told of the same: after the next row of tiles, those cut after
    one row more, so that a whole one goes first."""

    def __init__(self, canvas: _Canvas) -> None:
        self._canvas = canvas
        self._whole: list[list[_Object]] = [[]]
        self._cut: list[list[_Object]] = [[]]

    def wait(self, one: _Object) -> None:
        """Keeps an object of the row of tiles that is being seen."""
        (self._cut if one.cut else self._whole)[-1].append(one)

    def row_ended(self, *, last: bool = False) -> None:
        """Adds those whose neighbours have all been seen; at last all."""
        for held, rows in ((self._whole, 1), (self._cut, 2)):
            while held and (last or len(held) > rows):
                for one in held.pop(0):
                    self._canvas.add(one)
            held.append([])


class _Canvas:
    """A label map that grows object by object, and what is known of each."""

    def __init__(self, labels: Numbers, overlap: float) -> None:
        self.labels, self.overlap, self.count, self.cut = labels, overlap, 0, 0
        self._scores, self._areas = np.full(1024, -np.inf), np.zeros(1024, np.int64)
        self._points, self._tiles = np.zeros((1024, 2), np.int64), np.full(1024, -1)

    def add(self, one: _Object) -> None:
        """Draws an object, but for one that another tile has told of already."""
        height, width = one.mask.shape
        window = self.labels[one.y : one.y + height, one.x : one.x + width]
        area = int(np.count_nonzero(one.mask))
        numbers, shared = np.unique(window[one.mask], return_counts=True)
        smaller = np.minimum(self._areas[numbers], area)
        # what one tile tells of twice are two objects
        other = (numbers > 0) & (self._tiles[numbers] != one.tile)
        if not area or ((shared > self.overlap * smaller) & other).any():
            return
        self._grow()
        self.count += 1
        self.cut += one.cut
        self._scores[self.count], self._areas[self.count] = one.score, area
        self._points[self.count], self._tiles[self.count] = one.point, one.tile
        window[one.mask & (self._scores[window] < one.score)] = self.count

    def _grow(self) -> None:
        if self.count + 1 == len(self._scores):
            self._scores = np.concatenate((self._scores, np.full_like(self._scores, -np.inf)))
            self._areas = np.concatenate((self._areas, np.zeros_like(self._areas)))
            self._points = np.concatenate((self._points, np.zeros_like(self._points)))
            self._tiles = np.concatenate((self._tiles, np.full_like(self._tiles, -1)))

    def all_scores(self) -> npt.NDArray[np.float64]:
        return self._scores[1 : self.count + 1].copy()

    def all_points(self) -> Numbers:
        return self._points[1 : self.count + 1].copy()


def _check(tile: int, context: int, slack: int, out: Numbers | None, shape: Range) -> None:
    if tile - 2 * context < 1 or context < 0 or not 0 <= slack <= context:
        raise PlanError(
            f"tiled: a tile of {tile} with a context of {context} and a slack of {slack}; expected "
            "tile > 2 * context and 0 <= slack <= context.",
            code="instances-tile",
        )
    if out is not None and (out.shape != shape or out.dtype != np.int64):
        raise PlanError(
            f"tiled: out is {out.dtype} {list(out.shape)}, expected int64 {list(shape)} of zeros.",
            code="instances-tile",
        )
