"""Smoothing: outliers of activations moved into the weights that read them.

A channel that is a hundred times larger than the others takes the steps of all. Divided where it is made (a
layer norm's scale, a convolution's weights) and multiplied where it is read, it costs weights a little and
frees the rest. Where no channel is, it costs and frees nothing: a value is smoothed only if the layers that
read it come nearer to their float outputs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.qdq import graph as graphs
from niwaki.qdq import grid as grids
from niwaki.qdq import ranges, seams, twins

LEAST = 1e-5
FEW = 32
"""Images that decide where it helps."""


def smooth(
    proto: Any,
    images: npt.NDArray[np.uint8],
    *,
    share: float = 0.5,
    skip: Collection[str] = (),
    calibration: str = "min-max",
) -> int:
    """The number of values smoothed, in place; the float function is unchanged.

    Args:
        images: uint8 `[N, H, W, C]` whose activations are looked at; the first few decide where it helps.
        share: how much of an outlier goes into the weights, 0..1.
        skip: names of nodes whose outputs stay as they are.
        calibration: how the values get their ranges.
    Source: Xiao et al. 2023, "SmoothQuant", arXiv:2211.10438, equation 4.
    """
    graph = graphs.read(proto)
    found = seams.seams(graph, skip=skip)
    sizes = _largest(proto, {seam.value: seam for seam in found}, images)
    smoothed = 0
    for seam in found:
        factors = _factors(graph, seam, sizes[seam.value], share)
        before = _noise(proto, seam, images[:FEW], calibration)
        seams.scale(graph, seam, factors)
        if _noise(proto, seam, images[:FEW], calibration) < before:
            smoothed += 1
        else:
            seams.scale(graph, seam, np.reciprocal(factors))
    return smoothed


def _factors(
    graph: graphs.Graph, seam: seams.Seam, seen: npt.NDArray[np.float32], share: float
) -> npt.NDArray[np.float32]:
    """What the channels of a seam are divided by, `[C]`: powers of two, which change no bit of a float."""
    weights = np.maximum(seams.read_largest(graph, seam), LEAST)
    factors = np.maximum(seen, LEAST) ** share / weights ** (1 - share)
    factors[seen == 0] = 1
    # only ratios between channels matter; their mean is left where it was
    ratios = factors / np.exp(np.log(factors).mean())
    return np.asarray(np.exp2(np.rint(np.log2(ratios))), np.float32)


def _noise(proto: Any, seam: seams.Seam, images: npt.NDArray[np.uint8], calibration: str) -> float:
    """What rounding a seam's value and its readers' weights puts into their outputs, over the signal there."""
    graph = graphs.read(proto)
    seen = ranges.collect(proto, [seam.value], images, histograms=calibration != "min-max")
    weights = {
        name: grids.of_weights(graph.array(name), axis=graph.axis(node))
        for node in graph.layers
        if node.name in {reader.name for reader in seam.readers} and (name := graph.weight(node))
    }
    activations = {seam.value: ranges.grid(seen[seam.value], calibration)}
    found = twins.compare(proto, activations, weights, images).values()
    return sum(one.noise / max(one.signal, LEAST) for one in found)


def _largest(
    proto: Any, found: dict[str, seams.Seam], images: npt.NDArray[np.uint8]
) -> dict[str, npt.NDArray[np.float32]]:
    """The largest number of each channel of the seams' values, `[C]` each."""
    sizes = {name: np.zeros(seam.channels, np.float32) for name, seam in found.items()}
    if not sizes:
        return sizes
    for values in ranges.stream(proto, list(sizes), images):
        for name, value in values.items():
            axis = 1 if found[name].readers[0].op_type == "Conv" else value.ndim - 1
            others = tuple(d for d in range(value.ndim) if d != axis)
            sizes[name] = np.maximum(sizes[name], np.abs(value).max(axis=others))
    return sizes
