"""Multi-stage quantization: the least sensitive layers first, training in between, then the next."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from torch import nn

from niwaki import loop
from niwaki.errors import PlanError
from niwaki.evaluate import Readable
from niwaki.quantize import insert, lsq, order
from niwaki.quantize.graphs import Folded
from niwaki.quantize.grids import Grid
from niwaki.spec import Spec
from niwaki.tasks import Task


def stages(
    model: nn.Module,
    *,
    task: Task,
    spec: Spec,
    train: Readable,
    val: Readable | None = None,
    teacher: nn.Module | None = None,
    calib: Readable | None = None,
    parts: int = 3,
    weight_bits: int = 8,
    activation_bits: int = 8,
    four: Sequence[str] = (),
    skip: Sequence[str] = (),
    alpha: float = 0.9,
    checkpoint: Path | None = None,
    show: loop.Show | None = None,
    **training: Unpack[loop.Training],
) -> nn.Module:
    """A quantized copy in eval mode: `qat` of a growing set of layers, the least sensitive ones first.

    Layers are ordered by the noise that each alone, quantized, puts into the output, and cut into `parts` of
    equally many. Each stage adds one part, takes its scales from the weights as they are by then, and trains
    everything; what was learned stays.

    Args:
        parts: stages. `epochs` is the sum over all of them, the last ones getting what does not divide.
        checkpoint: a file; each stage has its own, with its number behind the name.
        teacher, calib, weight_bits, activation_bits, four, skip, alpha, training: as in `qat`.
    Raises:
        PlanError: as in `qat`; or parts are fewer than 1 or more than layers or epochs. [quantize-parts]
    Source: the scheme of Simonovski et al. 2024 (MQAT), arXiv:2303.06753, section 3; scales as in LSQ.
    """
    lsq.check(weight_bits, activation_bits, alpha)
    base = insert.folded(model, spec)
    bits = lsq.widths(base, weight_bits, four=four, skip=skip)
    epochs = _shares(parts, layers=len(bits), epochs=lsq.knobs(training).epochs)
    samples, activations = train if calib is None else calib, activation_bits == 8
    groups = _groups(base, bits, parts, activations=activations, samples=samples, spec=spec)
    learner: nn.Module = model
    known: dict[str, Grid] = {}
    for stage, count in enumerate(epochs):
        now = {name: bits[name] for group in groups[: stage + 1] for name in group}
        made = insert.quantized(base, now, activations=activations, samples=samples, spec=spec, known=known)
        learner = lsq.trained(
            made, task=task, spec=spec, train=train, val=val, teacher=teacher, alpha=alpha,
            checkpoint=checkpoint and checkpoint.with_name(f"{checkpoint.name}-{stage + 1}"), show=show,
            stage=f"stage {stage + 1}", settings={"bits": now, "activations": activation_bits},
            training={**training, "epochs": count},
        )  # fmt: skip
        base, known = base.with_weights(learner), insert.learned(learner)
    return learner


def _groups(
    base: Folded,
    bits: dict[str, int],
    parts: int,
    *,
    activations: bool,
    samples: Readable,
    spec: Spec,
) -> list[list[str]]:
    """The layers, least sensitive first, in so many parts."""
    each: dict[str, float] = {}
    for count in sorted(set(bits.values())):
        own = [name for name in bits if bits[name] == count]
        found = order.of_layers(base, own, bits=[count], activations=activations, samples=samples, spec=spec)
        each |= {name: one[count] for name, one in found.items()}
    ranked = sorted(each, key=each.__getitem__)
    ends = [round(len(ranked) * k / parts) for k in range(parts + 1)]
    return [ranked[start:stop] for start, stop in itertools.pairwise(ends)]


def _shares(parts: int, *, layers: int, epochs: int) -> list[int]:
    """Epochs of each stage."""
    if not 1 <= parts <= min(layers, epochs):
        raise PlanError(
            f"quantize.stages: expected parts of at least 1, and no more than layers ({layers}) and epochs "
            f"({epochs}); got {parts}.",
            code="quantize-parts",
        )
    return [epochs * (k + 1) // parts - epochs * k // parts for k in range(parts)]
