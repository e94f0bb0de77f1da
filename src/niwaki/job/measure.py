"""What a run measures: scores on val and test, file sizes, and latencies in one interleaved run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from niwaki import evaluate, runtimes, tally, timing
from niwaki.cost import Budget, Cost

if TYPE_CHECKING:
    from torch import nn

    from niwaki.job.work import Work

Predict = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
Timing = dict[str, dict[str, Any]]

REFERENCE = "baseline"
"""The name of the uncompressed float export in every timing: ratios are to it."""
QUICK, FULL = 1.0, 3.0
"""Seconds of an interleaved run: to steer a search, and for a figure that is reported."""
SAMPLE_MS = 2.0
"""A sample lasts about this long: many calls, yet shorter than the slices in which a busy machine
takes the core away, so that most pairs are undisturbed and their median is steady."""
ROUNDS = (15, 400)
DISTURBED = 1.3
"""A sample this much above the fastest tenth was shared with another process: its round is left out."""
AGAIN = 4
"""A default export that misses its limit is timed at most so many times, all samples counted."""


def scores(work: Work, name: str, predict: Callable[[], Predict]) -> dict[str, Any]:
    """`val` and `test` scores of a predictor, its predictions and its calibration error on test; stored as
    stage `scores-NAME`."""

    def make() -> dict[str, Any]:
        run = predict()
        out: dict[str, Any] = {}
        for split in ("val", "test"):
            found = evaluate.tally(run, getattr(work.data, split), work.spec, work.task)
            out[split] = found.score()
            out[f"predicted_{split}"] = found.kept
            out[f"recalls_{split}"] = found.recalls()
            out[f"calibration_{split}"] = found.calibration()
        return out

    stored: dict[str, Any] = work.folder.once(f"scores-{name}", make)
    return stored


def module_scores(work: Work, name: str, model: nn.Module) -> dict[str, Any]:
    """`scores` of a torch model."""
    return scores(work, name, lambda: evaluate.predictor(model, work.spec, work.task))


def file_scores(work: Work, name: str, path: Path) -> dict[str, Any]:
    """`scores` of an exported file, run on its runtime."""
    return scores(work, name, lambda: runtimes.load("onnx").open(path, threads=work.arguments.threads))


def flipped(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Share of test predictions, of images or of their pixels, that differ between two stages' scores, 0..1."""
    return tally.flipped(one["predicted_test"], other["predicted_test"])


def time_files(
    work: Work,
    key: str,
    paths: Mapping[str, Path],
    *,
    seconds: float,
    until: Callable[[Timing], bool] = lambda _: True,
) -> Timing:
    """For each file `ms` (median), `p90` and `ratio` to `paths["baseline"]`, journaled under `key`.

    Args:
        seconds: how long the run takes, about.
        until: given the timing so far, whether it can stand; else it goes on, all samples counted.
    """

    def decide() -> Timing:
        pooled: dict[str, list[float]] = {}
        for _ in range(AGAIN):
            found = interleaved(work, paths, seconds=seconds, pooled=pooled)
            if until(found):
                break
        return found

    found: Timing = work.folder.journal.decide(key, decide)
    return found


def interleaved(
    work: Work,
    paths: Mapping[str, Path],
    *,
    seconds: float,
    pooled: dict[str, list[float]] | None = None,
) -> Timing:
    """`timed` with the run's first training image and threads."""
    image = work.data.train.batch([0], work.spec)
    return timed(paths, image, threads=work.arguments.threads, seconds=seconds, pooled=pooled)


def timed(
    paths: Mapping[str, Path],
    image: npt.NDArray[np.uint8],
    *,
    threads: int,
    seconds: float,
    pooled: dict[str, list[float]] | None = None,
) -> Timing:
    """One interleaved run of files, one image a call: `{name: {"ms", "p90", "ratio", "quiet"}}`.

    Args:
        paths: files by name; ratios are to `REFERENCE` among them.
        image: uint8 `[1, H, W, C]`.
        pooled: earlier samples by name, which count too; the new ones are added to it.
    """
    load = runtimes.load("onnx")
    calls = {name: _call(load.open(path, threads=threads), image) for name, path in paths.items()}
    pooled = {} if pooled is None else pooled
    size, rounds = _plan(calls, seconds)
    taken = timing.interleave(calls, rounds=rounds, calls_per_sample=size)
    for name, samples in taken.items():
        pooled.setdefault(name, []).extend(map(float, samples))
    return _summary(pooled)


def _plan(calls: Mapping[str, Callable[[], object]], seconds: float) -> tuple[int, int]:
    """Calls a sample and rounds that fill about that many seconds."""
    once = timing.interleave(calls, rounds=5, calls_per_sample=3, warmup=3)
    each = {name: float(np.median(samples)) for name, samples in once.items()}
    size = max(1, min(100, round(SAMPLE_MS / max(each.values()))))
    rounds = round(seconds * 1e3 / (size * sum(each.values())))
    return size, max(ROUNDS[0], min(ROUNDS[1], rounds))


def _call(session: Predict, image: npt.NDArray[np.uint8]) -> Callable[[], object]:
    return lambda: session(image)


def _summary(pooled: Mapping[str, list[float]]) -> Timing:
    """Medians and ratios over the rounds in which the machine was quiet."""
    taken = {name: np.asarray(samples) for name, samples in pooled.items()}
    quiet = {name: samples <= DISTURBED * np.quantile(samples, 0.1) for name, samples in taken.items()}
    reference = taken[REFERENCE]
    found = {}
    for name, samples in taken.items():
        both = quiet[name] & quiet[REFERENCE]
        both = both if both.sum() >= ROUNDS[0] else np.ones_like(both)
        found[name] = {
            "ms": float(np.median(samples[quiet[name]])),
            "p90": float(np.quantile(samples, 0.9)),
            "ratio": dict(timing.ratio(samples[both], reference[both])),
            "quiet": float(both.mean()),
        }
    return found


def got(budget: Budget, cost: Cost, baseline: Cost, timed: Mapping[str, Any] | None) -> float:
    """A cost in the budget's own terms; a relative latency is the interleaved ratio, not one of medians."""
    if budget.kind == "latency" and budget.relative and timed is not None:
        return float(timed["ratio"]["median"])
    return budget.got(cost, baseline)
