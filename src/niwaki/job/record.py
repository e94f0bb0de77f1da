"""What a run hands out: the result that `fit` returns and the record that its report is drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from niwaki import evaluate, instances, loop, metrics, overlays, runtimes, tally, timing
from niwaki.cost import Cost
from niwaki.job import measure
from niwaki.job.baseline import BASELINE, MODEL, Baseline, export_path
from niwaki.job.ledger import ledger
from niwaki.job.points import SLACK, STAGE_OF, Point
from niwaki.qdq.recipe import Recipe
from niwaki.search import recipes
from niwaki.surgery import fake_quantize
from niwaki.tasks import Instances

if TYPE_CHECKING:
    from niwaki.job.widths import Widths
    from niwaki.job.work import Work

WRONG = 12
"""Most-wrong test images shown in the report."""
FEW, LEAST, PIXELS = 16, 4, 16 * 64 * 64
"""Images that the sensitivities of layers are measured on: at most, at least, and pixels of all of them.
`niwaki export --sensitivity` takes more."""


def result(
    work: Work, base: Baseline, widths: Widths, points: Sequence[Point], chosen: Point
) -> dict[str, Any]:
    """What `fit` returns; see its docstring."""
    stages = _stages(base, widths, chosen)
    held = chosen.drop <= work.arguments.max_drop + SLACK
    return {
        "artifact": str(work.folder.path / MODEL) if held else None,
        "baseline": str(work.folder.path / BASELINE),
        "scores": {name: {s: scores[s] for s in ("val", "test")} for name, _, scores in stages},
        "cost": {name: cost.to_json() for name, cost, _ in stages},
        "budget": {
            "asked": work.budget.text,
            "got": chosen.got,
            "met": held and chosen.got <= work.budget.value,
            "max_drop": work.arguments.max_drop,
            "coarser": chosen.found.coarser,
        },
        "default": STAGE_OF[chosen.default],
        "flipped": measure.flipped(base.scores, chosen.scores[STAGE_OF[chosen.default]]),
        "drop": chosen.drop,
        "proof_error": chosen.proof_error,
        "ledger": ledger(work, base, chosen),
        "ladder": chosen.ladder,
        "points": [{"name": p.name, "got": p.got, "drop": p.drop} for p in points],
        "notes": list(work.folder.notes),
    }


def _stages(base: Baseline, widths: Widths, point: Point) -> list[tuple[str, Cost, Mapping[str, Any]]]:
    """(name, cost, scores) of every stage, all timed in one interleaved run."""
    times = point.timing
    uncompressed = widths.baseline.with_(ms=times[measure.REFERENCE]["ms"])
    unpruned = widths.baseline.with_(ms=times["unpruned int8"]["ms"], bytes=base.exports["int8"].stat().st_size)
    return [
        ("baseline", uncompressed, base.scores),
        ("pruned", point.costs["pruned"], point.scores["pruned"]),
        ("distilled", point.costs["distilled"], point.scores["distilled"]),
        ("int8", point.costs["int8"], point.scores["int8"]),
        ("unpruned int8", unpruned, base.int8_scores),
    ]


def record(
    work: Work,
    base: Baseline,
    widths: Widths,
    points: Sequence[Point],
    chosen: Point,
    outcome: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """The report's record, as `niwaki.report` describes it."""
    splits = {split: len(getattr(work.data, split)) for split in ("train", "val", "test")}
    return {
        "name": work.folder.path.resolve().name,
        "data": {"source": Path(work.arguments.source).name, **splits},
        "model": work.arguments.model,
        "metric": work.task.metric,
        "budget": {**_budget(outcome), "note": "; ".join(work.folder.notes)},
        "default": outcome["default"],
        "stages": [
            {
                "name": name,
                "cost": cost.to_json(),
                "val": scores["val"],
                "test": scores["test"],
                "flipped": None if name == "baseline" else measure.flipped(base.scores, scores),
            }
            for name, cost, scores in _stages(base, widths, chosen)
        ],
        "points": _points(work, base, widths, points, chosen),
        "widths": layer_widths(base.model, chosen.model),
        "histories": _histories(work, chosen),
        "ledger": outcome["ledger"],
        "sensitivity": _sensitivity(work, chosen),
        **_errors(work, chosen),
        "proof_error": chosen.proof_error,
        "machine": {
            "cpu": timing.cpu(),
            "isa": timing.isa(),
            "threads": work.arguments.threads,
        },
        "versions": work.folder.run["versions"],
        "problems": [{"path": p.path, "code": p.code, "message": p.message} for p in work.data.problems],
        "warnings": list(work.data.warnings),
        "seconds": seconds,
    }


def _budget(outcome: Mapping[str, Any]) -> dict[str, Any]:
    return {key: outcome["budget"][key] for key in ("asked", "got", "met", "max_drop")}


def _points(
    work: Work, base: Baseline, widths: Widths, points: Sequence[Point], chosen: Point
) -> list[dict[str, Any]]:
    stages = _stages(base, widths, chosen)
    shown = [_shown("baseline", stages[0][1], base.scores, "baseline")]
    shown.append(_shown("unpruned int8", stages[-1][1], base.int8_scores, "not pruned"))
    for point in points:
        stage = STAGE_OF[point.default]
        lossy = point.drop > work.arguments.max_drop + SLACK
        costly = point.got > work.budget.value
        outcome = "too lossy" if lossy else "chosen" if point is chosen else "tried"
        outcome += ", too costly" if costly and not lossy else ""
        shown.append(_shown(point.name, point.costs[stage], point.scores[stage], outcome))
    return shown


