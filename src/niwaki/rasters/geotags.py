"""GeoTIFF's tags: read from a file, and the transform and CRS that they mean.

Tags are copied to the output as they are; only GeoJSON and pictures need their meaning. Source: OGC GeoTIFF 1.1
(19-008r4), sections 7 and B.
"""

from __future__ import annotations

from typing import Any

from niwaki.rasters.raster import Geo

SCALE, TIEPOINT, MATRIX, KEYS, DOUBLES, ASCII = 33550, 33922, 34264, 34735, 34736, 34737
_KINDS = {SCALE: 12, TIEPOINT: 12, MATRIX: 12, KEYS: 3, DOUBLES: 12, ASCII: 2}
_RASTER_TYPE, _GEOGRAPHIC, _PROJECTED = 1025, 2048, 3072
_POINT, _USER_DEFINED = 2, 32767

Affine = tuple[float, float, float, float, float, float]


def from_tags(tags: Any, *, scale: tuple[float, float] = (1.0, 1.0)) -> Geo | None:
    """Where a TIFF lies, None where it has no such tags.

    Args:
        tags: a page's tags, as tifffile reads them.
        scale: pixels of the full size in one pixel of the level that is read, down and across.
    """
    found = {number: (kind, tags[number].value) for number, kind in _KINDS.items() if number in tags}
    if not found:
        return None
    down, across = scale
    keys = _keys(found)
    transform = _transform(found, point=keys.get(_RASTER_TYPE) == _POINT)
    if transform is not None and scale != (1.0, 1.0):
        a, b, c, d, e, f = transform
        transform = (a * across, b * down, c, d * across, e * down, f)
        found = {number: value for number, value in found.items() if number not in (SCALE, TIEPOINT, MATRIX)}
        found[MATRIX] = (12, matrix(transform, point=keys.get(_RASTER_TYPE) == _POINT))
    code = keys.get(_PROJECTED, keys.get(_GEOGRAPHIC))
    return Geo(tags=found, transform=transform, epsg=None if code in (None, 0, _USER_DEFINED) else code)


def matrix(transform: Affine, *, point: bool = False) -> tuple[float, ...]:
    """ModelTransformationTag's sixteen numbers of a transform of pixels' upper left corners."""
    a, b, c, d, e, f = transform
    if point:
        c, f = c + (a + b) / 2, f + (d + e) / 2
    return (a, b, 0.0, c, d, e, 0.0, f, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)


def _keys(tags: dict[int, tuple[int, Any]]) -> dict[int, int]:
    """GeoKeys whose value lies in the directory itself: {key: number}."""
    flat = list(map(int, tags.get(KEYS, (3, ()))[1]))
    rows = (flat[k : k + 4] for k in range(4, len(flat) - 3, 4))
    return {key: value for key, where, _, value in rows if where == 0}


def _transform(tags: dict[int, tuple[int, Any]], *, point: bool) -> Affine | None:
    """Pixels' upper left corners to the CRS; `point`: the tags speak of pixels' middles."""
    if MATRIX in tags and len(tags[MATRIX][1]) == 16:
        m = list(map(float, tags[MATRIX][1]))
        a, b, c, d, e, f = m[0], m[1], m[3], m[4], m[5], m[7]
    elif SCALE in tags and TIEPOINT in tags and len(tags[TIEPOINT][1]) >= 6:
        across, down = map(float, tags[SCALE][1][:2])
        column, row, _, x, y, _ = map(float, tags[TIEPOINT][1][:6])
        a, b, d, e = across, 0.0, 0.0, -down
        c, f = x - a * column, y - e * row
    else:
        return None
    if point:
        c, f = c - (a + b) / 2, f - (d + e) / 2
    return (a, b, c, d, e, f)
