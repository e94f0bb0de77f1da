"""Distillation of features: named modules of the student learn to give what the teacher's do.

Shape letters: B batch, C channels, P positions (pixels or tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki import checkpoint as kept
from niwaki import loop
from niwaki.batches import Batch
from niwaki.distill import inside
from niwaki.evaluate import Readable
from niwaki.spec import Spec
from niwaki.tasks import Task

KINDS = ("attention-transfer", "fitnets")


def features(
    model: nn.Module,
    *,
    task: Task,
    spec: Spec,
    train: Readable,
    teacher: nn.Module,
    val: Readable | None = None,
    layers: Sequence[str] = (),
    of_teacher: Sequence[str] = (),
    kind: str = "attention-transfer",
    beta: float = 1.0,
    checkpoint: Path | None = None,
    show: loop.Show | None = None,
    **training: Unpack[loop.Training],
) -> nn.Module:
    """A copy in eval mode, trained so that named modules give what the teacher's do; `loop.steps` says how.

    "attention-transfer" compares where the activation is, summed over channels, so widths may differ;
    "fitnets" compares the activations themselves, through a 1x1 projection (trained along, then dropped) where
    widths differ. Positions must be as many in both. Model and teacher are untouched.

    Args:
        layers: the student's modules by name (`layer2`, `blocks.5`), whose outputs are `[B, C, H, W]` or tokens
            `[B, P, C]`.
        of_teacher: the teacher's, in the same order; the same names when left out.
        kind: one of `KINDS`.
        beta: weight of the features' distance beside the task's loss, above 0.
        checkpoint, show, training: as in `train.fit`.
    Raises:
        PlanError: a knob is out of range, a module is not there or gives no features, or positions differ.
            [train-knob, distill-layers, train-nonfinite]
        RunError: the checkpoint is damaged or another training's.
            [checkpoint-damaged, checkpoint-other]
    Source: Zagoruyko & Komodakis 2017, arXiv:1612.03928, eq. 2, squared as in their code; Romero et al. 2015
        (FitNets), arXiv:1412.6550, eq. 3, here divided by the teacher's mean square.
    """
    pairs = list(zip(layers, of_teacher or layers, strict=False))
    inside.check("features", beta, kind in KINDS, f"kind one of {', '.join(KINDS)}", kind)
    if not pairs or len(layers) != len(of_teacher or layers):
        raise inside.incomparable(
            f"layers= and of_teacher= must name as many modules, got {layers} and {of_teacher}"
        )
    wise = inside.ready(teacher)
    student = _Projected(model, _projections(model, wise, pairs, spec, seen=train, all_of=kind == "fitnets"))
    distance = _maps_apart if kind == KINDS[0] else _features_apart

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        held = [name for _, name in pairs]
        with torch.no_grad(), inside.outputs(wise, held) as told:
            wise(batch.images)
        with inside.outputs(model.student, [name for name, _ in pairs]) as own:  # type: ignore[arg-type]
            output = model(batch.images)
        apart = [
            distance(project(own[name]), told[other])
            for (name, other), project in zip(pairs, model.projections, strict=True)  # type: ignore[arg-type]
        ]
        return task.loss(output.float(), batch.target) + beta * torch.stack(apart).mean(0)

    settings = {"kind": kind, "beta": beta, "layers": [list(p) for p in pairs], "teacher": kept.sizes(teacher)}
    done = loop.run(
        student, objective, stage="distill features", task=task, spec=spec, train=train, val=val,
        knobs=loop.Knobs(**training), checkpoint=checkpoint, show=show, settings=settings,
    )  # fmt: skip
    return done.student  # type: ignore[return-value]


def _maps_apart(own: Tensor, told: Tensor) -> Tensor:
    """`[B]`: squared distance of both maps of activation, each summed over channels and of length 1."""
    a, b = (F.normalize(_rows(x).pow(2).mean(-1), dim=1) for x in (own, told))
    return (a - b).pow(2).sum(1)


def _features_apart(own: Tensor, told: Tensor) -> Tensor:
    """`[B]`: mean squared difference over the teacher's mean square."""
    a, b = _rows(own), _rows(told)
    return (a - b).pow(2).mean((1, 2)) / b.pow(2).mean().clamp_min(1e-12)


def _rows(x: Tensor) -> Tensor:
    """Features as float32 `[B, P, C]`."""
    x = x.float()
    return x.flatten(2).transpose(1, 2) if x.dim() == 4 else x


class _Projected(nn.Module):
    """A student with what its features go through before they are compared; calls go to the student alone."""

    def __init__(self, student: nn.Module, projections: nn.ModuleList) -> None:
        super().__init__()
        self.student, self.projections = student, projections

    def forward(self, images: Tensor) -> Any:
        """The student's outputs."""
        return self.student(images)


class _Pointwise(nn.Linear):
    """A 1x1 projection of features `[B, C, H, W]` or `[B, P, C]` to `[B, P, C']`."""

    def forward(self, x: Tensor) -> Tensor:
        """Every position by itself."""
        return super().forward(_rows(x).to(self.weight.dtype))


def _projections(
    model: nn.Module,
    teacher: nn.Module,
    pairs: list[tuple[str, str]],
    spec: Spec,
    *,
    seen: Readable,
    all_of: bool,
) -> nn.ModuleList:
    """A projection for each pair whose widths differ (if they are compared at all), and checks of all."""
    own = inside.tried(model, seen, spec, lambda net, x: _listed(net, x, [name for name, _ in pairs]))
    told = inside.tried(teacher, seen, spec, lambda net, x: _listed(net, x, [name for _, name in pairs]))
    out = []
    for (name, other), a, b in zip(pairs, own, told, strict=True):
        for label, x in ((name, a), (other, b)):
            if not isinstance(x, Tensor) or x.dim() not in (3, 4):
                raise inside.incomparable(
                    f"{label} gives {inside.shapes([x])}, not features [B, C, H, W] or [B, P, C]"
                )
        if _rows(a).shape[1] != _rows(b).shape[1]:
            raise inside.incomparable(
                f"positions differ: {name} gives {inside.shapes([a])}, the teacher's {other} "
                f"{inside.shapes([b])}"
            )
        widths = _rows(a).shape[2], _rows(b).shape[2]
        out.append(_drawn(*widths).to(a.device) if all_of and widths[0] != widths[1] else nn.Identity())
    return nn.ModuleList(out)


def _drawn(before: int, after: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _Pointwise(before, after)


def _listed(net: nn.Module, images: Tensor, names: Sequence[str]) -> tuple[Any, list[Any]]:
    with inside.outputs(net, names) as found:
        out = net(images)
    return out, [found.get(name) for name in names]
