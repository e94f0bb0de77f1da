"""Images cut into windows of one size at their own scale, for objects whose size in pixels means something.

Shape letters: N images, H W pixels of a window, C channels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from niwaki.data.augment import order
from niwaki.data.samples import Samples
from niwaki.errors import DataError
from niwaki.spec import Spec

_GREY = 128


def windows(
    samples: Samples,
    size_hw: tuple[int, int],
    *,
    most: int | None = None,
    spec: Spec | None = None,
    seed: int = 0,
) -> Samples:
    """Samples of windows u8 `[N, H, W, C]` at the images' own scale, with their masks, all in memory.

    An image is cut into as few windows as cover it; they overlap where its size is no multiple. One that is
    smaller than a window is padded with grey, of which nothing is known (-1 for objects, 255 for classes).

    Args:
        most: windows of one image at most, drawn by `seed`; None: all.
        spec: how images are read, its size apart; RGB unless given.
    Raises:
        DataError: images without masks, or one that cannot be read. [mask-none, image-*]
    """
    if samples.masks is None:
        raise DataError("windows: these images have labels, expected masks.", code="mask-none")
    pixels, masks, names = [], [], []
    for row in range(len(samples)):
        mask = samples.masks[row]
        decoded = samples.pixels(row, spec or Spec(size_hw=size_hw))
        ids = mask if isinstance(mask, np.ndarray) else mask.read()
        places = starts(ids.shape, size_hw)
        for place in sorted(order(len(places), seed=seed, epoch=row)[:most].tolist()):
            pixels.append(_cut(decoded, places[place], size_hw, _GREY))
            masks.append(_cut(ids, places[place], size_hw, -1 if samples.objects else 255))
            names.append(f"{samples.names[row]}@{places[place][0]},{places[place][1]}")
    return Samples(
        sources=np.stack(pixels), names=tuple(names), labels=np.zeros(len(names), np.int64), masks=masks,
        counts=np.array([[(mask > 0).sum()] for mask in masks], np.int64) if samples.objects else None,
        objects=samples.objects,
    )  # fmt: skip


def starts(shape: tuple[int, ...], size_hw: tuple[int, int]) -> list[tuple[int, int]]:
    """Top left pixels of the fewest windows that cover an image of that shape, evenly spread."""
    axes = [_along(side, window) for side, window in zip(shape, size_hw, strict=False)]
    return [(y, x) for y in axes[0] for x in axes[1]]


def _along(side: int, window: int) -> list[int]:
    count = -(-side // window)
    if count == 1:
        return [0]
    return [round(k * (side - window) / (count - 1)) for k in range(count)]


def _cut(
    values: npt.NDArray[np.integer], place: tuple[int, int], size_hw: tuple[int, int], fill: int
) -> npt.NDArray[np.integer]:
    (y, x), (height, width) = place, size_hw
    inside = values[y : y + height, x : x + width]
    if inside.shape[:2] == (height, width):
        return inside.copy()
    out = np.full((height, width, *values.shape[2:]), fill, values.dtype)
    out[: inside.shape[0], : inside.shape[1]] = inside
    return out
