"""Instance metrics, all from the sparse table of `pairs`: nothing is capped, labels may be any numbers.

| function | is |
|---|---|
| `mean_precision` | TP / (TP + FP + FN), mean over IoU thresholds (2018 Data Science Bowl, Sartorius) |
| `panoptic_quality` | PQ, SQ and RQ of one class |
| `aji` | aggregated Jaccard index, as first defined or one-to-one |
| `average_precision` | COCO's AP over scored predictions of many images, without a cap on their number |

Shape letters: T true objects, P predicted ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from niwaki.errors import DataError
from niwaki.instances.pairs import Floats, Ints, Pairs
from niwaki.lazy import require

THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
"""IoU .50:.05:.95."""
RECALLS = np.linspace(0, 1, 101)


def true_positives(table: Pairs, threshold: float) -> int:
    """The most pairs of IoU above the threshold in which no object occurs twice.

    Among objects that do not overlap, pairs above 0.5 are unique and only counted; elsewhere a maximum
    bipartite matching is solved (needs scipy).
    """
    above = table.pair[table.iou > threshold]
    if all(len(np.unique(above[:, d])) == len(above) for d in (0, 1)):
        return len(above)
    sparse = require("scipy.sparse", extra="train")
    graph = require("scipy.sparse.csgraph", extra="train")
    shape = (len(table.truth), len(table.predicted))
    links = sparse.csr_matrix((np.ones(len(above), np.int8), (above[:, 0], above[:, 1])), shape=shape)
    return int((graph.maximum_bipartite_matching(links, perm_type="column") >= 0).sum())


def mean_precision(table: Pairs, *, thresholds: Sequence[float] = THRESHOLDS) -> float:
    """Mean over thresholds of TP / (TP + FP + FN), 0..1; 1 where there is nothing and nothing was predicted.

    Source: Kaggle, 2018 Data Science Bowl, "Evaluation"; a hit is an IoU above the threshold.
    """
    values = []
    for threshold in thresholds:
        hits = true_positives(table, threshold)
        total = len(table.truth) + len(table.predicted) - hits
        values.append(hits / total if total else 1.0)
    return float(np.mean(values))


def panoptic_quality(table: Pairs) -> dict[str, float]:
    """`pq`, `sq` (mean IoU of the hits) and `rq` (TP / (TP + FP / 2 + FN / 2)) of one class, 0..1.

    Objects must not overlap; a hit is an IoU above 0.5. All are 1 where nothing is and nothing was predicted.
    Source: Kirillov et al. 2019, arXiv:1801.00868, eq. 1 and 2.
    """
    iou = table.iou
    hits = iou[iou > 0.5]
    total = len(table.truth) + len(table.predicted)
    if not total:
        return {"pq": 1.0, "sq": 1.0, "rq": 1.0}
    sq = float(hits.mean()) if len(hits) else 0.0
    rq = 2 * len(hits) / total
    return {"pq": sq * rq, "sq": sq, "rq": rq}


def aji(table: Pairs, *, variant: Literal["original", "plus"] = "original") -> float:
    """Aggregated Jaccard index, 0..1; 1 where nothing is and nothing was predicted.

    Args:
        variant: `original`: each true object takes the prediction of highest IoU, several may take the same
            one. `plus`: one-to-one, by the matching of highest summed IoU (needs scipy).
    Source: Kumar et al. 2017, IEEE TMI 36(7), algorithm 1; "plus": Graham et al. 2019, arXiv:1812.06499.
    """
    if not len(table.truth) and not len(table.predicted):
        return 1.0
    taken = _best(table) if variant == "original" else _matched(table)
    t, p, shared = table.pair[taken, 0], table.pair[taken, 1], table.shared[taken]
    union = int((table.truth_area[t] + table.predicted_area[p] - shared).sum())
    union += int(np.delete(table.truth_area, t).sum()) + int(np.delete(table.predicted_area, p).sum())
    return float(shared.sum() / union) if union else 0.0


def _best(table: Pairs) -> Ints:
    """For each true object the pair of highest IoU, the first of equal ones."""
    order = np.lexsort((table.pair[:, 1], -table.iou, table.pair[:, 0]))
    _, first = np.unique(table.pair[order, 0], return_index=True)
    return order[first]


def _matched(table: Pairs) -> Ints:
    """Pairs of the one-to-one matching of highest summed IoU, solved component by component."""
    sparse = require("scipy.sparse", extra="train")
    graph = require("scipy.sparse.csgraph", extra="train")
    assign = require("scipy.optimize", extra="train").linear_sum_assignment
    t, p, iou = table.pair[:, 0], table.pair[:, 1] + len(table.truth), table.iou
    size = len(table.truth) + len(table.predicted)
    links = sparse.csr_matrix((np.ones(len(t), np.int8), (t, p)), shape=(size, size))
    _, part = graph.connected_components(links, directed=False)
    order = np.argsort(part[t], kind="stable")
    _, first = np.unique(part[t][order], return_index=True)
    taken: list[int] = []
    for mine in np.split(order, first[1:]) if len(order) else []:
        rows, row = np.unique(t[mine], return_inverse=True)
        columns, column = np.unique(p[mine], return_inverse=True)
        place = np.full((len(rows), len(columns)), -1)
        gain = np.zeros(place.shape)
        place[row, column], gain[row, column] = mine, iou[mine]
        found = place[assign(gain, maximize=True)]
        taken += found[found >= 0].tolist()
    return np.asarray(taken, np.int64)


def average_precision(
    images: Sequence[tuple[Pairs, npt.NDArray[Any]]],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    max_dets: int | None = None,
) -> dict[str, float]:
    """COCO's AP of one class: `ap` (mean over thresholds), and each threshold's own by `"ap50"`, ... ; 0..1.

    Args:
        images: of each image its table (`pairs_of_masks`, or `pairs` where nothing overlaps) and the
            predictions' scores `[P]`, in the table's order.
        max_dets: at most so many predictions an image, best first; None is no cap. COCO's own is 100.
    Raises:
        DataError: scores that do not fit the predictions. [masks-scores]
    Source: cocoapi, PythonAPI/pycocotools/cocoeval.py: greedy matching by score, 101 recall points. No crowds
        and no areas apart.
    """
    for place, (table, scores) in enumerate(images):
        if np.shape(scores) != (len(table.predicted),):
            raise DataError(
                f"average_precision: image {place} has {len(table.predicted)} predictions and scores of shape "
                f"{list(np.shape(scores))}.",
                code="masks-scores",
            )
    true = sum(len(table.truth) for table, _ in images)
    found = {f"ap{round(100 * threshold)}": _at(images, threshold, true, max_dets) for threshold in thresholds}
    return {"ap": float(np.mean(list(found.values()))), **found}


def _at(
    images: Sequence[tuple[Pairs, npt.NDArray[Any]]], threshold: float, true: int, max_dets: int | None
) -> float:
    if not true:
        return float("nan")
    hits, scores = [], []
    for table, given in images:
        order = np.argsort(-np.asarray(given, np.float64), kind="stable")[:max_dets]
        hits.append(_greedy(table, order, threshold))
        scores.append(np.asarray(given, np.float64)[order])
    ranked = np.concatenate(hits)[np.argsort(-np.concatenate(scores), kind="stable")]
    count = np.arange(1, len(ranked) + 1)
    right = np.cumsum(ranked)
    return _interpolated(right / true, right / count)


def _interpolated(recall: Floats, precision: Floats) -> float:
    """Mean over 101 recalls of the best precision at that recall or beyond."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(recall, RECALLS, side="left")
    return float(
        np.where(place < len(envelope), np.append(envelope, 0.0)[np.minimum(place, len(envelope))], 0).mean()
    )


def _greedy(table: Pairs, order: Ints, threshold: float) -> npt.NDArray[np.bool_]:
    """For each prediction in order whether it takes a true object that is free; the best IoU, the later of
    equal ones, as COCO does."""
    iou = table.iou
    near = np.flatnonzero(iou >= min(threshold, 1 - 1e-10))
    near = near[np.lexsort((-table.pair[near, 0], -iou[near], table.pair[near, 1]))]
    starts = np.searchsorted(table.pair[near, 1], np.arange(len(table.predicted) + 1))
    free = np.ones(len(table.truth), bool)
    hits = np.zeros(len(order), bool)
    for rank, p in enumerate(order.tolist()):
        for t in table.pair[near[starts[p] : starts[p + 1]], 0].tolist():
            if free[t]:
                free[t] = False
                hits[rank] = True
                break
    return hits
