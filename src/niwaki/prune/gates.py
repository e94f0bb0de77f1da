"""Learned sparsity: a gate on every head, head dimension, hidden unit and channel, trained to a budget.

While the model trains, each gate is a draw of a hard-concrete distribution whose parameter is learned with the
weights; the expected cost of the gated model is held to the budget by a Lagrangian. Then the gates with the
highest parameters stay, to the budget, their values go into the weights, and the rest is cut away.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from torch import Tensor, nn

from niwaki import loop, optim
from niwaki.batches import Batch
from niwaki.cost import Budget
from niwaki.errors import BudgetError, ParityError, PlanError
from niwaki.evaluate import Readable
from niwaki.prune.choose import best
from niwaki.prune.expected import Expected, check_kind
from niwaki.prune.gated import TOLERANCE, Gated, difference, folded, gateable
from niwaki.prune.lagrangian import Lagrangian
from niwaki.prune.objectives import Clock, loss_of, told_by
from niwaki.prune.step import cut, varied
from niwaki.spec import Spec
from niwaki.surgery import Axes, Group, analyse
from niwaki.tasks import Task

TRAVEL = 24.0
"""How far log_alpha can move in a whole training; from wide open to tightly closed is 8."""
Ranks = Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]


class Budgeted(nn.Module):
    """A gated model and what holds it to a budget: all that a checkpoint has to keep."""

    def __init__(self, gated: Gated, expected: Expected, *, target: float, ramp: float, calls: int) -> None:
        super().__init__()
        self.gated, self.expected = gated, expected
        self.lagrangian = Lagrangian(calls=calls, target=target, ramp=ramp)
        self.clock = Clock(calls)

    def forward(self, *inputs: Any) -> Any:
        """The gated model's outputs."""
        return self.gated(*inputs)

    def share(self) -> Tensor:
        """The expected cost as a share of the whole model's, a scalar."""
        share: Tensor = self.expected(self.gated.open_probability())
        return share

    def penalty(self) -> Tensor:
        """What one step of the training adds to its loss, a scalar; time and multiplier move on."""
        penalty: Tensor = self.lagrangian(self.share(), self.clock.tick())
        return penalty.float()


def gates(
    model: nn.Module,
    *,
    task: Task,
    spec: Spec,
    train: Readable,
    val: Readable | None = None,
    example: Tensor | tuple[Any, ...],
    teacher: nn.Module | None = None,
    budget: str = "macs=50%",
    ramp: float = 0.5,
    min_width: float = 0.0,
    multiple: int = 1,
    skip: Sequence[str] = (),
    t: float = 4.0,
    alpha: float = 0.9,
    checkpoint: Path | None = None,
    show: loop.Show | None = None,
    **training: Unpack[loop.Training],
) -> nn.Module:
    """A trained copy within the budget: the model's own class, smaller, proven, in eval mode.

    Args:
        teacher: learn from its outputs too, as `distill.logits` does; None: from the labels alone.
        budget: `macs=50%`, `macs=20M`, `params=40%` or `params=1.2M`: what may remain.
        ramp: share of the training in which the expected cost is brought down to the budget, above 0 to 1.
        min_width: share of each group that stays; one atom always does.
        multiple: round kept counts to a multiple of this, in groups of at least twice as many atoms.
        skip: patterns of parameter names whose groups get no gates.
        t, alpha: temperature and the teacher's share of the loss; without a teacher they do nothing.
        checkpoint, show, training: as in `train.fit`.
    Raises:
        PlanError: a knob is out of range. [gates-budget, gates-none, gates-knob, budget-syntax, train-knob]
        BudgetError: even with one atom a group it costs more. [budget-unreachable]
        ParityError: the smaller model does not compute what the gated one does. [prune-proof]
    Source: Louizos et al. 2018, arXiv:1712.01312; Wang et al. 2020, arXiv:1910.04732; Xia et al. 2022 (CoFi),
        arXiv:2204.00408, here with the model's own graph telling what a gate takes out and what that saves.
    """
    _check(ramp, min_width, multiple, budget)
    asked, knobs = Budget.parse(budget), loop.Knobs(**training).for_images(len(train))
    loss = loss_of(task, teacher, t=t, alpha=alpha)
    axes = analyse(model, example)
    groups = open_groups(model, axes, example=example, skip=skip)
    limit = asked.limit(axes.cost({}))
    fitting = functools.partial(
        within, axes, groups, kind=asked.kind, limit=limit, min_width=min_width, multiple=multiple
    )
    fitting({g.name: np.arange(g.size, dtype=float) for g in groups})  # says now if nothing can fit

    steps = knobs.epochs * -(-len(train) // knobs.batch)
    learner = Budgeted(
        Gated(model, axes, groups, speed=_speed(knobs, steps)),
        Expected(axes, groups, kind=asked.kind),
        target=limit / getattr(axes.cost({}), asked.kind),
        ramp=ramp,
        calls=steps * knobs.accumulate,
    )

    def objective(learner: nn.Module, batch: Batch) -> Tensor:
        each: Tensor = loss(learner(batch.images), batch)
        whole: Tensor = each + learner.penalty()  # type: ignore[operator]
        return whole

    trained = loop.run(
        learner, objective, stage="gates", task=task, spec=spec, train=train, val=val, knobs=knobs,
        checkpoint=checkpoint, show=show,
        settings={"budget": budget, "ramp": ramp, "gates": [g.name for g in groups],
                  **told_by(teacher, t=t, alpha=alpha)},
    )  # fmt: skip
    gated: Gated = trained.gated  # type: ignore[assignment]
    return closed(gated, axes, fitting(gated.ranks()), example=example)


def open_groups(
    model: nn.Module, axes: Axes, *, example: Tensor | tuple[Any, ...], skip: Sequence[str] = ()
) -> tuple[Group, ...]:
    """The groups that gates can switch exactly; both factors of a product (heads and head size) among them.

    Raises:
        PlanError: there is none, or a pattern matches nothing. [gates-none, prune-skip]
    """
    wanted = [g for g in axes.groups if not _skipped(g, skip)]
    for pattern in skip:
        if not any(_skipped(g, [pattern]) for g in axes.groups):
            raise PlanError(
                f"prune.gates: skip pattern {pattern!r} matches no parameter of a prunable group; "
                "`niwaki doctor --groups` lists them.",
                code="prune-skip",
            )
    left = gateable(model, axes, wanted, example)
    groups = tuple(g for g in wanted if g.name not in left)
    if not groups:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(left.items())[:3])
        raise PlanError(
            f"prune.gates: no group of channels, heads or units can be gated ({why or 'all are skipped'}). "
            "Use prune.channels, or skip less.",
            code="gates-none",
        )
    return groups


