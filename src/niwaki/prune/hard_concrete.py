"""The hard-concrete distribution of gates: on [0, 1], with mass exactly at 0 and at 1. Three pure functions.

A gate is `z = clip(s (ZETA - GAMMA) + GAMMA, 0, 1)` with `s = sigmoid((logit(u) + log_alpha) / BETA)` and u
uniform: differentiable in `log_alpha`, and yet often exactly closed.
Source: Louizos et al. 2018, "Learning sparse neural networks through L0 regularization", arXiv:1712.01312,
eq. 10-12; the constants are those of its experiments.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BETA = 2 / 3
"""Temperature: below 1 the mass lies at the ends."""
GAMMA, ZETA = -0.1, 1.1
"""The stretch beyond [0, 1] that puts mass on exactly 0 and 1."""
_EDGE = 1e-6


def drawn(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Gates 0..1 of uniform draws of the same shape (eq. 10 and 11)."""
    u = uniform.clamp(_EDGE, 1 - _EDGE)
    return _stretched(torch.sigmoid((torch.logit(u) + log_alpha) / BETA))


def open_probability(log_alpha: Tensor) -> Tensor:
    """Probability that a gate is not exactly zero (eq. 12); their sum is the expected L0 norm."""
    return torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


def settled(log_alpha: Tensor) -> Tensor:
    """The gates without noise, for evaluation (eq. 13)."""
    return _stretched(torch.sigmoid(log_alpha))


def _stretched(s: Tensor) -> Tensor:
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
