"""How much each atom of each group matters: one small pure function a criterion, `group -> [atoms]`.

Scores of weights read `(model, axes, group)`; scores of data read `(evidence, group)`, where evidence was
gathered once from labelled images (`evidence.py`). A group's atoms sit in several parameters; for the norms,
each parameter axis votes, and the votes are averaged over the axes that hold weights (norm scales, biases and
statistics do not vote). `normalised` then makes groups of different scale comparable.
A new criterion is one function and one line in `WEIGHTS` or `DATA`.
Shape letters: N images, A atoms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from niwaki.errors import PlanError
from niwaki.evaluate import Readable
from niwaki.prune.alike import roles
from niwaki.prune.evidence import Evidence, gather
from niwaki.prune.places import places
from niwaki.spec import Spec
from niwaki.surgery import Axes, Group, Keep
from niwaki.tasks import Task

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Scores = dict[str, Floats]

TAYLOR_BATCH = 32
"""Images over which the Taylor score averages a gradient before it is squared, as in a training step."""


def _weights(model: nn.Module, axes: Axes, group: Group) -> Iterator[tuple[str, int, Floats, Ints, Ints]]:
    """Each weight axis of a group: name, axis, the weights `[size, rest]`, and which positions along the axis
    belong to which atom (parallel arrays)."""
    for name, d in group.members:
        weight = model.get_parameter(name).detach()
        if weight.dim() >= 2:
            rows = weight.double().movedim(d, 0).flatten(1).numpy(force=True)
            yield name, d, rows, *_positions(axes, group, name, d)


def _positions(axes: Axes, group: Group, name: str, d: int) -> tuple[Ints, Ints]:
    """Positions along a parameter's axis and the atom at each, in parallel; several atoms may share one."""
    place = {atom: i for i, atom in enumerate(group.atoms)}
    elements = axes.elements(name)[d]
    assert elements is not None  # a member of the group
    position, column = np.nonzero(np.isin(elements, group.atoms))
    atom = np.array([place[a] for a in elements[position, column].tolist()], dtype=np.int64)
    return position, atom


def _average(votes: list[Floats], size: int) -> Floats:
    """Mean of the votes, each divided by its own mean; those that say nothing are left out."""
    said = [vote / vote.mean() for vote in votes if vote.mean() > 0]
    return np.mean(said, axis=0) if said else np.zeros(size)


def _norm(model: nn.Module, axes: Axes, group: Group, *, power: int) -> Floats:
    votes: list[Floats] = []
    for name, d in group.members:
        weight = model.get_parameter(name).detach()
        if weight.dim() < 2:
            continue
        powers = weight.abs() if power == 1 else weight.square()
        others = [axis for axis in range(weight.dim()) if axis != d]
        sums = powers.sum(others, dtype=torch.float64).numpy(force=True)
        position, atom = _positions(axes, group, name, d)
        total = np.bincount(atom, weights=sums[position], minlength=group.size)
        votes.append(np.asarray(total ** (1 / power), dtype=np.float64))
    return _average(votes, group.size)


def l1(model: nn.Module, axes: Axes, group: Group) -> Floats:
    """L1 norm of each atom's weights. Source: Li et al. 2017, arXiv:1608.08710, section 3.1."""
    return _norm(model, axes, group, power=1)


def l2(model: nn.Module, axes: Axes, group: Group) -> Floats:
    """L2 norm of each atom's weights over all coupled layers. Source: Fang et al. 2023, arXiv:2301.12900,
    eq. 5 (group norm), here averaged over layers after dividing each by its mean."""
    return _norm(model, axes, group, power=2)


def fpgm(model: nn.Module, axes: Axes, group: Group) -> Floats:
    """Summed distance of each atom's filter to all others: what lies near the geometric median is replaceable.

    Filters are the weights that make the channel (outputs of convolutions and linear layers); a group without
    such, or whose only ones are depthwise, is judged by all its weights.
    Source: He et al. 2019, arXiv:1811.00250, eq. 4-6 (minimal sum of distances).
    """
    made = {member for member, played in roles(axes, group).items() if any(role.makes for role in played)}
    parts = list(_weights(model, axes, group))
    chosen = [part for part in parts if part[:2] in made] or parts
    return _average([_distances(_by_atom(*part[2:], group.size)) for part in chosen], group.size)


