"""Points of a run: one compressed network each, pruned with proof, recovered, exported, scored,
timed and judged."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from niwaki import metrics, prune, surgery
from niwaki.cost import Budget, Cost
from niwaki.job import baseline as stage
from niwaki.job import measure
from niwaki.job.baseline import PRECISIONS, Baseline, export_path
from niwaki.job.climb import climbed
from niwaki.job.widths import prune_step
from niwaki.search import Found
from niwaki.surgery import fake_quantize

if TYPE_CHECKING:
    from niwaki.job.widths import Widths
    from niwaki.job.work import Work

STAGE_OF = {"float32": "distilled", "int8": "int8"}
"""The stage that a precision of the compressed model is called by."""
SLACK = 1e-9


@dataclass(frozen=True, kw_only=True)
class Point:
    """One compressed network and what was found about it.

    Args:
        scores, costs: by stage: pruned, distilled, int8.
        default: the precision that is served.
        drop: the default's loss of val accuracy against the uncompressed model.
        got: its cost in the budget's own terms.
        ladder: the climb for its int8, where plain int8 lost too much.
    """

    name: str
    found: Found
    pruned: nn.Module
    model: nn.Module
    artifact: Path
    scores: dict[str, dict[str, Any]]
    costs: dict[str, Cost]
    timing: measure.Timing
    default: str
    drop: float
    got: float
    proof_error: float | None
    ladder: dict[str, Any] | None = None


def point(work: Work, base: Baseline, widths: Widths, name: str, found: Found) -> Point:
    """A point made real: pruned with proof, compensated, recovered, exported, scored and timed."""
    pruned, proof = _pruned(work, base, widths, name, found)
    found = replace(found, keep=proof["keep"], cost=widths.axes.cost(proof["keep"]))
    pruned, compensation = _compensated(work, base, widths, name, pruned, found)
    changed = found.keep or prune_step(work) is None
    model = _recovered(work, base, name, pruned) if changed else pruned
    cut, found = found.cost, _recounted(work, name, found, pruned, model)
    scores = {
        "pruned": measure.module_scores(work, f"{name}-pruned", pruned),
        "distilled": measure.module_scores(work, f"{name}-distilled", model),
    }
    artifact = work.folder.path / "points" / f"{name}.niwaki"
    facts = {
        "widths": found.keep,
        "result": proof["result"],
        "proof_error": proof["error"],
        "compensation": compensation,
    }
    # a network trained with fake quantizers is int8: it has no float32 export
    precisions = ("int8",) if fake_quantize.quantizers(model) else PRECISIONS
    stage.save(work, artifact, model, precisions=precisions, extra=facts)
    scores["int8"] = measure.file_scores(work, f"{name}-int8", export_path(artifact, "int8"))
    scores["int8"], ladder = climbed(work, base, name, model, artifact, scores)
    exports = {precision: export_path(artifact, precision) for precision in precisions}
    judged = _judge(work, base, widths, name, found, exports, scores)
    if cut != found.cost:  # what `prune.channels` left was cut again; it has no file of its own
        judged["costs"]["pruned"] = cut
    return Point(
        name=name,
        found=found,
        pruned=pruned,
        model=model,
        artifact=artifact,
        scores=scores,
        proof_error=proof["error"],
        ladder=ladder,
        **judged,
    )


def _pruned(
    work: Work, base: Baseline, widths: Widths, name: str, found: Found
) -> tuple[nn.Module, dict[str, Any]]:
    """The smaller model and its proof; groups that fail the proof are left whole and named."""
    if not found.keep:
        return copy.deepcopy(base.model), {"keep": {}, "error": None, "left": {}, "result": "module", "why": ""}
    made: dict[str, nn.Module] = {}

    def make() -> dict[str, Any]:
        cut = prune.cut(base.model, widths.axes, found.keep, example=widths.example)
        made["small"] = cut.model
        facts = {"keep": cut.keep, "error": cut.error, "left": cut.left}
        return {**facts, "result": cut.result, "why": cut.why}

    proof = work.folder.once(f"{name}-proof", make)
    for group, reason in proof["left"].items():
        work.folder.note(f"{group} failed the proof of surgery and was left whole: {reason}")
    if proof["result"] == "graph":
        work.folder.note(f"the class could not be mended, so the result is its graph: {proof['why']}")
    if "small" not in made:
        again = surgery.rewrite if proof["result"] == "graph" else surgery.shrink
        made["small"] = again(base.model, widths.axes, proof["keep"], example=widths.example)
    return made["small"].eval(), proof


def _compensated(
    work: Work, base: Baseline, widths: Widths, name: str, pruned: nn.Module, found: Found
) -> tuple[nn.Module, dict[str, Any] | None]:
    """The pruned model fitted to the original's outputs, after its proof, if the plan asks for it; and how."""
    if widths.compensate == "none" or not found.keep:
        return pruned, None
    made: dict[str, nn.Module] = {}

    def make() -> dict[str, Any]:
        device = next(base.model.parameters()).device
        images = prune.calibration(work.calib, work.spec, device=device)
        done = prune.compensate(
            base.model, pruned, widths.axes, found.keep, inputs=images, how=widths.compensate
        )
        made["model"] = done.model
        return done.to_json()

    def model() -> nn.Module:
        if "model" not in made:
            make()
        return made["model"]

    facts: dict[str, Any] = work.folder.once(f"{name}-compensation", make)
    work.folder.note(
        f"pruned networks were compensated without training ({facts['how']}, {facts['images']} images) after "
        "their proof: what is called pruned here includes it"
    )
    return work.folder.weights(f"{name}-compensated", lambda: copy.deepcopy(pruned), model), facts


