"""Test-time augmentation of stars: turned there and back, points and rays lie where they lay."""

from __future__ import annotations

import numpy as np
import pytest

from niwaki.errors import PlanError
from niwaki.instances import stars, turned
from niwaki.instances.turned import _TURNS, _back, _there


def truth(images: np.ndarray) -> np.ndarray:
    """A perfect predictor of label maps `[N, T, T, 1]`: how far each point's object goes along each ray."""
    n, side = images.shape[:2]
    out = np.zeros((n, 1 + stars.RAYS, side // 2, side // 2), np.float32)
    for k in range(n):
        for i, j in np.argwhere(images[k, ::2, ::2, 0]):
            out[k, 0, i, j] = images[k, 2 * i, 2 * j, 0]
            out[k, 1:, i, j] = stars.outline(images[k, ..., 0].astype(np.int64), 2 * i, 2 * j)
    return out


def blobs() -> np.ndarray:
    """Two objects that look different from every side."""
    image = np.zeros((1, 24, 24, 1), np.uint8)
    image[0, 4:9, 3:16, 0] = 7
    image[0, 7:14, 3:6, 0] = 7
    image[0, 14:20, 12:20, 0] = 9
    image[0, 18:20, 12:14, 0] = 0
    return image


@pytest.mark.parametrize("turn", _TURNS)
def test_every_turn_comes_back(turn: tuple[bool, bool, bool]) -> None:
    image = blobs()
    there = _there(image, turn, 2)
    assert turn == (False, False, False) or not np.array_equal(there, image)
    np.testing.assert_array_equal(_back(truth(there), turn), truth(image))


@pytest.mark.parametrize("turns", [1, 2, 4, 8])
def test_a_perfect_predictor_stays_perfect_and_the_mean_is_over_all(turns: int) -> None:
    asked = []

    def predict(images: np.ndarray) -> np.ndarray:
        asked.append(images)
        return truth(images)

    np.testing.assert_allclose(turned(predict, turns=turns)(blobs()), truth(blobs()), rtol=1e-6)
    assert len(asked) == turns


def test_other_numbers_are_refused() -> None:
    with pytest.raises(PlanError, match="1, 2, 4 or 8"):
        turned(truth, turns=3)