def _skipped(group: Group, patterns: Sequence[str]) -> bool:
    names = {group.name, *(name for name, _ in group.members)}
    return any(fnmatch.fnmatch(name, pattern) for name in names for pattern in patterns)


def within(
    axes: Axes,
    groups: Sequence[Group],
    ranks: Ranks,
    *,
    kind: str,
    limit: float,
    min_width: float = 0.0,
    multiple: int = 1,
) -> dict[str, list[int]]:
    """`{group: kept atoms}`: the highest ranks of all groups together, as many as the limit allows.

    Args:
        ranks: a number an atom; those of different groups are compared.
        kind, limit: "macs" or "params", and how many.
    Raises:
        BudgetError: the narrowest widths cost more. [budget-unreachable]
    """
    order = np.sort(np.concatenate([ranks[g.name] for g in groups]))

    def keep(widths: Mapping[str, int]) -> dict[str, list[int]]:
        return {g.name: best(ranks[g.name], widths[g.name]) for g in groups if widths[g.name] < g.size}

    def widths(removed: int) -> dict[str, int]:
        edge = order[removed] if removed < len(order) else np.inf
        counts = {g.name: int((ranks[g.name] >= edge).sum()) for g in groups}
        return {g.name: _width(g, counts[g.name], min_width, multiple) for g in groups}

    def fits(found: Mapping[str, int]) -> bool:
        return bool(getattr(axes.cost(keep(found)), kind) <= limit)

    low, high = 0, len(order)
    if not fits(widths(high)):
        least = getattr(axes.cost(keep(widths(high))), kind)
        raise BudgetError(
            f"prune.gates: {kind} of at most {limit:.4g} asked, and the narrowest gated network has {least}. "
            "Ask for more, lower min_width or multiple, or skip less.",
            code="budget-unreachable",
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(widths(middle)) else (middle + 1, high)
    return keep(_filled(groups, ranks, widths(high), fits, multiple))


def _filled(
    groups: Sequence[Group], ranks: Ranks, found: dict[str, int], fits: Any, multiple: int
) -> dict[str, int]:
    """The same widths and what else fits, the highest rank first."""
    left = {g.name: np.sort(ranks[g.name])[::-1] for g in groups}
    growing = {g.name: g for g in groups}
    while True:
        growing = {name: g for name, g in growing.items() if found[name] < g.size}
        if not growing:
            return found
        name = max(growing, key=lambda n: float(left[n][found[n]]))
        more = found[name] + _step(growing[name], multiple)
        wider = {**found, name: min(more, growing[name].size)}
        if fits(wider):
            found = wider
        else:
            del growing[name]


def _step(group: Group, multiple: int) -> int:
    return multiple if group.size >= 2 * multiple else 1


def _width(group: Group, count: int, min_width: float, multiple: int) -> int:
    step = _step(group, multiple)
    least = -(-max(1, int(np.ceil(min_width * group.size - 1e-9))) // step) * step
    return int(min(group.size, max(least, round(count / step) * step)))


def closed(
    gated: Gated, axes: Axes, keep: dict[str, list[int]], *, example: Tensor | tuple[Any, ...]
) -> nn.Module:
    """The gated model without the gates: kept ones multiplied into the weights, the others' atoms cut away.

    Raises:
        ParityError: it does not compute what the gated model with those gates at zero does. [prune-proof]
    """
    done = cut(folded(gated, keep), axes, keep, example=example)
    error = difference(gated, gated.hard(keep), done.model, varied(example))
    if done.left or error > TOLERANCE:
        raise ParityError(
            f"prune.gates: the smaller model differs from the gated one by {error:.1e} of its deviation "
            f"({'; '.join(done.left.values()) or 'all groups cut'}); expected at most {TOLERANCE:.0e}. Please "
            "report the model; nothing was changed.",
            code="prune-proof",
        )
    return done.model.eval()


def _speed(knobs: loop.Knobs, steps: int) -> float:
    """How much faster than weights the gates learn: at full rate throughout they could move by `TRAVEL`."""
    return TRAVEL / max(1e-12, sum(optim.rate(s, steps, knobs.lr, knobs.batch) for s in range(steps)))


def _check(ramp: float, min_width: float, multiple: int, budget: str) -> None:
    check_kind(budget)
    checks = {
        "ramp": (0 < ramp <= 1, ramp, "above 0 and at most 1"),
        "min_width": (0 <= min_width < 1, min_width, "from 0 to below 1"),
        "multiple": (multiple >= 1, multiple, "at least 1"),
    }
    for name, (fine, value, expected) in checks.items():
        if not fine:
            raise PlanError(f"prune.gates: {name} must be {expected}, got {value!r}.", code="gates-knob")
