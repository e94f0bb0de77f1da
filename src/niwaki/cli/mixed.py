"""int8 within a size on the command line: `niwaki export --size 60%`, its files as a table, a page and JSON."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from niwaki.cli.screen import percent, table

if TYPE_CHECKING:
    from niwaki.artifact import Artifact
    from niwaki.qdq.recipe import Recipe
    from niwaki.search.int8_files import Files
    from niwaki.search.mixed import Mixed, Point


def measure(
    files: Files, artifact: Artifact, args: argparse.Namespace, start: Recipe
) -> tuple[Mixed, list[str], str]:
    """The files between the smallest and plain int8, the lines that tell of them, and the page's path."""
    from niwaki import report
    from niwaki.search import mixed

    found = mixed.search(
        files,
        size=args.size,
        start=start,
        floats=args.floats,
        show=lambda point: print(_line(point), file=sys.stderr),
    )
    about: dict[str, Any] = {"name": artifact.path.stem, "runtime": args.runtime, "images": len(files.val)}
    page = str(report.mixed({**about, **found.to_json()}, args.out or artifact.path.resolve().parent))
    head = ["of int8", "MB", "4 bits", "8 bits", *(["float"] if args.floats else []), "val", "lost", "±", ""]
    rows = [_cells(point, found, floats=args.floats) for point in found.points]
    return found, [table([head, *rows]), f"page  {page}", ""], page


def trained(found: Mixed) -> str:
    """The step of a plan, as TOML, that trains the network with the chosen bits."""
    four = ", ".join(f'"{name}"' for name, bits in found.chosen.bits.items() if bits == 4)
    return f'[[step]]\ndo = "quantize.qat"\nfour = [{four}]\n'


def _cells(point: Point, found: Mixed, *, floats: bool) -> list[str]:
    from niwaki.qdq.recipe import BITS, FLOAT_BITS

    counts = [point.count(bits) for bits in ((*BITS, FLOAT_BITS) if floats else BITS)]
    shares = [percent(value, digits=2) for value in (point.score, point.drop, point.noise)]
    chosen = "chosen" if point == found.chosen else "front" if point in found.front else ""
    return [percent(point.share), f"{point.bytes / 1e6:.3g}", *map(str, counts), *shares, chosen]


def _line(point: Point) -> str:
    lost = f"loses {percent(point.drop, digits=2)} ± {percent(point.noise, digits=2)}"
    return f"{percent(point.share):>6s} of int8: {point.count(4)} layers of 4 bits, val {lost}"
