"""From a scene's pixels to what a model takes: 8 bits of a stated range; and which pixels hold no data.

Shape letters: H W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.errors import SpecError

Pixels = npt.NDArray[Any]
Scale = tuple[float, float] | str | None


def scaler(dtype: np.dtype[Any], scale: Scale) -> Callable[[Pixels], Pixels]:
    """What turns pixels of that type into a model's.

    Args:
        scale: None leaves them as they are; (low, high) maps that range to 0..255, rounded and cut off; "bits"
            maps all of an unsigned type's range: 16 bits are divided by 257 and rounded, as niwaki.images does.
    Raises:
        SpecError: the range is empty, or the type has no range of its own. [tile-scale]
    """
    if scale is None or (scale == "bits" and dtype == np.uint8):
        return lambda pixels: pixels
    if scale == "bits":
        if dtype != np.uint16:
            raise SpecError(
                f"scale: pixels of {dtype} have no range of their own. Give the values that are black and "
                "white: "
                "scale=(low, high), on the command line --range LOW HIGH.",
                code="tile-scale",
            )
        return lambda pixels: ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    low, high = (float(end) for end in scale)
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise SpecError(
            f"scale: got ({low}, {high}), expected a low end below the high one.", code="tile-scale"
        )
    return lambda pixels: _stretched(pixels, low, high)


def _stretched(pixels: Pixels, low: float, high: float) -> npt.NDArray[np.uint8]:
    out = (pixels.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
    np.clip(np.nan_to_num(out, copy=False), 0, 255, out=out)
    scaled: npt.NDArray[np.uint8] = np.rint(out, out=out).astype(np.uint8)
    return scaled


def empty(pixels: Pixels, nodata: float | None) -> npt.NDArray[np.bool_] | None:
    """Which pixels `[H, W]` hold no data: all their channels are `nodata`; None where none does."""
    if nodata is None:
        return None
    void = np.isnan(pixels) if np.isnan(nodata) and pixels.dtype.kind == "f" else np.equal(pixels, nodata)
    whole = np.asarray(void.all(axis=2))
    return whole if whole.any() else None
