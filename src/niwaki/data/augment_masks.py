"""Weak and strong augmentation that moves an image and its mask alike; draws as in `augment`.

Images are sampled bilinearly, masks take the nearest pixel, both with half-pixel centres; what comes from
outside is mid-grey in the image and has no class in the mask (-1 where it holds objects, int32). Numpy and
Pillow only. Shape letters: B images, H W pixels, C channels.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from niwaki.data.augment import ImageU8, planes, toned, uniforms
from niwaki.dense_metrics import IGNORE

Masks = npt.NDArray[np.integer]
Pair = tuple[ImageU8, Masks]

_WEAK, _STRONG = (0.8, 1.25), (0.5, 2.0)  # scale: above 1 the image is enlarged and cropped
_TURN = math.radians(10)
_GREY = 128
_DRAWS = 8


def weak(
    images: ImageU8, masks: Masks, index: npt.NDArray[np.integer], *, seed: int, epoch: int, flip: bool
) -> Pair:
    """Images `[B, H, W, C]` and masks `[B, H, W]`: scaled 0.8..1.25 at a random place, half of them mirrored.

    Args:
        images: uint8, left as they are.
        masks: classes uint8, or objects int32, left as they are.
        index: int `[B]`: each image's position in its data set.
        flip: mirror left-right half of them.
    """
    draws = uniforms(index, seed=seed, epoch=epoch, count=_DRAWS)
    return _moved(images, masks, draws, span=_WEAK, turn=0.0, flip=flip)


def strong(
    images: ImageU8, masks: Masks, index: npt.NDArray[np.integer], *, seed: int, epoch: int, flip: bool
) -> Pair:
    """As `weak`, but scaled 0.5..2 and turned by up to 10 degrees; brightness, contrast and, in colour,
    saturation each times 0.7..1.3."""
    draws = uniforms(index, seed=seed, epoch=epoch, count=_DRAWS)
    moved, masks = _moved(images, masks, draws, span=_STRONG, turn=_TURN, flip=flip)
    return toned(moved, draws[:, 5:8]), masks


def _moved(
    images: ImageU8,
    masks: Masks,
    draws: npt.NDArray[np.float64],
    *,
    span: tuple[float, float],
    turn: float,
    flip: bool,
) -> Pair:
    out, classes = np.empty_like(images), np.empty_like(masks)
    size = (images.shape[2], images.shape[1])
    outside = IGNORE if masks.dtype == np.uint8 else -1
    for i, row in enumerate(draws.tolist()):
        scale = span[0] * (span[1] / span[0]) ** row[0]
        matrix = _matrix(size, scale, turn * (2 * row[4] - 1), row[1], row[2], mirror=flip and row[3] < 0.5)
        for part in planes(images.shape[3]):
            fill = (_GREY,) * 3 if isinstance(part, slice) else _GREY
            image = Image.fromarray(images[i, ..., part]).transform(
                size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill
            )
            out[i, ..., part] = np.asarray(image)
        mask = Image.fromarray(masks[i]).transform(
            size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=outside
        )
        classes[i] = np.asarray(mask)
    return out, classes


def _matrix(
    size: tuple[int, int], scale: float, angle: float, x: float, y: float, *, mirror: bool
) -> tuple[float, float, float, float, float, float]:
    """Output to input, as Pillow takes it: turned about the middle, scaled, at a place where the crop lies
    inside (enlarged) or the whole image does (made smaller)."""
    width, height = size
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    sign = -1.0 if mirror else 1.0
    a, b, d, e = sign * cos, -sin, sign * sin, cos
    middle_x = width / 2 + (2 * x - 1) * abs(1 - 1 / scale) * width / 2
    middle_y = height / 2 + (2 * y - 1) * abs(1 - 1 / scale) * height / 2
    return a, b, middle_x - a * width / 2 - b * height / 2, d, e, middle_y - d * width / 2 - e * height / 2
