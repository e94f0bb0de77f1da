"""Holding an expected cost to a target while the loss pulls the other way: an augmented Lagrangian."""

from __future__ import annotations

import torch
from torch import Tensor, nn

PENALTY = 1000.0
"""Weight of the squared distance: at 0.01 beyond the target it pulls with 10 nats per share of the cost."""
ASCENT = 1000.0
"""How far the multiplier moves in a training that stays 1 beyond its target throughout."""


class Lagrangian(nn.Module):
    """`multiplier (s - t) + PENALTY / 2 (s - t)^2` for a share s and a target t that falls linearly.

    The multiplier ascends by `ASCENT / calls (s - t)` a call, so it ends where s equals t, whatever the loss.
    Args:
        calls: calls in the whole training.
        target: the share wanted at the end, 0..1.
        ramp: share of the training in which t falls from the first s to `target`.
    Source: Wang et al. 2020, arXiv:1910.04732, eq. 8 (augmented Lagrangian, both multipliers learned there; the
        quadratic one is fixed here); linear warm-up of the target as in Xia et al. 2022, arXiv:2204.00408.
    """

    multiplier: Tensor
    first: Tensor

    def __init__(self, *, calls: int, target: float, ramp: float) -> None:
        super().__init__()
        self.step, self.target, self.ramp = ASCENT / max(1, calls), target, ramp
        self.register_buffer("multiplier", torch.zeros((), dtype=torch.float64))
        self.register_buffer("first", torch.full((), -1.0, dtype=torch.float64))

    def forward(self, share: Tensor, time: float) -> Tensor:
        """The penalty, a scalar, at a time 0..1 of the training; moves the multiplier on."""
        if float(self.first) < 0:
            self.first.copy_(share.detach())
        way = min(1.0, time / self.ramp) if self.ramp > 0 else 1.0
        gap = share - ((1 - way) * self.first + way * self.target)
        penalty = self.multiplier.clone() * gap + PENALTY / 2 * gap * gap
        self.multiplier += self.step * gap.detach()
        return penalty
