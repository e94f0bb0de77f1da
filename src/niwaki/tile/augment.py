"""Test-time augmentation and ensembles: predictors made of predictors, so that they work inside the tile loop.

Answers are added up one after the other, so memory does not grow with the number of members or turns.
Shape letters: N images, H W pixels, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.errors import SpecError

Predictor = Callable[[Any], Any]

# name: (axes exchanged, rows reversed, columns reversed), done in that order
_TURNS = {
    "none": (False, False, False),
    "hflip": (False, False, True),
    "vflip": (False, True, False),
    "rot180": (False, True, True),
    "transpose": (True, False, False),
    "rot90": (True, True, False),
    "rot270": (True, False, True),
    "antitranspose": (True, True, True),
}
TURNS = tuple(_TURNS)
HOW = ("mean", "vote")


class Combined:
    """A predictor whose answer is the weighted sum of several calls; it says the size and classes of the first.

    Args:
        calls: predictors, with the weights of their answers, which sum to one.
    """

    def __init__(self, first: Any, calls: Sequence[tuple[float, Predictor]]) -> None:
        self._calls = calls
        self.size_hw = getattr(first, "size_hw", None)
        self.classes = getattr(first, "classes", None)
        self.channels = getattr(first, "channels", None)

    def __call__(self, images: Any) -> npt.NDArray[np.float32]:
        """Float32 `[N, K, H, W]` of images `[N, H, W, C]`.

        Raises:
            SpecError: the members' answers are of different shapes. [tile-members]
        """
        total: Any = None
        for weight, call in self._calls:
            given = np.float32(weight) * call(images)
            if total is not None and given.shape != total.shape:
                raise SpecError(
                    f"ensemble: one member gives {list(total.shape)}, another {list(given.shape)}. All must "
                    "know the same classes.",
                    code="tile-members",
                )
            total = given if total is None else np.add(total, given, out=total)
        return np.asarray(total, np.float32)


def turned(predictor: Predictor, turns: Sequence[str] = ("none", "hflip", "vflip", "rot180")) -> Predictor:
    """A predictor that gives the mean of its answers to the turned images, turned back.

    Args:
        turns: of none, hflip, vflip, rot180, transpose, rot90, rot270, antitranspose; the last four need square
            tiles.
    Raises:
        SpecError: there is no such turn, or none at all. [tile-members]
    """
    if not turns or (unknown := sorted(set(turns) - set(TURNS))):
        says = f"no turn {unknown[0]!r}" if turns else "no turn given"
        raise SpecError(f"turned: {says}, expected some of {', '.join(TURNS)}.", code="tile-members")
    weight = 1 / len(turns)
    return Combined(predictor, [(weight, _turn(predictor, *_TURNS[name])) for name in turns])


def together(predictors: Sequence[Predictor], *, how: str = "mean", weights: Sequence[float] = ()) -> Predictor:
    """A predictor that joins several models.

    Args:
        how: "mean" of probabilities; or "vote": each model gives all its weight to its best class of each
            pixel.
        weights: one for each model, not negative; equal unless given.
    Raises:
        SpecError: weights and models do not fit together. [tile-members]
    """
    given = list(map(float, weights)) or [1.0] * len(predictors)
    usable = len(given) == len(predictors) > 0 and min(given) >= 0 and sum(given) > 0
    if how not in HOW or not usable:
        raise SpecError(
            f"together: got {len(predictors)} models, how={how!r}, weights={tuple(weights)}; expected at "
            "least one model, mean or vote, and one weight of at least 0 for each, not all 0.",
            code="tile-members",
        )
    said = {(str(getattr(p, "size_hw", None)), getattr(p, "classes", None)) for p in predictors}
    if len(said) > 1:
        raise SpecError(
            f"together: the models' tiles and numbers of classes differ: {sorted(map(str, said))}. Export them "
            "for the same size and classes.",
            code="tile-members",
        )
    calls = predictors if how == "mean" else [_vote(predictor) for predictor in predictors]
    return Combined(predictors[0], [(w / sum(given), call) for w, call in zip(given, calls, strict=True)])


def _turn(predictor: Predictor, exchanged: bool, rows: bool, columns: bool) -> Predictor:
    def call(images: Any) -> Any:
        seen = images.swapaxes(1, 2) if exchanged else images
        seen = seen[:, :: -1 if rows else 1, :: -1 if columns else 1]
        given = predictor(np.ascontiguousarray(seen))
        back = given[:, :, :: -1 if rows else 1, :: -1 if columns else 1]
        return back.swapaxes(2, 3) if exchanged else back

    return call


def _vote(predictor: Predictor) -> Predictor:
    def call(images: Any) -> Any:
        given = predictor(images)
        if given.shape[1] == 1:
            return (given >= 0.5).astype(np.float32)
        best = given.argmax(1)
        return (best[:, None] == np.arange(given.shape[1])[:, None, None]).astype(np.float32)

    return call
