"""The ladder climbed for a model, and the sensitivities of its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from niwaki import metrics
from niwaki.lazy import require
from niwaki.qdq import sensitivity
from niwaki.qdq.recipe import Recipe
from niwaki.search import ladder
from niwaki.search.int8_files import Files

if TYPE_CHECKING:
    from torch import nn

    from niwaki.spec import Spec
    from niwaki.tasks import Task

Once = Callable[[str, Callable[[], Any]], Any]


def climb(
    files: Files,
    *,
    max_drop: float,
    reference: float | None = None,
    start: Recipe | None = None,
    floats: bool = True,
    once: Once = lambda key, measure: measure(),
    show: Callable[[ladder.Step], object] | None = None,
    rungs: Sequence[ladder.Rung] = ladder.RUNGS,
) -> ladder.Climbed:
    """The cheapest recipe whose int8 file loses at most `max_drop` of val's score, or the best there is.

    Args:
        files: makes and measures int8 files of the model, on the runtime that they are for.
        reference: the score that drops are counted from; None is the model's own in float.
        start: what all recipes have in common; None is the default.
        floats: the last rung may leave layers in float.
        once: `(key, measure) -> measure()`, from a journal where it was measured before.
        show: called with each step.
    Raises:
        ModelError: the images do not fit, or the model cannot be exported. [export-calib, export-failed]
    """

    def measure(recipe: Recipe) -> tuple[float, float, float]:
        score, noise, distance = once(f"recipe:{_key(recipe)}", lambda: list(files.measure(recipe)[:3]))
        return float(score), float(noise), float(distance)

    def sensitive(recipe: Recipe) -> list[tuple[str, ...]]:
        found = once(f"sensitive:{_key(recipe)}", lambda: list(map(list, files.maker.sensitive(recipe))))
        return [tuple(names) for names in found]

    if reference is None:
        reference = once("int8:float", lambda: files.reference)
    return ladder.climb(
        measure,
        reference=float(reference),
        max_drop=max_drop,
        sensitive=sensitive if floats else None,
        start=start,
        show=show,
        rungs=rungs,
    )


def _key(recipe: Recipe) -> str:
    """A recipe as a journal's key: what differs from the default."""
    plain = Recipe().to_json()
    return str({name: value for name, value in recipe.to_json().items() if value != plain[name]})


def kinds(
    model: nn.Module,
    *,
    spec: Spec,
    task: Task,
    calib: npt.NDArray[np.uint8],
    images: npt.NDArray[np.uint8],
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """How far rounding each layer moves the outputs: `images`, and `rows` of `name`, `alone`, `weights` and
    `inputs`, each {"kl": nats}. The part of `sensitivities` that a picture shows; arguments are as there."""
    export = require("niwaki.runtimes.onnx_export", extra="train")
    maker, recipe = export.maker(model, spec, task=task, calib=calib), recipe or Recipe()
    proto, activations, weights = maker.rounded(recipe)
    rows = sensitivity.kinds(proto, maker.nodes(proto, recipe), activations, weights, images)
    return {"images": len(images), "rows": rows}


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
