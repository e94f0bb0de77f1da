"""Network slimming: training that drives scales of batch norms to zero, so that their channels can go.

A channel of a residual stream has several scales, one in each norm that its group of the surgery runs through.
They are penalised as one: by their joint length, so that they reach zero together or not at all.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from niwaki import loop, optim
from niwaki.batches import Batch
from niwaki.errors import PlanError
from niwaki.evaluate import Readable
from niwaki.prune.expected import placed, positions
from niwaki.prune.objectives import Clock, loss_of, told_by
from niwaki.spec import Spec
from niwaki.surgery import Axes, Group, analyse
from niwaki.surgery.trace import Call
from niwaki.tasks import Task

_NORMS = ("batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit_functional")
TRAVEL = 4.0
"""A scale can move this far in a whole training; it begins at one as a rule."""
_TINY = 1e-12


class Scales(nn.Module):
    """Each channel's scale in a model's batch norms: the root mean square of those that its group ties.

    Args:
        axes: the model's analysis.
        groups: whose channels count; those without a batch norm are passed over.
        frozen: norms' weights that do not learn, which are left out.
    """

    ties: Tensor

    def __init__(self, axes: Axes, groups: Sequence[Group], *, frozen: Collection[str] = ()) -> None:
        super().__init__()
        names = [name for name in norm_weights(axes) if name not in frozen]
        self.groups = tuple(g for g in groups if any(name in names for name, _ in g.members))
        atoms = positions(self.groups)
        self.count = len(atoms)
        self.names: list[str] = []
        for name in names:
            axis = axes.elements(name)[0]
            index = None if axis is None else placed(axis, atoms)
            if index is not None and (index < self.count).any():
                self.register_buffer(f"atoms{len(self.names)}", torch.from_numpy(index), persistent=False)
                self.names.append(name)
        ones = {name: torch.ones(len(axes.elements(name)[0])) for name in self.names}  # type: ignore[arg-type]
        self.register_buffer("ties", self._sum(ones), persistent=False)

    def forward(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Each channel's scale `[channels]`, group after group, from the norms' weights by name."""
        squares = {name: weights[name].float().square() for name in self.names}
        return (self._sum(squares) / self.ties + _TINY).sqrt()

    def _sum(self, values: dict[str, Tensor]) -> Tensor:
        """One number a channel: the sum of what its norms hold `[channels]`."""
        total = torch.zeros(self.count + 1, device=next(iter(values.values())).device if values else None)
        for i, name in enumerate(self.names):
            for column in getattr(self, f"atoms{i}").T:
                total = total.index_add(0, column, values[name])
        return total[: self.count]


def norm_weights(axes: Axes) -> list[str]:
    """Names of the scales of all batch norms, in the order of the graph, each once."""
    found: dict[str, None] = {}
    for node in axes.traced.graph.nodes:
        if node.op == "call_function" and _operator(node) in _NORMS and len(node.args) > 1:
            name = axes.traced.names.get(getattr(node.args[1], "name", ""))
            if name is not None:
                found[name] = None
    return list(found)


def _operator(node: Call) -> str:
    return str(getattr(getattr(node.target, "overloadpacket", None), "__name__", ""))


def sparsity(scales: Tensor, ties: Tensor, *, polarise: float = 0.0) -> Tensor:
    """`sum m s - polarise sum m |s - mean s|`: L1 at 0, and else with a pull away from the mean, a scalar.

    Above 0 small scales are pushed down harder and large ones are spared: two clear groups.
    Args:
        scales: s, one a channel, none below 0.
        ties: m, how many scales of the model each stands for.
    Source: Liu et al. 2017, arXiv:1708.06519, eq. 1 (L1); Zhuang et al. 2020, "Neuron-level structured pruning
        using polarization regularizer", NeurIPS, whose t is 1 / polarise here.
    """
    return (ties * (scales - polarise * (scales - scales.mean()).abs())).sum()


class Slimmed(nn.Module):
    """A model in slimming training: its scales as parameters of their own, and the clock of the schedule.

    A scale is `weight + speed * move`, with the gradient of move: in a short training Adam could not take it
    from one to zero otherwise.
    """

    speed: Tensor

    def __init__(self, net: nn.Module, scales: Scales, *, speed: float, calls: int) -> None:
        super().__init__()
        self.net, self.scales, self.clock = net, scales, Clock(calls)
        held = [net.get_parameter(name) for name in scales.names]
        self.moves = nn.ParameterList([nn.Parameter(torch.zeros_like(weight)) for weight in held])
        self.register_buffer("speed", torch.tensor(speed, device=held[0].device))
        for weight in held:
            weight.requires_grad_(False)

    def forward(self, *inputs: Any) -> Any:
        """The model's outputs."""
        return torch.func.functional_call(self.net, self.weights(), inputs)

    def weights(self) -> dict[str, Tensor]:
        """The scales of the batch norms as they are now, by name."""
        return {
            name: self.net.get_parameter(name) + move + (self.speed - 1) * move.detach()
            for name, move in zip(self.scales.names, self.moves, strict=True)
        }

    def penalty(self, *, polarise: float) -> Tensor:
        """The sparsity penalty at full strength, a scalar."""
        return sparsity(self.scales(self.weights()), self.scales.ties, polarise=polarise)

    def settled(self) -> nn.Module:
        """The model with its scales as they have become, all its parameters learning again, in eval mode."""
        with torch.no_grad():
            for name, weight in self.weights().items():
                self.net.get_parameter(name).copy_(weight)
        for name in self.scales.names:
            self.net.get_parameter(name).requires_grad_(True)
        return self.net.eval()


