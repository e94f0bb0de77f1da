"""Bits for each layer of an int8 file after training: weights of 4 or 8 bits (or float), within a size.

    files = Files(model, spec=spec, task=task, calib=images, val=held.val)
    found = mixed.search(files, size=0.6)           # at most 60 % of the bytes of the plain int8 file
    files.maker.make(found.chosen.recipe)

What each layer loses alone is measured (`Maker.by_bits`); a knapsack over the sums of that gives the choices
(search/precision.py), and a file of every choice is made and measured. The bytes are the files' own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from niwaki.errors import BudgetError
from niwaki.qdq.recipe import FLOAT_BITS, Recipe
from niwaki.qdq.sensitivity import title
from niwaki.search import precision

if TYPE_CHECKING:
    from niwaki.search.int8_files import Files

POINTS = 5
"""Sizes between the smallest file and the plain int8 one that are measured beside the one asked for."""
_TRIES = 6
LEAST = 1e-9
"""Nats by which fewer bits lose more at least."""

Bits = dict[str, int]
"""Of each layer's weights, by their name."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A measured file: its recipe, the bits of its layers by their names in the model, its bytes, their share
    of the plain int8 file's, and what val says of it (0..1, `noise` the standard error of `drop`)."""

    recipe: Recipe
    bits: dict[str, int]
    bytes: int
    share: float
    score: float
    drop: float
    noise: float

    def count(self, bits: int) -> int:
        """How many layers have so many bits."""
        return sum(own == bits for own in self.bits.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {**vars(self), "recipe": self.recipe.to_json()}


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """The measured files.

    Args:
        chosen: of least expected loss within the size that was asked for.
        points: all of them, smallest first; plain int8 has the share 1.
        front: those that no other beats in both bytes and score.
        losses: nats that each layer loses alone, by its name and bits.
        reference: the float model's score.
        size: what was asked for, a share of the plain int8 file's bytes.
    """

    chosen: Point
    points: tuple[Point, ...]
    losses: dict[str, dict[int, float]]
    reference: float
    size: float

    @property
    def front(self) -> tuple[Point, ...]:
        """The points that no other beats in both bytes and score, smallest first."""
        best: list[Point] = []
        for point in self.points:
            if not best or point.score > best[-1].score:
                best.append(point)
        return tuple(best)

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {
            "size": self.size,
            "reference": self.reference,
            "chosen": self.chosen.to_json(),
            "points": [point.to_json() for point in self.points],
            "front": [point.share for point in self.front],
            "losses": {name: {str(bits): kl for bits, kl in own.items()} for name, own in self.losses.items()},
        }


def search(
    files: Files,
    *,
    size: float,
    start: Recipe | None = None,
    floats: bool = False,
    points: int = POINTS,
    show: Callable[[Point], object] | None = None,
) -> Mixed:
    """Files of mixed bits from the smallest to plain int8, and the best within `size`.

    Args:
        size: share of the plain int8 file's bytes, above 0.
        start: what all recipes have in common; None is the default.
        floats: layers may stay float too, which costs time.
        points: sizes measured beside that and plain int8.
        show: called with each point as it is measured.
    Raises:
        BudgetError: not even 4 bits for all layers are that small. [budget-unreachable]
    """
    start = start or Recipe()
    losses, sizes = files.maker.by_bits(start)
    losses = {weight: _falling(own, floats=floats) for weight, own in losses.items()}
    plain = files.bytes(start)
    readers = files.maker.readers(start)

    def recipe(bits: Bits) -> Recipe:
        return _recipe(start, {node: own for weight, own in bits.items() for node in readers[weight]})

    chosen = _within(lambda bits: files.bytes(recipe(bits)), sizes, losses, size * plain, plain)
    least, most = (sum(own[bits] for own in sizes.values()) for bits in (4, 8))
    limits = np.linspace(least, most, points + 1)[:-1]
    found = [precision.within(sizes, losses, limit=float(limit)).bits for limit in limits]
    measured: dict[tuple[tuple[str, int], ...], Point] = {}
    for bits in (chosen, dict.fromkeys(losses, 8), *found):
        if (key := tuple(bits.items())) not in measured:
            measured[key] = _point(files, recipe(bits), bits, plain)
            if show is not None:
                show(measured[key])
    return Mixed(
        chosen=measured[tuple(chosen.items())],
        points=tuple(sorted(measured.values(), key=lambda one: one.bytes)),
        losses={title(weight): own for weight, own in losses.items()},
        reference=files.reference,
        size=size,
    )


def _falling(losses: Mapping[int, float], *, floats: bool) -> dict[int, float]:
    """What a layer loses by its bits; never less with fewer, which only luck of a few images would say."""
    found = {FLOAT_BITS: losses[FLOAT_BITS]} if floats else {}
    eight = max(losses[8], losses[FLOAT_BITS] + LEAST)
    return {4: max(losses[4], eight + LEAST), 8: eight, **found}


def _recipe(start: Recipe, bits: Bits) -> Recipe:
    four = {node: 4 for node, own in bits.items() if own == 4}
    floats = tuple(node for node, own in bits.items() if own == FLOAT_BITS)
    return replace(start, node_bits=four or None, float_nodes=(*start.float_nodes, *floats))


def _point(files: Files, recipe: Recipe, bits: Bits, plain: int) -> Point:
    found = files.measure(recipe)
    return Point(
        recipe=recipe,
        bits={title(weight): own for weight, own in bits.items()},
        bytes=found.bytes,
        share=found.bytes / plain,
        score=found.score,
        drop=files.reference - found.score,
        noise=found.noise,
    )


def _within(
    true_bytes: Callable[[Bits], int],
    sizes: precision.Sizes,
    losses: precision.Losses,
    limit: float,
    plain: int,
) -> Bits:
    """The bits of least loss whose file has at most `limit` bytes, where the plain int8 file has `plain`.

    A file of mixed bits has some nodes and names more, so what it has too much is taken off and asked again.
    """
    room = limit - plain + sum(own[8] for own in sizes.values())
    least = sum(own[4] for own in sizes.values())
    for _ in range(_TRIES):
        if room < least:
            break
        bits = precision.within(sizes, losses, limit=room).bits
        got = true_bytes(bits)
        if got <= limit:
            return bits
        room -= got - limit
    smallest = true_bytes(dict.fromkeys(losses, 4))
    if smallest <= limit:
        return dict.fromkeys(losses, 4)
    raise BudgetError(
        f"mixed precision: {limit / plain:.1%} of the int8 file's {plain / 1e6:.3f} MB was asked for, and with "
        f"4 bits for all layers it has {smallest / plain:.1%} on this runtime. Allow more, or prune the model "
        "first (niwaki fit --budget).",
        code="budget-unreachable",
    )
