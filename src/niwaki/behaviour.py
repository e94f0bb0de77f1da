"""What compression did to a model beyond its accuracy: numbers from predictors and plain arrays, no torch.

A predictor is what `evaluate` describes, so a module and an exported file are asked in the same way.
Shape letters: N images, H W pixels, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki import metrics
from niwaki.data import corrupt
from niwaki.evaluate import ImagesU8, Predictor

Ints = npt.NDArray[np.int64]
Score = dict[str, float]

BATCH = 64


def accuracy(predict: Predictor, images: ImagesU8, labels: Ints) -> Score:
    """`accuracy` of a predictor on images uint8 `[N, H, W, C]`, with the ends `low`, `high` of its interval."""
    rows = [predict(images[k : k + BATCH]).argmax(1) for k in range(0, len(images), BATCH)]
    predicted = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    return metrics.accuracy(predicted, labels)


def corrupted(
    predict: Predictor,
    images: ImagesU8,
    labels: Ints,
    *,
    kinds: Sequence[str] = corrupt.KINDS,
    severity: int = corrupt.SEVERITY,
    seed: int = 0,
) -> dict[str, Score]:
    """For each kind of corruption the `accuracy`, `low`, `high` on the images corrupted so.

    Raises:
        PlanError: no such kind or severity. [corrupt-kind]
    """
    out = {}
    for kind in kinds:
        hits = 0
        for k in range(0, len(images), BATCH):  # batch by batch: photographs as floats are large
            part = np.arange(k, min(k + BATCH, len(images)))
            seen = corrupt.corrupt(images[part], part, kind=kind, severity=severity, seed=seed)
            hits += int((predict(seen).argmax(1) == labels[part]).sum())
        low, high = metrics.wilson(hits, len(images))
        out[kind] = {"accuracy": hits / max(1, len(images)), "low": low, "high": high}
    return out


def attacked(predict: Predictor, attacks: Mapping[str, ImagesU8], labels: Ints) -> dict[str, Score]:
    """For each attack's images the `accuracy`, `low`, `high`; made on another model, it is a transfer."""
    return {name: accuracy(predict, images, labels) for name, images in attacks.items()}


def class_drops(before: Ints, after: Ints, labels: Ints, classes: Sequence[str]) -> dict[str, float]:
    """Accuracy lost in each class that has images, 0..1 (negative: gained).

    Args:
        before, after: predictions int `[N]` of the original and of what was made of it.
    """
    pairs = zip(
        classes,
        metrics.recalls(before, labels, classes=len(classes)),
        metrics.recalls(after, labels, classes=len(classes)),
        strict=True,
    )
    return {name: a - b for name, a, b in pairs if a is not None and b is not None}


def mean_accuracy(scores: Mapping[str, Any]) -> float | None:
    """The plain mean of several scores' accuracies; None of none."""
    values = [float(score["accuracy"]) for score in scores.values()]
    return sum(values) / len(values) if values else None
