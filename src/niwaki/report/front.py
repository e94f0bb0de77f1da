"""The page of a search: `search.html`, accuracy against cost of every trial, the front and the best."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from niwaki import files, metrics
from niwaki.report import charts, words
from niwaki.report.parts import section, shell, table

SCALE = 1e6
SAYS = {
    "widths": "one supernet, trained once; every trial is a network cut out of it",
    "grid": "every combination",
    "random": "settings drawn at random",
    "halving": "successive halving: all settings briefly, the best of them longer",
    "optuna": "settings drawn by Optuna from what was found before",
}


def search(result: Mapping[str, Any], folder: str | Path) -> Path:
    """Write `folder/search.html` for what `job.explore` found; the page's path.

    Args:
        result: `name by model data cost budget trials front best seconds`, as `explore` returns them.
    """
    path = Path(folder) / "search.html"
    body = _header(result) + _chart(result) + _front(result) + _trials(result)
    files.write_bytes(path, shell(f"{result['name']}: niwaki search", body).encode())
    return path


def _header(result: Mapping[str, Any]) -> str:
    best, cost = result["best"], result["cost"]
    says = "No trial is within the budget."
    if best is not None:
        says = f"Best on val: {words.percent(metrics.main(best['val']))} at {_cost(best, cost)}"
        says += f", test {words.percent(metrics.main(best['test']))}." if best.get("test") else "."
    facts = [
        f"model <b>{escape(str(result['model']))}</b>",
        f"data <b>{escape(str(result['data']))}</b>",
        f"<b>{len(result['trials'])}</b> trials: {escape(SAYS[result['by']])}",
    ]
    if result.get("budget"):
        facts.append(f"budget <b>{escape(str(result['budget']['asked']))}</b>")
    return (
        f'<header><p class="kicker">niwaki search</p><h1>{escape(str(result["name"]))}</h1>'
        f'<p class="headline">{escape(says)}</p><p class="facts">{" · ".join(facts)}</p></header>'
    )


def _chart(result: Mapping[str, Any]) -> str:
    cost, best = result["cost"], result["best"]
    front = {trial["name"] for trial in result["front"]}
    marks = []
    for trial in result["trials"]:
        if not trial.get("val"):
            continue
        name, share = trial["name"], metrics.main(trial["val"])
        chosen = best is not None and name == best["name"]
        kind = "chosen" if chosen else "" if name in front else "baseline"
        says = f"{name}: {_cost(trial, cost)}, {words.percent(share)} on val; {_setting(trial)}"
        label = name if name in front else ""
        marks.append(charts.Mark(trial["cost"][cost] / SCALE, share, label, says, kind))
    if not marks:
        return ""
    chart = charts.scatter(
        marks,
        title="Accuracy against cost of every trial",
        x=f"{words.NOUN[cost]} (millions)",
        y="accuracy on val",
        limit=result["budget"]["limit"] / SCALE if result.get("budget") else None,
        limit_says="budget",
        stairs=[(t["cost"][cost] / SCALE, metrics.main(t["val"])) for t in result["front"]],
    )
    says = (
        "Named points are the front: no trial is both cheaper and at least as accurate on val. Grey ones are "
        "beaten. The green one is the best on val, within the budget where there is one."
    )
    return section(f"Accuracy against {words.NOUN[cost]}", chart, says=says, wide=True)


def _front(result: Mapping[str, Any]) -> str:
    head = ["trial", "MACs", "params", "val accuracy", "test accuracy", "setting"]
    rows = [_row(trial, result, test=True) for trial in result["front"]]
    says = (
        "Val chose these, so their val accuracy is a little flattering; test had no part in it. Brackets: 95 % "
        "interval."
    )
    return section("The front", table(head, rows) if rows else "", says=says, wide=True)


def _trials(result: Mapping[str, Any]) -> str:
    head = ["trial", "MACs", "params", "val accuracy", "epochs", "seconds", "setting"]
    rows = [_row(trial, result, test=False) for trial in result["trials"]]
    return section("All trials", table(head, rows) if rows else "", wide=True)


def _row(trial: Mapping[str, Any], result: Mapping[str, Any], *, test: bool) -> str:
    name = escape(str(trial["name"]))
    if result["best"] is not None and trial["name"] == result["best"]["name"]:
        name += ' <span class="badge">best</span>'
    cells = [words.quantity(field, trial["cost"][field]) for field in ("macs", "params")]
    cells.append(_score(trial.get("val")))
    if test:
        cells.append(_score(trial.get("test")))
    else:
        cells += [str(trial["epochs"]), f"{trial['seconds']:.1f}"]
    cells.append(escape(trial.get("error") or _setting(trial)))
    return f'<tr><th scope="row">{name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _score(score: Mapping[str, float] | None) -> str:
    if not score:
        return words.NONE
    low, high = 100 * score["low"], 100 * score["high"]
    return f"{words.percent(metrics.main(score))} <small>[{low:.1f}, {high:.1f}]</small>"


def _cost(trial: Mapping[str, Any], cost: str) -> str:
    return f"{words.quantity(cost, trial['cost'][cost])} {words.NOUN[cost]}"


def _setting(trial: Mapping[str, Any]) -> str:
    """A setting in words: its values, or the widths of a path in the network's order."""
    setting = trial["setting"]
    if "widths" in setting:
        return "widths " + " ".join(str(width) for width in setting["widths"].values())
    return ", ".join(f"{name} {value}" for name, value in setting.items())
