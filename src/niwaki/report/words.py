"""Numbers of a report in words: one place for units, rounding and the headline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from niwaki import metrics

FIELD = {"latency": "ms", "macs": "macs", "params": "params", "size": "bytes"}
NOUN = {"ms": "latency", "macs": "MACs", "params": "parameters", "bytes": "file size"}
NONE = "–"


def percent(share: float | None, *, digits: int = 1) -> str:
    """A share 0..1 as `97.8 %`."""
    return NONE if share is None else f"{100 * share:.{digits}f} %"


def quantity(field: str, value: float | None) -> str:
    """A cost in its own unit: `12.3 M`, `1.20 MB`, `0.312 ms`."""
    if value is None:
        return NONE
    if field == "ms":
        return f"{value:.3g} ms"
    if field == "bytes":
        return f"{value / 1e6:.3g} MB" if value >= 1e5 else f"{value / 1e3:.3g} kB"
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:g}"


def budget_field(record: Mapping[str, Any]) -> str:
    """The cost that the budget limits: ms, macs, params or bytes; ms when none was asked."""
    asked = str((record.get("budget") or {}).get("asked", ""))
    return FIELD.get(asked.partition("=")[0].strip().lower(), "ms")


def stage(record: Mapping[str, Any], name: str | None) -> dict[str, Any] | None:
    """The stage of that name, or None."""
    return next((one for one in record["stages"] if one["name"] == name), None)


def served(record: Mapping[str, Any]) -> dict[str, Any]:
    """The stage that is served by default; the last one when the record does not say."""
    found: dict[str, Any] = stage(record, record.get("default")) or record["stages"][-1]
    return found


def ratio(record: Mapping[str, Any], field: str) -> float | None:
    """What remains of a cost: served over uncompressed; None where one was not measured."""
    before = (record["stages"][0].get("cost") or {}).get(field)
    after = (served(record).get("cost") or {}).get(field)
    return None if not before or after is None else float(after / before)


SCORES = {"accuracy": "accuracy", "ap50": "AP@0.5", "miou": "mIoU"}
"""Main scores in words."""


def score(record: Mapping[str, Any]) -> str:
    """What the main score is called."""
    return SCORES[str(record.get("metric", "accuracy"))]


def accuracy(one: Mapping[str, Any], split: str = "test") -> float | None:
    """A stage's main score on a split, 0..1, or None."""
    return metrics.main(one[split]) if one.get(split) else None


def headline(record: Mapping[str, Any]) -> str:
    """The result in one sentence: what remains, what accuracy became, whether the budget is met."""
    field = budget_field(record)
    budget = record.get("budget") or {}
    left = ratio(record, field)
    if "%" in str(budget.get("asked")) and budget.get("got") is not None:
        left = float(budget["got"])  # what the budget was judged by, not a second measurement
    before, after = accuracy(record["stages"][0]), accuracy(served(record))
    words = []
    if left is not None:
        words.append(f"{left:.2f} of the {NOUN[field]}")
    if before is not None and after is not None:
        words.append(f"{score(record)} {percent(before)} → {percent(after)}")
    if "met" in budget:
        words.append("budget met" if budget["met"] else "budget NOT met")
    text = ", ".join(words) or "nothing was measured"
    if left is not None and left >= 1:
        return f"No gain: {text}."
    return text[0].upper() + text[1:] + "."
