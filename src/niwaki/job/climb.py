"""int8 of a point by the ladder, where plain int8 loses more than is allowed and float does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from niwaki import metrics
from niwaki.artifact import Artifact
from niwaki.job import measure
from niwaki.job.baseline import export_path
from niwaki.job.work import by_name
from niwaki.qdq.recipe import Recipe
from niwaki.search import ladder, recipes
from niwaki.search.int8_files import Files
from niwaki.surgery import fake_quantize

if TYPE_CHECKING:
    from niwaki.job.baseline import Baseline
    from niwaki.job.work import Work

Scores = dict[str, Any]


def climbed(
    work: Work, base: Baseline, name: str, model: nn.Module, artifact: Path, scores: Mapping[str, Scores]
) -> tuple[Scores, dict[str, Any] | None]:
    """The int8 scores of a point, by the best recipe where plain int8 loses too much, and the ladder climbed.

    Each recipe measured is in the journal, so a run that stopped goes on where it was. Where no rung is enough
    the best one is kept all the same: another precision is served then.

    Args:
        scores: of the point's stages; `int8` is plain min-max.
    """
    limit = work.arguments.max_drop + ladder.SLACK
    lost = {stage: _lost(base.scores, scores[stage]) for stage in ("distilled", "int8")}
    if lost["int8"] <= limit or lost["distilled"] > limit or fake_quantize.quantizers(model):
        return scores["int8"], None
    found: dict[str, Any] = work.folder.once(f"{name}-ladder", lambda: _climb(work, base, name, model))
    says = f"{found['rung']} is enough" if found["held"] else "no rung of the ladder is enough"
    work.folder.note(
        f"plain int8 of {name} loses {lost['int8']:.1%} of val {work.task.metric}; {says}: "
        f"int8 loses {found['drop']:.1%}"
    )
    recipe = Recipe.from_json(found["recipe"])
    if recipe.plain:
        return scores["int8"], found
    work.folder.once(f"{name}-int8-recipe", lambda: _export(work, artifact, recipe, found))
    return measure.file_scores(work, f"{name}-int8-recipe", export_path(artifact, "int8")), found


def _lost(before: Scores, after: Scores) -> float:
    return metrics.main(before["val"]) - metrics.main(after["val"])


def _climb(work: Work, base: Baseline, name: str, model: nn.Module) -> dict[str, Any]:
    def once(key: str, make: Callable[[], Any]) -> Any:
        return work.folder.journal.decide(f"ladder:{name}:{key}", make)

    files = Files(
        model,
        spec=work.spec,
        task=work.task,
        calib=work.calibration(),
        val=work.data.val,
        against=base.model,
        threads=work.arguments.threads,
    )
    reference = metrics.main(base.scores["val"])
    found = recipes.climb(files, max_drop=work.arguments.max_drop, reference=reference, once=once)
    return found.to_json()


def _export(work: Work, artifact: Path, recipe: Recipe, found: Mapping[str, Any]) -> dict[str, Any]:
    own = work.builder is not None and not by_name(work.builder)
    opened = Artifact.open(artifact)
    builder = work.fresh if own else None
    opened.export("onnx", precision="int8", calib=work.calibration(), recipe=recipe, builder=builder)
    opened.update(ladder=dict(found))
    return {"recipe": recipe.to_json()}
