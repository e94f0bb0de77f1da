"""What sparse training minimises beside its penalty: the task's loss, or a teacher's softened outputs too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki import checkpoint as kept
from niwaki import parallel
from niwaki.batches import Batch
from niwaki.errors import PlanError
from niwaki.tasks import Task

Loss = Callable[[Any, Batch], Tensor]
"""From a model's outputs and the batch to one number a sample, `[B]`."""


def loss_of(task: Task, teacher: nn.Module | None, *, t: float, alpha: float) -> Loss:
    """The task's loss, or `(1 - alpha)` of it and `alpha t^2 KL(teacher || model)` of both softmaxes at t.

    Args:
        teacher: sees the same images, in eval mode; it is not changed.
    Raises:
        PlanError: t is not above 0, or alpha not in 0..1. [train-knob]
    Source: Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    if t <= 0 or not 0 <= alpha <= 1:
        raise PlanError(
            f"prune: t must be above 0 and alpha in 0..1, got {t} and {alpha}.",
            code="train-knob",
        )
    if teacher is None:
        return lambda output, batch: task.loss(output.float(), batch.target)
    wise = copy.deepcopy(teacher).eval()
    wise.to(device=parallel.device(), memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(output: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            told = F.log_softmax(wise(batch.images).float() / t, dim=1)
        own = F.log_softmax(output.float() / t, dim=1)
        soft = F.kl_div(own, told, reduction="none", log_target=True).sum(1) * (t * t)
        return alpha * soft + (1 - alpha) * task.loss(output.float(), batch.target)

    return loss


def told_by(teacher: nn.Module | None, *, t: float, alpha: float) -> dict[str, Any]:
    """What a checkpoint must agree in about the teacher."""
    return {} if teacher is None else {"t": t, "alpha": alpha, "teacher": kept.sizes(teacher)}


class Clock(nn.Module):
    """Counts a training's steps where its checkpoint keeps them.

    Args:
        calls: calls of `tick` in the whole training.
    """

    done: Tensor

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = max(1, calls)
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))

    def tick(self) -> float:
        """The share of the training that lies behind, 0..1, one call more each time."""
        share = min(1.0, int(self.done) / self.calls)
        self.done += 1
        return share
