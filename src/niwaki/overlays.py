"""Class maps as pictures: colours over an image, and where a prediction is wrong. Numpy only.

Shape letters: H W pixels, K classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from niwaki.dense_metrics import IGNORE

ImageU8 = npt.NDArray[np.uint8]
Maps = npt.NDArray[np.integer]

WRONG, MISSING = (214, 39, 40), (40, 40, 40)
"""Colours of wrong pixels, and of pixels without a class."""


def palette(classes: int) -> ImageU8:
    """Colours that differ, uint8 `[K, 3]`, the same ones each time.

    Source: Pascal VOC's colour map: the bits of a class's number spread over red, green and blue.
    """
    number = np.arange(1, classes + 1)
    colours = np.zeros((classes, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((number >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours.astype(np.uint8)


def coloured(classes: Maps, *, count: int) -> ImageU8:
    """A class map `[H, W]` in colours, uint8 `[H, W, 3]`; pixels without a class are dark."""
    table = np.full((IGNORE + 1, 3), MISSING, np.uint8)
    table[:count] = palette(count)
    out: ImageU8 = table[classes]
    return out


def overlay(image: ImageU8, classes: Maps, *, count: int, strength: float = 0.5) -> ImageU8:
    """A class map `[H, W]` over its image `[H, W, 1 or 3]`, uint8 `[H, W, 3]`.

    Args:
        strength: of the colours, 0..1.
    """
    mixed = (1 - strength) * _grey_or_colour(image) + strength * coloured(classes, count=count)
    return np.rint(mixed).astype(np.uint8)


def errors(image: ImageU8, true: Maps, predicted: Maps) -> ImageU8:
    """Wrong pixels in red over a pale image, uint8 `[H, W, 3]`; pixels without a true class are dark."""
    out = np.rint(0.5 * _grey_or_colour(image).mean(2, keepdims=True).repeat(3, 2) + 120).clip(0, 255)
    out[(true != predicted) & (true != IGNORE)] = WRONG
    out[true == IGNORE] = MISSING
    return np.asarray(out, np.uint8)


def side_by_side(image: ImageU8, true: Maps, predicted: Maps, *, count: int) -> ImageU8:
    """The truth, the prediction and the errors over an image, in a row: uint8 `[H, 3 W, 3]`."""
    shown = [overlay(image, classes, count=count) for classes in (true, predicted)]
    return np.concatenate([*shown, errors(image, true, predicted)], axis=1)


def _grey_or_colour(image: ImageU8) -> npt.NDArray[np.float32]:
    return np.asarray(np.broadcast_to(image.astype(np.float32), (*image.shape[:2], 3)))
