"""The ladder climbed for a model: each recipe's file is made, run in ONNX Runtime and scored on val."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from niwaki import evaluate, metrics, runtimes
from niwaki.lazy import require
from niwaki.qdq import sensitivity
from niwaki.qdq.recipe import Recipe
from niwaki.search import ladder

if TYPE_CHECKING:
    from torch import nn

    from niwaki.spec import Spec
    from niwaki.tasks import Task

Once = Callable[[str, Callable[[], Any]], Any]


def climb(
    model: nn.Module,
    *,
    spec: Spec,
    task: Task,
    calib: npt.NDArray[np.uint8],
    val: evaluate.Readable,
    max_drop: float,
    reference: float | None = None,
    threads: int = 1,
    once: Once = lambda key, measure: measure(),
    show: Callable[[ladder.Step], object] | None = None,
    rungs: Sequence[ladder.Rung] = ladder.RUNGS,
) -> ladder.Climbed:
    """The cheapest recipe whose int8 file loses at most `max_drop` of val's score, or the best there is.

    Args:
        calib: images uint8 `[N, H, W, C]` that set ranges; of the train split.
        val: chooses.
        reference: the score that drops are counted from; None is the model's own in float.
        once: `(key, measure) -> measure()`, from a journal where it was measured before.
        show: called with each step.
    Raises:
        ModelError: the images do not fit, or the model cannot be exported. [export-calib, export-failed]
    """
    export = require("niwaki.runtimes.onnx_export", extra="train")
    runtime = runtimes.load("onnx")
    maker: list[Any] = []  # made when the first recipe is not in the journal

    def made() -> Any:
        if not maker:
            maker.append(export.maker(model, spec, task=task, calib=calib))
        return maker[0]

    def file_score(recipe: Recipe) -> float:
        with tempfile.TemporaryDirectory() as folder:
            path = export.save_int8(made(), recipe, Path(folder) / "int8.onnx")
            return _score(runtime.open(path, threads=threads), val, spec, task)

    def score(recipe: Recipe) -> float:
        return float(once(f"int8:{_key(recipe)}", lambda: file_score(recipe)))

    def sensitive(recipe: Recipe) -> list[tuple[str, ...]]:
        found = once(f"sensitive:{_key(recipe)}", lambda: [list(names) for names in made().sensitive(recipe)])
        return [tuple(names) for names in found]

    if reference is None:
        reference = once("int8:float", lambda: _score(evaluate.predictor(model, spec, task), val, spec, task))
    return ladder.climb(
        score, reference=float(reference), max_drop=max_drop, sensitive=sensitive, show=show, rungs=rungs
    )


def _key(recipe: Recipe) -> str:
    """A recipe as a journal's key: what differs from the default."""
    plain = Recipe().to_json()
    return str({name: value for name, value in recipe.to_json().items() if value != plain[name]})


def _score(predict: evaluate.Predictor, val: evaluate.Readable, spec: Spec, task: Task) -> float:
    return metrics.main(evaluate.tally(predict, val, spec, task, detail=False).score())


def sensitivities(
    model: nn.Module,
    *,
    spec: Spec,
    task: Task,
    calib: npt.NDArray[np.uint8],
    images: npt.NDArray[np.uint8],
    targets: npt.NDArray[np.integer] | None = None,
    recipe: Recipe | None = None,
    by: str = "layer",
    few: int = 16,
) -> dict[str, Any]:
    """What rounding each layer or block costs: `rows`, `float`, `all` and how well cheap figures order them.

    Args:
        calib: images uint8 `[N, H, W, C]` that set ranges.
        images: that outputs are compared on, of val; `targets` are their labels or masks, for the score.
        by: "layer" or "block".
        few: images of the cheap figure.
    Raises:
        ModelError: the images do not fit, or the model cannot be exported. [export-calib, export-failed]
    """
    export = require("niwaki.runtimes.onnx_export", extra="train")
    maker = export.maker(model, spec, task=task, calib=calib)
    recipe = recipe or Recipe()
    proto, activations, weights = maker.rounded(recipe)

    def score(outputs: npt.NDArray[np.float32]) -> float:
        counts = task.tally(detail=False)
        assert targets is not None
        counts.add(outputs, targets)
        return metrics.main(counts.score())

    rows, whole = sensitivity.measure(
        proto,
        maker.nodes(proto, recipe),
        activations,
        weights,
        images,
        by=by,
        score=None if targets is None else score,
        few=few,
    )
    return {
        "by": by,
        "images": len(images),
        "few": min(few, len(images)),
        "recipe": recipe.to_json(),
        "float": whole["float"].to_json(),
        "all": whole["all"].to_json(),
        "rank": sensitivity.agreement(rows),
        "rows": [row.to_json() for row in rows],
    }
