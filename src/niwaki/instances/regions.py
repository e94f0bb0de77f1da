"""Objects of a two-stage detector: a score, a box and a small mask each, drawn at the image's size.

Numpy and Pillow. Shape letters: H W pixels, D objects that an image may have at most, N objects.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from niwaki.instances.crops import Crop, Shape
from niwaki.instances.nms import nms
from niwaki.instances.stars import Found

Floats = npt.NDArray[np.floating[Any]]

SIDE = 28
"""Pixels of a side of an object's own mask."""
WIDTH = 5 + SIDE * SIDE
"""Numbers of an object: score, box (y, x, y, x), mask."""


def objects(output: Floats, *, shape: Shape, threshold: float, overlap: float) -> Found:
    """The objects of an image, surest first.

    Args:
        output: `[D, WIDTH]`; a score of 0 is no object.
        shape: (H, W) of the image.
        threshold: score of objects that count.
        overlap: an object goes when it shares more of its pixels, or of a surer one's, than this.
    """
    sure = output[output[:, 0] >= threshold]
    sure = sure[np.argsort(-sure[:, 0], kind="stable")]
    drawn = [(row, crop) for row in sure if (crop := draw(row[1:5], row[5:], shape))[2].any()]
    scores = np.array([row[0] for row, _ in drawn], np.float64)
    crops = [crop for _, crop in drawn]
    middles = np.array([(row[1:3] + row[3:5]) / 2 for row, _ in drawn]).reshape(-1, 2)
    points = np.clip(np.floor(middles), 0, (shape[0] - 1, shape[1] - 1)).astype(np.int64)
    stay = nms(crops, scores, threshold=overlap, shape=shape, by="ios") if crops else np.zeros(0, np.int64)
    return Found(scores=scores[stay], points=points[stay], crops=[crops[k] for k in stay.tolist()])


def draw(box: Floats, mask: Floats, shape: Shape) -> Crop:
    """The pixels of a box (y, x, y, x) whose middle lies where the mask, stretched over it, is at least 1/2.

    Args:
        mask: probabilities `[SIDE * SIDE]`, bilinear between their middles.
        shape: (H, W) of the image, at whose border it is cut.
    """
    top, left = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    bottom, right = min(shape[0], math.ceil(box[2])), min(shape[1], math.ceil(box[3]))
    if bottom <= top or right <= left:
        return 0, 0, np.zeros((0, 0), bool)
    a, d = SIDE / max(box[3] - box[1], 1e-6), SIDE / max(box[2] - box[0], 1e-6)
    matrix = (a, 0, (left - box[1]) * a, 0, d, (top - box[0]) * d)  # Pillow adds the half pixels
    small = np.pad(mask.reshape(SIDE, SIDE).astype(np.float32), 1)  # the border reaches beyond the last middle
    matrix = (*matrix[:2], matrix[2] + 1, *matrix[3:5], matrix[5] + 1)
    size = (right - left, bottom - top)
    grown = Image.fromarray(small).transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return top, left, np.asarray(grown) >= 0.5
