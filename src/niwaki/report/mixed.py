"""The page of mixed precision: score against size of every file measured, and the bits of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from niwaki import files
from niwaki.qdq.recipe import BITS, FLOAT_BITS
from niwaki.report import charts, words
from niwaki.report.parts import section, shell, table

MEGA = 1e6
COLUMNS = (*BITS, FLOAT_BITS)
"""Bits that layers are counted by."""


def mixed(found: Mapping[str, Any], folder: str | Path) -> Path:
    """Write `folder/mixed.html` and `.json` for what `search.mixed.search` found; the page.

    Args:
        found: its answer as JSON, and `name`, the artifact's, `runtime`, and `images` of val.
    """
    folder = Path(folder)
    files.write_json(folder / "mixed.json", found)
    body = _header(found) + _chart(found) + _files(found) + _layers(found)
    path = folder / "mixed.html"
    files.write_bytes(path, shell(f"{found['name']}: mixed precision", body).encode())
    return path


def _header(found: Mapping[str, Any]) -> str:
    chosen = found["chosen"]
    says = (
        f"{words.percent(chosen['share'])} of the int8 file's bytes, where {words.percent(found['size'])} was "
        f"asked: val loses {_lost(chosen)} against float."
    )
    facts = [
        f"runtime <b>{escape(str(found['runtime']))}</b>",
        f"<b>{found['images']}</b> images of val",
        f"float scores <b>{words.percent(found['reference'])}</b>",
        f"<b>{_count(chosen, 4)}</b> layers of 4 bits, <b>{_count(chosen, 8)}</b> of 8, "
        f"<b>{_count(chosen, FLOAT_BITS)}</b> in float",
    ]
    return (
        f'<header><p class="kicker">niwaki export --size</p><h1>{escape(str(found["name"]))}</h1>'
        f'<p class="headline">{escape(says)}</p><p class="facts">{" · ".join(facts)}</p></header>'
    )


def _chart(found: Mapping[str, Any]) -> str:
    points, front = found["points"], set(found["front"])
    marks = [
        charts.Mark(
            point["bytes"] / MEGA,
            point["score"],
            words.percent(point["share"]) if point["share"] in front else "",
            f"{words.percent(point['share'])} of int8: loses {_lost(point)}",
            "chosen" if point == found["chosen"] else "" if point["share"] in front else "baseline",
        )
        for point in points
    ]
    limit = found["size"] * points[-1]["bytes"] / points[-1]["share"] / MEGA
    chart = charts.scatter(
        marks,
        title="Score on val against bytes of every file",
        x="MB",
        y="score on val",
        limit=limit,
        limit_says="asked",
        floor=found["reference"],
        floor_says="float",
        stairs=[(p["bytes"] / MEGA, p["score"]) for p in points if p["share"] in front],
    )
    says = (
        "Every point is a file that was made and run. Named points are the front: no file is both smaller and "
        "at least as good on val. The green one is what was chosen: the least expected loss within the size."
    )
    return section("Score against size", chart, says=says, wide=True)


def _files(found: Mapping[str, Any]) -> str:
    head = ["of int8", "MB", "4 bits", "8 bits", "float", "score on val", "lost"]
    rows = []
    for point in found["points"]:
        name = words.percent(point["share"])
        name += ' <span class="badge">chosen</span>' if point == found["chosen"] else ""
        cells = [f"{point['bytes'] / MEGA:.3g}", *(str(_count(point, bits)) for bits in COLUMNS)]
        cells += [words.percent(point["score"]), _lost(point)]
        rows.append(
            f'<tr><th scope="row">{name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        )
    says = (
        "Lost: against float, on the same images; ± is one standard error, so smaller differences are chance."
    )
    return section("Files", table(head, rows), says=says, wide=True)


def _layers(found: Mapping[str, Any]) -> str:
    head = ["layer", "bits", "nats lost at 4 bits", "at 8 bits"]
    rows = []
    for name, losses in found["losses"].items():
        cells = [str(found["chosen"]["bits"][name]), f"{losses['4']:.3g}", f"{losses['8']:.3g}"]
        body = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{body}</tr>')
    says = "KL divergence of the outputs from float when this layer alone is rounded, on calibration images."
    return section("Layers", table(head, rows), says=says, wide=True)


def _count(point: Mapping[str, Any], bits: int) -> int:
    return sum(own == bits for own in point["bits"].values())


def _lost(point: Mapping[str, Any]) -> str:
    return f"{words.percent(point['drop'], digits=2)} ± {words.percent(point['noise'], digits=2)}"