def _by_atom(weight: Floats, position: Ints, atom: Ints, size: int) -> Floats:
    """All weights of each atom in a row `[A, most of one atom]`, zeros behind those that have fewer."""
    order = np.argsort(atom, kind="stable")
    counts = np.bincount(atom, minlength=size)
    rank = np.concatenate([np.arange(count) for count in counts])
    rows = np.zeros((size, int(counts.max(initial=0)), weight.shape[1]))
    rows[atom[order], rank] = weight[position[order]]
    return rows.reshape(size, -1)


def _distances(rows: Floats) -> Floats:
    """Sum of Euclidean distances of each row to all rows."""
    x = torch.from_numpy(rows)
    found: Floats = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").sum(1).numpy()
    return found


def bn(model: nn.Module, axes: Axes, group: Group) -> Floats:
    """|scale| of the norms behind each atom, averaged over them.

    A group without a norm gets its L2 score, on the scale of the network's mean |scale|.
    Source: Liu et al. 2017, arXiv:1708.06519 (network slimming).
    Raises:
        PlanError: the network has no norm with a scale. [prune-score]
    """
    scales = [name for (name, _), played in roles(axes, group).items() if any(role.scale for role in played)]
    votes = []
    for name in scales:
        scale = model.get_parameter(name).detach().abs().double().numpy(force=True)
        position, atom = _positions(axes, group, name, 0)
        sums = np.bincount(atom, weights=scale[position], minlength=group.size)
        votes.append(sums / np.maximum(1, np.bincount(atom, minlength=group.size)))
    return np.mean(votes, axis=0) if votes else l2(model, axes, group) * _typical_scale(model, axes)


def _typical_scale(model: nn.Module, axes: Axes) -> float:
    """Mean |scale| of all norms that stand in a group."""
    found = [roles(axes, group) for group in axes.groups]
    names = {name for played in found for (name, _), those in played.items() if any(r.scale for r in those)}
    if not names:
        raise PlanError(
            "prune: score 'bn' ranks by the scales of norms, and this network has none; expected a batch, "
            "group or layer norm with a weight. Choose another score, such as l2.",
            code="prune-score",
        )
    return float(np.mean([float(model.get_parameter(name).detach().abs().mean()) for name in sorted(names)]))


def random(model: nn.Module, axes: Axes, group: Group) -> Floats:
    """Uniform draws, the control that any criterion has to beat; seeded by the group's name and size."""
    seed = sum(group.name.encode()) * 1009 + group.size
    return torch.rand(group.size, generator=torch.Generator().manual_seed(seed)).double().numpy() + 0.5


