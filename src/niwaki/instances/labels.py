"""What is done with a label map of objects: areas, clean-up, and RLE, COCO and polygons out of it.

A label map is an integer array `[H, W]`, 0 is background; its numbers may be any, with gaps. One scan over it
gives the runs of all objects at once. Shape letters: N objects, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.errors import DataError
from niwaki.instances.crops import Crop, packed
from niwaki.lazy import require

LabelMap = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


def areas(labels: LabelMap) -> dict[int, int]:
    """Pixels of each object: `{number: area}`, in rising order of the numbers."""
    numbers, counts = np.unique(checked(labels), return_counts=True)
    return {int(n): int(c) for n, c in zip(numbers, counts, strict=True) if n}


def cleaned(labels: LabelMap, *, min_area: int = 0, largest: bool = False) -> LabelMap:
    """A copy without objects of fewer than `min_area` pixels.

    Args:
        largest: of an object in several pieces (8-connected) only the largest stays, the first of equal
            ones; `min_area` is asked of what is left. Needs scipy.
    """
    out = checked(labels).copy()
    if largest:
        ndimage = require("scipy.ndimage", extra="train")
        for y, x, mask in object_crops(out)[1]:
            pieces, count = ndimage.label(mask, structure=np.ones((3, 3), int))
            if count > 1:
                sizes = np.bincount(pieces[mask])
                window = out[y : y + mask.shape[0], x : x + mask.shape[1]]
                window[mask & (pieces != sizes.argmax())] = 0
    if min_area > 1:
        _, place, counts = np.unique(out, return_inverse=True, return_counts=True)
        out[(counts < min_area)[place].reshape(out.shape)] = 0
    return out


def object_crops(labels: LabelMap) -> tuple[list[int], list[Crop]]:
    """The numbers of the objects, rising, and each one's crop `(y, x, bool [h, w])`."""
    numbers, top, left, bottom, right = _boxes(checked(labels))
    cut: list[Crop] = []
    for number, y, x, y2, x2 in zip(numbers, top, left, bottom, right, strict=True):
        cut.append((y, x, labels[y:y2, x:x2] == number))
    return numbers, cut


def _boxes(labels: LabelMap) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    rows, columns = np.nonzero(labels)
    if not len(rows):
        return [], [], [], [], []
    numbers, place = np.unique(labels[rows, columns], return_inverse=True)
    low = np.full((2, len(numbers)), max(labels.shape))
    high = np.zeros((2, len(numbers)), np.int64)
    for d, where in enumerate((rows, columns)):
        np.minimum.at(low[d], place, where)
        np.maximum.at(high[d], place, where + 1)
    return numbers.tolist(), low[0].tolist(), low[1].tolist(), high[0].tolist(), high[1].tolist()


def rles(labels: LabelMap, *, compressed: bool = True) -> dict[int, dict[str, Any]]:
    """COCO RLE of every object, by its number: `{"size": [H, W], "counts": ...}`, from one scan.

    Args:
        compressed: counts are COCO's text; else a list of run lengths.
    """
    height, width = checked(labels).shape
    flat = labels.ravel(order="F")
    if not flat.size:
        return {}
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
    ends = np.append(starts[1:], flat.size)
    values = flat[starts]
    held = values != 0
    starts, ends, values = starts[held], ends[held], values[held]
    if not len(values):
        return {}
    order = np.argsort(values, kind="stable")
    numbers, first = np.unique(values[order], return_index=True)
    out = {}
    for number, mine in zip(numbers.tolist(), np.split(order, first[1:]), strict=True):
        edges = np.stack((starts[mine], ends[mine]), 1).ravel()
        lengths = np.diff(np.concatenate(([0], edges))).tolist()
        if edges[-1] < flat.size:
            lengths.append(int(flat.size - edges[-1]))
        counts: Any = packed(lengths) if compressed else lengths
        out[number] = {"size": [height, width], "counts": counts}
    return out


def to_coco(
    labels: LabelMap, *, image: int, category: int = 1, scores: Sequence[float] | None = None
) -> list[Any]:
    """COCO results of a label map: `image_id category_id segmentation bbox area score` of each object.

    Args:
        image: the image's id.
        scores: of the objects in rising order of their numbers; 1 unless given.
    """
    encoded = rles(labels)
    sizes = areas(labels)
    numbers, cut = object_crops(labels)
    given = [1.0] * len(numbers) if scores is None else [float(score) for score in scores]
    if len(given) != len(numbers):
        raise DataError(f"to_coco: {len(numbers)} objects and {len(given)} scores.", code="masks-scores")
    return [
        {
            "image_id": image,
            "category_id": category,
            "segmentation": encoded[number],
            "bbox": [x, y, mask.shape[1], mask.shape[0]],
            "area": sizes[number],
            "score": score,
        }
        for number, (y, x, mask), score in zip(numbers, cut, given, strict=True)
    ]


def checked(labels: LabelMap) -> LabelMap:
    """The label map itself.

    Raises:
        DataError: it is no `[H, W]` array of whole numbers from 0 on. [masks-labels]
    """
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or labels.dtype.kind not in "iu":
        got = (
            f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, np.ndarray) else type(labels).__name__
        )
        raise DataError(
            f"labels: got {got}, expected whole numbers [H, W]; 0 is background.", code="masks-labels"
        )
    if labels.size and labels.dtype.kind == "i" and int(labels.min()) < 0:
        raise DataError(f"labels: got {int(labels.min())}, expected numbers from 0 on.", code="masks-labels")
    return labels
