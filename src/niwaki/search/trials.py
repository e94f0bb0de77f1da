"""Settings tried one by one: spaces as plain data, orders of trying them, and the front of what was found.

    space     {"lr": Range(1e-4, 1e-2), "width": [0.5, 1.0], "model": ["niwaki:small", "timm:resnet18"]}
    setting   {"lr": 0.003, "width": 0.5, "model": "niwaki:small"}, one value of each
    trial     {"name", "setting", "epochs", "val": {"accuracy", ...}, "cost": {"macs", "params"}, ...}

What settings are worth is asked of `run(settings, epochs)`, so nothing here knows models, files or processes;
with a journal in it any walk is resumable. Lists only, no optimiser: `shared.py` has those of others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from niwaki import metrics
from niwaki.errors import PlanError

Setting = dict[str, Any]
Trial = dict[str, Any]
Run = Callable[[Sequence[Setting], int], list[Trial]]

NAMES: dict[str, Callable[[str], Any]] = {
    "augment": str,
    "batch": int,
    "ema": float,
    "lr": float,
    "model": str,
    "seed": int,
    "weight_decay": float,
    "width": float,
}
"""What can be searched over, and the type of its values."""
ETA = 3
"""Successive halving keeps one in so many at each rung."""


@dataclass(frozen=True)
class Range:
    """Every number from `low` to `high`, drawn evenly in its logarithm; both above 0."""

    low: float
    high: float

    def at(self, share: float) -> float:
        """The number that far along, 0..1."""
        return math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))


Space = Mapping[str, Sequence[Any] | Range]


def parse(words: Iterable[str]) -> dict[str, Sequence[Any] | Range]:
    """The space of words such as `lr=1e-3,3e-3`, `lr=1e-4..1e-2` and `model=niwaki:small,timm:resnet18`.

    Raises:
        PlanError: a name or a value cannot be read, or a name comes twice. [search-space]
    """
    space: dict[str, Sequence[Any] | Range] = {}
    for word in words:
        name, _, values = word.partition("=")
        if name not in NAMES or not values or name in space:
            raise PlanError(
                f"search: {word!r}: expected NAME=VALUE,VALUE or NAME=LOW..HIGH, each name once, NAME one of "
                f"{', '.join(NAMES)}.",
                code="search-space",
            )
        space[name] = _values(name, values)
    check(space)
    return space


def _values(name: str, text: str) -> Sequence[Any] | Range:
    try:
        low, dots, high = text.partition("..")
        if dots:
            return Range(float(low), float(high))
        return [NAMES[name](value) for value in text.split(",")]
    except ValueError as error:
        raise PlanError(f"search: {name}={text}: {error}.", code="search-space") from error


def check(space: Space) -> None:
    """Nothing, where every name can be searched over and every value is one of its type.

    Raises:
        PlanError: else. [search-space]
    """
    for name, values in space.items():
        if isinstance(values, Range):
            ok = NAMES.get(name) is float and name != "ema" and 0 < values.low < values.high
            expected = "two numbers, 0 < LOW < HIGH, of lr, weight_decay or width"
        else:
            ok = name in NAMES and len(values) > 0 and len(set(map(repr, values))) == len(values)
            expected = f"different values of one of {', '.join(NAMES)}"
        ok = ok and (name != "width" or _within(values))
        if not ok:
            raise PlanError(
                f"search: {name}={values}: expected {expected}; a width is a share in 0..1, 0 left out.",
                code="search-space",
            )


def _within(values: Sequence[Any] | Range) -> bool:
    ends = (values.low, values.high) if isinstance(values, Range) else values
    return all(0 < value <= 1 for value in ends)


def grid(space: Space) -> list[Setting]:
    """Every combination, the last name's values changing fastest.

    Raises:
        PlanError: a range has no end of values; sample it instead. [search-space]
    """
    ranges = [name for name, values in space.items() if isinstance(values, Range)]
    if ranges:
        raise PlanError(
            f"search: a grid over the range of {ranges[0]} has no end. Name its values, or use --by random or "
            "halving.",
            code="search-space",
        )
    rows: list[Sequence[Any]] = [list(values) for values in space.values()]  # type: ignore[arg-type]
    return [dict(zip(space, row, strict=True)) for row in itertools.product(*rows)]


def sampled(space: Space, *, count: int, seed: int = 0) -> list[Setting]:
    """`count` different settings drawn at random, fewer where the space has no more; of the seed alone."""
    draw = np.random.default_rng(seed)
    if not any(isinstance(values, Range) for values in space.values()):
        every = grid(space)
        return [every[i] for i in draw.permutation(len(every))[:count]]
    out: list[Setting] = []
    for _ in range(100 * count):  # a narrow range holds fewer numbers of four digits than were asked for
        if len(out) == count:
            break
        setting = {
            name: float(f"{values.at(draw.random()):.4g}")  # as many digits as a reader will copy
            if isinstance(values, Range)
            else values[int(draw.integers(len(values)))]
            for name, values in space.items()
        }
        if setting not in out:
            out.append(setting)
    return out


def halving(
    settings: Sequence[Setting], run: Run, *, epochs: int, cost: str = "macs", least: int = 1, eta: int = ETA
) -> list[Trial]:
    """Trials of every rung: all settings briefly, the best of them longer, the last ones for `epochs`.

    Each rung trains anew, with a learning rate that falls to zero within it: what is compared is what that many
    epochs give. The better of two trials is the one on the earlier front of cost and accuracy (of equal costs:
    the more accurate), so that a cheap network is not dropped for an expensive one that is a little better.

    Args:
        cost: `macs` or `params`.
        least: epochs of the first rung, at least.
        eta: one in so many goes on to the next rung, with so many times the epochs.
    Source: Jamieson and Talwalkar 2016, "Non-stochastic best arm identification", arXiv:1502.07943.
    """
    left, done = list(settings), []
    for rung in rungs(len(left), epochs=epochs, least=least, eta=eta):
        found = run(left, rung)
        done += found
        good = ranked([trial for trial in found if trial.get("val")], cost=cost)
        left = [trial["setting"] for trial in good[: max(1, len(left) // eta)]]
        if not left:
            break
    return done


def rungs(count: int, *, epochs: int, least: int = 1, eta: int = ETA) -> list[int]:
    """Epochs of each rung, rising to `epochs`; as many rungs as leave one setting, or reach `least`."""
    steps = max(0, math.floor(math.log(max(1, count), eta) + 1e-9))
    out = [epochs]
    while len(out) <= steps and out[0] // eta >= max(1, least):
        out.insert(0, out[0] // eta)
    return out


def accuracy(trial: Trial) -> float:
    """A trial's main score on val, which chooses."""
    return metrics.main(trial["val"])


def front(trials: Sequence[Trial], *, cost: str = "macs") -> list[Trial]:
    """The trials that no other beats in cost and accuracy on val, the cheapest first; of equals the earlier."""
    out: list[Trial] = []
    done = (trial for trial in trials if trial.get("val"))
    for trial in sorted(done, key=lambda t: (t["cost"][cost], -accuracy(t))):
        if not out or accuracy(trial) > accuracy(out[-1]):
            out.append(trial)
    return out


def ranked(trials: Sequence[Trial], *, cost: str = "macs") -> list[Trial]:
    """All trials, front by front; within one the more accurate first."""
    left, out = list(trials), []
    while left:
        best = front(left, cost=cost)
        out += sorted(best, key=lambda trial: -accuracy(trial))
        left = [trial for trial in left if not any(trial is other for other in best)]
    return out


def best(trials: Sequence[Trial], *, cost: str = "macs", limit: float | None = None) -> Trial | None:
    """The most accurate trial on val within the limit, of equals the cheapest; None if none is."""
    fits = [t for t in front(trials, cost=cost) if limit is None or t["cost"][cost] <= limit]
    return fits[-1] if fits else None
