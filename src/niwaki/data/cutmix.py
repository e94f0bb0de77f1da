"""CutMix for images with masks: a rectangle of another image, of a negative one if wanted, with its classes.

A negative image is one of which every pixel that has a class is of the first: nothing of interest is in it.
Pasted into others it shows what looks alike and is none; others pasted into it, that an edge of a rectangle
tells nothing. Draws as in `augment`. Numpy only. Shape letters: B images, H W pixels, C channels, K classes.

Source: Yun et al. 2019, "CutMix", arXiv:1905.04899, section 3.1 (the rectangle); for masks as in French et al.
2020, arXiv:1906.01916; soft borders and negatives are practice of detection contests.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from niwaki.data.augment import ImageU8

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Masks = npt.NDArray[np.uint8]

DRAWS = 6
"""Numbers 0..1 drawn for each image."""
STREAM = 0x6375746D6978
"""What sets these draws and the other image's augmentation apart from those of the image itself."""
SOFT = 2.0
"""Pixels on either side of the rectangle's edge over which the images blend."""


def negatives(counts: Ints) -> Ints:
    """Places of the images whose masks hold pixels of the first class alone, from pixels of each, `[N, K]`."""
    return np.asarray(np.flatnonzero((counts[:, 0] > 0) & (counts[:, 1:] == 0).all(1)), np.int64)


def partners(draws: Floats, count: int, *, empty: Ints, share: float) -> Ints:
    """Which image of `count` each takes a rectangle of, int64 `[B]`.

    Args:
        draws: 0..1, `[B, DRAWS]`.
        empty: places of negative images.
        share: of the images that take a negative one.
    """
    anyone = (draws[:, 2] * count).astype(np.int64)
    if not len(empty):
        return anyone
    return np.where(draws[:, 1] < share, empty[(draws[:, 2] * len(empty)).astype(np.int64)], anyone)


def pasted(
    images: ImageU8, masks: Masks, others: ImageU8, their_masks: Masks, draws: Floats, *, share: float
) -> tuple[ImageU8, Masks]:
    """Images `[B, H, W, C]` and masks `[B, H, W]`, of which `share` hold a rectangle of `others`.

    The rectangle has the image's proportions and a uniformly drawn area; its borders are soft in the image, and
    in the mask lie where both images weigh the same.
    """
    out, classes = images.copy(), masks.copy()
    for k, row in enumerate(draws.tolist()):
        if row[0] >= share:
            continue
        weight = _weights(images.shape[1], row[3], row[4])[:, None] * _weights(images.shape[2], row[3], row[5])
        blend = weight[..., None]
        mixed = images[k] * (1 - blend) + others[k] * blend
        out[k] = np.rint(mixed).astype(np.uint8)
        classes[k] = np.where(weight >= 0.5, their_masks[k], masks[k])
    return out, classes


def _weights(side: int, area: float, place: float) -> Floats:
    """Along one axis how much the other image weighs, `[side]`: 1 inside, 0 outside, a ramp between."""
    half = side * float(np.sqrt(area)) / 2
    distance = half - np.abs(np.arange(side) + 0.5 - place * side)
    return np.asarray(np.clip(0.5 + distance / (2 * SOFT), 0, 1), np.float64)
