"""Bits for each layer: what is lost at every size, and the least loss within one. Plain numbers, no torch.

    noise = quantize.noise(model, spec=spec, samples=train, bits=(4, 8))
    sizes = precision.weight_bytes(model, bits=(4, 8))
    choice = precision.within(sizes, noise, limit=0.6 * most)      # choice.bits: {weight: bits}
    small = quantize.qat(model, ..., four=choice.of(4))

The loss of a choice is the sum of its layers' losses, which is near the truth while they are small, and bytes
are those of the weights. The knapsack is exact for that sum, up to a bin of bytes a layer (`knapsack.BINS`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from niwaki.errors import BudgetError
from niwaki.search.knapsack import Knapsack

if TYPE_CHECKING:
    from torch import nn

Sizes = Mapping[str, Mapping[int, float]]
"""Bytes of each layer's weights, by bits."""
Losses = Mapping[str, Mapping[int, float]]
"""What each layer loses, by bits."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Bits of each layer, what its weights take, and the sum of what its layers lose."""

    bits: dict[str, int]
    bytes: float
    loss: float

    def of(self, bits: int) -> tuple[str, ...]:
        """The layers with so many bits."""
        return tuple(name for name, own in self.bits.items() if own == bits)


def weight_bytes(model: nn.Module, *, bits: tuple[int, ...] = (4, 8)) -> dict[str, dict[int, float]]:
    """Bytes of each weight of two axes and more at every width, by its name: what `Sizes` are made of."""
    return {
        name: {count: tensor.numel() * count / 8 for count in bits}
        for name, tensor in model.named_parameters()
        if tensor.ndim > 1
    }


def within(sizes: Sizes, losses: Losses, *, limit: float) -> Choice:
    """The choice of least loss whose weights take at most `limit` bytes.

    Raises:
        BudgetError: even the fewest bits take more. [budget-unreachable]
    """
    found = _Solver(sizes, losses).pick(limit)
    if found is None:
        least = sum(min(sizes[name].values()) for name in losses)
        raise BudgetError(
            f"precision: {limit:.0f} bytes were asked for, and the fewest bits of all layers take {least:.0f}. "
            "Allow more bytes, or fewer bits.",
            code="budget-unreachable",
        )
    return found


def front(sizes: Sizes, losses: Losses, *, points: int = 100) -> list[Choice]:
    """The choices that no other beats in both bytes and loss, smallest first.

    Args:
        points: sizes tried between the fewest and the most bits.
    """
    solver = _Solver(sizes, losses)
    found: list[Choice] = []
    for limit in np.linspace(solver.least, solver.most, points):
        choice = solver.pick(float(limit))
        if choice is not None and (not found or choice.loss < found[-1].loss):
            found.append(choice)
    return found


class _Solver:
    """The knapsack of all layers; each of its options is a number of bits."""

    def __init__(self, sizes: Sizes, losses: Losses) -> None:
        self.sizes, self.losses = sizes, losses
        self.widths = {name: sorted(own) for name, own in losses.items()}
        costs = [[sizes[name][count] for count in own] for name, own in self.widths.items()]
        self.least, self.most = sum(map(min, costs)), sum(map(max, costs))
        self.lost = [[losses[name][count] for count in own] for name, own in self.widths.items()]
        self.knapsack = Knapsack(costs, self.lost, most=self.most)

    def pick(self, limit: float) -> Choice | None:
        picked = self.knapsack.pick(limit)
        if limit >= self.most:  # everything fits, whatever the bins round up
            picked = [min(range(len(own)), key=own.__getitem__) for own in self.lost]
        if not picked:
            return None
        bits = {name: own[option] for (name, own), option in zip(self.widths.items(), picked, strict=True)}
        return Choice(
            bits=bits,
            bytes=sum(self.sizes[name][count] for name, count in bits.items()),
            loss=sum(self.losses[name][count] for name, count in bits.items()),
        )
