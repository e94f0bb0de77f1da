"""A supernet: one set of weights trained so that the network works at many widths, any of which is cut out.

A *path* is a width for each prunable group of the surgery; its network keeps the best atoms of each group by a
ranking that is fixed before training, so narrower networks lie inside wider ones. A path runs as a real smaller
module of the user's own class, made by the surgery; its weights are slices of the shared ones, through which
the gradient flows back. So normalisation, attention and whatever else see exactly the channels that are left,
and a narrow path costs less time than a wide one.

Needs torch. Shape letters: B batch, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from niwaki import loop, prune, surgery
from niwaki.batches import Batch
from niwaki.cost import Cost
from niwaki.errors import ParityError
from niwaki.evaluate import Readable
from niwaki.spec import Spec
from niwaki.surgery import Axes
from niwaki.tasks import Task

Path_ = dict[str, int]

SHARES = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
"""Widths that a path chooses from, as shares of each group."""
DRAWN = 2
"""Random paths in each step, beside the widest and the narrowest."""
STATISTICS = 512
"""Training images that a path's batch norms are measured on."""


@dataclass(frozen=True, kw_only=True)
class Widths:
    """The widths that paths choose from, and which atoms stay at each.

    Args:
        choices: for each group its widths, rising, the last being the whole group.
        order: for each group its atoms, the first to stay first.
    """

    axes: Axes
    choices: dict[str, tuple[int, ...]]
    order: dict[str, tuple[int, ...]]

    def keep(self, path: Mapping[str, int]) -> dict[str, list[int]]:
        """Kept atoms of each group that is narrower than it was, as the surgery takes them."""
        sizes = {name: len(atoms) for name, atoms in self.order.items()}
        return {n: sorted(self.order[n][:width]) for n, width in path.items() if width < sizes[n]}

    def cost(self, path: Mapping[str, int]) -> Cost:
        """Multiply-adds and parameters of a path, by counting."""
        return self.axes.cost(self.keep(path))

    def at(self, place: float) -> Path_:
        """The path whose groups are all that far between narrowest and widest, 0..1."""
        return {name: c[round(place * (len(c) - 1))] for name, c in self.choices.items()}


def widths(
    model: nn.Module,
    axes: Axes,
    *,
    shares: Sequence[float] = SHARES,
    multiple: int = 4,
    score: str = "l2",
) -> Widths:
    """The widths that paths of a model choose from.

    Args:
        axes: `surgery.analyse(model, ...)`.
        shares: of each group, 0..1; 1 is always among them.
        multiple: widths are rounded to multiples of it, where the group is wide enough.
        score: criterion that ranks atoms; for random weights any will do, since training follows.
    """
    scores = prune.score(model, axes, by=score)
    groups = [group for group in axes.groups if not group.secondary]
    choices, order = {}, {}
    for group in groups:
        step = min(multiple, group.size)
        rounded = {max(step, round(share * group.size / step) * step) for share in shares}
        choices[group.name] = tuple(sorted({min(group.size, width) for width in rounded} | {group.size}))
        order[group.name] = tuple(np.argsort(-scores[group.name], kind="stable").tolist())
    return Widths(axes=axes, choices=choices, order=order)


def train(
    model: nn.Module,
    space: Widths,
    *,
    task: Task,
    spec: Spec,
    train: Readable,
    val: Readable | None = None,
    drawn: int = DRAWN,
    checkpoint: Path | None = None,
    show: loop.Show | None = None,
    **training: Unpack[loop.Training],
) -> nn.Module:
    """A trained copy whose paths all work: the widest network, in eval mode; `cut` takes out the others.

    Sandwich rule: each step trains the widest path on the labels, and the narrowest and `drawn` random ones on
    what the widest says of the same images. The loss is the mean over the paths.

    Args:
        val: scored after each epoch at full width, for the history.
        drawn: random paths a step; a step costs about 1 + 1 + drawn trainings of their widths.
        checkpoint: file to go on from and to write to.
    Raises:
        PlanError: a knob is out of range, or the loss is no number. [train-knob, train-nonfinite]
    Source: Yu and Huang 2019, "Universally slimmable networks and improved training techniques",
        arXiv:1903.05134, algorithm 1 (sandwich rule, in-place distillation).
    """

    def objective(learner: nn.Module, batch: Batch) -> Tensor:
        output = learner(batch.images).float()
        losses = [task.loss(output, batch.target)]
        soft = output.detach().softmax(1)
        for path in (space.at(0.0), *(_random(space) for _ in range(drawn))):
            said = _run(learner, space, path, batch.images).float()
            losses.append(functional.cross_entropy(said, soft, reduction="none"))
        return torch.stack(losses).mean(0)

    return loop.run(
        model, objective, stage="supernet", task=task, spec=spec, train=train, val=val,
        knobs=loop.Knobs(**training), checkpoint=checkpoint, show=show,
        settings={"drawn": drawn, "choices": {name: list(c) for name, c in space.choices.items()}},
    )  # fmt: skip


