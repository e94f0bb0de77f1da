"""Objects of images of any size, tile by tile: each object is owned by exactly one tile.

A tile sees its core and `context` pixels around it, and owns the objects whose point lies in the core; an
object that a border cuts is whole in the window of the tile that owns it, as long as it reaches no farther than
the context. Where two tiles see an object's point a little differently, each on the other's side, it would be
lost; so points within `slack` of a core count as well, and what then comes twice is known by its overlap.
Memory is one window and the label map, which may lie on disk. Numpy only.
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
) -> Tiled:
    """The objects of an image of any size.

    Args:
        find: the objects of one window u8 `[T, T, C]`, points and crops counted from its corner; see `finder`.
        tile: T, the side of a window. An image that is smaller is padded with its median colour.
        context: pixels around a core, at least as far as the largest object reaches from its point.
        slack: pixels beyond a core where points still count.
        overlap: of two tiles' objects that share more than this of the smaller one, the later goes.
        out: where the label map is written, int64 `[H, W]` of zeros, such as a `numpy.memmap`; None: memory.
    Raises:
        PlanError: context and slack leave no core, or `out` is none such. [instances-tile]
    """
    height, width = int(image.shape[0]), int(image.shape[1])
    _check(tile, context, slack, out, (height, width))
    canvas = _Canvas(np.zeros((height, width), np.int64) if out is None else out, overlap)
    cut = 0
    for core_y, y in cores(height, tile, context):
        for core_x, x in cores(width, tile, context):
            window = _padded(np.asarray(image[y : y + tile, x : x + tile]), tile)
            found = find(window)
            # an object that the image's border cuts may have its point beyond it
            points = np.clip(found.points + np.array((y, x)), 0, (height - 1, width - 1))
            for k, (py, px) in enumerate(points.tolist()):
                if not (_within(py, core_y, slack) and _within(px, core_x, slack)):
                    continue
                reaches = _reaches(found.crops[k], (y, x), tile, (height, width))
                own = _within(py, core_y, 0) and _within(px, core_x, 0)
                if own or not reaches:  # the neighbour sees more of one that is cut here
                    added = canvas.add(found.crops[k], (y, x), float(found.scores[k]), (py, px))
                    cut += added and reaches
    return Tiled(labels=canvas.labels, scores=canvas.all_scores(), points=canvas.all_points(), cut=cut)


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


def _within(place: int, core: Range, slack: int) -> bool:
    return core[0] - slack <= place < core[1] + slack


def _padded(window: ImageU8, tile: int) -> ImageU8:
    """The window at the tile's size; what is added has the median colour: mostly background, and no objects."""
    if window.shape[:2] == (tile, tile):
        return window
    out = np.empty((tile, tile, window.shape[2]), window.dtype)
    out[:] = np.median(window, axis=(0, 1)).astype(window.dtype)
    out[: window.shape[0], : window.shape[1]] = window
    return out


def _reaches(crop: Crop, corner: Range, tile: int, shape: Range) -> bool:
    """Whether a mask touches an edge of its window that is none of the image's."""
    touched = False
    for at, size, start, side in zip(crop[:2], crop[2].shape, corner, shape, strict=True):
        touched |= (at == 0 and start > 0) or (at + size >= tile and start + tile < side)
    return touched


class _Canvas:
    """A label map that grows object by object, and what is known of each."""

    def __init__(self, labels: Numbers, overlap: float) -> None:
        self.labels, self.overlap, self.count = labels, overlap, 0
        self._scores, self._areas = np.full(1024, -np.inf), np.zeros(1024, np.int64)
        self._points = np.zeros((1024, 2), np.int64)

    def add(self, crop: Crop, corner: Range, score: float, point: Range) -> bool:
        """Whether an object was drawn: not, where it is one that is there already."""
        y, x, mask = crop[0] + corner[0], crop[1] + corner[1], crop[2]
        mask = mask[: self.labels.shape[0] - y, : self.labels.shape[1] - x]  # not what was padded
        window = self.labels[y : y + mask.shape[0], x : x + mask.shape[1]]
        area = int(np.count_nonzero(mask))
        numbers, shared = np.unique(window[mask], return_counts=True)
        smaller = np.minimum(self._areas[numbers], area)
        if not area or ((shared > self.overlap * smaller) & (numbers > 0)).any():
            return False
        self._grow()
        self.count += 1
        self._scores[self.count], self._areas[self.count] = score, area
        self._points[self.count] = point
        window[mask & (self._scores[window] < score)] = self.count
        return True

    def _grow(self) -> None:
        if self.count + 1 == len(self._scores):
            self._scores = np.concatenate((self._scores, np.full_like(self._scores, -np.inf)))
            self._areas = np.concatenate((self._areas, np.zeros_like(self._areas)))
            self._points = np.concatenate((self._points, np.zeros_like(self._points)))

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
