"""What predicted objects of a split add up to, image by image: the tally of the instances task. Numpy only.

Shape letters: N images, B of a batch, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.instances.metrics import aji, mean_precision, panoptic_quality, true_positives
from niwaki.instances.pairs import Pairs, pairs
from niwaki.tally import packed

Decode = Callable[..., list[npt.NDArray[np.int32]]]
RESAMPLES = 1000
"""Of the interval over images."""


class Objects:
    """A tally of objects.

    Args:
        decode: label maps `[H, W]` of what a model gave, as `Instances.decode`.
        detail: count AJI and keep where objects are, too.
    """

    def __init__(self, decode: Decode, *, detail: bool = True) -> None:
        self.confusion = np.zeros((1, 1), np.int64)
        self.kept: list[Any] = []
        self.scores: list[dict[str, float]] = []
        self._decode, self._detail = decode, detail

    def add(self, output: npt.NDArray[np.float32], targets: npt.NDArray[np.integer[Any]]) -> None:
        """Count a batch: what `predict` gave, and label maps `[B, H, W]`."""
        shape = (targets.shape[1], targets.shape[2])
        for one, true in zip(self._decode(output, shape=shape), targets, strict=True):
            self.add_maps(one, true)

    def add_maps(self, predicted: npt.NDArray[np.integer[Any]], true: npt.NDArray[np.integer[Any]]) -> None:
        """Count one image's label maps `[H, W]`; below 0 the truth is not known, and nothing is asked."""
        if (true < 0).any():
            predicted, true = np.where(true < 0, 0, predicted), np.maximum(true, 0)
        table = pairs(true, predicted)
        self.confusion += true_positives(table, 0.5)
        self.scores.append(scored(table, detail=self._detail))
        if self._detail:
            self.kept.append(packed((predicted > 0).astype(np.uint8)))

    def score(self) -> dict[str, Any]:
        """Means over images: `ap50` (TP / (TP + FP + FN) at an IoU above 0.5) with the ends `low`, `high` of
        its 95 % interval over images, `mean_precision` (over IoU .50:.05:.95), `pq`, `sq`, `rq`, and with
        detail `aji`."""
        each = self.each()
        low, high = interval(each)
        found: dict[str, Any] = {"ap50": float(each.mean()) if len(each) else 0.0, "low": low, "high": high}
        names = self.scores[0] if self.scores else {}
        return found | {n: float(np.mean([one[n] for one in self.scores])) for n in names if n != "ap50"}

    def calibration(self) -> float:
        """Not asked of objects: 0."""
        return 0.0

    def recalls(self) -> list[float | None]:
        """AP@0.5 of the only kind."""
        return [float(self.each().mean()) if self.scores else None]

    def each(self) -> npt.NDArray[np.float64]:
        """AP@0.5 of every image, `[N]`."""
        return np.array([one["ap50"] for one in self.scores], np.float64)


def scored(table: Pairs, *, detail: bool = True) -> dict[str, float]:
    """One image's `ap50`, `mean_precision`, `pq`, `sq`, `rq`, and with detail `aji`."""
    found = {"ap50": mean_precision(table, thresholds=(0.5,)), "mean_precision": mean_precision(table)}
    found |= panoptic_quality(table)
    return found | ({"aji": aji(table)} if detail else {})


def interval(each: npt.NDArray[np.float64], *, seed: int = 0) -> tuple[float, float]:
    """Ends (low, high) of the 95 % interval of a mean over images: percentiles of a bootstrap."""
    if not len(each):
        return 0.0, 1.0
    draw = np.random.default_rng(seed)
    means = each[draw.integers(0, len(each), (RESAMPLES, len(each)))].mean(1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))
