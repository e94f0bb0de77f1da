"""A ladder of recipes for int8 in order of cost: each is measured, kept where it helps, and the last one named.

It knows no files: `measure(recipe)` makes what a recipe says and measures it on val. docs/quantization.md tells
what the rungs do.

A val split is a sample: a rung that loses 0.6 points of it, give or take 0.6, may well lose more of other
images. So a rung is enough where the loss is within the limit with 95 % certainty; where only the loss of val
itself is, the rungs that cost nothing at run time are tried too. Which of two rungs is better is told by how
far their outputs are from float's: all outputs have a part in that; a score knows only answers that change.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from niwaki.qdq.recipe import CALIBRATIONS, Recipe

SLACK = 1e-9
SURE = 1.645
"""Standard errors above the measured loss that a true loss exceeds in 5 % of all cases."""
FLOAT = "float layers"
"""The last rung: the most sensitive nodes stay float, twice as many sets of them each time."""


@dataclass(frozen=True)
class Rung:
    """One change of a recipe; `grows`: layers may get biases that had none."""

    name: str
    change: Mapping[str, Any] = field(default_factory=dict)
    grows: bool = False


RUNGS = (
    Rung("min-max"),
    Rung("percentile", {"calibration": "percentile"}),
    Rung("mse", {"calibration": "mse"}),
    Rung("entropy", {"calibration": "entropy"}),
    Rung("bias correction", {"correct_bias": True}, grows=True),
    Rung("equalisation", {"equalise": True}),
    Rung("smoothing", {"smooth": 0.5}),
    Rung("learned rounding", {"rounding": "learned"}),
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One measured recipe: its rung, its score, what that loses against float and that loss's standard error,
    all 0..1; how far its outputs are from float's, in whatever unit."""

    rung: str
    recipe: Recipe
    score: float
    drop: float
    noise: float
    distance: float
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
        noise: standard error of the drop.
        held: whether the drop is within the limit.
        sure: whether it is so with 95 % certainty.
        steps: everything measured, in order.
    """

    recipe: Recipe
    rung: str | None
    score: float
    drop: float
    noise: float
    held: bool
    sure: bool
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
            end = next(place for place, step in enumerate(self.steps) if step.recipe == self.recipe)
            kept = [step.rung for step in self.steps[:end] if step.kept]
            gone = {
                name
                for name in CALIBRATIONS
                if name in ("min-max", self.rung) or name != self.recipe.calibration
            }
            built = [name for name in dict.fromkeys(kept) if name not in gone]
            on = f" (on top of {', '.join(built)})" if built else ""
            doubt = "" if self.sure else "; val is too small to be sure of that"
            return f"{self.rung} is enough{on}: it loses {self.drop:.2%} ± {self.noise:.2%}{doubt}"
        return f"no rung is enough: the best loses {self.drop:.2%} ± {self.noise:.2%}"


def climb(
    measure: Callable[[Recipe], tuple[float, float, float]],
    *,
    reference: float,
    max_drop: float,
    sensitive: Callable[[Recipe], Sequence[Sequence[str]]] | None = None,
    rungs: Sequence[Rung] = RUNGS,
    start: Recipe | None = None,
    show: Callable[[Step], object] | None = None,
) -> Climbed:
    """The first recipe that is surely within the limit, or the best there is; all that was measured on the way.

    A rung is tried on top of those kept before it, and kept where its outputs are nearer to float's. The last
    one leaves nodes in float: 1, 2, 4, ... of the most sensitive sets, up to half of them. It makes files
    slower, so it is tried only where nothing before it is within the limit at all.

    Args:
        measure: (score, standard error of its difference to the float model's, both 0..1; distance of the
            outputs from float's) of a recipe on val.
        reference: the float model's, measured alike.
        max_drop: the limit, as a difference of scores.
        sensitive: sets of nodes that may stay float, the one that helps most first; None leaves out the
            last rung.
        start: what all recipes have in common; None is the default.
        show: called with each step as it is done.
    """
    steps: list[Step] = []
    best = start or Recipe()

    def tried(name: str, recipe: Recipe, most: float) -> Step:
        began = time.perf_counter()
        got, noise, distance = measure(recipe)
        step = Step(
            rung=name,
            recipe=recipe,
            score=got,
            drop=reference - got,
            noise=noise,
            distance=distance,
            kept=distance < most,
            seconds=time.perf_counter() - began,
        )
        steps.append(step)
        if show is not None:
            show(step)
        return step

    top: Step | None = None
    for name, recipes in _candidates(rungs, sensitive):
        if name == FLOAT and any(step.drop <= max_drop + SLACK for step in steps):
            break
        for change in recipes(best):
            step = tried(name, replace(best, **change), math.inf if top is None else top.distance)
            if step.kept:
                best, top = step.recipe, step
            if step.drop + SURE * step.noise <= max_drop + SLACK:
                return _climbed(steps, step, max_drop)
            if name == FLOAT and step.drop <= max_drop + SLACK:
                break
    return _climbed(steps, _best(steps, max_drop), max_drop)


def _best(steps: Sequence[Step], max_drop: float) -> Step:
    """Of those within the limit the nearest to float; where none is, the one that loses least."""
    held = [step for step in steps if step.drop <= max_drop + SLACK]
    return min(held, key=lambda s: s.distance) if held else min(steps, key=lambda s: (s.drop, s.distance))


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


def _climbed(steps: Sequence[Step], best: Step, max_drop: float) -> Climbed:
    held = best.drop <= max_drop + SLACK
    return Climbed(
        recipe=best.recipe,
        rung=best.rung if held else None,
        score=best.score,
        drop=best.drop,
        noise=best.noise,
        held=held,
        sure=best.drop + SURE * best.noise <= max_drop + SLACK,
        steps=tuple(steps),
    )
