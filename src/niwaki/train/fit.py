"""Training a model on labelled images."""

from __future__ import annotations

from pathlib import Path

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
    epochs: int = 30,
    batch: int = 64,
    lr: float = 3e-3,
    weight_decay: float = 0.05,
    seed: int = 0,
    ema: float = 0.998,
    accumulate: int = 1,
    augment: loop.Augment = "weak",
    flip: bool = False,
    class_weights: tuple[float, ...] | None = None,
    checkpoint: Path | None = None,
    every_s: float = 60.0,
    show: loop.Show | None = None,
) -> nn.Module:
    """A trained copy in eval mode: the averaged weights of the last epoch, never of the best.

    Args:
        val: scored after each epoch for the history; it decides nothing.
        epochs: passes over `train`; 0 gives the copy as it is.
        batch: images a step, over all processes.
        lr: peak learning rate at a batch of 128; another batch scales it by the root of their
            ratio.
        weight_decay: of weights; norms and biases do not decay.
        ema: decay of the weights' average at the end of a long training; 0 is no average.
        accumulate: parts a process cuts its share of a batch into, when memory is short.
        augment: `none`, `weak` (shifts) or `strong`; drawn from (seed, epoch, sample).
        flip: augmentation may mirror images.
        class_weights: a factor above 0 for each class's loss.
        checkpoint: file to go on from and to write to, every `every_s` seconds and after each
            epoch.
        show: called with each `loop.Progress`.
    Raises:
        PlanError: a knob is out of range, or the loss is no number. [train-knob, train-nonfinite]
        RunError: the checkpoint is damaged or another training's.
            [checkpoint-damaged, checkpoint-other]
    """
    knobs = loop.Knobs(
        epochs=epochs,
        batch=batch,
        lr=lr,
        weight_decay=weight_decay,
        seed=seed,
        ema=ema,
        accumulate=accumulate,
        augment=augment,
        flip=flip,
        class_weights=class_weights,
    )

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        return task.loss(model(batch.images).float(), batch.target)

    return loop.run(
        model, objective, stage="train", task=task, spec=spec, train=train, val=val, knobs=knobs,
        checkpoint=checkpoint, every_s=every_s, show=show,
    )  # fmt: skip
