"""One artifact on every runtime it is exported for: parity, accuracy, speed, start-up, size and memory.

Times are taken in one process, all runtimes in turns (timing.interleave); start-up and memory in a fresh
process each (bench_start.py). Imports no torch, unless torch is there to give the reference.
Shape letters: N images, H W pixels, C channels, K classes.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from niwaki import evaluate, metrics, timing
from niwaki.artifact import Artifact
from niwaki.errors import ArtifactError, NiwakiError
from niwaki.runtimes.limits import compare

if TYPE_CHECKING:
    from niwaki.data import Samples

Floats = npt.NDArray[np.float32]
SAMPLE_MS = 20.0
"""What one timed sample should take at least, so that the clock's own noise does not show."""
BASE = "onnx:float32"
MEMORY_BYTES = 2 * 10**9
"""What the answers of all exports and of the model may hold together; masks of many images would hold more."""


def measure(
    artifact: Artifact,
    *,
    data: Samples | None = None,
    threads: int = 1,
    rounds: int = 20,
    builder: Callable[[], Any] | None = None,
) -> dict[str, Any]:
    """What every export of an artifact costs and gives here.

    Args:
        data: images with labels, for accuracy and agreement; without them 64 random images and no accuracy.
        threads: cores each runtime may use for one call.
        rounds: timed samples of each.
        builder: makes the model, where the artifact was built by own code (the reference is then torch).
    Returns:
        `runtimes` {"RUNTIME:PRECISION": {"agreement", "max_error", "accuracy", "ms", "p90_ms", "start_ms",
        "mb", "peak_mb"}}: agreement and largest error of a probability against the reference, milliseconds
        for one image, from a fresh process's first line to its first answer, megabytes of file, and of
        memory at most; `reference`; `images` (of `of_images`: as many as fit into memory);
        `failed` {name: why it does not run here}; `fastest`
        {"name", "against", "ratio" {"median", "low", "high"}}; `slower` [int8 exports that are slower than
        the same runtime's float32]; `same_numbers` {name: agreement with onnx:int8, whose scales it has};
        `threads`, `cpu`, `isa`.
    Raises:
        ArtifactError: nothing of it runs here. [artifact-export]
    """
    names = {f"{runtime}:{p}": (runtime, p) for runtime, made in artifact.exports.items() for p in made}
    failed: dict[str, str] = {}
    sessions = _kept(
        lambda name: artifact.session(names[name][0], precision=names[name][1], threads=threads), names, failed
    )
    if not sessions:
        raise _nothing(artifact, failed)
    there = 64 if data is None else len(data)
    data = _within(artifact, data, answers=len(sessions) + 1)
    images = _images(artifact, data, answers=len(sessions) + 1)
    given = _kept(lambda name: _answers(sessions[name], images), sessions, failed)
    fresh = _kept(lambda name: start(artifact, *names[name], threads=threads), given, failed)
    taken = _timed(artifact, {name: sessions[name] for name in fresh}, rounds, threads, failed)
    if not taken:
        raise _nothing(artifact, failed)
    given = {name: given[name] for name in taken}
    reference, wanted = _reference(artifact, given, images, builder)
    true: Any = None if data is None else data.targets(range(len(data)), artifact.spec)
    rows, threshold = {}, getattr(artifact.task, "threshold", None)
    for name in taken:
        runtime, precision = names[name]
        found = compare(wanted, given[name], precision, threshold=threshold)
        rows[name] = {
            "agreement": found.agreement,
            "max_error": found.error,
            "accuracy": None if data is None else metrics.main(artifact.task.score(given[name], true)),
            "ms": float(np.median(taken[name])),
            "p90_ms": float(np.quantile(taken[name], 0.9)),
            "start_ms": fresh[name]["start_ms"],
            "mb": artifact.exports[runtime][precision]["bytes"] / 1e6,
            "peak_mb": fresh[name]["peak_mb"],
        }
    return {
        "runtimes": rows,
        "reference": reference,
        "images": len(images),
        "of_images": there,
        "failed": failed,
        "fastest": _fastest(taken),
        "slower": _slower(taken),
        "same_numbers": _same_numbers(given, threshold),
        "threads": threads,
        "cpu": timing.cpu(),
        "isa": timing.isa(),
    }