def taylor(evidence: Evidence, group: Group) -> Floats:
    """Squared first-order change of the loss when an atom goes, in batches of 32 images, averaged.

    The change is the mask's gradient, which is the sum of weight x gradient over everything that reads the
    atom, all coupled layers together. Source: Molchanov et al. 2019, arXiv:1906.10771, eq. 8 with gates.
    """
    gradients = evidence.gradients[group.name]
    parts = np.array_split(gradients, -(-len(gradients) // TAYLOR_BATCH))
    found: Floats = np.mean([part.mean(0) ** 2 for part in parts], axis=0)
    return found


def fisher(evidence: Evidence, group: Group) -> Floats:
    """Half the mean over images of the squared mask gradient: the second-order change of the loss, with the
    Fisher information for the Hessian; coupled layers are summed before squaring.

    Source: Liu et al. 2021, arXiv:2108.00708, eq. 8; with `normalise="memory"` or `"macs"` eq. 9.
    """
    found: Floats = 0.5 * np.square(evidence.gradients[group.name]).mean(0)
    return found


def activation(evidence: Evidence, group: Group) -> Floats:
    """Mean |activation|. Source: Molchanov et al. 2017, arXiv:1611.06440, section 2.2 (mean activation)."""
    return evidence.activity["activation"][group.name]


def nonzero(evidence: Evidence, group: Group) -> Floats:
    """Share of activations that are not zero, 1 - APoZ. Source: Hu et al. 2016, arXiv:1607.03250."""
    return evidence.activity["nonzero"][group.name]


def variance(evidence: Evidence, group: Group) -> Floats:
    """Variance of the activation over images and positions; a constant channel folds into a bias.
    Source: Molchanov et al. 2017, arXiv:1611.06440, section 2.2 (standard deviation)."""
    return evidence.activity["variance"][group.name]


WEIGHTS: dict[str, Callable[[nn.Module, Axes, Group], Floats]] = {
    "l1": l1, "l2": l2, "fpgm": fpgm, "bn": bn, "random": random,
}  # fmt: skip
DATA: dict[str, Callable[[Evidence, Group], Floats]] = {
    "taylor": taylor, "fisher": fisher, "activation": activation, "nonzero": nonzero, "variance": variance,
}  # fmt: skip
SCORES = (*WEIGHTS, *DATA)
"""Names of all criteria; those of `DATA` need images."""


def score(
    model: nn.Module,
    axes: Axes,
    *,
    by: str = "l2",
    normalise: str = "mean",
    evidence: Evidence | None = None,
) -> Scores:
    """Scores of every group, float64 `[A]` each: the higher, the more an atom matters.

    Args:
        by: one of `SCORES`.
        normalise: one of `NORMALISE`; how groups are made comparable. It does not change the order in a group.
        evidence: of `gather`, for the criteria in `DATA`.
    Raises:
        PlanError: no such criterion or normalisation, or no evidence for one that needs it. [prune-score,
            prune-normalise, prune-evidence]
    """
    if by not in SCORES:
        raise PlanError(
            f"prune: no score named {by!r}; expected one of {', '.join(sorted(SCORES))}.", code="prune-score"
        )
    if normalise not in NORMALISE:
        raise PlanError(
            f"prune: no normalisation named {normalise!r}; expected one of {', '.join(NORMALISE)}.",
            code="prune-normalise",
        )
    if by in DATA:
        if evidence is None:
            raise PlanError(
                f"prune: score {by!r} is made from images; expected evidence=prune.gather(model, axes, "
                "task=..., spec=..., samples=...), got none.",
                code="prune-evidence",
            )
        raw = {group.name: DATA[by](evidence, group) for group in axes.groups}
    else:
        raw = {group.name: WEIGHTS[by](model, axes, group) for group in axes.groups}
    return {group.name: normalised(raw[group.name], axes, group, by=normalise) for group in axes.groups}


def evidence_for(
    by: str, model: nn.Module, axes: Axes, *, task: Task | None, spec: Spec | None, samples: Readable | None
) -> Evidence | None:
    """What `score(by=by)` needs to know from images: gathered, or None for a score of the weights.

    Raises:
        PlanError: the score needs what is None. [prune-evidence]
    """
    if by not in DATA:
        return None
    if task is None or spec is None or samples is None:
        given = {"task": task, "spec": spec, "calib": samples}
        missing = ", ".join(f"{name}=" for name, value in given.items() if value is None)
        raise PlanError(
            f"prune: score {by!r} is made from labelled images and lacks {missing}. Give it to prune.channels, "
            f"or in a plan to Bench(...); scores that need none: {', '.join(sorted(WEIGHTS))}.",
            code="prune-evidence",
        )
    return gather(model, axes, task=task, spec=spec, samples=samples)


def normalised(raw: Floats, axes: Axes, group: Group, *, by: str) -> Floats:
    """A group's scores on a scale that groups share; ones where all are zero.

    Args:
        by: `none`; `mean`, `max`, `sum`: divided by that; `gaussian`: less the mean, over the deviation;
            `macs`, `params`, `memory`: divided by what removing one atom saves (memory: activations made, in
            numbers an image), relative to the whole network.
    """
    if by == "none":
        return raw
    if by == "gaussian":
        spread = float(raw.std())
        return (raw - raw.mean()) / spread if spread > 0 else np.zeros_like(raw)
    if by in ("mean", "max", "sum"):
        scale = float({"mean": raw.mean(), "max": raw.max(), "sum": raw.sum()}[by])
        return raw / scale if scale > 0 else np.ones_like(raw)
    saved = _saved(axes, group, by)
    return raw / saved if saved > 0 else raw


NORMALISE = ("none", "mean", "max", "sum", "gaussian", "macs", "params", "memory")


def _saved(axes: Axes, group: Group, what: str) -> float:
    """Share of the network's multiply-adds, parameters or activations that one atom of the group costs."""
    less = {group.name: list(range(1, group.size))}
    if what == "memory":
        return 1 - _activations(axes, less) / max(1, _activations(axes, {}))
    before, after = (float(getattr(axes.cost(keep), what)) for keep in ({}, less))
    return 1 - after / max(1.0, before)


def _activations(axes: Axes, keep: Keep) -> int:
    """Numbers in the tensors that are kept for a backward pass of one traced batch: inputs of `places`."""
    alive = axes.alive(keep)
    return sum(math.prod(axes.shape(value, alive)) for value in {p.value: None for p in places(axes)})