def slimming(
    model: nn.Module,
    *,
    task: Task,
    spec: Spec,
    train: Readable,
    val: Readable | None = None,
    example: Tensor | tuple[Any, ...],
    teacher: nn.Module | None = None,
    strength: float = 1e-3,
    delay: float = 0.0,
    ramp: float = 0.3,
    polarise: float = 0.0,
    thin: int = 8,
    t: float = 4.0,
    alpha: float = 0.9,
    checkpoint: Path | None = None,
    show: loop.Show | None = None,
    **training: Unpack[loop.Training],
) -> nn.Module:
    """A trained copy of the same shape, its needless batch norm scales near zero, in eval mode.

    `prune.channels(score="bn", normalise="none", scope="global")` takes the channels out afterwards.

    Args:
        strength: weight of the penalty, summed over channels.
        delay: share of the training before the penalty begins.
        ramp: share of the training over which it then grows to its full strength; delay + ramp at most 1.
        polarise: 0 is L1; towards 1 scales part into small and large ones.
        thin: groups of fewer channels are not penalised.
        teacher, t, alpha: learn from its outputs too, as in `distill.logits`.
        checkpoint, show, training: as in `train.fit`.
    Raises:
        PlanError: a knob is out of range, or no group has a batch norm. [slimming-knob, slimming-none]
    Source: Liu et al. 2017, arXiv:1708.06519, eq. 1; the joint length of tied scales is the group lasso of Yuan
        & Lin 2006, doi 10.1111/j.1467-9868.2005.00532.x.
    """
    _check(strength, delay, ramp, polarise, thin)
    knobs = loop.Knobs(**training).for_images(len(train))
    loss = loss_of(task, teacher, t=t, alpha=alpha)
    axes = analyse(model, example)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    scales = Scales(axes, [group for group in axes.groups if group.size >= thin], frozen=frozen)
    if not scales.names:
        raise PlanError(
            f"prune.slimming: {type(model).__name__} has no batch norm over a group of at least {thin} "
            "prunable channels, so there is no scale to drive to zero. Use prune.gates or prune.channels.",
            code="slimming-none",
        )
    steps = knobs.epochs * -(-len(train) // knobs.batch)
    learner = Slimmed(copy.deepcopy(model), scales, speed=_speed(knobs, steps), calls=steps * knobs.accumulate)

    def objective(learner: nn.Module, batch: Batch) -> Tensor:
        each: Tensor = loss(learner(batch.images), batch)
        now = strength * rise(learner.clock.tick(), delay=delay, ramp=ramp)  # type: ignore[operator,union-attr]
        penalised: Tensor = each + now * learner.penalty(polarise=polarise)  # type: ignore[operator]
        return penalised

    trained = loop.run(
        learner, objective, stage="slimming", task=task, spec=spec, train=train, val=val, knobs=knobs,
        checkpoint=checkpoint, show=show,
        settings={"strength": strength, "delay": delay, "ramp": ramp, "polarise": polarise, "thin": thin,
                  **told_by(teacher, t=t, alpha=alpha)},
    )  # fmt: skip
    slim: nn.Module = trained.settled()  # type: ignore[operator]
    return slim


def _speed(knobs: loop.Knobs, steps: int) -> float:
    """How much faster than weights the scales learn, so that they could move by `TRAVEL`; at least as fast."""
    reach = sum(optim.rate(step, steps, knobs.lr, knobs.batch) for step in range(steps))
    return max(1.0, TRAVEL / max(reach, 1e-12))


def rise(time: float, *, delay: float, ramp: float) -> float:
    """The penalty's share 0..1 at a time 0..1 of the training: 0 until `delay`, then rising linearly."""
    if time < delay:
        return 0.0
    return min(1.0, (time - delay) / ramp) if ramp > 0 else 1.0


def _check(strength: float, delay: float, ramp: float, polarise: float, thin: int) -> None:
    checks = {
        "strength": (strength > 0 and math.isfinite(strength), strength, "above 0"),
        "delay": (0 <= delay < 1, delay, "from 0 to below 1"),
        "ramp": (0 <= ramp <= 1 - delay + 1e-9, ramp, "from 0 to 1 - delay"),
        "polarise": (0 <= polarise < 1, polarise, "from 0 to below 1"),
        "thin": (thin >= 1, thin, "at least 1"),
    }
    for name, (fine, value, expected) in checks.items():
        if not fine:
            raise PlanError(f"prune.slimming: {name} must be {expected}, got {value!r}.", code="slimming-knob")
