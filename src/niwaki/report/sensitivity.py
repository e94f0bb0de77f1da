"""The page of sensitivities: what int8 costs layer by layer, as a chart and a table."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from niwaki import files
from niwaki.report import charts, words
from niwaki.report.parts import section, shell, table

SHOWN = 40
"""Layers in the chart, the most sensitive; the table has all."""
IN_REPORT = 12
"""Of them in the report of a run."""


def sensitivity(found: Mapping[str, Any], folder: str | Path) -> Path:
    """Write `folder/sensitivity.html` and `.json` for what `search.recipes.sensitivities` found; the page.

    Args:
        found: its answer, and `name`, the artifact's.
    """
    folder = Path(folder)
    files.write_json(folder / "sensitivity.json", found)
    body = _header(found) + chart(found) + _table(found)
    path = folder / "sensitivity.html"
    files.write_bytes(path, shell(f"{found['name']}: sensitivity to int8", body).encode())
    return path


def _header(found: Mapping[str, Any]) -> str:
    whole, rank = found["all"], found["rank"]
    says = f"All of it in int8: {whole['kl']:.3g} nats from float, {_db(whole['sqnr'])}."
    if whole["score"] is not None:
        says += f" Score {words.percent(found['float']['score'])} to {words.percent(whole['score'])}."
    facts = [
        f"<b>{found['images']}</b> images of val",
        f"ranges by <b>{escape(str(found['recipe']['calibration']))}</b>",
        f"order by {found['few']} images: rank correlation with that by the others "
        f"<b>{_number(rank['few images'])}</b>",
        f"order by each layer's own output: <b>{rank['own output']:.2f}</b>",
    ]
    return (
        f'<header><p class="kicker">niwaki export --sensitivity</p><h1>{escape(str(found["name"]))}</h1>'
        f'<p class="headline">{escape(says)}</p><p class="facts">{" · ".join(facts)}</p></header>'
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def in_report(record: Mapping[str, Any]) -> str:
    """The section of a run's report: the layers that int8 costs most."""
    found = record.get("sensitivity")
    return chart(found, shown=IN_REPORT) if found else ""


def chart(found: Mapping[str, Any], *, shown: int = SHOWN) -> str:
    """A section with a bar for each kind of rounding of the most sensitive layers."""
    rows = sorted(found["rows"], key=lambda row: -row["alone"]["kl"])[:shown]
    marks = [
        (
            row["name"],
            [
                ("weights", (row["weights"] or {"kl": 0.0})["kl"]),
                ("activations", (row["inputs"] or {"kl": 0.0})["kl"]),
                ("both", row["alone"]["kl"]),
            ],
        )
        for row in rows
    ]
    picture = charts.bars(marks, title="KL divergence when one layer alone is rounded", x="nats from float")
    says = (
        "How far the outputs move when one layer alone is rounded, the most sensitive first; "
        f"{found['images']} images of val."
    )
    return section("Sensitivity to int8", picture, says=says, wide=True)


def _table(found: Mapping[str, Any]) -> str:
    head = [found["by"], "KL alone", "SQNR alone", "score alone", "KL all others", "score all others"]
    head += ["KL weights", "KL activations", f"KL on {found['few']} images", "SQNR own output"]
    lines = []
    for row in found["rows"]:
        cells = [f"{row['alone']['kl']:.3g}", _db(row["alone"]["sqnr"]), words.percent(row["alone"]["score"])]
        cells += [f"{row['others']['kl']:.3g}", words.percent(row["others"]["score"])]
        cells += [words.NONE if row[k] is None else f"{row[k]['kl']:.3g}" for k in ("weights", "inputs")]
        cells += [f"{row['few']:.3g}", _db(row["own"])]
        body = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{escape(row["name"])}</th>{body}</tr>')
    says = "Alone: only this is rounded. All others: only this stays float. KL in nats, over the classes."
    return section("All of them", table(head, lines), says=says, wide=True)


def _db(value: float | None) -> str:
    return words.NONE if value is None else f"{value:.1f} dB"
