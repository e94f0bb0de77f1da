"""How much each atom of each group matters: a pure function a criterion, `(model, axes, group) -> [atoms]`.

A group's atoms sit in several parameters; each parameter axis votes with a norm of what would go, and the votes
are averaged over the axes that hold weights (norm scales, biases and statistics do not vote). Scores are then
divided by their group's mean, so that groups of different scale can be ranked together.
A new criterion is one function and one line in `SCORES`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from niwaki.errors import PlanError
from niwaki.surgery import Axes, Group

Floats = npt.NDArray[np.float64]
Scores = dict[str, Floats]


def _norm(model: nn.Module, axes: Axes, group: Group, *, power: int) -> Floats:
    """Mean over weight axes of the `power`-norm of each atom's weights, each axis divided by its own mean."""
    place = {atom: i for i, atom in enumerate(group.atoms)}
    total, votes = np.zeros(group.size), 0
    for name, d in group.members:
        weight = model.get_parameter(name).detach()
        if weight.dim() < 2:
            continue
        norms = weight.abs().double().pow(power).movedim(d, 0).flatten(1).sum(1).numpy(force=True)
        own = np.zeros(group.size)
        for column in axes.elements(name)[d].T:  # type: ignore[union-attr]
            mine = np.isin(column, group.atoms)
            np.add.at(own, [place[a] for a in column[mine].tolist()], norms[mine])
        own **= 1 / power
        if own.mean() > 0:
            total, votes = total + own / own.mean(), votes + 1
    return total / max(1, votes)


def l1(model: nn.Module, axes: Axes, group: Group) -> Floats:
    """L1 norm of each atom's weights. Source: Li et al. 2017, arXiv:1608.08710, section 3.1."""
    return _norm(model, axes, group, power=1)


def l2(model: nn.Module, axes: Axes, group: Group) -> Floats:
    """L2 norm of each atom's weights over all coupled layers. Source: Fang et al. 2023, arXiv:2301.12900,
    eq. 5 (group norm), here averaged over layers after dividing each by its mean."""
    return _norm(model, axes, group, power=2)


def random(model: nn.Module, axes: Axes, group: Group) -> Floats:
    """Uniform draws, the control that any criterion has to beat; seeded by the group's name and size."""
    seed = sum(group.name.encode()) * 1009 + group.size
    return torch.rand(group.size, generator=torch.Generator().manual_seed(seed)).double().numpy() + 0.5


SCORES: dict[str, Callable[[nn.Module, Axes, Group], Floats]] = {"l1": l1, "l2": l2, "random": random}


def score(model: nn.Module, axes: Axes, *, by: str = "l2") -> Scores:
    """Scores of every group, float64 `[atoms]` each, divided by their group's mean.

    Args:
        by: one of `SCORES`.
    Raises:
        PlanError: no such criterion. [prune-score]
    """
    if by not in SCORES:
        raise PlanError(
            f"prune: no score named {by!r}; expected one of {', '.join(sorted(SCORES))}.", code="prune-score"
        )
    scores: Scores = {}
    for group in axes.groups:
        raw = SCORES[by](model, axes, group)
        scores[group.name] = raw / raw.mean() if raw.mean() > 0 else np.ones(group.size)
    return scores
