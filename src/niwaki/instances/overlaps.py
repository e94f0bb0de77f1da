"""One label map out of masks that overlap: every pixel goes to one object, by a stated rule, exactly.

Objects are painted inside their bounding boxes from the last in rank to the first, so that who comes first
stays on top. Time is proportional to the sum of the boxes' areas and memory is one label map, whatever the
number of objects; a loop over full-frame masks takes N times the image.
Shape letters: N objects, H W pixels of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from niwaki.errors import DataError
from niwaki.instances.crops import Crop, Masks, Shape, crops

Policy = Literal["score", "smaller", "nearest", "probability"]
Labels = npt.NDArray[np.int32]


def resolve_overlaps(
    masks: Masks,
    scores: Sequence[float] | npt.NDArray[Any],
    *,
    shape: Shape | None = None,
    policy: Policy = "score",
) -> Labels:
    """Label map int32 `[H, W]`: 0 is background, k + 1 the object `masks[k]`; no pixel has two objects.

    Args:
        masks: bool `[N, H, W]`; or a list of crops `(y, x, bool [h, w])`, or of lists of COCO polygons, with
            `shape`; or a list of COCO RLE.
        scores: a number for each object; of equal ones the earlier object wins.
        shape: (H, W) of the image, for crops and polygons.
        policy: who gets a pixel that several claim. `score`: the best score. `smaller`: the object of fewer
            pixels, then the better score. `nearest`: the object whose centroid is nearest to the pixel, then
            the better score. `probability`: the object that is surest of this pixel; masks hold floats then,
            0 outside of the object.
    Raises:
        DataError: masks or scores that do not fit together, or an unknown policy.
            [masks-form, masks-shape, masks-scores, masks-policy]
    Source: the common "best score wins" of instance segmentation contests, done by painting; equal to the
        loop `label[m & ~used] = k; used |= m` in score order, pixel for pixel.
    """
    if policy not in get_args(Policy):
        raise DataError(
            f"resolve_overlaps: policy {policy!r} is not known; expected one of {', '.join(get_args(Policy))}.",
            code="masks-policy",
        )
    cut, (height, width) = crops(masks, shape=shape)
    rank = _ranked(cut, np.asarray(scores, np.float64), policy)
    labels = np.zeros((height, width), np.int32)
    if policy in ("score", "smaller"):
        for k in rank[::-1].tolist():
            y, x, mask = cut[k]
            window = labels[y : y + mask.shape[0], x : x + mask.shape[1]]
            np.copyto(window, k + 1, where=_pixels(mask))
        return labels
    claim = _nearness if policy == "nearest" else _probability
    best = np.full((height, width), -np.inf, np.float32)
    for k in rank.tolist():
        y, x, mask = cut[k]
        box = slice(y, y + mask.shape[0]), slice(x, x + mask.shape[1])
        mine = claim(mask)
        wins = _pixels(mask) & (mine > best[box])
        np.copyto(best[box], mine, where=wins)
        np.copyto(labels[box], k + 1, where=wins)
    return labels


def _pixels(mask: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    return mask if mask.dtype == bool else mask > 0


def _ranked(cut: Sequence[Crop], scores: npt.NDArray[np.float64], policy: str) -> npt.NDArray[np.int64]:
    """Objects from the first in rank to the last."""
    if scores.shape != (len(cut),) or np.isnan(scores).any():
        raise DataError(
            f"resolve_overlaps: {len(cut)} masks and scores of shape {list(scores.shape)}; "
            "expected a number, not nan, for each mask.",
            code="masks-scores",
        )
    if policy != "smaller":
        return np.argsort(-scores, kind="stable")
    areas = np.asarray([int(_pixels(mask).sum()) for _, _, mask in cut], np.int64)
    return np.lexsort((-scores, areas))


def _nearness(mask: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Minus the squared distance of each of a crop's pixels from the centroid of its mask."""
    rows, columns = np.nonzero(_pixels(mask))
    if not len(rows):
        return np.zeros(mask.shape, np.float32)
    dy = np.arange(mask.shape[0], dtype=np.float64) - rows.mean()
    dx = np.arange(mask.shape[1], dtype=np.float64) - columns.mean()
    distance: npt.NDArray[np.float32] = (dy[:, None] ** 2 + dx**2).astype(np.float32)
    return -distance


def _probability(mask: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return mask.astype(np.float32)
