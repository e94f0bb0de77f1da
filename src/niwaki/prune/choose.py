"""Which atoms stay: from scores and ratios, under minimum widths and multiples. Pure counting, no model."""

from __future__ import annotations

import fnmatch
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from niwaki.errors import PlanError
from niwaki.prune.alike import keys
from niwaki.prune.scores import Scores
from niwaki.surgery import Axes, Group

SCOPES = ("local", "global", "isomorphic")
"""Local: each group by itself. Global: all together. Isomorphic: all that play the same part together."""

Ratios = Mapping[str, float] | Sequence[str]
"""`{"layer3.*": 0.7}`, or as TOML has it, `["layer3.*=0.7"]`."""


def choose(
    axes: Axes,
    scores: Scores,
    *,
    ratio: float,
    scope: str = "local",
    ratios: Ratios = (),
    multiple: int = 1,
    min_width: float = 0.1,
    skip: Sequence[str] = (),
    keep: Mapping[str, int] | None = None,
) -> dict[str, list[int]]:
    """`{group: kept atoms}` for every group that gets smaller.

    Args:
        ratio: share of the atoms that go, 0 to below 1.
        scope: one of `SCOPES`; "local": that share of each group; "global": the lowest scores of all groups
            together; "isomorphic": the lowest of all groups whose key (`alike.keys`) is the same.
        ratios: other shares for the groups whose name a pattern matches, the first that does; those groups
            are ranked by themselves. A group has the name of the first parameter that makes its channels
            (`niwaki doctor --groups`); a secondary group must be named in full.
        multiple: kept counts are rounded to the nearest multiple of it.
        min_width: share of a group that stays at least, and never fewer than one atom, unless all its axes
            have other channels too (zero padding of a shortcut): such a group may go entirely.
        skip: name patterns of groups left whole, matched against any member's parameter name.
        keep: exact widths by group name, which override the ratio, `multiple` and `min_width`.
    Raises:
        PlanError: a knob is out of range, or a pattern or name matches nothing. [prune-ratio, prune-scope,
            prune-skip, prune-width]
    """
    patterns = _parsed(ratios)
    _check(axes, [ratio, *patterns.values()], scope)
    _check_widths(axes, keep or {}, multiple, min_width)
    _check_patterns(axes, skip, patterns)
    groups = [g for g in axes.groups if not _matches(g, skip) and (not g.secondary or g.name in patterns)]
    own = {g.name: next((r for p, r in patterns.items() if _named(g, p)), None) for g in groups}
    together = _ranked_together(axes, [g for g in groups if own[g.name] is None], scope)
    widths = {g.name: round(g.size * (1 - r)) for g in groups if (r := own[g.name]) is not None}
    for ranked in together:
        widths |= _lowest(ranked, scores, ratio) if scope != "local" else _local(ranked, ratio)
    out: dict[str, list[int]] = {}
    for group in axes.groups:
        width = group.size
        if group.name in (keep or {}):
            width = (keep or {})[group.name]
        elif group.name in widths:
            least = 0 if group.optional else max(1, math.ceil(min_width * group.size - 1e-9))
            width = _rounded(widths[group.name], multiple, least=least, size=group.size)
        if width < group.size:
            out[group.name] = best(scores[group.name], width)
    return out


def _ranked_together(axes: Axes, groups: list[Group], scope: str) -> list[list[Group]]:
    if scope != "isomorphic":
        return [groups] if groups else []
    key, alike = keys(axes), defaultdict(list)
    for group in groups:
        alike[key[group.name]].append(group)
    return list(alike.values())


def best(scores: np.ndarray[tuple[int], np.dtype[np.float64]], count: int) -> list[int]:
    """Indices of the `count` highest scores, in rising order; of equal scores the earlier stays."""
    return sorted(np.argsort(-scores, kind="stable")[:count].tolist())


def _rounded(width: int, multiple: int, *, least: int, size: int) -> int:
    """The nearest multiple, at least `least`; the whole size where no multiple fits below it."""
    nearest = math.floor(width / multiple + 0.5) * multiple
    return min(size, max(nearest, math.ceil(least / multiple) * multiple))


