"""Which of many overlapping predicted objects stay: mask NMS and matrix NMS, on the pairs that really overlap.

Shape letters: N objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from niwaki.errors import DataError
from niwaki.instances.crops import Masks, Shape
from niwaki.instances.pairs import Pairs, pairs_of_masks

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def nms(
    masks: Masks,
    scores: Sequence[float] | npt.NDArray[Any],
    *,
    threshold: float = 0.5,
    shape: Shape | None = None,
    by: Literal["iou", "ios"] = "iou",
) -> Ints:
    """Places of the objects that stay, best score first, int64.

    An object goes when it overlaps one that stays by more than `threshold`.

    Args:
        masks, shape: as `resolve_overlaps` takes them.
        by: `iou`, or `ios`: shared pixels over the smaller object's, which removes parts of objects too.
    Raises:
        DataError: masks or scores that do not fit together. [masks-form, masks-shape, masks-scores]
    """
    table, given = _table(masks, scores, shape)
    overlap = table.iou if by == "iou" else _ios(table)
    near: dict[int, list[int]] = {}
    for a, b in table.pair[(overlap > threshold) & (table.pair[:, 0] != table.pair[:, 1])].tolist():
        near.setdefault(a, []).append(b)
    gone = np.zeros(len(given), bool)
    kept = []
    for k in np.argsort(-given, kind="stable").tolist():
        if not gone[k]:
            kept.append(k)
            gone[near.get(k, [])] = True
    return np.asarray(kept, np.int64)


def matrix_nms(
    masks: Masks,
    scores: Sequence[float] | npt.NDArray[Any],
    *,
    sigma: float = 2.0,
    shape: Shape | None = None,
) -> Floats:
    """Scores `[N]` lowered by how much better objects overlap each one: Gaussian decay, nothing is removed.

    Source: Wang et al. 2020, SOLOv2, arXiv:2003.10152, eq. 5 and 6:
    `decay_j = min_i exp(-sigma * (iou_ij^2 - max_k iou_ki^2))` over the i of higher score.
    """
    table, given = _table(masks, scores, shape)
    rank = np.empty(len(given), np.int64)
    rank[np.argsort(-given, kind="stable")] = np.arange(len(given))
    better, worse, iou = table.pair[:, 0], table.pair[:, 1], table.iou
    above = rank[better] < rank[worse]
    better, worse, iou = better[above], worse[above], iou[above]
    covered = np.zeros(len(given))
    np.maximum.at(covered, worse, iou)
    decay = np.ones(len(given))
    np.minimum.at(decay, worse, np.exp(-sigma * (iou**2 - covered[better] ** 2)))
    return given * decay


def _table(masks: Masks, scores: Any, shape: Shape | None) -> tuple[Pairs, Floats]:
    table = pairs_of_masks(masks, masks, shape=shape)
    given = np.asarray(scores, np.float64)
    if given.shape != (len(table.truth),) or np.isnan(given).any():
        raise DataError(
            f"nms: {len(table.truth)} masks and scores of shape {list(given.shape)}; expected one number, not "
            "nan, for each mask.",
            code="masks-scores",
        )
    return table, given


def _ios(table: Pairs) -> Floats:
    smaller = np.minimum(table.truth_area[table.pair[:, 0]], table.predicted_area[table.pair[:, 1]])
    return table.shared / smaller
