"""The grids that values start on: scales and zero points from images and weights, before any is learned.

A range is cut where the squared error of rounding and clipping is least; LSQ's own start, `2 mean|w| /
sqrt(Qp)`, is made for 2 to 4 bits and clips 8-bit values too early.
The Grid here is what training changes; `qdq.grid.Grid` is a finished one, in numpy, of a file without torch.
They never meet: a trained grid reaches its file as a node of the exported graph.
Shape letters: N images, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from niwaki import batches
from niwaki.data import augment
from niwaki.evaluate import Readable
from niwaki.quantize import graphs
from niwaki.quantize.graphs import Folded
from niwaki.spec import Spec

IMAGES, BATCH, SAMPLES = 256, 32, 8192
"""Images that scales are taken from, images a pass, and how many elements of each value are kept of a pass."""
HIGH = 255
"""Largest whole number of an activation; the smallest is 0."""
CUTS = tuple(1 - 0.025 * n for n in range(29))
"""Shares of the largest value at which a range may end."""


@dataclass(frozen=True)
class Grid:
    """Whole numbers `low..high`, `zero` standing for 0.0; `log_scale` `[]` or `[C]` along `axis`."""

    log_scale: Tensor
    zero: int
    axis: int
    low: int
    high: int


def ends(bits: int) -> tuple[int, int]:
    """Smallest and largest whole number of a weight: -127..127 at 8 bits, which no kernel overflows at, and all
    2^bits numbers below."""
    return (-127, 127) if bits == 8 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def of_weight(weight: Tensor, axis: int, bits: int) -> Grid:
    """The grid of a weight: one scale for each index of `axis`, that of the least squared error."""
    low, high = ends(bits)
    flat = weight.detach().double().movedim(axis, 0).flatten(1)
    most = flat.abs().amax(1)
    most = most.clamp_min(max(float(most.max()) * 2**-10, 1e-8))  # an empty channel must not have a scale of 0
    best, least = most / high, torch.full_like(most, math.inf)
    for cut in CUTS:
        scale = cut * most / high
        error = ((flat / scale[:, None]).round().clamp(low, high) * scale[:, None] - flat).square().sum(1)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return Grid(best.log().float(), 0, axis, low, high)


def of_pixels(spec: Spec) -> tuple[Grid, bool]:
    """The grid of normalised pixels, and whether it is the pixels' own, where nothing is rounded at all."""
    low = min((0 - m) / s for m, s in zip(spec.mean, spec.std, strict=True))
    high = max((1 - m) / s for m, s in zip(spec.mean, spec.std, strict=True))
    own = len(set(spec.mean)) == len(set(spec.std)) == 1 and math.isclose(
        255 * spec.mean[0] % 1, 0, abs_tol=1e-6
    )
    return _between(low, high), own


def of_values(
    base: Folded, values: Sequence[str], *, samples: Readable, spec: Spec, images: int = IMAGES
) -> dict[str, Grid]:
    """The grid of each named value over images: u8, cut where the squared error is least.

    Args:
        samples: images without augmentation; labels are not used.
        images: how many of them, drawn in a fixed order.
    """
    if not values:
        return {}
    tap = graphs.tapped(base.graph, base.tensors, list(values))
    least = dict.fromkeys(values, 0.0)  # zero is on every grid: padding and ReLU need it
    most, kept = dict(least), {value: list[Tensor]() for value in values}
    for inputs in drawn(samples, spec, images=images):
        with torch.no_grad():
            found = tap(inputs)
        for value, one in zip(values, found, strict=True):
            least[value], most[value] = min(least[value], float(one.min())), max(most[value], float(one.max()))
            flat = one.flatten()
            kept[value].append(flat[:: max(1, len(flat) // SAMPLES)].clone())
    return {value: _least_error(least[value], most[value], torch.cat(kept[value])) for value in values}


def drawn(samples: Readable, spec: Spec, *, images: int) -> Iterator[Tensor]:
    """Batches of normalised images float32 `[B, C, H, W]`: the first of a drawn order, always the same."""
    order = augment.order(len(samples), seed=0, epoch=0)[:images].tolist()
    for start in range(0, len(order), BATCH):
        yield batches.normalise(
            samples.batch(order[start : start + BATCH], spec), spec, device=torch.device("cpu")
        )


def _least_error(low: float, high: float, sample: Tensor) -> Grid:
    best, least = _between(low, high), math.inf
    for cut in CUTS:
        grid = _between(low * cut, high * cut)
        scale = math.exp(float(grid.log_scale))
        whole = (sample / scale).round().add(grid.zero).clamp(0, HIGH)
        error = float(((whole - grid.zero) * scale - sample).double().square().sum())
        if error < least:
            best, least = grid, error
    return best


def _between(low: float, high: float) -> Grid:
    """The u8 grid of a range that holds zero."""
    scale = max((high - low) / HIGH, 1e-6)
    return Grid(torch.tensor(math.log(scale)), round(-low / scale), -1, 0, HIGH)
