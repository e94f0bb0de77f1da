"""Which atoms stay: from scores and one ratio, under minimum widths and multiples. Pure counting, no model."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence

import numpy as np

from niwaki.errors import PlanError
from niwaki.prune.scores import Scores
from niwaki.surgery import Axes, Group


def choose(
    axes: Axes,
    scores: Scores,
    *,
    ratio: float,
    scope: str = "local",
    multiple: int = 1,
    min_width: float = 0.1,
    skip: Sequence[str] = (),
    keep: Mapping[str, int] | None = None,
) -> dict[str, list[int]]:
    """`{group: kept atoms}` for every group that gets smaller.

    Args:
        ratio: share of the atoms that go, 0 to below 1.
        scope: "local": that share of each group; "global": the lowest scores of all groups together.
        multiple: kept counts are rounded to the nearest multiple of it.
        min_width: share of a group that stays at least, and never fewer than one atom, unless all its axes
            have other channels too (zero padding of a shortcut): such a group may go entirely.
        skip: name patterns of groups left whole, matched against any member's parameter name.
        keep: exact widths by group name, which override the ratio.
    Raises:
        PlanError: a knob is out of range, or a pattern or name matches nothing. [prune-ratio, prune-scope,
            prune-skip]
    """
    _check(axes, ratio, scope, skip, keep or {})
    groups = [g for g in axes.groups if not g.secondary and not _skipped(g, skip)]
    widths = _local(groups, ratio) if scope == "local" else _global(groups, scores, ratio)
    widths |= dict(keep or {})
    out: dict[str, list[int]] = {}
    for group in axes.groups:
        if group.name not in widths:
            continue
        least = 0 if group.optional else max(1, math.ceil(min_width * group.size - 1e-9))
        width = _rounded(widths[group.name], multiple, least=least, size=group.size)
        if width < group.size:
            out[group.name] = best(scores[group.name], width)
    return out


def best(scores: np.ndarray[tuple[int], np.dtype[np.float64]], count: int) -> list[int]:
    """Indices of the `count` highest scores, in rising order; of equal scores the earlier stays."""
    return sorted(np.argsort(-scores, kind="stable")[:count].tolist())


def _rounded(width: int, multiple: int, *, least: int, size: int) -> int:
    """The nearest multiple, at least `least`; the whole size where no multiple fits below it."""
    nearest = math.floor(width / multiple + 0.5) * multiple
    return min(size, max(nearest, math.ceil(least / multiple) * multiple))


def _local(groups: Sequence[Group], ratio: float) -> dict[str, int]:
    return {g.name: round(g.size * (1 - ratio)) for g in groups}


def _global(groups: Sequence[Group], scores: Scores, ratio: float) -> dict[str, int]:
    if not groups:
        return {}
    every = np.sort(np.concatenate([scores[g.name] for g in groups]))
    threshold = every[min(len(every) - 1, int(ratio * len(every)))]
    return {g.name: int((scores[g.name] >= threshold).sum()) for g in groups}


def _skipped(group: Group, skip: Sequence[str]) -> bool:
    names = {group.name, *(name for name, _ in group.members)}
    return any(fnmatch.fnmatch(name, pattern) for name in names for pattern in skip)


def _check(axes: Axes, ratio: float, scope: str, skip: Sequence[str], keep: Mapping[str, int]) -> None:
    if not 0 <= ratio < 1:
        raise PlanError(
            f"prune: ratio is the share of channels that goes, from 0 to below 1, got {ratio}.",
            code="prune-ratio",
        )
    if scope not in ("local", "global"):
        raise PlanError(f"prune: scope must be local or global, got {scope!r}.", code="prune-scope")
    for pattern in skip:
        if not any(_skipped(group, [pattern]) for group in axes.groups):
            raise PlanError(
                f"prune: skip pattern {pattern!r} matches no parameter of a prunable group; "
                "`niwaki doctor --groups` lists them.",
                code="prune-skip",
            )
    unknown = set(keep) - {group.name for group in axes.groups}
    if unknown:
        raise PlanError(
            f"prune: no group named {sorted(unknown)[0]!r}; `niwaki doctor --groups` lists them.",
            code="prune-skip",
        )
