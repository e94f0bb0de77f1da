"""Quantization-aware training with learned scales."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki import checkpoint as kept
from niwaki import loop, parallel
from niwaki.batches import Batch
from niwaki.errors import PlanError
from niwaki.evaluate import Readable
from niwaki.quantize import insert, places
from niwaki.quantize.graphs import Folded
from niwaki.spec import Spec
from niwaki.tasks import Task

DEFAULTS: loop.Training = {"lr": 5e-5, "weight_decay": 0.0}
"""Of the training's knobs, where none is given: a network that works already is moved a little."""


def qat(
    model: nn.Module,
    *,
    task: Task,
    spec: Spec,
    train: Readable,
    val: Readable | None = None,
    teacher: nn.Module | None = None,
    calib: Readable | None = None,
    weight_bits: int = 8,
    activation_bits: int = 8,
    four: Sequence[str] = (),
    skip: Sequence[str] = (),
    alpha: float = 0.9,
    checkpoint: Path | None = None,
    show: loop.Show | None = None,
    **training: Unpack[loop.Training],
) -> nn.Module:
    """A quantized copy in eval mode, trained with rounding in its forward pass and its scales learned.

    The result is the model's graph, batch norms folded, with fake quantizers where ONNX Runtime computes in
    whole numbers. It trains, saves and loads as any graph; exported as int8 it keeps its scales and zero
    points.

    Args:
        teacher: with one, a share `alpha` of the loss is the divergence from its outputs.
        calib: images for the first scales of activations; without them some of `train`.
        weight_bits: 2 to 8, per output channel. 7 is safe on CPUs without VNNI (docs/instruction-sets.md); 4
            and less make the file smaller and not faster.
        activation_bits: 8, or 32 for float activations.
        four: layers, or parts of the model by their path, whose weights get 4 bits.
        skip: layers, or parts, that stay float.
        training: as in `train.fit`; here lr is 5e-5 and weight_decay 0 unless given.
    Raises:
        PlanError: a knob is out of range, or names no layer; the model is quantized already.
            [train-knob, quantize-layer, quantize-model]
        ModelError: its graph cannot be kept. [program-export, program-operator]
    Source: Esser et al. 2020 (LSQ), arXiv:1902.08153.
    """
    check(weight_bits, activation_bits, alpha)
    base = insert.folded(model, spec)
    bits = widths(base, weight_bits, four=four, skip=skip)
    samples = train if calib is None else calib
    learner = insert.quantized(base, bits, activations=activation_bits == 8, samples=samples, spec=spec)
    settings = {"bits": bits, "activations": activation_bits}
    return trained(
        learner, task=task, spec=spec, train=train, val=val, teacher=teacher, alpha=alpha,
        checkpoint=checkpoint, show=show, stage="qat", settings=settings, training=training,
    )  # fmt: skip


def check(weight_bits: int, activation_bits: int, alpha: float) -> None:
    """Nothing, when the knobs are in range.

    Raises:
        PlanError: one is not. [train-knob]
    """
    if weight_bits not in range(2, 9) or activation_bits not in (8, 32) or not 0 <= alpha <= 1:
        raise PlanError(
            "quantize: expected weight_bits in 2..8, activation_bits 8 or 32 (float) and alpha in 0..1, got "
            f"{weight_bits}, {activation_bits} and {alpha}.",
            code="train-knob",
        )


def knobs(training: loop.Training) -> loop.Knobs:
    """The training's knobs, with `DEFAULTS` where none is given."""
    merged: loop.Training = {**DEFAULTS, **training}
    return loop.Knobs(**merged)


def widths(base: Folded, bits: int, *, four: Sequence[str], skip: Sequence[str]) -> dict[str, int]:
    """Bits of each weight that is quantized, by name.

    Raises:
        PlanError: `four` or `skip` names no layer, or nothing is left. [quantize-layer]
    """
    low, left = (
        places.chosen(base.graph, given, what=what) for given, what in ((four, "four"), (skip, "skip"))
    )
    out = {name: 4 if name in low else bits for name in places.layers(base.graph) if name not in left}
    if not out:
        raise PlanError("quantize: skip leaves no layer to quantize.", code="quantize-layer")
    return out


def trained(
    learner: nn.Module,
    *,
    task: Task,
    spec: Spec,
    train: Readable,
    val: Readable | None,
    teacher: nn.Module | None,
    alpha: float,
    checkpoint: Path | None,
    show: loop.Show | None,
    stage: str,
    settings: Mapping[str, Any],
    training: loop.Training,
) -> nn.Module:
    """The learner after its training on labels, or on labels and a teacher."""
    wise = copy.deepcopy(teacher).eval() if teacher is not None else None
    if wise is not None:
        wise.to(device=parallel.device(), memory_format=torch.channels_last)  # type: ignore[call-overload]

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        output = model(batch.images).float()
        loss = task.loss(output, batch.target)
        return loss if wise is None else alpha * _divergence(output, wise, batch) + (1 - alpha) * loss

    told = kept.sizes(wise) if wise is not None else None
    return loop.run(
        learner, objective, stage=stage, task=task, spec=spec, train=train, val=val,
        knobs=knobs(training), checkpoint=checkpoint, show=show,
        settings={**settings, "teacher": told, "alpha": alpha},
    )  # fmt: skip


def _divergence(output: Tensor, teacher: nn.Module, batch: Batch) -> Tensor:
    """KL(teacher || model) of their probabilities, in nats: `[B]`; of maps the mean over their pixels."""
    with torch.no_grad():
        told = F.log_softmax(teacher(batch.images).float(), dim=1)
    apart = F.kl_div(F.log_softmax(output, dim=1), told, reduction="none", log_target=True).sum(1)
    return apart.flatten(1).mean(1) if apart.ndim > 1 else apart