def start(artifact: Artifact, runtime: str, precision: str, *, threads: int = 1) -> dict[str, float]:
    """`start_ms` from import to the first answer, and `peak_mb` of memory, of a fresh process that runs it.

    Raises:
        ArtifactError: the process failed; its last line is given. [artifact-export]
    """
    words = [str(artifact.path), runtime, precision, str(threads)]
    done = subprocess.run(
        [sys.executable, "-m", "niwaki.bench_start", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        says = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ArtifactError(
            f"{artifact.path.name}: {runtime}:{precision} ended with {done.returncode} in its own process: "
            f"{says[:200]}. Export it again.",
            code="artifact-export",
        )
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _nothing(artifact: Artifact, failed: dict[str, str]) -> ArtifactError:
    reasons = "; ".join(f"{name}: {why}" for name, why in failed.items()) or "it has none"
    return ArtifactError(
        f"{artifact.path.name}: no export runs here ({reasons}). Add one: niwaki export.",
        code="artifact-export",
    )


def _kept(make: Callable[[str], Any], names: Iterable[str], failed: dict[str, str]) -> dict[str, Any]:
    """What is made of each name; those where that fails go to `failed`, with the reason, and stop no other."""
    found = {}
    for name in names:
        try:
            found[name] = make(name)
        except NiwakiError as error:
            failed[name] = str(error)
    return found


def _within(artifact: Artifact, data: Samples | None, *, answers: int) -> Samples | None:
    """As many of the images as `answers` answers to each leave room for."""
    return None if data is None else data.take(_room(artifact, answers))


def _room(artifact: Artifact, answers: int) -> int:
    one = 4 * answers * math.prod(artifact.task.shape(artifact.spec.size_hw))
    return max(1, MEMORY_BYTES // one)


def _images(artifact: Artifact, data: Samples | None, *, answers: int) -> npt.NDArray[np.uint8]:
    """The data's images; without data random ones, as many as there is room for their answers."""
    if data is not None:
        return data.batch(range(len(data)), artifact.spec)
    shape = (min(64, _room(artifact, answers)), *artifact.spec.size_hw, artifact.spec.channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _reference(
    artifact: Artifact, given: dict[str, Floats], images: npt.NDArray[np.uint8], builder: Any
) -> tuple[str, Floats]:
    """Name and answers of what the others are compared with: the torch model, else the float32 ONNX file."""
    try:
        predict = evaluate.predictor(artifact.model(builder), artifact.spec, artifact.task)
        return "the torch model", _answers(predict, images)
    except NiwakiError:
        name = BASE if BASE in given else next(iter(given))
        return name, given[name]


def _answers(predict: Any, images: npt.NDArray[np.uint8]) -> Floats:
    """Probabilities float32 `[N, K]`, in batches of 48, whose last is seldom whole."""
    return np.concatenate([predict(images[at : at + 48]) for at in range(0, len(images), 48)])


def _timed(
    artifact: Artifact, sessions: dict[str, Any], rounds: int, threads: int, failed: dict[str, str]
) -> dict[str, npt.NDArray[np.float64]]:
    """Milliseconds of each session; one that fails goes to `failed`, and the others are timed anew."""
    while sessions:
        at = [""]
        try:
            return _interleaved(artifact, sessions, rounds, threads, at)
        except NiwakiError as error:
            failed[at[0]] = str(error)
            sessions = {name: one for name, one in sessions.items() if name != at[0]}
    return {}


def _interleaved(
    artifact: Artifact, sessions: dict[str, Any], rounds: int, threads: int, at: list[str]
) -> dict[str, npt.NDArray[np.float64]]:
    """The same; `at` holds the name of the one that runs."""
    shape = (1, *artifact.spec.size_hw, artifact.spec.channels)
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def call(name: str) -> object:
        at[0] = name
        return sessions[name](image)

    calls = {name: partial(call, name) for name in sessions}
    once = timing.interleave(calls, rounds=3, calls_per_sample=2, warmup=3)
    count = int(np.clip(SAMPLE_MS / min(float(np.median(ms)) for ms in once.values()), 1, 100))
    # one thread waits for nobody; several spin after a call, in some runtimes, and so disturb the next one
    return timing.interleave(calls, rounds=rounds, calls_per_sample=count, warmup=2, apart=threads > 1)


def _fastest(taken: dict[str, npt.NDArray[np.float64]]) -> dict[str, Any]:
    """The name with the smallest median, and its ratio to float32 of ONNX Runtime (or the first there is). An
    int8 that does not beat its own float32 is not chosen.
    """
    slower = _slower(taken)
    name = min((one for one in taken if one not in slower), key=lambda one: float(np.median(taken[one])))
    against = BASE if BASE in taken else next(iter(taken))
    return {"name": name, "against": against, "ratio": timing.ratio(taken[name], taken[against])}


def _slower(taken: dict[str, npt.NDArray[np.float64]]) -> list[str]:
    """int8 exports that do not beat their own runtime's float32: the ratio's interval does not lie below 1."""
    pairs = {name: f"{name.partition(':')[0]}:float32" for name in taken if name.endswith(":int8")}
    return [
        n for n, base in pairs.items() if base in taken and timing.ratio(taken[n], taken[base])["high"] >= 1
    ]


def _same_numbers(given: dict[str, Floats], threshold: float | None = None) -> dict[str, float]:
    """Runtimes that run the very scales and zero points of onnx:int8, and how often they agree with it."""
    if "onnx:int8" not in given:
        return {}
    same = [name for name in ("openvino:int8",) if name in given]
    return {
        name: compare(given["onnx:int8"], given[name], "int8", threshold=threshold).agreement for name in same
    }
