"""Masks of objects in their one inner form: the crop, and how dense masks and RLE become crops.

A crop is `(y, x, mask)`: bool `[h, w]` whose top left pixel lies at row y and column x of the image. It costs
what the object covers, not what the image does.
RLE is COCO's: `{"size": [H, W], "counts": [...]}`, run lengths down the columns, background first; counts are
a list, or COCO's compressed text or bytes. Shape letters: N objects, H W pixels of the image, h w of a crop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.errors import DataError
from niwaki.instances import polygons

Bools = npt.NDArray[np.bool_]
Crop = tuple[int, int, npt.NDArray[Any]]
Shape = tuple[int, int]
Masks = npt.NDArray[Any] | Sequence[Crop] | Sequence[Mapping[str, Any]] | Sequence[Sequence[Sequence[float]]]


def crops(masks: Masks, *, shape: Shape | None = None) -> tuple[list[Crop], Shape]:
    """Masks in any form as crops within the image, and the image's shape (H, W).

    Crops keep their values; parts outside of the image are cut away. An object without a pixel gives an
    empty crop, so that numbers stay aligned with the input.

    Args:
        masks: `[N, H, W]`; or a list of crops, or of objects as COCO's lists of polygons, which need `shape`;
            or a list of RLE.
    Raises:
        DataError: a form that is none of these, or sizes that do not agree. [masks-form, masks-shape]
    """
    if isinstance(masks, np.ndarray):
        return _from_dense(masks, shape)
    if all(isinstance(item, Mapping) for item in masks) and len(masks):
        return _from_rles(masks, shape)  # type: ignore[arg-type]
    if shape is None:
        raise DataError(
            "masks: crops and polygons say nothing about the image's size, expected shape=(H, W).",
            code="masks-shape",
        )
    given: Sequence[Any] = masks
    return [
        polygons.crop(item, shape, place=k) if polygons.is_polygons(item) else _within(_checked(item, k), shape)
        for k, item in enumerate(given)
    ], shape


def _from_dense(masks: npt.NDArray[Any], shape: Shape | None) -> tuple[list[Crop], Shape]:
    if masks.ndim != 3 or masks.dtype.kind not in "bf":
        raise DataError(
            f"masks: got an array {masks.dtype} {list(masks.shape)}, expected bool [N, H, W] (or float, where "
            "a pixel's probability counts).",
            code="masks-form",
        )
    found = (int(masks.shape[1]), int(masks.shape[2]))
    if shape is not None and tuple(shape) != found:
        raise DataError(f"masks: they are {found}, and shape= says {tuple(shape)}.", code="masks-shape")
    rows: Bools = np.any(masks, axis=2)
    return [_boxed(mask, rows[k]) for k, mask in enumerate(masks)], found


def _boxed(mask: npt.NDArray[Any], rows: Bools) -> Crop:
    """A full-frame mask cut to its bounding box; `rows` tells which of its rows hold a pixel."""
    held = np.flatnonzero(rows)
    if not len(held):
        return 0, 0, mask[:0, :0]
    top, bottom = int(held[0]), int(held[-1]) + 1
    columns = np.flatnonzero(mask[top:bottom].any(0))
    left, right = int(columns[0]), int(columns[-1]) + 1
    return top, left, mask[top:bottom, left:right]


def _checked(item: Any, place: int) -> Crop:
    try:
        y, x, mask = item
        y, x, mask = int(y), int(x), np.asarray(mask)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"masks[{place}]: got {type(item).__name__}, expected (y, x, mask [h, w]).", code="masks-form"
        ) from error
    if mask.ndim != 2 or mask.dtype.kind not in "bf":
        raise DataError(
            f"masks[{place}]: the crop is {mask.dtype} {list(mask.shape)}, expected bool or float [h, w].",
            code="masks-form",
        )
    return y, x, mask


def _within(crop: Crop, shape: Shape) -> Crop:
    y, x, mask = crop
    top, left = max(0, -y), max(0, -x)
    kept = mask[top : max(top, shape[0] - y), left : max(left, shape[1] - x)]
    return y + top, x + left, kept


def _from_rles(rles: Sequence[Mapping[str, Any]], shape: Shape | None) -> tuple[list[Crop], Shape]:
    sizes = {_size(rle, k) for k, rle in enumerate(rles)} | ({tuple(shape)} if shape is not None else set())
    if len(sizes) != 1:
        raise DataError(
            f"masks: RLE of several image sizes, {sorted(sizes)}; expected one.", code="masks-shape"
        )
    height, width = sizes.pop()
    found = (height, width)
    return [_from_rle(rle, found, k) for k, rle in enumerate(rles)], found


def _size(rle: Mapping[str, Any], place: int) -> Shape:
    size = rle.get("size")
    if not isinstance(size, list | tuple) or len(size) != 2 or "counts" not in rle:
        raise DataError(
            f"masks[{place}]: an RLE needs size [H, W] and counts, got {sorted(rle)}.", code="masks-form"
        )
    return int(size[0]), int(size[1])


def _from_rle(rle: Mapping[str, Any], shape: Shape, place: int) -> Crop:
    counts = rle["counts"]
    lengths = unpacked(counts) if isinstance(counts, str | bytes) else np.asarray(counts, np.int64)
    height, width = shape
    if lengths.ndim != 1 or (lengths < 0).any() or lengths.sum() != height * width:
        raise DataError(
            f"masks[{place}]: the RLE's runs cover {int(lengths.sum())} pixels, expected {height * width}.",
            code="masks-form",
        )
    ends = np.cumsum(lengths)
    starts, ends = ends[:-1:2], ends[1::2]
    starts, ends = starts[: len(ends)][ends > starts[: len(ends)]], ends[ends > starts[: len(ends)]]
    if not len(starts):
        return 0, 0, np.zeros((0, 0), bool)
    where = ranges(starts, ends)
    column, row = np.divmod(where, height)
    top, left = int(row.min()), int(column[0])
    mask = np.zeros((int(row.max()) + 1 - top, int(column[-1]) + 1 - left), bool)
    mask[row - top, column - left] = True
    return top, left, mask


def ranges(starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """All whole numbers of the half-open ranges, one range after the other."""
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    shift: npt.NDArray[np.int64] = np.repeat(starts - before, lengths)
    return np.arange(int(lengths.sum())) + shift


def unpacked(counts: str | bytes) -> npt.NDArray[np.int64]:
    """Run lengths int64 of COCO's compressed counts.

    Five bits a character from 48 on, the sixth bit says that more follow, the last one's fifth bit is the
    sign; from the third run on a number is the difference to the one two before.
    Source: cocoapi, common/maskApi.c, rleFrString.
    """
    data = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    runs: list[int] = []
    value, shift = 0, 0
    for byte in data:
        bits = byte - 48
        if not 0 <= bits < 64:
            raise DataError(f"masks: {byte!r} is no character of a COCO RLE.", code="masks-form")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return np.asarray(runs, np.int64)


def packed(lengths: Sequence[int]) -> str:
    """COCO's compressed counts of run lengths; `unpacked` reads them back."""
    text = bytearray()
    for place, length in enumerate(lengths):
        value = int(length) - (int(lengths[place - 2]) if place > 2 else 0)
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text.append(48 + (bits | (32 if more else 0)))
    return text.decode("ascii")
