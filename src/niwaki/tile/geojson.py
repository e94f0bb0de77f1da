"""GeoJSON of a class map: one polygon with holes for each connected region, in WGS 84 (RFC 7946).

Rows are read from the top; a region is held as runs of pixels while it grows and written when a row has none
of it. Pixels connect by their sides. Class 0 is background and gets no polygon. Where the open regions have
more than `MOST_RUNS` runs, they are written as they are and go on as new ones, so that memory stays bounded.
Shape letters: H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from niwaki.errors import DataError
from niwaki.instances.outlines import Project, Run, outlines, polygon
from niwaki.lazy import require
from niwaki.rasters.raster import Geo
from niwaki.tile.scratch import Raw

MOST_RUNS = 200_000
_ROWS = 64


def projection(geo: Geo | None) -> Project:
    """What turns corners of pixels `[n, 2]` (column, row) into longitude and latitude.

    Raises:
        DataError: the scene does not say where it lies, or in a CRS that is not known. [tile-geo]
    """
    if geo is None or geo.transform is None or geo.epsg is None:
        raise DataError(
            "GeoJSON: the scene has no transform or no EPSG number of its CRS. Write .tif, or give it one: "
            "gdal_edit.py -a_srs EPSG:... -a_ullr ...",
            code="tile-geo",
        )
    pyproj = require("pyproj", extra="tiles")
    try:
        # longitude first whatever the CRS says, as GeoJSON has it
        change = pyproj.Transformer.from_crs(geo.epsg, 4326, always_xy=True)
    except pyproj.exceptions.CRSError as error:
        raise DataError(f"GeoJSON: EPSG:{geo.epsg} is no CRS that is known.", code="tile-geo") from error
    a, b, c, d, e, f = geo.transform

    def project(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        column, row = points.T
        return np.stack(change.transform(a * column + b * row + c, d * column + e * row + f), 1)

    return project


def write(raw: Raw, path: Path, *, geo: Geo | None, nodata: float | None = None) -> None:
    """Writes the polygons of a class map `[H, W]`; each has the property `class`.

    Raises:
        DataError: the scene does not say where it lies. [tile-geo]
    """
    project = projection(geo)
    with path.open("w") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        first = True
        for number, runs in regions(raw, nodata=nodata):
            file.write("\n" if first else ",\n")
            first = False
            _feature(file, number, runs, project)
        file.write("\n]}\n")


def _feature(file: TextIO, number: int, runs: list[Run], project: Project) -> None:
    shape = {"type": "Polygon", "coordinates": polygon(outlines(runs), project)}
    json.dump({"type": "Feature", "properties": {"class": number}, "geometry": shape}, file)


def regions(raw: Raw, *, nodata: float | None = None) -> Iterator[tuple[int, list[Run]]]:
    """Class and runs of each connected region, in the order in which they end."""
    parent: dict[int, int] = {}
    held: dict[int, list[Run]] = {}
    classes: dict[int, int] = {}
    above: list[tuple[int, int, int]] = []  # first column, end, region
    count = 0
    for y, line in _lines(raw):
        here: list[tuple[int, int, int]] = []
        for x0, x1, number in _runs(line, nodata):
            region = len(parent)
            parent[region], held[region], classes[region] = region, [(y, x0, x1)], number
            here.append((x0, x1, region))
            count += 1
        _join(above, here, parent, held, classes)
        open_ones = {_root(parent, region) for _, _, region in here}
        for region in [k for k in held if k not in open_ones]:
            count -= len(held[region])
            yield classes.pop(region), held.pop(region)
        here = [(x0, x1, _root(parent, region)) for x0, x1, region in here]
        if count > MOST_RUNS:
            yield from ((classes[region], runs) for region, runs in held.items())
            held, classes, here, count = {}, {}, [], 0
        # numbers of regions begin anew, so that those that are gone take no room
        names = {region: k for k, region in enumerate(held)}
        parent = {k: k for k in names.values()}
        held = {names[region]: runs for region, runs in held.items()}
        classes = {names[region]: number for region, number in classes.items()}
        above = [(x0, x1, names[region]) for x0, x1, region in here]
    yield from ((classes[region], runs) for region, runs in held.items())


def _lines(raw: Raw) -> Iterator[tuple[int, Any]]:
    height, width = raw.shape
    for top in range(0, height, _ROWS):
        rows = raw.read(top, min(top + _ROWS, height), 0, width)
        for k, line in enumerate(rows):
            yield top + k, line


def _runs(line: Any, nodata: float | None) -> Iterator[Run]:
    """First column, end and class of the runs of a row, without background."""
    edges = [0, *(np.flatnonzero(line[1:] != line[:-1]) + 1).tolist(), len(line)]
    for x0, x1 in pairwise(edges):
        number = int(line[x0])
        if number and number != nodata:
            yield x0, x1, number


def _join(
    above: Any, here: Any, parent: dict[int, int], held: dict[int, list[Run]], classes: dict[int, int]
) -> None:
    """Unites regions whose runs of one class lie above one another."""
    place = 0
    for x0, x1, region in here:
        while place < len(above) and above[place][1] <= x0:
            place += 1
        look = place
        while look < len(above) and above[look][0] < x1:
            one, other = _root(parent, region), _root(parent, above[look][2])
            if one != other and classes[one] == classes[other]:
                if len(held[one]) > len(held[other]):  # the shorter list is moved
                    one, other = other, one
                held[other] += held.pop(one)
                parent[one] = other
                del classes[one]
            look += 1


def _root(parent: dict[int, int], region: int) -> int:
    while parent[region] != region:
        parent[region] = parent[parent[region]]
        region = parent[region]
    return region
