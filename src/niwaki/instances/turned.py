"""Test-time augmentation of star-convex predictors: the mean of what they say of turned images, turned back.

Numpy only. Shape letters: N images, T pixels of a window's side, C channels, R rays, h w points of the grid.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from niwaki.errors import PlanError
from niwaki.instances.stars import RAYS

ImagesU8 = npt.NDArray[np.uint8]
Maps = npt.NDArray[np.float32]
Predict = Callable[[ImagesU8], Maps]
Turn = tuple[bool, bool, bool]

_TURNS: tuple[Turn, ...] = tuple(
    (swapped, rows, columns) for swapped in (False, True) for rows in (False, True) for columns in (False, True)
)
"""Axes exchanged, rows reversed, columns reversed, done in that order; the first four exchange none."""


def turned(predict: Predict, *, turns: int = 4, stride: int = 2) -> Predict:
    """A predictor that gives the mean of its answers to the images mirrored (4) and exchanged as well (8).

    It costs `turns` predictions. For `instances.finder`, as the predictor it wraps.

    Args:
        predict: images u8 `[N, T, T, C]` to probabilities and distances `[N, 1 + R, h, w]`, as `Instances.head`
            gives them; T is a multiple of `stride`.
        turns: 1, 2 (columns reversed), 4 or 8; 8 needs square windows.
        stride: pixels between two points of the grid.
    Raises:
        PlanError: another number of turns. [task-knob]
    """
    if turns not in (1, 2, 4, 8):
        raise PlanError(f"instances.turned: turns must be 1, 2, 4 or 8, got {turns!r}.", code="task-knob")

    def call(images: ImagesU8) -> Maps:
        total = np.zeros(0, np.float32)
        for turn in _TURNS[:turns]:
            given = _back(np.asarray(predict(_there(images, turn, stride)), np.float32), turn)
            total = total + given if total.size else given
        return total / np.float32(turns)

    return call


def _there(images: ImagesU8, turn: Turn, stride: int) -> ImagesU8:
    """Images turned so that points of the grid fall on points of the grid."""
    out = images.swapaxes(1, 2) if turn[0] else images
    for axis in (1, 2):
        if turn[axis]:
            out = _reversed(out, axis, stride)
    return np.ascontiguousarray(out)


def _reversed(images: ImagesU8, axis: int, stride: int) -> ImagesU8:
    """Pixel x becomes T - stride - x; the last pixels, which no point is of, are the first one's."""
    size = images.shape[axis]
    places = np.maximum(size - stride - np.arange(size), 0)
    out: ImagesU8 = images.take(places, axis=axis)
    return out


def _back(maps: Maps, turn: Turn) -> Maps:
    """Maps of a turned image as those of the image: the grid turned back, and the rays with it."""
    swapped, rows, columns = turn
    if rows:
        maps = maps[:, :, ::-1]
    if columns:
        maps = maps[:, :, :, ::-1]
    if swapped:
        maps = maps.swapaxes(2, 3)
    ray = np.arange(RAYS)  # which ray of the turned image says how far ray k goes
    if swapped:
        ray = RAYS // 4 - ray
    if rows:
        ray = -ray
    if columns:
        ray = RAYS // 2 - ray
    return np.concatenate([maps[:, :1], maps[:, 1:][:, ray % RAYS]], axis=1)
