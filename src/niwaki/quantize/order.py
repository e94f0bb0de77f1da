"""How much each layer's rounding shows in the output: the order of stages, and what bits cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from niwaki.evaluate import Readable
from niwaki.quantize import grids, insert, places
from niwaki.quantize.graphs import Folded
from niwaki.spec import Spec
from niwaki.surgery import program

IMAGES = 64
"""Enough for an order: it is a mean over all outputs of all images."""


def noise(
    model: nn.Module,
    *,
    spec: Spec,
    samples: Readable,
    bits: Sequence[int] = (4, 8),
    activation_bits: int = 8,
    images: int = IMAGES,
) -> dict[str, dict[int, float]]:
    """For each layer the noise in the output where it alone is quantized: `{weight: {bits: noise}}`.

    Noise is the power of the change over the power of the output (the inverse of SQNR). That of layers
    quantized together is near the sum of theirs, so that it serves as the loss of a budget.

    Args:
        samples: images without augmentation; labels are not used.
        bits: of the weights.
        activation_bits: 8 quantizes the layer's input, too; 32 does not.
    Raises:
        PlanError: the model is quantized already, or has no layers. [quantize-model]
    """
    base = insert.folded(model, spec)
    return of_layers(
        base, places.layers(base.graph), bits=bits, activations=activation_bits == 8, samples=samples,
        spec=spec, images=images,
    )  # fmt: skip


def of_layers(
    base: Folded,
    layers: Sequence[str],
    *,
    bits: Sequence[int],
    activations: bool,
    samples: Readable,
    spec: Spec,
    images: int = IMAGES,
) -> dict[str, dict[int, float]]:
    """`noise` of a graph whose batch norms are folded."""
    inputs = list(grids.drawn(samples, spec, images=images))
    every = insert.quantized(
        base, dict.fromkeys(layers, 8), activations=activations, samples=samples, spec=spec
    )
    known = {name: grid for name, grid in insert.learned(every).items() if grid.axis < 0}
    wanted = [_outputs(program.load(base.graph, dict(base.tensors)), inputs)]
    power = float(wanted[0].square().sum())
    found: dict[str, dict[int, float]] = {}
    for layer in layers:
        found[layer] = {}
        for count in bits:
            one = insert.quantized(
                base, {layer: count}, activations=activations, samples=samples, spec=spec, known=known
            )
            change = _outputs(one, inputs) - wanted[0]
            found[layer][count] = float(change.square().sum()) / max(power, 1e-30)
    return found


def decibels(noise: float) -> float:
    """SQNR in dB of a noise; infinite where there is none."""
    return math.inf if noise <= 0 else -10 * math.log10(noise)


def _outputs(model: program.Program, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([model(one) for one in inputs]).double()
