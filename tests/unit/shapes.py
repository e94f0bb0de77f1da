"""Small real segmentation data for tests: discs and squares on a noisy ground, written as images and masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ground", "disc", "square")
SIZE = (48, 64)


def scene(seed: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """One image u8 `[H, W, 3]` and its class map u8 `[H, W]`: a disc and a square at places of the seed's."""
    draw = np.random.default_rng(seed)
    height, width = size
    image = draw.integers(60, 110, (height, width, 3), dtype=np.uint8)
    mask = np.zeros(size, np.uint8)
    ys, xs = np.mgrid[:height, :width]
    radius = height // 5
    for kind, colour in ((1, (220, 60, 60)), (2, (60, 60, 230))):
        y, x = draw.integers(radius, height - radius), draw.integers(radius, width - radius)
        away = np.hypot(ys - y, xs - x) if kind == 1 else np.maximum(abs(ys - y), abs(xs - x))
        mask[away <= radius] = kind
        image[away <= radius] = np.clip(np.array(colour) + draw.integers(-20, 20, 3), 0, 255)
    return image, mask


def folder(root: Path, count: int = 24, *, size: tuple[int, int] = SIZE, classes: bool = True) -> Path:
    """`images/` and `masks/` with `count` scenes, and a classes file."""
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        image, mask = scene(seed, size)
        Image.fromarray(image).save(root / "images" / f"{seed:03d}.png")
        Image.fromarray(mask).save(root / "masks" / f"{seed:03d}.png")
    if classes:
        (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root
