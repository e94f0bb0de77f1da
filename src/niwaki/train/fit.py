"""Training a model on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from torch import Tensor, nn

from niwaki import loop
from niwaki.batches import Batch
from niwaki.evaluate import Readable
from niwaki.spec import Spec
from niwaki.tasks import Task


def fit(
    model: nn.Module,
    *,
    task: Task,
    spec: Spec,
    train: Readable,
    val: Readable | None = None,
    checkpoint: Path | None = None,
    show: loop.Show | None = None,
    **training: Unpack[loop.Training],
) -> nn.Module:
    """A trained copy in eval mode: the averaged weights of the last epoch, never of the best.

    Args:
        val: scored after each epoch for the history; it decides nothing.
        checkpoint: file to go on from and to write to.
        show: called with each `loop.Progress`.
        training: epochs, batch, lr, augment and the others that `loop.Knobs` lists and explains.
    Raises:
        PlanError: a knob is out of range, or the loss is no number. [train-knob, train-nonfinite]
        RunError: the checkpoint is damaged or another training's.
            [checkpoint-damaged, checkpoint-other]
    """

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        return task.loss(model(batch.images).float(), batch.target)

    return loop.run(
        model, objective, stage="train", task=task, spec=spec, train=train, val=val,
        knobs=loop.Knobs(**training), checkpoint=checkpoint, show=show,
    )  # fmt: skip
