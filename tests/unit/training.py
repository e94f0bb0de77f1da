"""Small real things for the training tests: images made by rule, nets with and without norms."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from niwaki import Classify, Spec, loop
from niwaki.data.samples import Samples

torch.set_num_threads(1)  # tensors this small only wait for a second thread

SPEC = Spec(size_hw=(8, 8))
TASK = Classify(("left", "right", "both"))


def samples(count: int = 50, *, seed: int = 0) -> Samples:
    """Noisy images, bright on the left, on the right or on both sides; that is their label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 120, (count, 8, 8, 3), dtype=np.uint8)
    images[labels != 1, :, :4] += 100
    images[labels != 0, :, 4:] += 100
    return Samples(sources=images, names=tuple(f"{seed}-{i}" for i in range(count)), labels=labels)


def net(*, norm: bool = True, dropout: float = 0.0, seed: int = 0) -> nn.Module:
    """Two convolutions and a head."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(128, 3),
    )


def knobs(**changed: Any) -> loop.Knobs:
    """Knobs of a training of a second."""
    usual: dict[str, Any] = {
        "epochs": 3, "batch": 16, "lr": 5e-3, "weight_decay": 0.05, "seed": 0, "ema": 0.9,
        "accumulate": 1, "augment": "weak", "flip": False, "class_weights": None,
    }  # fmt: skip
    return loop.Knobs(**{**usual, **changed})


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two models have the same tensors, bit for bit."""
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def farthest(a: nn.Module, b: nn.Module) -> float:
    """The largest difference between two models' tensors."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return max(float((x.double() - y.double()).abs().max()) for x, y in pairs)
