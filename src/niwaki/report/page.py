"""The page of a report: sections of HTML around the charts. Every text of the record is escaped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from niwaki import metrics
from niwaki.report import charts, words
from niwaki.report.parts import section as _section
from niwaki.report.parts import shell
from niwaki.report.parts import table as _table
from niwaki.report.sensitivity import in_report as _sensitivity

Record = Mapping[str, Any]
MOST_CLASSES = 40
"""Above this many classes the confusion matrix gives way to a list of pairs."""


def draw(record: Record) -> str:
    """The whole page of a record that `build` has made plain: HTML text."""
    sections = "".join(section(record) for section in SECTIONS)
    return shell(f"{record['name']}: niwaki report", f"{_header(record)}{_cards(record)}{sections}")


def _header(record: Record) -> str:
    budget = record.get("budget") or {}
    met = budget.get("met")
    badge = ""
    if met is not None:
        kind, says = ("good", "budget met") if met else ("bad", "budget not met")
        badge = f'<span class="badge {kind}">{says}</span>'
    data = record.get("data") or {}
    facts = []
    if record.get("model"):
        facts.append(f"model <b>{escape(str(record['model']))}</b>")
    if data.get("source"):
        counts = ", ".join(f"{data[k]} {k}" for k in ("train", "val", "test") if k in data)
        facts.append(f"data <b>{escape(str(data['source']))}</b> ({escape(counts)} images)")
    if budget.get("asked"):
        facts.append(f"budget <b>{escape(_readable(budget['asked']))}</b>, got <b>{escape(_got(record))}</b>")
    note = f'<p class="say">{escape(str(budget["note"]))}</p>' if budget.get("note") else ""
    return (
        f'<header><p class="kicker">niwaki report</p><h1>{escape(str(record["name"]))} {badge}</h1>'
        f'<p class="headline">{escape(words.headline(record))}</p>'
        f'<p class="facts">{" · ".join(facts)}</p>{note}</header>'
    )


def _readable(asked: Any) -> str:
    kind, _, value = str(asked).partition("=")
    return f"{kind} ≤ {value.replace('%', ' %')}" if value else str(asked)


def _got(record: Record) -> str:
    budget = record.get("budget") or {}
    got = budget.get("got")
    if got is None:
        return words.NONE
    if "%" in str(budget.get("asked")):
        return words.percent(got)
    return words.quantity(words.budget_field(record), got)


def _cards(record: Record) -> str:
    first, last = record["stages"][0], words.served(record)
    cards = []
    for field in ("ms", "macs", "params", "bytes"):
        left = words.ratio(record, field)
        if left is not None:
            before, after = first["cost"][field], last["cost"][field]
            change = f"{words.quantity(field, before)} → {words.quantity(field, after)}"
            cards.append(_card(f"{left:.2f}", f"of the {words.NOUN[field]}", change))
    score = last.get("test")
    if score:
        interval = f"95 % interval {words.percent(score['low'])} to {words.percent(score['high'])}"
        cards.append(_card(words.percent(metrics.main(score)), f"test {words.score(record)}", interval))
    if last.get("flipped") is not None:
        cards.append(_card(words.percent(last["flipped"]), "predictions flipped", "against the uncompressed"))
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _card(big: str, says: str, small: str) -> str:
    lines = f"<b>{escape(big)}</b><span>{escape(says)}</span><small>{escape(small)}</small>"
    return f'<div class="card">{lines}</div>'


def _stages(record: Record) -> str:
    head = [
        "stage",
        "MACs",
        "params",
        "file",
        "latency",
        f"val {words.score(record)}",
        f"test {words.score(record)}",
        "flipped",
    ]
    rows = []
    default = words.served(record)["name"]
    for one in record["stages"]:
        cost = one.get("cost") or {}
        name = escape(str(one["name"]))
        if one["name"] == default:
            name += ' <span class="badge">default</span>'
        cells = [words.quantity(field, cost.get(field)) for field in ("macs", "params", "bytes", "ms")]
        cells += [words.percent(words.accuracy(one, "val")), _interval(one.get("test"))]
        cells.append(words.percent(one.get("flipped")))
        rows.append(
            f'<tr><th scope="row">{name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        )
    return _section(
        "Stages",
        _table(head, rows),
        wide=True,
        says=(
            "Flipped: share of test predictions that differ from the uncompressed model's, right or wrong. "
            "Brackets: 95 % interval. Latency: median, one image at a time."
        ),
    )


def _interval(score: Mapping[str, float] | None) -> str:
    if not score:
        return words.NONE
    low, high = 100 * score["low"], 100 * score["high"]
    return f"{words.percent(metrics.main(score))} <small>[{low:.1f}, {high:.1f}]</small>"


def _points(record: Record) -> str:
    field = words.budget_field(record)
    marks = []
    for one in record.get("points") or []:
        cost, score = (one.get("cost") or {}).get(field), one.get("accuracy")
        if cost is not None and score is not None:
            outcome = str(one.get("outcome") or "")
            kind = outcome if outcome in ("chosen", "baseline") else ""
            says = f"{one['name']}: {words.quantity(field, cost)}, {words.percent(score)} {outcome}"
            marks.append(charts.Mark(_scaled(field, cost), score, str(one["name"]), says, kind))
    if not marks:
        return ""
    limit, floor = _limit(record, field), _floor(record)
    unit = {"ms": "ms, median", "bytes": "MB", "macs": "millions", "params": "millions"}[field]
    chart = charts.scatter(
        marks,
        title=f"{_first(words.score(record))} against cost of every point tried",
        x=f"{words.NOUN[field]} ({unit})",
        y=f"{words.score(record)} on val",
        limit=limit,
        limit_says="budget",
        floor=floor,
        floor_says=f"lowest {words.score(record)} allowed",
    )
    left = "Left of the dashed line is within the budget."
    return _section(
        f"{_first(words.score(record))} against {words.NOUN[field]}",
        chart,
        says=f"Every point that was tried. {left}",
    )


def _first(word: str) -> str:
    """A word as a title begins with it."""
    return word if word[:2] == "mI" else word.capitalize()


def _scaled(field: str, value: float) -> float:
    return float(value) if field == "ms" else float(value) / 1e6


def _limit(record: Record, field: str) -> float | None:
    """The budget in the chart's unit, from its own words; None if it cannot be read."""
    from niwaki.cost import Budget, Cost
    from niwaki.errors import PlanError

    asked = (record.get("budget") or {}).get("asked")
    baseline = (record["stages"][0].get("cost") or {}).get(field)
    try:
        budget = Budget.parse(str(asked))
        return _scaled(field, budget.limit(Cost(**{field: baseline})))
    except (PlanError, ValueError):
        return None


