"""What compression did to a model beyond its accuracy: numbers from predictors and plain arrays, no torch.

A predictor is what `evaluate` describes, so a module and an exported file are asked in the same way.
Shape letters: N images, H W pixels, C channels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki import metrics
from niwaki.data import corrupt
from niwaki.evaluate import ANSWERS, ImagesU8, Predictor
from niwaki.tasks import Task

Targets = npt.NDArray[np.integer]
Change = Callable[[ImagesU8, npt.NDArray[np.int64]], ImagesU8]
Score = dict[str, Any]

BATCH = 64


def scored(
    predict: Predictor,
    images: ImagesU8,
    targets: Targets,
    *,
    task: Task,
    change: Change = lambda images, _: images,
) -> Score:
    """The task's score of a predictor on images uint8 `[N, H, W, C]`: its main number, `low`, `high` and
    others.

    Args:
        targets: labels `[N]`, or masks `[N, H, W]`.
        change: what is done to a batch, given with its places, before it is shown.
    """
    counts = task.tally(detail=False)
    size = max(1, min(BATCH, ANSWERS // math.prod(task.shape((images.shape[1], images.shape[2])))))
    for k in range(0, len(images), size):  # batch by batch: photographs as floats are large
        part = np.arange(k, min(k + size, len(images)))
        counts.add(predict(change(images[part], part)), targets[part])
    return counts.score()


def corrupted(
    predict: Predictor,
    images: ImagesU8,
    targets: Targets,
    *,
    task: Task,
    kinds: Sequence[str] = corrupt.KINDS,
    severity: int = corrupt.SEVERITY,
    seed: int = 0,
) -> dict[str, Score]:
    """For each kind of corruption the score on the images corrupted so.

    Raises:
        PlanError: no such kind or severity. [corrupt-kind]
    """

    def change(kind: str) -> Change:
        return lambda part, places: corrupt.corrupt(part, places, kind=kind, severity=severity, seed=seed)

    return {kind: scored(predict, images, targets, task=task, change=change(kind)) for kind in kinds}


def attacked(
    predict: Predictor, attacks: Mapping[str, ImagesU8], targets: Targets, *, task: Task
) -> dict[str, Score]:
    """For each attack's images the score; made on another model, it is a transfer."""
    return {name: scored(predict, images, targets, task=task) for name, images in attacks.items()}


def class_drops(
    before: Sequence[float | None], after: Sequence[float | None], classes: Sequence[str]
) -> dict[str, float]:
    """What was lost in each class that is there, 0..1 (negative: gained).

    Args:
        before, after: `tally.recalls()` of the original and of what was made of it.
    """
    pairs = zip(classes, before, after, strict=True)
    return {name: a - b for name, a, b in pairs if a is not None and b is not None}


def mean_score(scores: Mapping[str, Any]) -> float | None:
    """The plain mean of several scores' main numbers; None of none."""
    values = [metrics.main(score) for score in scores.values()]
    return sum(values) / len(values) if values else None
