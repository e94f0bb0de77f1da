"""The uncompressed model of a run: trained, saved, exported, scored and timed; and the stages' common parts.

Each stage keeps what it made in the run folder and is skipped when it is there. Models are made
again from the stored weights, so a resumed run walks on with the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from niwaki import metrics, runtimes, train
from niwaki.artifact import Artifact
from niwaki.job import measure
from niwaki.job.work import by_name, plan_text
from niwaki.plan import Bench, Plan

if TYPE_CHECKING:
    from niwaki.job.work import Work

BASELINE, MODEL = "baseline.niwaki", "model.niwaki"
PRECISIONS = ("float32", "int8")


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The uncompressed model: trained, exported, scored and timed.

    Args:
        exports: its files by precision; the artifact holds the float one only.
        precisions: that the compressed model may be served in, as far as one can tell before it exists.
    """

    model: nn.Module
    artifact: Path
    exports: dict[str, Path]
    scores: dict[str, Any]
    int8_scores: dict[str, Any]
    precisions: tuple[str, ...]
    timing: measure.Timing


def baseline(work: Work) -> Baseline:
    """The uncompressed model, its artifact, and the precisions that budgets are asked of."""
    model = work.folder.weights("trained", work.fresh, lambda: _trained(work))
    model.eval()
    artifact = work.folder.path / BASELINE
    save(work, artifact, model, precisions=("float32",))
    exports = {"float32": export_path(artifact, "float32"), "int8": _unpruned_int8(work, model)}
    scores = measure.module_scores(work, "baseline", model)
    int8_scores = measure.file_scores(work, "unpruned-int8", exports["int8"])
    files_at = {measure.REFERENCE: exports["float32"], "unpruned int8": exports["int8"]}
    timing = measure.time_files(work, "timing:baseline", files_at, seconds=measure.QUICK)
    return Baseline(
        model=model,
        artifact=artifact,
        exports=exports,
        scores=scores,
        int8_scores=int8_scores,
        precisions=_precisions(work, scores, int8_scores, timing),
        timing=timing,
    )


def _trained(work: Work) -> nn.Module:
    """A fresh model, trained as the arguments say, then through what the plan does before it prunes."""
    arguments = work.arguments
    model = work.fresh()
    if arguments.epochs:
        model = train.fit(
            model,
            task=work.task,
            spec=work.spec,
            train=work.data.train,
            val=work.data.val,
            epochs=arguments.epochs,
            seed=arguments.seed,
            flip=work.data.flip,
            checkpoint=work.folder.stage("train.checkpoint"),
            show=work.show,
        )
    before, _ = split_plan(work.plan)
    return before.run(model, bench(work, model, "before"))


def _unpruned_int8(work: Work, model: nn.Module) -> Path:
    """The uncompressed model's int8 file: what pruning has to beat, never part of an artifact."""
    path = work.folder.stage("unpruned-int8.onnx")

    def make() -> dict[str, Any]:
        path.parent.mkdir(parents=True, exist_ok=True)
        runtimes.load("onnx").export(
            model, work.spec, path, task=work.task, precision="int8", calib=work.calibration()
        )
        return {"file": path.name}

    work.folder.once(path.stem, make)
    return path


def _precisions(
    work: Work, scores: dict[str, Any], int8_scores: dict[str, Any], timing: measure.Timing
) -> tuple[str, ...]:
    """What may be served: float32, and int8 where the uncompressed model's accuracy survives it."""
    drop = metrics.main(scores["val"]) - metrics.main(int8_scores["val"])
    if drop > work.arguments.max_drop + 1e-9:
        work.folder.note(
            f"int8 of the uncompressed model already loses {drop:.1%} of val {work.task.metric}: the "
            "budget is asked of float32"
        )
        return ("float32",)
    ratio = timing["unpruned int8"]["ratio"]
    if ratio["high"] >= 1:
        work.folder.note(
            f"no gain: int8 of the uncompressed model takes {ratio['median']:.2f} of the float's time"
        )
    return ("float32", "int8")


def split_plan(plan: Plan) -> tuple[Plan, Plan]:
    """What a plan does before its prune step, and after it; all is after when it has none."""
    places = [place for place, item in enumerate(plan) if item.do == "prune.channels"]
    if not places:
        return Plan(), plan
    return Plan(*plan.steps[: places[0]]), Plan(*plan.steps[places[0] + 1 :])


def bench(work: Work, teacher: nn.Module, name: str) -> Bench:
    """What the plan's steps work with; their checkpoints lie under `stages/NAME/`."""
    return Bench(
        spec=work.spec,
        task=work.task,
        train=work.data.train,
        val=work.data.val,
        calib=work.calib,
        teacher=teacher,
        example=torch.from_numpy(work.spec.example(seed=work.arguments.seed)),
        show=work.show,
        checkpoint=work.folder.stage(name),
    )


def save(
    work: Work,
    path: Path,
    model: nn.Module,
    *,
    precisions: Sequence[str] = PRECISIONS,
    extra: dict[str, Any] | None = None,
) -> None:
    """An artifact with its exports, written once; one that a crash left half made is made again."""

    own = work.builder is not None and not by_name(work.builder)

    def make() -> dict[str, Any]:
        path.parent.mkdir(parents=True, exist_ok=True)
        artifact = Artifact.save(
            path,
            model,
            spec=work.spec,
            task=work.task,
            builder=work.builder,
            fresh=work.fresh() if own else None,
            plan=plan_text(work.plan),
            extra={
                "images": work.data.train.sides(),
                "splits": {"seed": work.arguments.seed, "val": work.arguments.val},
                **(extra or {}),
            },
        )
        for precision in precisions:
            calib = work.calibration() if precision == "int8" else None
            builder = work.fresh if own else None
            artifact.export("onnx", precision=precision, calib=calib, builder=builder)
        return {"artifact": path.name}

    work.folder.once(f"saved-{path.stem}", make)


def export_path(artifact: Path, precision: str) -> Path:
    """Where an artifact keeps its ONNX file of that precision."""
    return artifact / "exports" / "onnx" / f"{precision}.onnx"
