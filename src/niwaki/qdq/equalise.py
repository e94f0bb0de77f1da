"""Cross-layer equalisation: channels of neighbouring layers scaled until their weights are alike.

The function stays the same; what int8 has one scale for no longer spans channels of very different size.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from niwaki.qdq import graph as graphs
from niwaki.qdq import seams

SWEEPS, STILL = 8, 1e-2
"""At most so many passes over the graph, and no more once no factor leaves 1 by more than this."""
LIMIT = 1e4


def equalise(proto: Any, *, skip: Collection[str] = ()) -> int:
    """The number of seams whose channels were scaled, in place; the float function is unchanged.

    Each channel's factor is the root of its largest weight before the seam over its largest behind it, so
    that both become their geometric mean; repeated until nothing moves. Layer norms are left to `smooth`.

    Args:
        skip: names of nodes whose outputs stay as they are.
    Source: Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction",
    arXiv:1906.04721, equation 11.
    """
    graph = graphs.read(proto)
    found = [seam for seam in seams.seams(graph, skip=skip) if seam.maker.op_type != "LayerNormalization"]
    for _ in range(SWEEPS):
        furthest = 0.0
        for seam in found:
            before, behind = seams.largest(graph, seam)
            alive = (before > 0) & (behind > 0)
            factors = np.ones(seam.channels, np.float32)
            factors[alive] = np.sqrt(before[alive] / behind[alive])
            factors = np.clip(factors, 1 / LIMIT, LIMIT).astype(np.float32)
            seams.scale(graph, seam, factors)
            furthest = max(furthest, float(np.abs(np.log(factors)).max()))
        if furthest < STILL:
            break
    return len(found)