def _recovered(work: Work, base: Baseline, name: str, pruned: nn.Module) -> nn.Module:
    _, after = stage.split_plan(work.plan)
    if not len(after):
        return pruned
    return work.folder.weights(
        f"{name}-recovered",
        lambda: copy.deepcopy(pruned),
        lambda: after.run(pruned, stage.bench(work, base.model, name)),
    )


def _recounted(work: Work, name: str, found: Found, pruned: nn.Module, model: nn.Module) -> Found:
    """The point with its last model's cost, where a step after `prune.channels` cut too (`prune.gates`)."""
    shapes = [[tuple(p.shape) for p in module.parameters()] for module in (pruned, model)]
    if shapes[0] == shapes[1] or fake_quantize.quantizers(model):
        return found

    def count() -> dict[str, int | None]:
        example = torch.from_numpy(work.spec.example(2, seed=work.arguments.seed))
        cost = surgery.analyse(model, example.to(next(model.parameters()).device)).cost({})
        return {"macs": cost.macs, "params": cost.params}

    return replace(found, cost=replace(found.cost, **work.folder.once(f"{name}-counted", count)))


def _judge(
    work: Work,
    base: Baseline,
    widths: Widths,
    name: str,
    found: Found,
    exports: Mapping[str, Path],
    scores: Mapping[str, Any],
) -> dict[str, Any]:
    """Costs of the point's exports from one interleaved run with the uncompressed ones, and its default."""
    drops = {p: drop(base.scores, scores[STAGE_OF[p]]) for p in exports}

    def default(timing: measure.Timing) -> tuple[str, float]:
        costs = _costs(work, found, exports, timing)
        reference = widths.baseline.with_(ms=timing[measure.REFERENCE]["ms"])
        got = {p: measure.got(work.budget, costs[p], reference, timing[STAGE_OF[p]]) for p in exports}
        times = {p: timing[STAGE_OF[p]]["ms"] for p in exports}
        chosen = choose_default(work.budget, work.arguments.max_drop, drops, got, times)
        return chosen, got[chosen]

    files_at = {
        measure.REFERENCE: base.exports["float32"],
        "unpruned int8": base.exports["int8"],
        **{STAGE_OF[p]: path for p, path in exports.items()},
    }
    timing = measure.time_files(
        work,
        f"timing:{name}",
        files_at,
        seconds=measure.FULL,
        until=lambda timed: default(timed)[1] <= work.budget.value,
    )
    chosen, got = default(timing)
    costs = {"float32": found.cost, **_costs(work, found, exports, timing)}
    return {
        "costs": {"pruned": costs["float32"], "distilled": costs["float32"], "int8": costs["int8"]},
        "timing": timing,
        "default": chosen,
        "drop": drops[chosen],
        "got": got,
    }


def _costs(work: Work, found: Found, exports: Mapping[str, Path], timing: measure.Timing) -> dict[str, Cost]:
    return {
        p: found.cost.with_(bytes=work.folder.bytes_of(path), ms=timing[STAGE_OF[p]]["ms"])
        for p, path in exports.items()
    }


def drop(before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    """How much of val's main score is lost between two stages' scores; val chooses, test only reports."""
    return metrics.main(before["val"]) - metrics.main(after["val"])


def choose_default(
    budget: Budget,
    max_drop: float,
    drops: Mapping[str, float],
    got: Mapping[str, float],
    times: Mapping[str, float],
) -> str:
    """The precision that is served: of those whose drop is allowed the fastest that meets the budget.

    Where none meets it, the one closest to it; where no drop is allowed, the smallest drop.
    """
    allowed = [p for p in drops if drops[p] <= max_drop + SLACK]
    if not allowed:
        return min(drops, key=lambda p: (drops[p], got[p]))
    meeting = [p for p in allowed if got[p] <= budget.value]
    if meeting:
        return min(meeting, key=lambda p: times[p])
    return min(allowed, key=lambda p: got[p])