def _floor(record: Record) -> float | None:
    drop = (record.get("budget") or {}).get("max_drop")
    base = words.accuracy(record["stages"][0], "val")
    return None if drop is None or base is None else base - float(drop)


def _behaviour(record: Record) -> str:
    """The behaviour ledger: a row a stage, and a chart of accuracy by what was done to the images."""
    found = record.get("ledger") or {}
    stages = found.get("stages") or []
    if not stages:
        return ""
    kinds, attacks = list(stages[0]["corrupted"]), list(stages[0]["attacked"])
    head = ["stage", "flipped", "largest drop of a class", "calibration error", "clean", "corrupted, mean"]
    rows = []
    for one in stages:
        scores = [metrics.main(one["clean"]), one["corrupted_mean"]]
        scores += [metrics.main(one["attacked"][name]) for name in attacks]
        cells = [words.percent(one.get("flipped")), _worst_class(one), words.percent(one.get("calibration"))]
        cells += [words.percent(score) for score in scores]
        cells.append(escape(str(one["attack"])))
        name = f'<tr><th scope="row">{escape(str(one["name"]))}</th>'
        rows.append(name + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    table = _table([*head, *map(str.upper, attacks), "attack"], rows)
    conditions = [("clean", [(str(s["name"]), metrics.main(s["clean"])) for s in stages])]
    for part, names in (("corrupted", kinds), ("attacked", attacks)):
        for name in names:
            shown = name.upper() if part == "attacked" else name
            conditions.append((shown, [(str(s["name"]), metrics.main(s[part][name])) for s in stages]))
    chart = charts.conditions(conditions, title=f"{_first(words.score(record))} by what was done to the images")
    return _section("Behaviour", f"{table}{chart}", says=_behaviour_says(found), wide=True)


def _worst_class(stage: Mapping[str, Any]) -> str:
    drops = stage.get("class_drops") or {}
    if not drops:
        return words.NONE
    name, drop = max(drops.items(), key=lambda pair: pair[1])
    return f"{100 * drop:.1f} points <small>{escape(str(name))}</small>" if drop > 0 else "none"


def _behaviour_says(found: Mapping[str, Any]) -> str:
    """What was measured on how many images, with every strength."""
    images, attack = found["images"], found["attack"]
    strengths = "; ".join(found["corruptions"].values())
    return escape(
        f"Flips, drops by class and calibration error ({found['bins']} bins) are of all {images['test']} test "
        f"images. Corruptions are of {images['corrupted']} of them: {strengths}. Attacks are of "
        f"{images['attacked']}: each pixel may move by {attack['eps']} of {attack['of']}; FGSM in one step, "
        f"PGD in {attack['steps']} of {attack['step']}. A transfer attack is made on the float model and "
        "shown to the file: one made on the file itself would be stronger."
    )


def _widths(record: Record) -> str:
    rows = [(str(one["layer"]), int(one["before"]), int(one["after"])) for one in record.get("widths") or []]
    if not rows:
        return ""
    chart = charts.widths(rows, title="Channels of each layer before and after")
    before, after = sum(row[1] for row in rows), sum(row[2] for row in rows)
    share = f" {after} of {before} channels remain ({words.percent(after / before)})." if before else ""
    chart = f'<div class="tall" tabindex="0">{chart}</div>' if len(rows) > 24 else chart
    return _section("Widths", chart, says=f"Output channels of each layer, before (pale) and after.{share}")


def _histories(record: Record) -> str:
    histories = {str(k): v for k, v in (record.get("histories") or {}).items() if v}
    parts = []
    for key, name, title in (
        ("loss", "training loss", "Training loss by epoch"),
        ("val_score", f"{words.score(record)} on val", f"{_first(words.score(record))} on val by epoch"),
    ):
        lines = [
            charts.Line(
                stage,
                [(float(e["epoch"]), float(e[key])) for e in epochs if e.get(key) is not None],
            )
            for stage, epochs in histories.items()
        ]
        lines = [line for line in lines if line.points]
        if lines:
            parts.append(charts.curves(lines, title=title, x="epoch", y=name, percent=key != "loss"))
    if not parts:
        return ""
    return _section("Training", f'<div class="pair">{"".join(parts)}</div>', wide=True)


def _confusion(record: Record) -> str:
    found = record.get("confusion") or {}
    names, counts = [str(name) for name in found.get("classes") or []], found.get("counts") or []
    if not names:
        return ""
    if len(counts) != len(names) or any(len(row) != len(names) for row in counts):
        raise ValueError(f"confusion.counts must be {len(names)} x {len(names)}")
    if len(names) > MOST_CLASSES:
        return _section("Most confused", _pairs(names, counts), says="The default export on the test split.")
    chart = charts.heatmap(names, counts, title="Confusion matrix")
    return _section(
        "Confusion",
        chart,
        says="The default export on the test split; shade is the share of the row.",
    )


def _pairs(names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    pairs = sorted(
        ((value, i, j) for i, row in enumerate(counts) for j, value in enumerate(row) if i != j and value),
        reverse=True,
    )[:20]
    rows = [
        f'<tr><th scope="row">{escape(names[i])}</th><td>{escape(names[j])}</td>'
        f"<td>{value} of {sum(counts[i])}</td></tr>"
        for value, i, j in pairs
    ]
    return _table(["true", "predicted", "count"], rows)


def _wrong(record: Record) -> str:
    figures = []
    for one in record.get("wrong") or []:
        true, guess = escape(str(one["true"])), escape(str(one["predicted"]))
        name, sure = (
            escape(str(one.get("name", ""))),
            words.percent(one.get("probability"), digits=0),
        )
        figures.append(
            f'<figure><img src="{escape(one["image"])}" alt="{name}: {true} taken for {guess}">'
            f"<figcaption><b>{true}</b> taken for <b>{guess}</b> <small>{sure}</small>"
            f'<small class="file" title="{name}">{name}</small></figcaption></figure>'
        )
    body = f'<div class="wrong">{"".join(figures)}</div>' if figures else ""
    return _section("Most wrong", body, says="Test images the default export is surest and wrong about.")


def _maps(record: Record) -> str:
    """Class maps or objects of the worst images, in rows."""
    figures = []
    for one in record.get("maps") or []:
        name = escape(str(one["name"]))
        figures.append(
            f'<figure><img src="{escape(one["image"])}" alt="{name}: truth, prediction, errors">'
            f"<figcaption>{words.score(record)} {words.percent(one['score'])} "
            f'<small class="file" title="{name}">{name}</small></figcaption></figure>'
        )
    body = f'<div class="maps">{"".join(figures)}</div>' if figures else ""
    says = (
        "Test images on which the default export is worst: the truth; the prediction, objects with number and "
        "score; of class maps the contours, true ones yellow, predicted ones blue, white where they agree, and "
        "wrong pixels in red; of objects those found in green, those that are none in red, missed in blue, "
        "true contours in yellow."
    )
    return _section("Worst images", body, says=says, wide=True)


def _notes(record: Record) -> str:
    lines = [f"<li>{escape(str(text))}</li>" for text in record.get("warnings") or []]
    problems = record.get("problems") or []
    lines += [
        f"<li><code>{escape(str(one['path']))}</code> left out: {escape(str(one['message']))} "
        f"<code>{escape(str(one['code']))}</code></li>"
        for one in problems[:100]
    ]
    if len(problems) > 100:
        lines.append(f"<li>and {len(problems) - 100} images more; all are in report.json</li>")
    body = f'<ul class="notes">{"".join(lines)}</ul>' if lines else ""
    return _section("Warnings", body, wide=True)


def _machine(record: Record) -> str:
    machine, facts = record.get("machine") or {}, []
    if machine:
        isa = machine.get("isa") or []
        flags = isa if isinstance(isa, str) else ", ".join(map(str, isa))
        threads = machine.get("threads")
        facts += [("CPU", machine.get("cpu")), ("instructions", flags), ("threads", threads)]
    if record.get("proof_error") is not None:
        facts.append(("proof of surgery, error", f"{record['proof_error']:.2g}"))
    if record.get("seconds") is not None:
        minutes, seconds = divmod(round(record["seconds"]), 60)
        facts.append(("run took", f"{minutes} min {seconds} s"))
    if record.get("versions"):
        facts.append(("versions", ", ".join(f"{k} {v}" for k, v in record["versions"].items())))
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts if v not in (None, ""))
    return _section("Where this was measured", f"<dl>{rows}</dl>" if rows else "", wide=True)


SECTIONS: tuple[Callable[[Record], str], ...] = (
    _stages,
    _points,
    _widths,
    _sensitivity,
    _behaviour,
    _histories,
    _confusion,
    _wrong,
    _maps,
    _notes,
    _machine,
)
