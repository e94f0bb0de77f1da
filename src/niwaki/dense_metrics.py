"""Numbers about class maps, from plain arrays: numpy only.

All of them come from counts that add up over images, so a split is never in memory. Pixels whose true class is
`IGNORE` count nowhere. Shape letters: N images, H W pixels, K classes, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Maps = npt.NDArray[np.integer]

IGNORE = 255
"""The value of mask pixels that have no class: neither learned from nor scored."""
TOLERANCE = 0.0075
"""Distance at which two boundaries still meet, as a share of the image's diagonal."""
_BITS = 32  # classes whose boundaries are widened in one pass, a bit each
_RESAMPLED = 2**24  # numbers of a block of resamples


def confusions(predicted: Maps, true: Maps, *, classes: int) -> Ints:
    """Counts int64 `[N, K, K]` of two `[N, H, W]` class maps: rows are true classes, columns predictions."""
    count, pixels = len(true), true.reshape(len(true), -1)
    image = np.arange(count)[:, None] * (classes * classes)
    place = image + pixels.astype(np.int64) * classes + predicted.reshape(count, -1)
    seen = np.bincount(place[pixels != IGNORE], minlength=count * classes * classes)
    return seen.reshape(count, classes, classes).astype(np.int64)


def sums(confusion: Ints) -> Ints:
    """Of confusions `[..., K, K]` the counts `[..., 3, K]`: right pixels, predicted pixels, true pixels."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return np.stack([hits, confusion.sum(-2), confusion.sum(-1)], axis=-2)


def iou(counts: npt.NDArray[np.number]) -> Floats:
    """Intersection over union `[..., K]` of `sums` `[..., 3, K]`; nan where a class is neither true nor
    predicted."""
    hits, predicted, true = (counts[..., i, :].astype(np.float64) for i in range(3))
    return _share(hits, predicted + true - hits)


def dice(counts: npt.NDArray[np.number]) -> Floats:
    """Dice coefficients `[..., K]` of `sums`: 2 |A and B| / (|A| + |B|); nan where both are empty."""
    hits, predicted, true = (counts[..., i, :].astype(np.float64) for i in range(3))
    return _share(2 * hits, predicted + true)


def precision(counts: npt.NDArray[np.number]) -> Floats:
    """Of the pixels predicted as a class the share that is of it, `[..., K]`; nan for a class never
    predicted."""
    return _share(counts[..., 0, :].astype(np.float64), counts[..., 1, :].astype(np.float64))


def recall(counts: npt.NDArray[np.number]) -> Floats:
    """Of a class's pixels the share that was predicted as it, `[..., K]`; nan for a class without pixels."""
    return _share(counts[..., 0, :].astype(np.float64), counts[..., 2, :].astype(np.float64))


