"""Training a model on labelled images, or on images with masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from torch import Tensor, nn

from niwaki import loop, losses
from niwaki.batches import Batch
from niwaki.errors import PlanError
from niwaki.evaluate import Readable
from niwaki.nets import MaskRCNN, PointRend, mask_rcnn
from niwaki.spec import Spec
from niwaki.tasks import Instances, Segment, Task

PLAIN = "cross-entropy"


def fit(
    model: nn.Module,
    *,
    task: Task,
    spec: Spec,
    train: Readable,
    val: Readable | None = None,
    loss: str = PLAIN,
    auxiliary: Sequence[str] = (),
    auxiliary_weight: float = 0.4,
    edges: Sequence[str] = (),
    edge_weight: float = 1.0,
    point_weight: float = 1.0,
    checkpoint: Path | None = None,
    show: loop.Show | None = None,
    **training: Unpack[loop.Training],
) -> nn.Module:
    """A trained copy in eval mode: the averaged weights of the last epoch, never of the best.

    Args:
        val: scored after each epoch for the history; it decides nothing.
        loss: a mix such as "2*ohem + dice" (`losses.mix`).
        auxiliary: modules whose features are to give the class map as well, through heads that are dropped at
            the end (masks only); their mean loss counts `auxiliary_weight`.
        edges: modules whose features are to give the boundaries between classes, likewise; `edge_weight`.
        point_weight: of the loss at single points, where the network has a PointRend (`nets.point_rend`).
        checkpoint: file to go on from and to write to.
        show: called with each `loop.Progress`.
        training: epochs, batch, lr, augment and the others that `loop.Knobs` lists and explains.
    Raises:
        PlanError: a knob is out of range, or the loss is no number.
            [train-knob, train-nonfinite, loss-text, loss-auxiliary]
        RunError: the checkpoint is damaged or another training's.
            [checkpoint-damaged, checkpoint-other]
    """
    own = task.loss if loss == PLAIN else losses.mix(loss, task=task, counts=_counts(task, train))
    settings: dict[str, Any] = {} if loss == PLAIN else {"loss": loss}

    def whole(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        if isinstance(model, MaskRCNN):
            return model.losses(images, target)
        if isinstance(model, PointRend):
            assert isinstance(task, Segment)
            return losses.point_loss(model, images, task.valid(target), own=own, weight=point_weight)
        return own(model(images).float(), target)

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        return whole(model, batch.images, batch.target)

    def with_heads(model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, losses.Heads)
        each, inside, edge = model.losses(batch.images, batch.target, own, whole=whole)
        return each + auxiliary_weight * inside + edge_weight * edge

    if isinstance(model, MaskRCNN):
        model = _two_stage(model, task, train, spec)
    if isinstance(model, PointRend):
        settings |= {"points": point_weight}
    if heads := (*auxiliary, *edges):
        settings |= {"heads": [*heads], "weights": [auxiliary_weight, edge_weight]}
        model = _headed(model, task, spec, auxiliary, edges)
    done = loop.run(
        model, with_heads if heads else objective, stage="train", task=task, spec=spec, train=train,
        val=val, knobs=loop.Knobs(**training), checkpoint=checkpoint, show=show, settings=settings,
    )  # fmt: skip
    return done.network if isinstance(done, losses.Heads) else done


def _headed(
    model: nn.Module, task: Task, spec: Spec, auxiliary: Sequence[str], edges: Sequence[str]
) -> nn.Module:
    if not isinstance(task, Segment):
        raise PlanError(
            "training: auxiliary heads and edges are of class maps, and these images have labels. "
            "Leave them out.",
            code="loss-auxiliary",
        )
    return losses.Heads(model, task=task, spec=spec, classes=auxiliary, edges=edges)


def _two_stage(model: MaskRCNN, task: Task, train: Readable, spec: Spec) -> nn.Module:
    """The detector with anchors fitted to the objects."""
    if not isinstance(task, Instances) or not task.boxes:
        raise PlanError(
            "training: a two-stage detector gives boxes. Give it task=niwaki.Instances(boxes=300), the number "
            "being the most objects of an image.",
            code="task-knob",
        )
    return mask_rcnn.fitted(model, train, spec)


def _counts(task: Task, train: Readable) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Labels or pixels of each class."""
    if train.counts is not None:
        return np.asarray(train.counts.sum(0), np.int64)
    return np.bincount(train.labels, minlength=len(task.classes))
