"""A ladder of recipes for int8 in order of cost: each is measured, kept where it helps, and the last one named.

It knows no files: `score(recipe)` makes what a recipe says and measures it on val. docs/quantization.md tells
what the rungs do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from niwaki.qdq.recipe import CALIBRATIONS, Recipe

SLACK = 1e-9
FLOAT = "float layers"
"""The last rung: the most sensitive nodes stay float, twice as many sets of them each time."""


@dataclass(frozen=True)
class Rung:
    """One change of a recipe."""

    name: str
    change: Mapping[str, Any] = field(default_factory=dict)


RUNGS = (
    Rung("min-max"),
    Rung("percentile", {"calibration": "percentile"}),
    Rung("mse", {"calibration": "mse"}),
    Rung("entropy", {"calibration": "entropy"}),
    Rung("bias correction", {"correct_bias": True}),
    Rung("equalisation", {"equalise": True}),
    Rung("smoothing", {"smooth": 0.5}),
    Rung("learned rounding", {"rounding": "learned"}),
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One measured recipe: its rung, its score and what that loses against float, both 0..1."""

    rung: str
    recipe: Recipe
    score: float
    drop: float
    kept: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {**vars(self), "recipe": self.recipe.to_json()}


@dataclass(frozen=True, kw_only=True)
class Climbed:
    """Where a climb ended.

    Args:
        recipe: the best that was found.
        rung: that brought the score within the limit; None where none did.
        held: whether the drop is within the limit.
        steps: everything measured, in order.
    """

    recipe: Recipe
    rung: str | None
    score: float
    drop: float
    held: bool
    steps: tuple[Step, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {
            **vars(self),
            "recipe": self.recipe.to_json(),
            "steps": [step.to_json() for step in self.steps],
        }

    def says(self) -> str:
        """One sentence: the rung that was enough, or that none was."""
        if self.held:
            kept = [step.rung for step in self.steps if step.kept and step.rung != self.rung]
            gone = {
                name
                for name in CALIBRATIONS
                if name in ("min-max", self.rung) or name != self.recipe.calibration
            }
            built = [name for name in dict.fromkeys(kept) if name not in gone]
            on = f" (on top of {', '.join(built)})" if built else ""
            return f"{self.rung} is enough{on}: it loses {self.drop:.2%}"
        return f"no rung is enough: the best loses {self.drop:.2%}"


def climb(
    score: Callable[[Recipe], float],
    *,
    reference: float,
    max_drop: float,
    sensitive: Callable[[Recipe], Sequence[Sequence[str]]] | None = None,
    rungs: Sequence[Rung] = RUNGS,
    start: Recipe | None = None,
    show: Callable[[Step], object] | None = None,
) -> Climbed:
    """The first recipe within the limit, or the best there is; all that was measured on the way.

    A rung is tried on top of those kept before it, and kept where it scores more than they did. The last one
    leaves nodes in float: 1, 2, 4, ... of the most sensitive sets, up to half of them.

    Args:
        score: of a recipe, measured on val, 0..1.
        reference: the float model's, measured alike.
        max_drop: the limit, as a difference of scores.
        sensitive: sets of nodes that may stay float, the one that helps most first; None leaves out the
            last rung.
        start: what all recipes have in common; None is the default.
        show: called with each step as it is done.
    """
    steps: list[Step] = []
    best = start or Recipe()

    def tried(name: str, recipe: Recipe, least: float) -> Step:
        began = time.perf_counter()
        got = score(recipe)
        step = Step(
            rung=name,
            recipe=recipe,
            score=got,
            drop=reference - got,
            kept=got > least,
            seconds=time.perf_counter() - began,
        )
        steps.append(step)
        if show is not None:
            show(step)
        return step

    top = -1.0
    for name, recipes in _candidates(rungs, sensitive):
        for change in recipes(best):
            step = tried(name, replace(best, **change), top)
            if step.kept:
                best, top = step.recipe, step.score
            if step.kept and step.drop <= max_drop + SLACK:
                return _climbed(steps, best, name)
    return _climbed(steps, best, None)


Changes = Callable[[Recipe], list[dict[str, Any]]]


def _candidates(
    rungs: Sequence[Rung], sensitive: Callable[[Recipe], Sequence[Sequence[str]]] | None
) -> list[tuple[str, Changes]]:
    """Each rung's name and, given the best recipe so far, the changes that it tries one after the other."""

    def fixed(rung: Rung) -> Changes:
        return lambda best: [dict(rung.change)]

    def floats(best: Recipe) -> list[dict[str, Any]]:
        order = list(sensitive(best)) if sensitive is not None else []
        counts = [2**k for k in range(len(order).bit_length()) if 2**k <= max(1, len(order) // 2)]
        named = [[name for some in order[:count] for name in some] for count in counts]
        return [{"float_nodes": tuple(dict.fromkeys([*best.float_nodes, *names]))} for names in named]

    last = [(FLOAT, floats)] if sensitive is not None else []
    return [*((rung.name, fixed(rung)) for rung in rungs), *last]


def _climbed(steps: Sequence[Step], best: Recipe, rung: str | None) -> Climbed:
    held = next(step for step in reversed(steps) if step.recipe == best and step.kept)
    return Climbed(
        recipe=best, rung=rung, score=held.score, drop=held.drop, held=rung is not None, steps=tuple(steps)
    )
