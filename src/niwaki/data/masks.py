"""Masks: from a file of class ids or colours, or from outlines, to a class for each pixel.

A Mask says where the pixels are and how their values are coded; nothing is read before `read`. Numpy and Pillow
only. Shape letters: h w pixels of a mask as it is stored, H W as it is resized to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from niwaki import images, instances
from niwaki.dense_metrics import IGNORE
from niwaki.errors import DataError
from niwaki.instances.polygons import inside

MaskU8 = npt.NDArray[np.uint8]
Values = npt.NDArray[np.integer]


class Readable(Protocol):
    """One image's mask that is read when it is needed."""

    def read(self) -> Values:
        """Its classes uint8, or objects int32, `[h, w]`."""


@dataclass(frozen=True, kw_only=True)
class Outlines:
    """Objects of one image as COCO lists them.

    Args:
        size_hw: the image's height and width.
        items: (value, segmentation) of each, painted in this order; a segmentation is a list of polygons
            `[x1, y1, x2, y2, ...]` or an RLE.
    """

    size_hw: tuple[int, int]
    items: tuple[tuple[int, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Mask:
    """One image's mask.

    Args:
        source: a file's path or bytes, or outlines.
        name: what messages call it.
        coding: position of the class for each value of a pixel (a colour is `r << 16 | g << 8 | b`); 255 for
            none.
    """

    source: Path | bytes | Outlines
    name: str
    coding: Mapping[int, int]
    colours: bool = False

    def read(self) -> MaskU8:
        """Classes uint8 `[h, w]`: positions in the data set's classes, 255 for pixels without one.

        Raises:
            DataError: it is no image, or a value is not coded. [image-*, mask-value]
        """
        stored = values(self.source, self.name, colours=self.colours)
        keys = np.array(sorted(self.coding), stored.dtype if stored.dtype.itemsize > 2 else np.int32)
        place = np.searchsorted(keys, stored.astype(keys.dtype)).clip(0, len(keys) - 1)
        if len(unknown := np.unique(stored[keys[place] != stored])):
            raise unknown_values(self.name, unknown.tolist(), colours=self.colours)
        table = np.array([self.coding[int(key)] for key in keys], np.uint8)
        return np.asarray(table[place])


def values(source: Path | bytes | Outlines, name: str, *, colours: bool) -> Values:
    """What the pixels of a mask hold `[h, w]`, undecoded: ids, or colours as `r << 16 | g << 8 | b`.

    Raises:
        DataError: it is no image that can be used, or holds colours where ids are expected.
            [image-*, mask-value]
    """
    if isinstance(source, Outlines):
        return painted(source)
    stored = images.stored(source, name=name, colours=colours)
    if stored.ndim == 2:
        return stored
    red, green, blue = (stored[..., i].astype(np.int64) for i in range(3))
    if colours:
        return red << 16 | green << 8 | blue
    if (stored == stored[..., :1]).all():  # ids saved as grey colours
        return stored[..., 0]
    raise DataError(
        f"{name}: the mask holds colours, expected class ids. Put a classes.txt beside images/ and masks/ with "
        "a line `name r g b` for each class.",
        code="mask-value",
    )


def painted(outlines: Outlines) -> Values:
    """Values int32 `[h, w]` of outlines: later ones over earlier ones, 0 where there is none. A polygon has the
    pixels whose centres lie in it (even-odd)."""
    height, width = outlines.size_hw
    canvas = np.zeros((height, width), np.int32)
    for value, segmentation in outlines.items:
        if isinstance(segmentation, Mapping):
            for y, x, mask in instances.crops([segmentation], shape=(height, width))[0]:
                canvas[y : y + mask.shape[0], x : x + mask.shape[1]][np.asarray(mask, bool)] = value
            continue
        for polygon in segmentation:
            canvas[inside(polygon, (height, width))] = value
    return canvas


def unknown_values(name: str, found: Sequence[int], *, colours: bool) -> DataError:
    """The error of pixels that no class has. [mask-value]"""
    shown = [f"#{value:06x}" if colours else str(value) for value in found[:3]]
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return DataError(
        f"{name}: the mask holds {', '.join(shown)}{more}, which no class has. Add it to the classes file, as "
        "`void` where such pixels have no class, or mend the mask.",
        code="mask-value",
    )


def resized(mask: Values, size_hw: tuple[int, int]) -> Values:
    """A map of classes or objects `[h, w]` as `[H, W]`, each pixel that of the nearest centre."""
    if mask.shape == tuple(size_hw):
        return mask
    height, width = size_hw
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST), mask.dtype)


def pixel_counts(mask: MaskU8, classes: int) -> npt.NDArray[np.int64]:
    """Pixels of each class in a class map, int64 `[K]`."""
    return np.bincount(mask[mask != IGNORE].ravel(), minlength=classes)[:classes]
