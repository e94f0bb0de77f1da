"""How much the loss rises when one group alone gets narrower: weights masked, nothing cut, nothing exported."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from niwaki.prune.choose import best
from niwaki.prune.scores import Scores
from niwaki.surgery import Axes

SHARES = (0.75, 0.5, 0.25, 0.1)
"""Widths at which each group is masked, as shares of its size; between them the loss is interpolated."""


def sensitivity(
    model: nn.Module,
    axes: Axes,
    scores: Scores,
    levels: Mapping[str, Sequence[int]],
    *,
    loss: Callable[[nn.Module], float],
    shares: Sequence[float] = SHARES,
) -> dict[str, list[float]]:
    """For each group and each of its widths, by how much the loss rises when it alone is so narrow.

    The channels of the lowest scores go: their weights, scales and shifts are set to zero in a copy. That is
    the pruned network exactly, but for normalisations over channels (layer norm), whose statistics still see
    the zeros. Rises are made monotone: a narrower group never loses less.

    Args:
        levels: widths by group, rising.
        loss: of a model, on images that are neither trained on nor reported.
        shares: where it is measured; one forward pass over the images each, for each group.
    Source: sensitivity scans of Li et al. 2017, arXiv:1608.08710, section 3.2.
    """
    probe = copy.deepcopy(model).eval()
    before = loss(probe)
    out: dict[str, list[float]] = {}
    sizes = {group.name: group.size for group in axes.groups}
    for name, widths in levels.items():
        size, least = sizes[name], min(widths)
        asked = sorted({min(size, max(least, round(share * size))) for share in shares} | {least} - {size})
        rises = [_masked(probe, axes, {name: best(scores[name], w)}, loss) - before for w in asked if w < size]
        asked = [w for w in asked if w < size]
        worst = np.maximum.accumulate([0.0, *rises[::-1]])[::-1]
        out[name] = np.interp(widths, [*asked, size], worst).tolist()
    return out


def _masked(
    probe: nn.Module, axes: Axes, keep: dict[str, list[int]], loss: Callable[[nn.Module], float]
) -> float:
    """The loss while all parameters of the dropped atoms are zero; the module is given back as it was."""
    parameters = dict(probe.named_parameters(remove_duplicate=False))
    stored = {}
    with torch.no_grad():
        for name, kept_axes in axes.kept_indices(keep).items():
            if name not in parameters:
                continue  # running statistics matter no more where scale and shift are zero
            weight = parameters[name]
            stored[name] = weight.detach().clone()
            for d, kept in kept_axes.items():
                gone = torch.ones(weight.shape[d], dtype=torch.bool)
                gone[kept] = False
                weight.index_fill_(d, gone.nonzero()[:, 0].to(weight.device), 0.0)
        try:
            return loss(probe)
        finally:
            for name, value in reversed(stored.items()):  # tied weights: the first was stored whole
                parameters[name].copy_(value)
