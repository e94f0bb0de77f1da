"""Smoothing: outliers of activations moved into the weights that read them.

A channel that is a hundred times larger than the others takes the steps of all. Divided where it is made (a
layer norm's scale, a convolution's weights) and multiplied where it is read, it costs weights a little and
frees the rest.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.qdq import graph as graphs
from niwaki.qdq import ranges, seams

LEAST = 1e-5


def smooth(proto: Any, images: npt.NDArray[np.uint8], *, share: float = 0.5, skip: Collection[str] = ()) -> int:
    """The number of values smoothed, in place; the float function is unchanged.

    Args:
        images: uint8 `[N, H, W, C]` whose activations are looked at.
        share: how much of an outlier goes into the weights, 0..1.
        skip: names of nodes whose outputs stay as they are.
    Source: Xiao et al. 2023, "SmoothQuant", arXiv:2211.10438, equation 4.
    """
    graph = graphs.read(proto)
    found = seams.seams(graph, skip=skip)
    sizes = _largest(proto, {seam.value: seam for seam in found}, images)
    for seam in found:
        weights = np.maximum(seams.read_largest(graph, seam), LEAST)
        seen = np.maximum(sizes[seam.value], LEAST)
        factors = (seen**share / weights ** (1 - share)).astype(np.float32)
        factors[sizes[seam.value] == 0] = 1
        # only ratios between channels matter; their mean is left where it was
        seams.scale(graph, seam, factors / np.exp(np.log(factors).mean()))
    return len(found)


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
