"""What activations take on calibration images, streamed batch by batch, and the grid that each gets from it.

The float graph runs in ONNX Runtime with its inner values as outputs: once for their smallest and largest
values, and, where the calibration looks at more than these, once more for histograms between them. Numpy and
onnxruntime only. Shape letters: N images, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from niwaki.errors import ModelError
from niwaki.qdq import grid as grids
from niwaki.qdq.grid import Grid

ImagesU8 = npt.NDArray[np.uint8]
BINS = 2048
"""Bins of a histogram, between a value's smallest and largest number."""
PERCENTILE = 99.99
SHRINK = tuple(1 - step / 64 for step in range(56))
"""Shares of an end of the range that entropy and MSE try."""
MEMORY = 256 * 2**20
BATCH = 32


@dataclass(frozen=True)
class Seen:
    """What one value took: its ends, and how often it fell into each of `BINS` equal bins between them.

    Args:
        counts: int64 `[BINS]`; None where only the ends were asked for.
    """

    low: float
    high: float
    counts: npt.NDArray[np.int64] | None = None

    @property
    def centres(self) -> npt.NDArray[np.float64]:
        """The middle of each bin."""
        places = np.arange(BINS, dtype=np.float64) + 0.5
        return self.low + places * ((self.high - self.low) / BINS)


def collect(proto: Any, names: Sequence[str], images: ImagesU8, *, histograms: bool = True) -> dict[str, Seen]:
    """What the named values of a float graph take on uint8 images `[N, H, W, C]`."""
    ends: dict[str, tuple[float, float]] = {}
    for values in stream(proto, names, images):
        for name, value in values.items():
            low, high = ends.get(name, (np.inf, -np.inf))
            ends[name] = (min(low, float(value.min())), max(high, float(value.max())))
    _check_finite(ends)
    if not histograms:
        return {name: Seen(*both) for name, both in ends.items()}
    counts = {name: np.zeros(BINS, np.int64) for name in names}
    for values in stream(proto, names, images):
        for name, value in values.items():
            low, high = ends[name]
            counts[name] += np.histogram(value, BINS, (low, high if high > low else low + 1))[0]
    return {name: Seen(*ends[name], counts[name]) for name in names}


def _check_finite(ends: Mapping[str, tuple[float, float]]) -> None:
    for name, (low, high) in ends.items():
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ModelError(
                f"quantize: the value {name!r} is not finite on the calibration images ({low} to {high}); "
                "int8 has no range for it. Train the model again, or use float32.",
                code="quantize-infinite",
            )


def stream(proto: Any, names: Sequence[str], images: ImagesU8) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """The named values of a graph, a batch of images at a time; the batch is as large as `MEMORY` allows."""
    run = runner(proto, names)
    if not len(images):
        raise ModelError("quantize: got no calibration images, expected at least one.", code="quantize-images")
    first = run(images[:1])
    held = sum(value.nbytes for value in first.values())
    batch = int(np.clip(MEMORY // max(1, held), 1, BATCH))
    for start in range(0, len(images), batch):
        yield run(images[start : start + batch])


def runner(proto: Any, names: Sequence[str]) -> Callable[[ImagesU8], dict[str, npt.NDArray[Any]]]:
    """A function from images uint8 `[B, H, W, C]` to the named values of a graph with one input."""
    import onnxruntime as ort

    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    known = {output.name for output in whole.graph.output}
    given = whole.graph.input[0].name
    inner = [name for name in names if name not in known and name != given]
    whole.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inner)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # what is fused away cannot be looked at; the basic rewrites keep outputs that are asked for
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = ort.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = [name for name in names if name != given]

    def run(batch: ImagesU8) -> dict[str, npt.NDArray[Any]]:
        found = dict(zip(wanted, session.run(wanted, {given: batch}), strict=True))
        return {name: batch if name == given else found[name] for name in names}

    return run


def grid(seen: Seen, calibration: str = "min-max") -> Grid:
    """The unsigned 8-bit grid of a value, as one of `recipe.CALIBRATIONS` chooses its ends."""
    if calibration == "min-max" or seen.counts is None or not seen.high > seen.low:
        return grids.of_range(seen.low, seen.high)
    return grids.of_range(*ENDS[calibration](seen))


def percentile(seen: Seen) -> tuple[float, float]:
    """The ends that leave out `100 - PERCENTILE` percent of the numbers, half of it on each side."""
    assert seen.counts is not None
    share = (1 - PERCENTILE / 100) / 2
    below = np.concatenate([[0], np.cumsum(seen.counts)]) / seen.counts.sum()
    edges = seen.low + np.arange(BINS + 1) * ((seen.high - seen.low) / BINS)
    low = edges[np.searchsorted(below, share, side="right") - 1]
    high = edges[np.searchsorted(below, 1 - share, side="left")]
    return float(low), float(high)


def mse(seen: Seen) -> tuple[float, float]:
    """The ends whose grid is nearest to the values in the mean square."""
    return _best(seen, _squared)


def entropy(seen: Seen) -> tuple[float, float]:
    """The ends whose grid keeps most of the values' distribution: least KL divergence.

    Source: S. Migacz, "8-bit inference with TensorRT", GTC 2017; here on a grid that need not be symmetric.
    """
    return _best(seen, divergence)


ENDS = {"percentile": percentile, "mse": mse, "entropy": entropy}


def _best(seen: Seen, loss: Callable[[Seen, float, float], float]) -> tuple[float, float]:
    """The best pair of shrunken ends: the larger end first, then the other, then the first again."""
    low, high = min(0.0, seen.low), max(0.0, seen.high)
    shares = {"low": 1.0, "high": 1.0}
    order = ("high", "low") if high >= -low else ("low", "high")
    for side in (*order, order[0]):
        tried = [{**shares, side: share} for share in SHRINK]
        losses = [loss(seen, low * one["low"], high * one["high"]) for one in tried]
        shares = tried[int(np.argmin(losses))]
        if low == 0 or high == 0:
            break
    return low * shares["low"], high * shares["high"]


def _squared(seen: Seen, low: float, high: float) -> float:
    assert seen.counts is not None
    rounded = grids.of_range(low, high).rounded(seen.centres)
    return float((seen.counts * (seen.centres - rounded) ** 2).sum())


def divergence(seen: Seen, low: float, high: float) -> float:
    """KL divergence of a histogram from what a grid from `low` to `high` leaves of it, in nats."""
    assert seen.counts is not None
    one, centres = grids.of_range(low, high), seen.centres
    numbers = one.numbers(centres)
    inside = (centres >= low) & (centres <= high)
    if not inside.any():
        return float("inf")
    kept = np.where(inside, seen.counts, 0).astype(np.float64)
    first, last = np.flatnonzero(inside)[[0, -1]]
    clipped = kept.copy()
    clipped[first] += seen.counts[:first].sum()
    clipped[last] += seen.counts[last + 1 :].sum()
    filled = inside & (seen.counts > 0)
    sums = np.bincount(numbers, weights=kept, minlength=256)
    shared = np.bincount(numbers, weights=filled.astype(np.float64), minlength=256)
    spread = np.where(filled, sums[numbers] / np.maximum(1, shared[numbers]), 0.0)
    p, q = clipped / clipped.sum(), spread / max(1e-300, spread.sum())
    both = p > 0
    return float((p[both] * np.log(p[both] / np.maximum(q[both], 1e-12))).sum())
