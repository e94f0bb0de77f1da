"""The walk through a run's stages, from its arguments to its result. Needs torch."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from typing import Any

from niwaki import files, report
from niwaki.artifact import Artifact
from niwaki.job import together
from niwaki.job.baseline import MODEL, Baseline, baseline
from niwaki.job.measure import REFERENCE
from niwaki.job.points import SLACK, Point, point
from niwaki.job.record import record, result
from niwaki.job.widths import Widths, prune_step
from niwaki.job.work import Work, plan_text
from niwaki.search import Found

MILDER = (("milder-1", 1 / 3), ("milder-2", 2 / 3))
"""Points tried when the one asked for loses too much: the share of removed multiply-adds given back."""


NARROWER = 0.04
COARSE = {
    "latency": "channels are coarse, or timing noise left no closer one",
    **dict.fromkeys(("macs", "params", "size"), "channels are coarser than that"),
}
NO_GAIN = 0.97
"""Above this share of the other's time, nothing was gained."""


def walk(work: Work) -> dict[str, Any]:
    """All stages in order; result.json comes last and ends the run."""
    began = time.perf_counter()
    files.write_json(work.folder.path / "splits.json", work.data.splits_json())
    files.write_bytes(work.folder.path / "plan.toml", plan_text(work.plan).encode())
    base = baseline(work)
    widths = Widths(work, base.model, base.exports)
    points = _points(work, base, widths)
    seconds = time.perf_counter() - began
    finished = together.told(lambda: files.dump_json(_finish(work, base, widths, points, seconds)))
    stored: dict[str, Any] = json.loads(finished)
    return stored


def _finish(
    work: Work, base: Baseline, widths: Widths, points: Sequence[Point], seconds: float
) -> dict[str, Any]:
    """The point that is delivered, the report, and last of all the result."""
    held = [item for item in points if item.drop <= work.arguments.max_drop + SLACK]
    meeting = [item for item in held if item.got <= work.budget.value]
    chosen = (meeting or held or [min(points, key=lambda item: item.drop)])[0]
    _note_gain(work, chosen)
    outcome = result(work, base, widths, points, chosen)
    if held:
        _deliver(work, chosen, outcome)
    report.build(record(work, base, widths, points, chosen, outcome, seconds), work.folder.path)
    stored = outcome if held else {"error": _lossy(work, points), **outcome}
    files.write_json(work.folder.path / "result.json", stored)
    return stored


def _points(work: Work, base: Baseline, widths: Widths) -> list[Point]:
    """The point asked for and, while the accuracy does not hold, at most two milder ones."""
    found = widths.find(base.precisions, base.timing["baseline"]["ms"])
    if not found.keep and prune_step(work) is not None:
        work.folder.note("no pruning needed: the uncompressed network's export is within the budget")
    if found.coarser:
        work.folder.note(
            f"the closest point found is more than 2 % below the budget: {COARSE[work.budget.kind]}"
        )
    points = [point(work, base, widths, "asked", found)]
    if found.keep and points[0].got > work.budget.value:
        points.append(point(work, base, widths, *_narrower(widths, found)))
    for name, share in MILDER:
        if points[-1].drop <= work.arguments.max_drop + SLACK or not found.keep:
            break
        points.append(point(work, base, widths, name, widths.milder(found, share)))
    milder = sum(item.name.startswith("milder") for item in points)
    if milder:
        work.folder.note(
            f"the network asked for loses {points[0].drop:.1%} of val accuracy, more than --max-drop; "
            f"{milder} milder tried"
        )
    return points


def _narrower(widths: Widths, found: Found) -> tuple[str, Found]:
    """The point to try when the recovered file turns out slower than its candidate was: the share of removed
    multiply-adds grows by `NARROWER`."""
    return "narrower", widths.milder(found, -NARROWER)


def _note_gain(work: Work, chosen: Point) -> None:
    """Says in plain words where a compressed network is no faster than what it was made of."""
    ms = {name: timed["ms"] for name, timed in chosen.timing.items()}
    compared = [("int8", "distilled", "float32 of the same network")]
    if chosen.found.keep:
        compared = [
            ("distilled", REFERENCE, "the uncompressed float32"),
            ("int8", "unpruned int8", "int8 of the uncompressed network"),
            *compared,
        ]
    for name, other, words in compared:
        if name in ms and other in ms and ms[name] >= NO_GAIN * ms[other]:
            work.folder.note(f"no gain: {name} takes {ms[name] / ms[other]:.2f} of the time of {words}")


def _deliver(work: Work, chosen: Point, outcome: dict[str, Any]) -> None:
    """The chosen point's artifact as model.niwaki, with the run's scores and costs in its manifest."""
    target = work.folder.path / MODEL
    fresh = work.folder.stage(MODEL)
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(chosen.artifact, fresh)
    facts = {name: outcome[name] for name in ("scores", "cost", "budget", "proof_error")}
    Artifact.open(fresh).update(default=chosen.default, **facts)
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)


def _lossy(work: Work, points: Sequence[Point]) -> dict[str, str]:
    shown = ", ".join(f"{item.artifact} loses {item.drop:.1%}" for item in points)
    return {
        "code": "budget-drop",
        "message": f"fit: no network tried holds the accuracy within --max-drop {work.arguments.max_drop:.1%} "
        f"of val: {shown}. The points are kept; allow a larger --max-drop, a milder --budget or "
        "more epochs.",
    }