def _random(space: Widths) -> Path_:
    """A path drawn from torch's stream, which the loop seeds by the step."""
    return {name: c[int(torch.randint(len(c), ()))] for name, c in space.choices.items()}


def _run(learner: nn.Module, space: Widths, path: Path_, images: Tensor) -> Tensor:
    """A path's output, as a function of the shared weights."""
    keep = space.keep(path)
    small = surgery.smaller(learner, space.axes, keep)
    kept, factors = space.axes.kept_indices(keep), dict(surgery.attention_factors(space.axes, keep))
    shared: dict[str, Any] = {}
    for name, parameter in learner.named_parameters():
        piece: Tensor = parameter
        for axis, indices in kept.get(name, {}).items():
            piece = piece.index_select(axis, torch.tensor(indices, device=piece.device))
        if name in factors:  # as `shrink` scales queries whose heads get smaller
            piece = piece * factors[name].to(piece)
        shared[name] = piece
    said: Tensor = torch.func.functional_call(small, shared, (images,))
    return said


def cut(
    model: nn.Module,
    space: Widths,
    path: Mapping[str, int],
    *,
    spec: Spec,
    train: Readable,
    example: Tensor | None = None,
    count: int = STATISTICS,
) -> nn.Module:
    """The smaller model of a path, of the user's own class, its batch norms measured anew; in eval mode.

    Args:
        model: the trained supernet; it is not changed.
        train: the split whose first `count` images batch norms are measured on.
        example: an input `[B, ...]` to prove the cut on, as `prune.cut` does; None skips the proof.
    Raises:
        ParityError: the smaller model does not compute what the path does. [prune-proof]
    """
    keep = space.keep(path)
    if example is None or not keep:
        small = surgery.smaller(model, space.axes, keep)
    else:
        done = prune.cut(model, space.axes, keep, example=example)
        if done.left:
            name, reason = next(iter(done.left.items()))
            raise ParityError(
                f"search: {name} cannot be cut: {reason}. Leave the group whole.", code="prune-proof"
            )
        small = done.model
    measure_norms(small, spec=spec, train=train, count=count)
    return small.eval()


def measure_norms(model: nn.Module, *, spec: Spec, train: Readable, count: int = STATISTICS) -> None:
    """Set the running statistics of a model's batch norms to those of `count` training images, in place.

    Means over batches of equal weight; dropout is off meanwhile. Without batch norms nothing happens.

    Source: Yu and Huang 2019, arXiv:1903.05134, section 4 (post-statistics of batch normalisation).
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms:
        return
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    chosen = np.random.default_rng(0).permutation(len(train))[:count]
    with _measuring(model, norms), torch.no_grad():
        for part in np.array_split(chosen, max(1, len(chosen) // 64)):
            images = train.batch(np.sort(part).tolist(), spec)
            model(torch.from_numpy(spec.normalise(images)).to(device))


@contextlib.contextmanager
def _measuring(model: nn.Module, norms: Sequence[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Only the norms in training mode, their statistics empty and averaged over all that comes."""
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def paths(
    space: Widths, *, count: int, seed: int = 0, limit: float | None = None, cost: str = "macs"
) -> list[Path_]:
    """`count` different paths spread evenly over the costs from narrowest to widest, or to a limit.

    For each of `count` costs, uniform widths are drawn around the place that costs about so much, and the path
    closest to it is taken. The narrowest is first, the widest (within the limit) among them.

    Args:
        limit: no path costs more.
        cost: `macs` or `params`.
    """
    draw = np.random.default_rng(seed)
    low, high = (getattr(space.cost(space.at(place)), cost) for place in (0.0, 1.0))
    high = high if limit is None else min(high, limit)
    pool = [space.at(place) for place in np.linspace(0, 1, 9).tolist()]
    pool += [_around(space, float(place), draw) for place in draw.random(40 * count)]
    costed = [(float(getattr(space.cost(path), cost)), path) for path in pool]
    costed = [(value, path) for value, path in costed if limit is None or value <= limit]
    out: list[Path_] = []
    for wanted in np.linspace(low, high, count).tolist():
        left = [(abs(value - wanted), i) for i, (value, path) in enumerate(costed) if path not in out]
        if left:
            out.append(costed[min(left)[1]][1])
    return out


def _around(space: Widths, place: float, draw: np.random.Generator) -> Path_:
    """Each group's width is the one at `place`, moved by up to a third of the choices."""
    path = {}
    for name, c in space.choices.items():
        reach = max(1, len(c) // 3)
        at = round(place * (len(c) - 1)) + int(draw.integers(-reach, reach + 1))
        path[name] = c[min(len(c) - 1, max(0, at))]
    return path
