"""What predictions of a split add up to, batch by batch: one class a kind of task, made by `task.tally()`.

A tally keeps counts and never the probabilities, so a split of any size is scored in little memory. Numpy only.
Shape letters: N images, B of a batch, H W pixels, K classes.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from niwaki import dense_metrics as dense
from niwaki import metrics

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Targets = npt.NDArray[np.integer]

BINS = 15
"""Of the calibration error."""


class Tally(Protocol):
    """What a task's predictions are added to.

    Args:
        confusion: int64 `[K, K]`, rows are true classes.
        kept: each image's prediction as JSON, where predictions are kept.
    """

    confusion: Ints
    kept: list[Any]

    def add(self, probabilities: Floats, targets: Targets) -> None:
        """Count a batch: what `predict` gave, and what is true."""

    def score(self) -> dict[str, Any]:
        """The main score and the ends `low`, `high` of its 95 % interval, all 0..1, and what else the task
        has."""

    def calibration(self) -> float:
        """Expected calibration error, 0..1."""

    def recalls(self) -> list[float | None]:
        """For each class the share of it that was recognised; None for a class that is not there."""

    def each(self) -> npt.NDArray[np.float64]:
        """How good each image is, `[N]`, 0..1."""


class Labels:
    """A tally of labels: one an image."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.confusion = np.zeros((len(classes), len(classes)), np.int64)
        self.kept: list[Any] = []
        self._bins, self._hits = np.zeros(BINS), [np.zeros(0, bool)]

    def add(self, probabilities: Floats, targets: Targets) -> None:
        """Count a batch: probabilities `[B, K]` and labels `[B]`."""
        predicted = probabilities.argmax(1)
        self.confusion += metrics.confusion(predicted, targets.astype(np.int64), classes=len(self.confusion))
        self._bins += metrics.confidence_gaps(probabilities.max(1), predicted == targets, bins=BINS)
        self._hits.append(predicted == targets)
        self.kept += predicted.tolist()

    def score(self) -> dict[str, Any]:
        """`accuracy` with the ends `low`, `high` of its 95 % Wilson interval."""
        hits, count = int(np.trace(self.confusion)), int(self.confusion.sum())
        low, high = metrics.wilson(hits, count)
        return {"accuracy": hits / max(1, count), "low": low, "high": high}

    def calibration(self) -> float:
        """Expected calibration error over images."""
        return float(np.abs(self._bins).sum() / max(1, self.confusion.sum()))

    def recalls(self) -> list[float | None]:
        """Accuracy of each class."""
        return [float(row[k] / row.sum()) if row.sum() else None for k, row in enumerate(self.confusion)]

    def each(self) -> npt.NDArray[np.float64]:
        """1 for a right image, 0 for a wrong one."""
        return np.concatenate(self._hits).astype(np.float64)


class Maps:
    """A tally of class maps.

    Args:
        ignore: a value of masks that is left out beside `IGNORE`.
        detail: count boundaries and calibration too, and keep the predictions; without it only what overlap
            scores need is counted, which is faster.
    """

    def __init__(self, classes: Sequence[str], *, ignore: int = dense.IGNORE, detail: bool = True) -> None:
        self.classes, self.ignore, self.detail = tuple(classes), ignore, detail
        self.confusion = np.zeros((len(classes), len(classes)), np.int64)
        self.kept: list[Any] = []
        self._sums = [np.zeros((0, 3, len(classes)), np.int64)]
        self._edges = [np.zeros((0, 4, len(classes)), np.int64)]
        self._bins = np.zeros(BINS)

    def add(self, probabilities: Floats, targets: Targets) -> None:
        """Count a batch: probabilities `[B, K, H, W]` and masks `[B, H, W]`."""
        predicted = probabilities.argmax(1)
        targets = np.where(targets == self.ignore, dense.IGNORE, targets)
        seen = dense.confusions(predicted, targets, classes=len(self.classes))
        self.confusion += seen.sum(0)
        self._sums.append(dense.sums(seen))
        if not self.detail:
            return
        self._edges.append(dense.boundaries(predicted, targets, classes=len(self.classes)))
        valid = targets != dense.IGNORE
        sure, right = probabilities.max(1)[valid], (predicted == targets)[valid]
        self._bins += metrics.confidence_gaps(sure, right, bins=BINS)
        self.kept += [packed(one) for one in predicted]

    def score(self) -> dict[str, Any]:
        """`miou` with the ends `low`, `high` of its interval over images; means over classes `dice`,
        `precision`, `recall`; `pixel_accuracy`; with detail `boundary_f` and `intervals` over images, [low,
        high], of `dice` and `boundary_f`; and `iou` {class: its own, None where absent}."""
        images = np.concatenate(self._sums)
        whole = images.sum(0)
        each = dense.iou(whole)
        low, high = dense.interval(images)
        found: dict[str, Any] = {"miou": dense.mean(each), "low": low, "high": high}
        found |= {name: dense.mean(getattr(dense, name)(whole)) for name in ("dice", "precision", "recall")}
        found["pixel_accuracy"] = float(whole[0].sum() / max(1, whole[2].sum()))
        if self.detail:
            edges = np.concatenate(self._edges)
            found["boundary_f"] = dense.boundary_f(edges)
            found["intervals"] = {
                "dice": list(dense.interval(images, of=dense.dice)),
                "boundary_f": list(dense.boundary_interval(edges)),
            }
        found["iou"] = dict(zip(self.classes, _numbers(each), strict=True))
        return found

    def calibration(self) -> float:
        """Expected calibration error over pixels."""
        return float(np.abs(self._bins).sum() / max(1, self.confusion.sum()))

    def recalls(self) -> list[float | None]:
        """IoU of each class: what is called better or worse of a class here."""
        return _numbers(dense.iou(dense.sums(self.confusion)))

    def each(self) -> npt.NDArray[np.float64]:
        """Every image's own mIoU."""
        return np.array([dense.mean(row) for row in dense.iou(np.concatenate(self._sums))])


def packed(values: npt.NDArray[np.integer]) -> dict[str, Any]:
    """A class map `[H, W]` as JSON: its shape and compressed bytes, about a hundredth of the pixels."""
    data = zlib.compress(np.ascontiguousarray(values, np.uint8).tobytes(), 6)
    return {"shape": list(values.shape), "zlib": base64.b64encode(data).decode()}


def unpacked(kept: Any) -> npt.NDArray[np.integer]:
    """A kept prediction as an array: a label `[]`, or a class map uint8 `[H, W]`."""
    if not isinstance(kept, dict):
        return np.asarray(kept, np.int64)
    data = zlib.decompress(base64.b64decode(kept["zlib"]))
    return np.frombuffer(data, np.uint8).reshape(kept["shape"])


def flipped(before: Sequence[Any], after: Sequence[Any]) -> float:
    """Share of kept predictions that changed, of images or of their pixels, 0..1."""
    shares = [float((unpacked(a) != unpacked(b)).mean()) for a, b in zip(before, after, strict=True)]
    return sum(shares) / len(shares) if shares else 0.0


def _numbers(values: npt.NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(v) else float(v) for v in values]