def mean(values: Floats) -> float:
    """The mean of the numbers that are no nan; 0 of none."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else 0.0


def interval(
    counts: Ints, *, of: Callable[[Floats], Floats] = iou, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Ends (low, high) of a 95 % interval over images: percentiles of a bootstrap of `sums` `[N, 3, K]`.

    Images are drawn again with replacement and their counts summed, for pixels of one image are not
    independent.

    Args:
        of: what is made of the counts, `iou` or `dice`; its mean over classes is meant.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife", percentile method.
    """
    if not len(counts):
        return 0.0, 1.0
    found = np.concatenate(list(_means(counts, of, resamples, np.random.default_rng(seed))))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def _means(
    counts: Ints, of: Callable[[Floats], Floats], resamples: int, draw: np.random.Generator
) -> Iterator[Floats]:
    """The mean over classes of each resample, in blocks of bounded memory."""
    count = len(counts)
    flat = counts.reshape(count, -1).astype(np.float64)
    block = max(1, _RESAMPLED // max(count, flat.shape[1]))
    for start in range(0, resamples, block):
        times = draw.multinomial(count, np.full(count, 1 / count), size=min(block, resamples - start))
        found = of((times @ flat).reshape(-1, *counts.shape[1:]))
        there = ~np.isnan(found)
        yield np.where(there, found, 0).sum(1) / np.maximum(1, there.sum(1))


def boundaries(predicted: Maps, true: Maps, *, classes: int, tolerance: float = TOLERANCE) -> Ints:
    """Counts int64 `[N, 4, K]` of boundary pixels: predicted, of them near a true one; true, of them near a
    predicted one. Near is within `tolerance` times the image's diagonal; a pixel is of its class's boundary if
    one of its four neighbours is of another class.

    Source: Csurka et al. 2013, "What is a good evaluation measure for semantic segmentation?", section 3.
    """
    height, width = true.shape[1:]
    radius = max(1, round(tolerance * float(np.hypot(height, width))))
    pairs = zip(np.where(true == IGNORE, IGNORE, predicted), true, strict=True)
    found = [_met(one, other, classes, radius) for one, other in pairs]
    return np.stack(found) if found else np.zeros((0, 4, classes), np.int64)


def boundary_f(counts: Ints) -> float:
    """The boundary F-score 0..1 of `boundaries`: of each class in an image, its mean over those, over
    images."""
    return mean(_boundary_each(counts))


def boundary_interval(counts: Ints, *, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Ends (low, high) of the boundary F-score's 95 % interval over images, as `interval` has it."""
    each = _boundary_each(counts)
    if not len(each):
        return 0.0, 1.0
    times = np.random.default_rng(seed).multinomial(
        len(each), np.full(len(each), 1 / len(each)), size=resamples
    )
    low, high = np.quantile(times @ each / len(each), [0.025, 0.975])
    return float(low), float(high)


def _boundary_each(counts: Ints) -> Floats:
    """The boundary F-score of each image that has a boundary."""
    predicted, right, true, found = (counts[:, i].astype(np.float64) for i in range(4))
    sure, seen = _share(right, predicted), _share(found, true)
    score = _share(2 * sure * seen, sure + seen)
    score[(predicted + true > 0) & np.isnan(score)] = 0.0  # one side empty, or nothing met
    return np.array([mean(row) for row in score if not np.isnan(row).all()])


def _met(predicted: Maps, true: Maps, classes: int, radius: int) -> Ints:
    sides = [(_edge(predicted), predicted), (_edge(true), true)]
    counts = np.zeros((4, classes), np.int64)
    for first in range(0, classes, _BITS):
        bits = [_as_bits(edge, values, first) for edge, values in sides]
        near = [_widened(b, radius) for b in bits]
        for side, (edge, values) in enumerate(sides):
            ys, xs = np.nonzero(edge & (values >= first) & (values < first + _BITS))
            kinds = values[ys, xs].astype(np.int64)
            met = (near[1 - side][ys, xs] >> (kinds - first).astype(np.uint32)) & 1
            counts[2 * side] += np.bincount(kinds, minlength=classes)
            counts[2 * side + 1] += np.bincount(kinds, weights=met, minlength=classes).astype(np.int64)
    return counts


def _edge(values: Maps) -> npt.NDArray[np.bool_]:
    """Pixels with a neighbour of another class; next to ignored ones there is no boundary."""
    edge = np.zeros(values.shape, bool)
    for one, other in (np.s_[1:, :], np.s_[:-1, :]), (np.s_[:, 1:], np.s_[:, :-1]):
        a, b = values[one], values[other]
        differs = (a != b) & (a != IGNORE) & (b != IGNORE)
        edge[one] |= differs
        edge[other] |= differs
    return edge


def _as_bits(edge: npt.NDArray[np.bool_], values: Maps, first: int) -> npt.NDArray[np.uint32]:
    """Boundary pixels as a bit at their class's place."""
    own = edge & (values >= first) & (values < first + _BITS)
    place = np.where(own, values.astype(np.int64) - first, 0).astype(np.uint32)
    return np.where(own, np.uint32(1) << place, np.uint32(0))


def _widened(bits: npt.NDArray[np.uint32], radius: int) -> npt.NDArray[np.uint32]:
    """Every pixel's bits spread over a disk of that radius."""
    height, width = bits.shape
    padded = np.pad(bits, radius)
    out = np.zeros_like(bits)
    for dy in range(-radius, radius + 1):
        reach = int(np.sqrt(radius * radius - dy * dy))
        for dx in range(-reach, reach + 1):
            out |= padded[radius + dy : radius + dy + height, radius + dx : radius + dx + width]
    return out


def _share(above: Floats, below: Floats) -> Floats:
    out: Floats = np.full(np.shape(below), np.nan)
    np.divide(above, below, out=out, where=below > 0)
    return out
