"""How long calls take, measured against each other: interleaved, so that a busy machine slows both.

One sample is the mean of many calls; one round takes a sample of every name, in turns, and the next
round goes through them backwards. What is compared are the pairs of a round: their ratio is robust
against all that changes more slowly than a round.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

ISA = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
"""Instruction sets that decide how fast float and int8 run, as /proc/cpuinfo spells them."""

Floats = npt.NDArray[np.float64]


def interleave(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    calls_per_sample: int = 100,
    warmup: int = 20,
    apart: bool = False,
) -> dict[str, Floats]:
    """Milliseconds of one call, by name: float64 `[rounds]`, entry i of all names from one round.

    Args:
        rounds: samples taken of each name.
        calls_per_sample: calls that one sample is the mean of; below 100 the clock's own noise
            shows.
        warmup: calls of each name before anything is measured.
        apart: before each sample wait until all other threads stand still, then call once unmeasured.
            Threads that spin after a call (OpenMP's for 4 to 8 ms) would take the cores of whatever is next.
    """
    taken: dict[str, Floats] = {name: np.empty(rounds) for name in calls}
    for call in calls.values():
        for _ in range(warmup):
            call()
    names = list(calls)
    for turn in range(rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            if apart:
                quiet()
                calls[name]()
            taken[name][turn] = _sample(calls[name], calls_per_sample)
    return taken


def quiet(*, limit_s: float = 0.5) -> bool:
    """Whether this process came to rest: returns once no other thread of it computes, or after `limit_s`."""
    end = time.perf_counter() + limit_s
    while time.perf_counter() < end:
        if not _computes():
            return True
        time.sleep(0.0005)
    return False


def _computes(folder: Path = Path("/proc/self/task")) -> bool:
    """Whether another thread of this process runs, or would if it had a core."""
    own = str(threading.get_native_id())
    if not folder.is_dir():  # no Linux: by the processor time that passes meanwhile
        before = time.process_time()
        time.sleep(0.005)
        return time.process_time() - before > 0.001
    for task in folder.iterdir():
        try:
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it has just ended
            continue
        if task.name != own and state == "R":
            return True
    return False


def _sample(call: Callable[[], object], count: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(count):
        call()
    return (time.perf_counter_ns() - start) / count / 1e6


def ratio(
    a_ms: Sequence[float] | Floats,
    b_ms: Sequence[float] | Floats,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """`median` of A/B over the rounds and the ends `low`, `high` of its 95 % interval; below 1: A
    is faster.

    Args:
        a_ms, b_ms: what `interleave` gave for two names, entry by entry from the same round.
        resamples: bootstrap draws over the rounds; the same seed gives the same interval.
    """
    pairs = np.asarray(a_ms, np.float64) / np.asarray(b_ms, np.float64)
    draws = np.random.default_rng(seed).integers(0, len(pairs), (resamples, len(pairs)))
    low, high = np.quantile(np.median(pairs[draws], axis=1), [0.025, 0.975])
    return {"median": float(np.median(pairs)), "low": float(low), "high": float(high)}


def cpu() -> str:
    """The processor's name, as the system gives it; its architecture where it gives none."""
    return _cpuinfo("model name") or platform.processor() or platform.machine() or "unknown"


def isa() -> list[str]:
    """Which of `ISA` the processor has; the architecture alone where the system does not tell."""
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return [name for name in ISA if name in flags] or [platform.machine().lower()]


def _cpuinfo(field: str, path: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # macOS and Windows have no such file
        return ""
    found = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in found if key.strip() == field), "")
