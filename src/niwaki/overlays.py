"""Class maps and objects as pictures: colours and contours over an image, and where a prediction is wrong.

Numpy, and Pillow for the numbers of objects.

Shape letters: H W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.dense_metrics import IGNORE

ImageU8 = npt.NDArray[np.uint8]
Maps = npt.NDArray[np.integer]

WRONG, MISSING = (214, 39, 40), (40, 40, 40)
"""Colours of wrong pixels, and of pixels without a class."""
TRUE, GUESSED = (255, 221, 0), (0, 160, 255)
"""Colours of contours, true and predicted."""
READABLE = 320
"""Pixels of a picture's longer side in which numbers of objects can be read."""
FOUND, MISSED = (44, 160, 44), (31, 119, 180)
"""Colours of objects that were found, and that were missed."""


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


def borders(labels: Maps) -> npt.NDArray[np.bool_]:
    """Where a map `[H, W]` has another value to the right or below, bool `[H, W]`: lines of one pixel."""
    out = np.zeros(labels.shape, bool)
    out[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    out[:-1] |= labels[:-1] != labels[1:]
    return out


def contours(image: ImageU8, true: Maps, predicted: Maps) -> ImageU8:
    """True borders in yellow and predicted ones in blue over an image, white where both are: uint8 `[H, W, 3]`.

    Args:
        true, predicted: class maps or label maps `[H, W]`.
    """
    out = np.rint(_grey_or_colour(image)).astype(np.uint8)
    lines, guessed = borders(true), borders(predicted)
    out[lines], out[guessed], out[lines & guessed] = TRUE, GUESSED, 255
    return out


def side_by_side(image: ImageU8, true: Maps, predicted: Maps, *, count: int) -> ImageU8:
    """The truth, the prediction, both as contours, and the errors over an image in a row: `[H, 4 W, 3]`."""
    shown = [overlay(image, classes, count=count) for classes in (true, predicted)]
    shown += [contours(image, true, predicted), errors(image, true, predicted)]
    return np.concatenate(shown, axis=1)


def objects(image: ImageU8, labels: Maps, *, scores: Sequence[float] = (), zoom: int = 1) -> ImageU8:
    """Objects filled and outlined in colours over an image, each with its number: uint8 `[zoom H, zoom W, 3]`.

    Args:
        labels: a label map `[H, W]`, 0 background.
        scores: of the objects 1, 2, ..., 0..1; shown behind the number.
        zoom: how many times larger, so that the numbers can be read.
    """
    from PIL import Image, ImageDraw

    labels, image = _zoomed(labels, zoom), _zoomed(image, zoom)
    tints = palette(255)[1:][(np.maximum(labels, 1) - 1) % 254].astype(np.float32)
    here, out = labels > 0, _grey_or_colour(image).copy()
    out[here] = 0.6 * out[here] + 0.4 * tints[here]
    lines = borders(labels) & here
    out[lines] = tints[lines]
    picture = Image.fromarray(np.rint(out).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for number in np.unique(labels[here]).tolist():
        rows, columns = np.nonzero(labels == number)
        score = f" {scores[number - 1]:.2f}".replace("0.", ".") if number <= len(scores) else ""
        place = (float(columns.mean()), float(rows.mean()))
        draw.text(place, f"{number}{score}", fill="white", anchor="mm", stroke_width=1, stroke_fill="black")
    return np.asarray(picture, np.uint8)


def object_errors(image: ImageU8, true: Maps, predicted: Maps, *, found: Collection[int]) -> ImageU8:
    """Objects over a pale image: found ones green, predicted ones that are none red, missed ones blue.

    Args:
        true, predicted: label maps `[H, W]`, 0 background; below 0 the truth is not known, and dark.
        found: predicted numbers that hit a true object.
    """
    out = np.rint(0.5 * _grey_or_colour(image).mean(2, keepdims=True).repeat(3, 2) + 120).clip(0, 255)
    hit = np.isin(predicted, list(found))
    out[true > 0] = MISSED
    out[predicted > 0] = WRONG
    out[hit] = FOUND
    out[borders(true) & (true > 0)] = TRUE
    out[true < 0] = MISSING
    return np.asarray(out, np.uint8)


def objects_side_by_side(
    image: ImageU8, true: Maps, predicted: Maps, *, scores: Sequence[float], found: Collection[int]
) -> ImageU8:
    """True objects, predicted ones with number and score, and what was found, in a row: `[z H, 3 z W, 3]`.

    Small images are enlarged by a whole z, so that the numbers can be read.
    """
    zoom = max(1, -(-READABLE // max(true.shape)))
    wrong = object_errors(image, true, predicted, found=found)
    shown = [
        objects(image, np.maximum(true, 0), zoom=zoom),
        objects(image, predicted, scores=scores, zoom=zoom),
    ]
    return np.concatenate([*shown, _zoomed(wrong, zoom)], axis=1)


def _zoomed(values: npt.NDArray[Any], zoom: int) -> npt.NDArray[Any]:
    return values.repeat(zoom, 0).repeat(zoom, 1)


def _grey_or_colour(image: ImageU8) -> npt.NDArray[np.float32]:
    return np.asarray(np.broadcast_to(image.astype(np.float32), (*image.shape[:2], 3)))
