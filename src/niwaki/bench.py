"""Which of two artifacts is faster here, and whether that can be told at all. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from niwaki import timing
from niwaki.artifact import Artifact
from niwaki.qdq import processors


def compare(
    a: Artifact | str | Path,
    b: Artifact | str | Path,
    *,
    threads: int = 1,
    rounds: int = 30,
    calls_per_sample: int = 100,
    runtime: str = "onnx",
) -> dict[str, Any]:
    """How long one image takes in A and in B, each by its default export, interleaved.

    Args:
        a, b: artifacts or their folders.
        threads: cores the runtime may use for one call.
        rounds: samples of each, one A and one B a round; a sample is the mean of
            `calls_per_sample` calls.
    Returns:
        `ratio` {"median", "low", "high"} of A/B (below 1: A is faster), `ms` {"a", "b"} (medians),
        `p90` {"a", "b"}, `precision` {"a", "b"}, `verdict` (a sentence), `threads`, `cpu`, `isa`, and
        `warnings`: where an int8 file is not safe for this CPU's instruction sets.
    Raises:
        ArtifactError, RuntimeFailed: one of them cannot be opened or run.
    """
    opened = {name: _opened(one) for name, one in (("a", a), ("b", b))}
    calls = {name: _call(one, runtime, threads) for name, one in opened.items()}
    taken = timing.interleave(calls, rounds=rounds, calls_per_sample=calls_per_sample, apart=threads > 1)
    found = timing.ratio(taken["a"], taken["b"])
    return {
        "ratio": found,
        "ms": {name: float(np.median(samples)) for name, samples in taken.items()},
        "p90": {name: float(np.quantile(samples, 0.9)) for name, samples in taken.items()},
        "precision": {name: one.default for name, one in opened.items()},
        "verdict": verdict(found),
        "threads": threads,
        "cpu": timing.cpu(),
        "isa": timing.isa(),
        "warnings": [line for one in opened.values() for line in warnings(one, runtime=runtime)],
    }


def warnings(artifact: Artifact, *, isa: list[str] | None = None, runtime: str | None = None) -> list[str]:
    """What this CPU does otherwise than the artifact's int8 files say, a line each; [] where nothing.

    Args:
        isa: another CPU's instruction sets, as `timing.isa` names them.
        runtime: only its file; None is all of them.
    """
    isa, lines = timing.isa() if isa is None else isa, []
    for name, says in (("onnx", processors.exact), ("openvino", processors.saturating)):
        entry = artifact.exports.get(name, {}).get("int8")
        if entry and runtime in (None, name):
            lines.append(says(artifact.path.name, entry, isa))
    return [line for line in lines if line]


def verdict(ratio: dict[str, float]) -> str:
    """A sentence on the ratio A/B: no gain is said whenever its interval does not lie below 1."""
    low, high = ratio["low"], ratio["high"]
    interval = f"A/B {ratio['median']:.3f}, 95 % interval {low:.3f} to {high:.3f}"
    if high < 1:
        return f"A is faster: {interval}."
    if low > 1:
        return f"no gain: A is slower ({interval})."
    return f"no gain: the difference cannot be told from none ({interval})."


def _opened(one: Artifact | str | Path) -> Artifact:
    return one if isinstance(one, Artifact) else Artifact.open(one)


def _call(artifact: Artifact, runtime: str, threads: int) -> Callable[[], object]:
    """One image through the artifact's default export."""
    session = artifact.session(runtime, threads=threads)
    height, width = artifact.spec.size_hw
    shape = (1, height, width, artifact.spec.channels)
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return lambda: session(image)
