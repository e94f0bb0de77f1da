"""A small data set that is made on the spot, noisy images of 8 x 8 in three classes that differ in colour, and
a small network for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn


def written(path: Path, *, count: int = 90, contrast: int = 120, noise: int = 40) -> npt.NDArray[np.uint8]:
    """The images u8 `[count, 8, 8, 3]`, and an .npz of them with their labels at `path`."""
    draw = np.random.default_rng(0)
    labels = np.arange(count) % 3
    base = np.eye(3)[labels][:, None, None] * contrast + 60
    images = np.clip(base + draw.integers(-noise, noise, (count, 8, 8, 3)), 0, 255).astype(np.uint8)
    np.savez(path, images=images, labels=labels)
    return images


def micro(*, classes: int, channels: int) -> nn.Module:
    """Two convolutions with norms (`0` and `3`) and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(channels, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Conv2d(24, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes),
    )  # fmt: skip
