"""Interleaved timing and what is said of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from niwaki import bench, timing
from niwaki.artifact import Artifact
from niwaki.spec import Spec
from niwaki.tasks import Classify


def test_calls_are_interleaved_and_their_order_turns() -> None:
    seen: list[str] = []
    calls = {name: (lambda n=name: seen.append(n)) for name in "ab"}
    taken = timing.interleave(calls, rounds=4, calls_per_sample=2, warmup=1)
    assert "".join(seen) == "ab" + "aabb" + "bbaa" + "aabb" + "bbaa"
    assert {name: samples.shape for name, samples in taken.items()} == {"a": (4,), "b": (4,)}


def test_samples_are_milliseconds_of_one_call() -> None:
    taken = timing.interleave({"a": lambda: time.sleep(0.002)}, rounds=3, calls_per_sample=3, warmup=0)
    assert 2.0 <= taken["a"].min() < 20


def test_ratio_pairs_the_samples_of_a_round() -> None:
    """A machine that slows to a tenth between rounds changes both, and not their ratio."""
    speed = np.repeat([1.0, 10.0, 3.0], 10)
    found = timing.ratio(0.8 * speed, speed)
    assert found["median"] == pytest.approx(0.8)
    assert found["high"] - found["low"] < 1e-9


def test_interval_covers_and_is_the_same_again() -> None:
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        a, b = draw.lognormal(np.log(0.9), 0.1, 40), draw.lognormal(0, 0.1, 40)
        found = timing.ratio(a, b, resamples=400)
        covered += found["low"] <= 0.9 <= found["high"]
    assert 180 <= covered <= 199
    assert timing.ratio(a, b) == timing.ratio(list(a), list(b))


@pytest.mark.parametrize(
    ("low", "high", "starts"),
    [
        (0.7, 0.9, "A is faster"),
        (0.9, 1.0, "no gain"),
        (0.9, 1.1, "no gain: the difference"),
        (1.1, 1.3, "no gain: A is slower"),
    ],
)
def test_no_gain_is_said_plainly(low: float, high: float, starts: str) -> None:
    found = bench.verdict({"median": (low + high) / 2, "low": low, "high": high})
    assert found.startswith(starts)


def test_cpu_and_isa_are_named_even_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert timing.cpu()
    assert timing.isa()
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Fast One\nflags\t\t: fpu avx2 avx512_vnni\n")
    assert timing._cpuinfo("model name", info) == "Fast One"
    assert timing._cpuinfo("nothing", info) == ""
    assert timing._cpuinfo("flags", tmp_path / "absent") == ""
    monkeypatch.setattr(timing, "_cpuinfo", lambda field: "")
    assert timing.cpu()
    assert timing.isa()


class Stack(nn.Module):
    """As many convolutions as asked for."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(depth)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).mean((2, 3))


@pytest.mark.slow
def test_bench_tells_a_network_of_two_layers_from_one_of_twenty(tmp_path: Path) -> None:
    spec, task = Spec(size_hw=(32, 32)), Classify(("a", "b", "c"))
    paths = []
    for depth in (2, 20):
        artifact = Artifact.save(tmp_path / f"{depth}.niwaki", Stack(depth).eval(), spec=spec, task=task)
        artifact.export()
        paths.append(artifact.path)
    found = bench.compare(*paths, rounds=10, calls_per_sample=10)
    assert found["ratio"]["high"] < 1
    assert found["verdict"].startswith("A is faster")
    assert found["ms"]["a"] < found["ms"]["b"]
    assert found["p90"]["b"] >= found["ms"]["b"]
    assert found["precision"] == {"a": "float32", "b": "float32"}
    assert bench.compare(*paths[::-1], rounds=5, calls_per_sample=10)["verdict"].startswith("no gain")


def test_apart_waits_for_threads_that_spin_after_a_call() -> None:
    """A call that leaves a busy thread behind, as OpenMP's do: the next name's sample must not meet it."""
    seen: dict[bool, list[int]] = {False: [], True: []}
    for apart, met in seen.items():
        busy: set[int] = set()

        def spin(busy: set[int] = busy) -> None:
            end = time.process_time() + 0.02
            while time.process_time() < end:
                pass
            busy.clear()

        def spins(busy: set[int] = busy, spin: Callable[[], None] = spin) -> None:
            busy.add(1)
            threading.Thread(target=spin, daemon=True).start()

        def other(busy: set[int] = busy, met: list[int] = met) -> None:
            met.append(len(busy))

        timing.interleave({"spins": spins, "other": other}, rounds=4, calls_per_sample=1, warmup=0, apart=apart)
        timing.quiet(limit_s=2)
    assert sum(seen[False]) > 0
    assert sum(seen[True]) == 0


def test_quiet_gives_up_at_its_limit() -> None:
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        assert timing.quiet(limit_s=0.05) is False
    finally:
        stop.set()
        thread.join()
