"""From a scene's pixels to what a model takes: 8 bits of a stated range.

Shape letters: H W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.bands import stretched
from niwaki.errors import SpecError

Pixels = npt.NDArray[Any]
Scale = tuple[float, float] | Sequence[tuple[float, float]] | str | None


def scaler(dtype: np.dtype[Any], scale: Scale) -> Callable[[Pixels], Pixels]:
    """What turns pixels of that type into a model's.

    Args:
        scale: None leaves them as they are; (low, high) maps that range to 0..255, rounded and cut off, as does
            a pair for each band (`Spec.scale`); "bits" maps all of an unsigned range: 16 bits are divided
            by 257 and rounded, as niwaki.images does.
    Raises:
        SpecError: the range is empty, or the type has no range of its own. [tile-scale]
    """
    if scale is None or (scale == "bits" and dtype == np.uint8):
        return lambda pixels: pixels
    if scale == "bits":
        if dtype != np.uint16:
            raise SpecError(
                f"scale: pixels of {dtype} have no range of their own. Give the values that are black and "
                "white: scale=(low, high), on the command line --range LOW HIGH.",
                code="tile-scale",
            )
        return lambda pixels: ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    ends = pairs(scale)
    return lambda pixels: stretched(pixels, ends * pixels.shape[-1] if len(ends) == 1 else ends)


def pairs(scale: Scale) -> tuple[tuple[float, float], ...]:
    """The ranges that a scale of numbers states: one for all bands, or one each.

    Raises:
        SpecError: a range is empty. [tile-scale]
    """
    given: Any = scale
    each = [given] if isinstance(given[0], int | float) else given
    ends = tuple((float(low), float(high)) for low, high in each)
    if not all(np.isfinite(low) and np.isfinite(high) and low < high for low, high in ends):
        raise SpecError(
            f"scale: got {scale}, expected a low end below the high one, or such a pair for each band.",
            code="tile-scale",
        )
    return ends
