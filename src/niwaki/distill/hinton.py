"""Distillation through softened outputs. Shape letters: B batch, K classes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki import checkpoint as kept
from niwaki import loop, parallel
from niwaki.batches import Batch
from niwaki.errors import PlanError
from niwaki.evaluate import Readable
from niwaki.instances import star_loss
from niwaki.spec import Spec
from niwaki.tasks import Task


def soft_loss(student_BK: Tensor, teacher_BK: Tensor, *, t: float) -> Tensor:
    """`t^2 * KL(teacher || student)` of both softmaxes at temperature t: `[B]`, in nats; of maps `[B, K, h, w]`
    the mean over their pixels.

    The factor keeps the gradient's size when t changes.
    """
    student, teacher = (F.log_softmax(x.float() / t, dim=1) for x in (student_BK, teacher_BK))
    apart = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    return apart.flatten(1).mean(1) * (t * t) if apart.dim() > 1 else apart * (t * t)


def logits(
    model: nn.Module,
    *,
    task: Task,
    spec: Spec,
    train: Readable,
    teacher: nn.Module,
    val: Readable | None = None,
    t: float = 4.0,
    alpha: float = 0.9,
    checkpoint: Path | None = None,
    show: loop.Show | None = None,
    **training: Unpack[loop.Training],
) -> nn.Module:
    """A copy in eval mode, trained to give the teacher's outputs; `loop.steps` says how.

    A sample's loss is `alpha * soft_loss + (1 - alpha) * task.loss` (of objects `star_loss.apart`). Model and
    teacher are untouched; the teacher sees the same augmented images, in eval mode.

    Args:
        teacher: a model of the same classes.
        t: temperature, above 0. 2 to 6 are usual.
        alpha: the teacher's share of the loss, 0..1.
        checkpoint, show, training: as in `train.fit`.
    Raises:
        PlanError: a knob is out of range, or the loss is no number. [train-knob, train-nonfinite]
        RunError: the checkpoint is damaged or another training's.
            [checkpoint-damaged, checkpoint-other]
    Source: Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    if t <= 0 or not 0 <= alpha <= 1:
        raise PlanError(
            f"distill.logits: t must be above 0 and alpha in 0..1, got {t} and {alpha}.",
            code="train-knob",
        )
    wise = copy.deepcopy(teacher).eval()
    wise.to(device=parallel.device(), memory_format=torch.channels_last)  # type: ignore[call-overload]

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        with torch.inference_mode():
            told = wise(batch.images)
        output = model(batch.images)
        objects = task.kind == "instances"
        soft = star_loss.apart(output, told.clone()) if objects else soft_loss(output, told.clone(), t=t)
        return alpha * soft + (1 - alpha) * task.loss(output.float(), batch.target)

    return loop.run(
        model, objective, stage="distill", task=task, spec=spec, train=train, val=val,
        knobs=loop.Knobs(**training), checkpoint=checkpoint, show=show,
        settings={"t": t, "alpha": alpha, "teacher": kept.sizes(teacher)},
    )  # fmt: skip
