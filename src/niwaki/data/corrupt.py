"""Simple corruptions of images, to see what a model still knows: noise, blur, brightness, contrast, JPEG.

A corrupted image depends on the seed and its own index only, never on the batch. Numpy and Pillow only.
Shape letters: B images, H W pixels, C channels.

Source: Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common corruptions and
perturbations", arXiv:1903.12261: five of its fifteen kinds, with the strengths of its public code, which has
one table for small images (CIFAR-10-C) and one for photographs (ImageNet-C). Not its images: those were made
once and stored; JPEG bytes depend on the library, so compare figures of one machine.
"""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from niwaki.data.augment import ImageU8, planes
from niwaki.errors import PlanError

Values = npt.NDArray[np.float32]

SMALL = 64
"""Images with a shorter side below this many pixels take the strengths of small images."""
SEVERITY = 3
_SMALL: dict[str, tuple[float, ...]] = {
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "jpeg": (80, 65, 58, 50, 40),
}
_LARGE: dict[str, tuple[float, ...]] = {
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "blur": (1, 2, 3, 4, 6),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "jpeg": (25, 18, 15, 10, 7),
}
KINDS = tuple(_SMALL)
_MEANS = {
    "noise": "Gaussian noise, deviation {:g} of white",
    "blur": "Gaussian blur, deviation {:g} pixels",
    "brightness": "brighter by {:g} of white",
    "contrast": "contrast times {:g}",
    "jpeg": "JPEG of quality {:g}",
}


def strength(kind: str, size_hw: tuple[int, int], *, severity: int = SEVERITY) -> float:
    """The number behind a kind and severity for images of that size; `describe` says its unit.

    Raises:
        PlanError: no such kind or severity. [corrupt-kind]
    """
    table = _SMALL if min(size_hw) < SMALL else _LARGE
    if kind not in table or not 1 <= severity <= len(table[kind]):
        raise PlanError(
            f"corrupt: expected one of {', '.join(KINDS)} at a severity of 1 to 5, got {kind!r} at {severity}.",
            code="corrupt-kind",
        )
    return table[kind][severity - 1]


def describe(kind: str, size_hw: tuple[int, int], *, severity: int = SEVERITY) -> str:
    """What a corruption does, in words with its strength: `Gaussian noise, deviation 0.08 of white`."""
    return _MEANS[kind].format(strength(kind, size_hw, severity=severity))


def corrupt(
    images: ImageU8,
    index: npt.NDArray[np.integer],
    *,
    kind: str,
    severity: int = SEVERITY,
    seed: int = 0,
) -> ImageU8:
    """The images uint8 `[B, H, W, C]`, corrupted; the given ones are left as they are.

    Args:
        index: int `[B]`: each image's own number, from which its noise is drawn.
        kind: one of `KINDS`.
        severity: 1 (mild) to 5.
    Raises:
        PlanError: no such kind or severity. [corrupt-kind]
    """
    amount = strength(kind, (images.shape[1], images.shape[2]), severity=severity)
    if kind == "jpeg":
        return _jpeg(images, round(amount))
    values = images.astype(np.float32) / np.float32(255)
    if kind == "noise":
        changed = _noise(values, index, amount, seed)
    else:
        changed = {"blur": _blur, "brightness": _brightness, "contrast": _contrast}[kind](values, amount)
    pixels: ImageU8 = np.rint(np.clip(changed, 0, 1) * np.float32(255)).astype(np.uint8)
    return pixels


def _noise(values: Values, index: npt.NDArray[np.integer], deviation: float, seed: int) -> Values:
    rows = [
        np.random.default_rng([seed, int(i)]).standard_normal(values.shape[1:], dtype=np.float32) for i in index
    ]
    return values + np.float32(deviation) * np.stack(rows) if rows else values


def _blur(values: Values, deviation: float) -> Values:
    """Rows, then columns; the border is repeated outwards."""
    reach = max(1, math.ceil(4 * deviation - 0.5))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    taps /= taps.sum()
    for axis in (1, 2):
        wide = [(0, 0)] * values.ndim
        wide[axis] = (reach, reach)
        padded, length = np.pad(values, wide, mode="edge"), values.shape[axis]
        values = np.sum(
            [
                np.float32(tap) * np.take(padded, range(k, k + length), axis=axis)
                for k, tap in enumerate(taps.tolist())
            ],
            axis=0,
            dtype=np.float32,
        )
    return values


def _brightness(values: Values, amount: float) -> Values:
    """The V of HSV raised: hue and saturation stay, so each pixel is scaled; black becomes grey."""
    value = values.max(-1, keepdims=True)
    raised = np.minimum(value + np.float32(amount), 1)
    scaled: Values = np.where(value > 0, values * (raised / np.maximum(value, 1e-12)), raised)
    return scaled


def _contrast(values: Values, factor: float) -> Values:
    """Towards each channel's mean over the image."""
    mean = values.mean((1, 2), keepdims=True)
    moved: Values = mean + (values - mean) * np.float32(factor)
    return moved


def _jpeg(images: ImageU8, quality: int) -> ImageU8:
    out = np.empty_like(images)
    for place, image in enumerate(images):
        for part in planes(image.shape[-1]):
            held = io.BytesIO()
            Image.fromarray(image[..., part]).save(held, "JPEG", quality=quality)
            out[place][..., part] = np.asarray(Image.open(held))
    return out
