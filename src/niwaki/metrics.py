"""Numbers about predictions, from plain arrays: numpy only. Shape letters: N images, K classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

MAIN = ("accuracy", "miou", "ap50")
"""Names of tasks' main scores: what val chooses by and what `low` and `high` belong to."""


def main(score: Mapping[str, Any]) -> float:
    """The main number of a task's score, 0..1."""
    return float(score[named(score)])


def named(score: Mapping[str, Any]) -> str:
    """The name of the main number of a task's score."""
    return next(name for name in MAIN if name in score)


def wilson(hits: int, count: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Ends (low, high) of the Wilson score interval of a share `hits / count`, 95 % unless told; 0..1.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if count == 0:
        return 0.0, 1.0
    share = hits / count
    middle = share + z * z / (2 * count)
    reach = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def accuracy(predicted: npt.NDArray[np.integer], labels: Ints) -> dict[str, float]:
    """Share of equal entries of two `[N]` arrays: `accuracy`, `low`, `high` (95 % Wilson), all 0..1."""
    hits = int((predicted == labels).sum())
    low, high = wilson(hits, len(labels))
    return {"accuracy": hits / max(1, len(labels)), "low": low, "high": high}


def confusion(predicted: npt.NDArray[np.integer], labels: Ints, *, classes: int) -> Ints:
    """Counts int64 `[K, K]`: rows are true labels, columns predictions."""
    flat = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def flipped(before: npt.NDArray[np.integer], after: npt.NDArray[np.integer]) -> float:
    """Share of predictions `[N]` that changed, right or wrong, 0..1."""
    return float((before != after).mean()) if len(before) else 0.0


def recalls(predicted: npt.NDArray[np.integer], labels: Ints, *, classes: int) -> list[float | None]:
    """For each class the share of its images that were recognised, 0..1; None for a class without images."""
    counts = confusion(predicted, labels, classes=classes)
    return [float(row[k] / row.sum()) if row.sum() else None for k, row in enumerate(counts)]


def calibration(probabilities: npt.NDArray[np.float32], labels: Ints, *, bins: int = 15) -> float:
    """Expected calibration error of `[N, K]` probabilities, 0..1: how far confidence is from accuracy.

    Images are put into `bins` bins of equal width by the probability of what was predicted; the error is the
    mean over images of their bin's |accuracy - mean confidence|.

    Source: Guo et al. 2017, "On calibration of modern neural networks", arXiv:1706.04599, eq. 3.
    """
    if not len(labels):
        return 0.0
    gaps = confidence_gaps(probabilities.max(1), probabilities.argmax(1) == labels, bins=bins)
    return float(np.abs(gaps).sum() / len(labels))


def confidence_gaps(
    sure: npt.NDArray[np.floating], right: npt.NDArray[np.bool_], *, bins: int
) -> npt.NDArray[np.float64]:
    """For each bin of confidence the sum of right minus sure, `[bins]`: what `calibration` adds up."""
    sure = sure.astype(np.float64)
    # bins are open below and closed above, as in the paper: exactly 1/bins belongs to the first
    place = np.clip(np.ceil(sure * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=right.astype(np.float64) - sure, minlength=bins)
    return gaps.astype(np.float64)