def _shown(name: str, cost: Cost, scores: Mapping[str, Any], outcome: str) -> dict[str, Any]:
    return {
        "name": name,
        "cost": cost.to_json(),
        "accuracy": metrics.main(scores["val"]),
        "outcome": outcome,
    }


def layer_widths(before: Any, after: Any) -> list[dict[str, Any]]:
    """Output channels of every convolution and linear layer, before and after, in the network's order."""
    smaller = dict(after.named_parameters())
    return [
        {"layer": name.removesuffix(".weight"), "before": len(p), "after": len(smaller[name])}
        for name, p in before.named_parameters()
        if name.endswith("weight") and p.ndim > 1 and name in smaller
    ]


def _sensitivity(work: Work, chosen: Point) -> dict[str, Any] | None:
    """What int8 costs each layer of the chosen network on a few images of val; None where it was trained so."""
    if fake_quantize.quantizers(chosen.model):
        return None
    recipe = Recipe.from_json(chosen.ladder["recipe"]) if chosen.ladder else None
    count = max(LEAST, min(FEW, PIXELS // (work.spec.size_hw[0] * work.spec.size_hw[1])))
    count = evaluate.rows(work.spec, work.task, at_most=min(count, len(work.data.val)))
    some = work.data.val.take(count, seed=work.arguments.seed)

    def measured() -> dict[str, Any]:
        return recipes.kinds(
            chosen.model,
            spec=work.spec,
            task=work.task,
            calib=work.calibration(),
            images=some.batch(range(len(some)), work.spec),
            recipe=recipe,
        )

    try:
        found: dict[str, Any] = work.folder.once(f"{chosen.name}-sensitivity", measured)
    except Exception as error:  # whatever it trips over, the run is done but for its report
        work.folder.note(f"what int8 costs each layer could not be measured: {error}")
        return None
    return found


def _histories(work: Work, chosen: Point) -> dict[str, Any]:
    """Training curves by stage, from the checkpoints that the training steps keep."""
    paths = {"train": work.folder.stage("train.checkpoint")}
    recovery = sorted(work.folder.stage(chosen.name).glob("*"))
    paths |= {path.name.partition("-")[2] or path.name: path for path in recovery}
    return {name: loop.history(path) for name, path in paths.items() if path.exists()}


def _errors(work: Work, chosen: Point) -> dict[str, Any]:
    """Confusion matrix and most-wrong images of the default export on the test split."""
    test = work.data.test
    path = export_path(chosen.artifact, chosen.default)
    predict = runtimes.load("onnx").open(path, threads=work.arguments.threads)
    if work.task.dense:
        return _map_errors(work, predict)
    probabilities = evaluate.probabilities(predict, test, work.spec)
    predicted = probabilities.argmax(1)
    counts = metrics.confusion(predicted, test.labels, classes=len(work.task.classes))
    sure = probabilities.max(1) * (predicted != test.labels)
    worst = [int(i) for i in np.argsort(-sure, kind="stable")[:WRONG] if sure[i] > 0]
    return {
        "confusion": {"classes": list(work.task.classes), "counts": counts.tolist()},
        "wrong": [
            {
                "image": work.spec.picture(test.batch([i], work.spec)[0]),
                "name": test.names[i],
                "true": work.task.classes[int(test.labels[i])],
                "predicted": work.task.classes[int(predicted[i])],
                "probability": float(probabilities[i].max()),
            }
            for i in worst
        ],
    }


def _map_errors(work: Work, predict: evaluate.Predictor) -> dict[str, Any]:
    """Confusion matrix of pixels, and the class maps of the worst test images."""
    test, spec = work.data.test, work.spec
    found = evaluate.tally(predict, test, spec, work.task)
    worst = [int(i) for i in np.argsort(found.each(), kind="stable")[:WRONG]]
    return {
        "confusion": {"classes": list(work.task.classes), "counts": found.confusion.tolist()},
        "maps": [
            {
                "image": _map_picture(work, predict, i, found.kept[i]),
                "name": test.names[i],
                "score": float(found.each()[i]),
            }
            for i in worst
        ],
    }


def _map_picture(work: Work, predict: evaluate.Predictor, place: int, kept: Any) -> Any:
    """A test image's row of pictures; of objects with their numbers and scores."""
    pixels, true = work.data.test.batch([place], work.spec), work.data.test.targets([place], work.spec)[0]
    picture = work.spec.picture(pixels[0])
    if not isinstance(work.task, Instances):
        guess = tally.unpacked(kept)
        return overlays.side_by_side(picture, true, guess, count=max(2, len(work.task.classes)))
    shape = (int(true.shape[0]), int(true.shape[1]))
    found = work.task.found(predict(pixels)[0], shape)
    guess = instances.resolve_overlaps(found.crops, found.scores, shape=shape)
    table = instances.pairs(np.maximum(true, 0), guess)
    hits = table.predicted[table.pair[table.iou > 0.5, 1]].tolist()
    return overlays.objects_side_by_side(picture, true, guess, scores=found.scores.tolist(), found=hits)
