"""How weights move: the optimiser, the learning rate over time, the average of the weights.

One optimiser and one schedule, chosen by trials that docs/training.md records.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

WARMUP = 0.05
"""Share of all steps in which the learning rate rises from zero."""
REFERENCE_BATCH = 128
"""`lr` is meant for this batch; another batch scales it by the root of their ratio."""
CLIP = 5.0
"""The gradient's norm over all parameters is cut down to this."""


def make(model: nn.Module, *, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW over the parameters that learn; norms, biases and other vectors do not decay.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, fused=True)


def rate(step: int, steps: int, lr: float, batch: int) -> float:
    """Learning rate of a step (0-based): linear warm-up, then half a cosine to zero.

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983. The peak is `lr * sqrt(batch / 128)`.
    """
    peak = lr * math.sqrt(batch / REFERENCE_BATCH)
    warm = max(1, round(WARMUP * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm + 1) / (steps - warm + 1)))


class Average:
    """The running mean of a model's parameters and buffers, kept as a module of its own.

    Early on the decay is `(1 + n) / (10 + n)` after n steps, so that a short training averages
    over its last ninth; `decay` bounds it. Whole-number buffers are copied.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.module = copy.deepcopy(model).eval()
        self.decay = decay
        self._pairs = list(zip(tensors(self.module), tensors(model), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the model's tensors after a step (0-based)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        moving = [(a, t) for a, t in self._pairs if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in moving], [t for _, t in moving], 1 - decay)
        for average, now in self._pairs:
            if not average.is_floating_point():
                average.copy_(now)

    @torch.no_grad()
    def give(self, model: nn.Module) -> None:
        """Replace a model's tensors by the averaged ones."""
        for average, now in zip(tensors(self.module), tensors(model), strict=True):
            now.copy_(average)


def tensors(model: nn.Module) -> list[Tensor]:
    """A model's parameters and buffers, each once, detached and sharing memory."""
    return [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