def _local(groups: Sequence[Group], ratio: float) -> dict[str, int]:
    return {g.name: round(g.size * (1 - ratio)) for g in groups}


def _lowest(groups: Sequence[Group], scores: Scores, ratio: float) -> dict[str, int]:
    """Widths without the lowest scores of all these groups; of equal scores those placed earlier stay, and
    places are shares of a group, so that groups that are all alike lose alike."""
    every = np.concatenate([scores[g.name] for g in groups])
    places = np.concatenate([_places(scores[g.name]) for g in groups])
    owners = np.repeat(np.arange(len(groups)), [g.size for g in groups])
    order = np.lexsort((places, -every))
    stay = np.bincount(owners[order[: len(every) - int(ratio * len(every))]], minlength=len(groups))
    return {g.name: int(count) for g, count in zip(groups, stay, strict=True)}


def _places(scores: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Where each atom comes in its own group, the best first, 0 to below 1."""
    places = np.empty(len(scores))
    places[np.argsort(-scores, kind="stable")] = np.arange(len(scores)) / max(1, len(scores))
    return places


def _matches(group: Group, patterns: Sequence[str]) -> bool:
    names = {group.name, *(name for name, _ in group.members)}
    return any(fnmatch.fnmatch(name, pattern) for name in names for pattern in patterns)


def _named(group: Group, pattern: str) -> bool:
    """Whether a pattern means this group: its own name, with or without the axis, not all that read it."""
    return any(fnmatch.fnmatch(name, pattern) for name in (group.name, group.name.rpartition(":")[0]))


def _parsed(ratios: Ratios) -> dict[str, float]:
    """Pattern to ratio, from either form."""
    if isinstance(ratios, Mapping):
        return dict(ratios)
    out = {}
    for entry in ratios:
        pattern, _, value = str(entry).rpartition("=")
        try:
            out[pattern] = float(value)
        except ValueError:
            pattern = ""
        if not pattern:
            raise PlanError(
                f"prune: ratios holds {entry!r}; expected entries such as 'layer3.*=0.7', a name pattern and "
                "the share that goes.",
                code="prune-ratio",
            )
    return out


def _check_patterns(axes: Axes, skip: Sequence[str], patterns: Iterable[str]) -> None:
    idle = [p for p in skip if not any(_matches(group, [p]) for group in axes.groups)]
    idle += [p for p in patterns if not any(_named(group, p) for group in axes.groups)]
    if idle:
        raise PlanError(
            f"prune: pattern {idle[0]!r} matches no parameter of a prunable group; "
            "`niwaki doctor --groups` lists them.",
            code="prune-skip",
        )


def _check(axes: Axes, ratios: Sequence[float], scope: str) -> None:
    for ratio in ratios:
        if not 0 <= ratio < 1:
            raise PlanError(
                f"prune: ratio is the share of channels that goes, from 0 to below 1, got {ratio}.",
                code="prune-ratio",
            )
    if scope not in SCOPES:
        raise PlanError(
            f"prune: scope must be one of {', '.join(SCOPES)}, got {scope!r}; 'sensitivity' needs a budget and "
            "labelled images: niwaki fit, or search.allocate.",
            code="prune-scope",
        )


def _check_widths(axes: Axes, keep: Mapping[str, int], multiple: int, min_width: float) -> None:
    groups = {group.name: group for group in axes.groups}
    unknown = set(keep) - set(groups)
    if unknown:
        raise PlanError(
            f"prune: no group named {sorted(unknown)[0]!r}; `niwaki doctor --groups` lists them.",
            code="prune-skip",
        )
    for name, width in keep.items():
        least = 0 if groups[name].optional else 1
        if not least <= width <= groups[name].size:
            raise PlanError(
                f"prune: widths asks for {width} of {name}; expected {least} to {groups[name].size}.",
                code="prune-width",
            )
    if multiple < 1 or not 0 <= min_width <= 1:
        raise PlanError(
            f"prune: multiple is at least 1 and min_width a share from 0 to 1, got {multiple} and {min_width}.",
            code="prune-width",
        )
