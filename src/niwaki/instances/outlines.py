"""Outlines of regions as rings of corners, and label maps as GeoJSON. Numpy only.

Shape letters: H W pixels, N objects.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.errors import DataError
from niwaki.instances.labels import LabelMap, object_crops
from niwaki.lazy import require

Run = tuple[int, int, int]
"""Row, first column, end."""
Point = tuple[int, int]
"""Column and row of a pixel's corner."""
Project = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def to_geojson(
    labels: LabelMap, *, scores: Sequence[float] | None = None, project: Project | None = None
) -> dict[str, Any]:
    """A FeatureCollection of a label map: each object a Polygon, or a MultiPolygon if it is in several pieces,
    along the borders of its pixels, with the properties `id` (its number) and `score`.

    Args:
        scores: of the objects in rising order of their numbers; left out unless given.
        project: corners `[n, 2]` (column, row) to longitude and latitude, as `tile.geojson.projection` makes
            it; None leaves pixels.
    Raises:
        DataError: labels or scores are none such. [masks-labels, masks-scores]
    """
    numbers, cut = object_crops(labels)
    if scores is not None and len(scores) != len(numbers):
        raise DataError(f"to_geojson: {len(numbers)} objects and {len(scores)} scores.", code="masks-scores")
    features = []
    for k, (number, (y, x, mask)) in enumerate(zip(numbers, cut, strict=True)):
        shapes = [polygon(outlines(list(_runs(piece, y, x))), project) for piece in _pieces(mask)]
        one = len(shapes) == 1
        geometry = {"type": "Polygon" if one else "MultiPolygon", "coordinates": shapes[0] if one else shapes}
        said = {"id": number} | ({"score": float(scores[k])} if scores is not None else {})
        features.append({"type": "Feature", "properties": said, "geometry": geometry})
    return {"type": "FeatureCollection", "features": features}


def _pieces(mask: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.bool_]]:
    """The 4-connected parts of a mask."""
    ndimage = require("scipy.ndimage", extra="train")
    parts, count = ndimage.label(mask)
    return [parts == k + 1 for k in range(count)]


def _runs(mask: npt.NDArray[np.bool_], y: int, x: int) -> Iterator[Run]:
    """Runs of a crop's rows, in the image."""
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    for (row, begin), (_, end) in zip(np.argwhere(edges > 0), np.argwhere(edges < 0), strict=True):
        yield int(row) + y, int(begin) + x, int(end) + x


def polygon(rings: Sequence[Sequence[Point]], project: Project | None = None) -> list[Any]:
    """A GeoJSON polygon's coordinates of a connected region's rings: the outer one first and counterclockwise,
    holes clockwise, as RFC 7946 has it."""
    closed = [np.array([*ring, ring[0]], np.float64) for ring in rings]
    placed = [project(ring) if project is not None else ring for ring in closed]
    outer = max(range(len(placed)), key=lambda k: abs(_area(placed[k])))
    ordered = [placed[outer], *(ring for k, ring in enumerate(placed) if k != outer)]
    turned = [ring if (_area(ring) > 0) == (k == 0) else ring[::-1] for k, ring in enumerate(ordered)]
    return [ring.round(8).tolist() for ring in turned]


def _area(ring: npt.NDArray[np.float64]) -> float:
    """Twice the signed area, above zero where the ring runs counterclockwise in axes x right, y up."""
    x, y = (ring - ring[0]).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum())


def outlines(runs: list[Run]) -> list[list[Point]]:
    """The rings around a region, corners only; the region lies to the right of each ring's way, rows going
    down."""
    rows: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for y, x0, x1 in sorted(runs):
        rows[y].append((x0, x1))
    ways: dict[Point, list[Point]] = defaultdict(list)
    for y, parts in rows.items():
        for x0, x1 in parts:
            ways[x0, y + 1].append((x0, y))
            ways[x1, y].append((x1, y + 1))
        for a, b in _uncovered(parts, rows.get(y - 1, [])):
            ways[a, y].append((b, y))
        for a, b in _uncovered(parts, rows.get(y + 1, [])):
            ways[b, y + 1].append((a, y + 1))
    rings = []
    while ways:
        rings.append(_ring(ways, next(iter(ways))))
    return rings


def _uncovered(parts: list[tuple[int, int]], cover: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What of sorted intervals no interval of `cover` covers."""
    for x0, x1 in parts:
        left = x0
        for a, b in cover:
            if b <= left or a >= x1:
                continue
            if a > left:
                yield left, a
            left = max(left, b)
        if left < x1:
            yield left, x1


def _ring(ways: dict[Point, list[Point]], start: Point) -> list[Point]:
    """One ring, taken out of the ways; where two cross at a corner the sharpest right turn is taken."""
    here, ring = start, [start]
    come = (0, 0)
    while True:
        ends = ways[here]
        right = (-come[1], come[0])
        end = next((e for e in ends if _direction(here, e) == right), ends[0])
        ends.remove(end)
        if not ends:
            del ways[here]
        go = _direction(here, end)
        if go == come:
            ring.pop()
        ring.append(end)
        here, come = end, go
        right = (-come[1], come[0])
        if here == start and not any(_direction(here, e) == right for e in ways.get(here, ())):
            break  # and not where the ring only crosses its start
    ring.pop()
    if len(ring) > 2 and _direction(ring[-1], start) == _direction(start, ring[1]):
        ring = ring[1:]
    return ring


def _direction(a: Point, b: Point) -> Point:
    return (b[0] > a[0]) - (b[0] < a[0]), (b[1] > a[1]) - (b[1] < a[1])
