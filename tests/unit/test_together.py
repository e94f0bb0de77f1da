"""`fit` under torchrun: two processes make what one makes, from one folder, resumed as well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from niwaki.errors import RunError
from niwaki.job import together

NET = """
from torch import nn

def make(classes, channels):
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes),
    )
"""
PLAN = """
[[step]]
do = "prune.channels"
multiple = 4

[[step]]
do = "distill.logits"
epochs = 1
"""


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    labels = np.arange(120) % 3
    base = draw.integers(60, 200, (3, 8, 8, 3))
    images = np.clip(base[labels] + draw.integers(-60, 60, (120, 8, 8, 3)), 0, 255)
    np.savez(tmp_path / "noise.npz", images=images.astype(np.uint8), labels=labels)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "plan.toml").write_text(PLAN)
    return tmp_path


def fit(inputs: Path, out: str, *, processes: int) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    words = [
        "fit", "noise.npz",
        "--model", "net.py:make", "--budget", "macs=60%", "--max-drop", "1", "--epochs", "2",
        "--plan", "plan.toml", "--out", out, "--json",
    ]  # fmt: skip
    return subprocess.run(
        [sys.executable, *(launch if processes > 1 else []), "-m", "niwaki", *words],
        cwd=inputs, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
        check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_make_what_one_makes(inputs: Path) -> None:
    """Same widths and, without batch norm, the same weights to float tolerance; one answer is printed."""
    one, two = fit(inputs, "one", processes=1), fit(inputs, "two", processes=2)
    assert one.returncode == two.returncode == 0, two.stderr[-3000:]
    first, second = json.loads(one.stdout), json.loads(two.stdout)
    assert second["budget"]["got"] == first["budget"]["got"] <= 0.6
    a, b = (load_file(inputs / out / "model.niwaki" / "weights.safetensors") for out in ("one", "two"))
    assert a.keys() == b.keys()
    assert max(float(np.abs(a[name] - b[name]).max()) for name in a) < 1e-4
    assert (inputs / "two" / "report.html").exists()

    (inputs / "two" / "result.json").unlink()  # as if it had been killed at the very end
    (inputs / "two" / "stages" / "asked-recovered.safetensors").unlink()
    again = fit(inputs, "two", processes=2)
    assert again.returncode == 0, again.stderr[-3000:]
    c = load_file(inputs / "two" / "model.niwaki" / "weights.safetensors")
    assert all(np.array_equal(b[name], c[name]) for name in b)


@pytest.mark.slow
def test_an_error_of_the_first_ends_them_all(inputs: Path) -> None:
    """An impossible budget: the first says why, the others do not hang."""
    (inputs / "plan.toml").write_text(PLAN.replace("multiple = 4", "multiple = 16"))
    ended = fit(inputs, "three", processes=2)
    assert ended.returncode != 0
    assert "budget-unreachable" in ended.stdout + ended.stderr


def test_alone_nothing_is_exchanged() -> None:
    """In one process `told` is the call itself, and a failure is its own."""
    assert together.told(lambda: b"x") == b"x"

    def fail() -> bytes:
        raise RunError("no", code="run-damaged")

    with pytest.raises(RunError):
        together.told(fail)
