"""`niwaki search` on a small network: what it answers, and what a killed search still knows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from niwaki import cost, job
from niwaki.artifact import Artifact
from niwaki.cli import main
from niwaki.errors import BudgetError, PlanError, RunError
from niwaki.job.explore import WAYS
from niwaki.job.tries import Tries

NET = """
from torch import nn

def net(*, classes, channels):
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, classes),
    )
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 120 images 8x8 of three classes, and a network."""
    folder = tmp_path_factory.mktemp("search")
    draw = np.random.default_rng(0)
    labels = np.arange(120) % 3
    base = np.eye(3)[labels][:, None, None] * 40 + 90
    images = np.clip(base + draw.integers(-60, 60, (120, 8, 8, 3)), 0, 255).astype(np.uint8)
    np.savez(folder / "colours.npz", images=images, labels=labels)
    (folder / "net.py").write_text(NET)
    return folder


@pytest.fixture(scope="module")
def explore(home: Path) -> Callable[..., dict[str, Any]]:
    def run(out: str, **arguments: Any) -> dict[str, Any]:
        usual = {"model": f"{home / 'net.py'}:net", "epochs": 3, "trials": 4, "out": home / out}
        return job.explore(home / "colours.npz", **{**usual, **arguments})

    return run


def model_of(home: Path, out: str) -> torch.nn.Module:
    from niwaki import nets

    def fresh() -> torch.nn.Module:
        return nets.build_user(f"{home / 'net.py'}:net", classes=3, channels=3)

    return Artifact.open(home / out / "model.niwaki").model(fresh)


def test_widths_give_a_front_and_a_smaller_model(home: Path, explore: Callable[..., dict[str, Any]]) -> None:
    result = explore("widths", budget="macs=50%", tune=1)
    assert {"trials", "front", "best", "chart"} <= result.keys()
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert Path(result["chart"]).read_text().count("<svg") == 1
    best, limit = result["best"], result["budget"]["limit"]
    assert best in result["front"] and best["cost"]["macs"] <= limit
    assert [t["name"] for t in result["trials"]] == ["t01", "t02", "t03", "t04"]
    assert all(("test" in t) == (t in result["front"]) for t in result["trials"])
    assert set(best["tuned"]) == {"val", "test"}
    small = model_of(home, "widths")
    assert cost.params(small) == best["cost"]["params"]
    assert (home / "widths" / "model.niwaki" / "exports" / "onnx" / "float32.onnx").exists()
    assert explore("widths", budget="macs=50%", tune=1) == result  # finished: read back
    with pytest.raises(RunError):
        explore("widths", budget="macs=60%", tune=1)


def test_a_budget_below_the_narrowest_path_is_an_error(explore: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(BudgetError) as caught:
        explore("none", budget="macs=10")
    assert caught.value.code == "budget-unreachable"


def test_a_search_that_stopped_goes_on_and_counts_each_trial_once(
    home: Path, explore: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    space = ["lr=1e-2,1e20", "width=0.5,1"]
    whole = explore("whole", space=space)
    assert whole["by"] == "grid" and len(whole["trials"]) == 4
    assert {t["cost"]["macs"] for t in whole["trials"]} == {t["cost"]["macs"] for t in whole["trials"][:2]}
    broken = [t for t in whole["trials"] if t["val"] is None]
    assert [t["setting"]["lr"] for t in broken] == [1e20, 1e20] and "lower lr" in broken[0]["error"].lower()
    left = sorted(path.name for path in (home / "whole" / "trials").iterdir())
    assert len(left) == len(whole["front"])

    real, asked = Tries.measure, []

    def measure(self: Tries, setting: dict[str, Any], epochs: int) -> dict[str, Any]:
        asked.append(setting)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(self, setting, epochs)

    monkeypatch.setattr(Tries, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        explore("stopped", space=space)
    resumed = explore("stopped", space=space)
    assert [json.dumps(s) for s in asked[:2]] == [json.dumps(t["setting"]) for t in whole["trials"][:2]]
    assert len(asked) == 5  # four, and the one that was broken off twice

    def same(result: dict[str, Any]) -> list[Any]:
        return [[t["setting"], t["val"], t["cost"]] for t in result["trials"]]

    assert same(resumed) == same(whole)
    pair = model_of(home, "whole"), model_of(home, "stopped")
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in pair), strict=True))


KILLED = """
import os, signal, sys
from niwaki import job
from niwaki.job.tries import Tries
real, asked = Tries.measure, []
def measure(self, setting, epochs):
    asked.append(setting)
    if len(asked) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, setting, epochs)
Tries.measure = measure
job.explore(sys.argv[1], model=sys.argv[2], out=sys.argv[3], epochs=1, space=["lr=1e-3,2e-3,3e-3"])
"""


def test_kill_9_loses_the_running_trial_only(
    home: Path, explore: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [sys.executable, "-c", KILLED, home / "colours.npz", f"{home / 'net.py'}:net", home / "killed"]
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(words, env=threads, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    lines = [json.loads(line) for line in (home / "killed" / "journal.jsonl").read_text().splitlines()]
    assert [line["value"]["setting"]["lr"] for line in lines] == [1e-3, 2e-3]
    real, asked = Tries.measure, []

    def measure(self: Tries, setting: dict[str, Any], epochs: int) -> dict[str, Any]:
        asked.append(setting["lr"])
        return real(self, setting, epochs)

    monkeypatch.setattr(Tries, "measure", measure)
    result = explore("killed", epochs=1, trials=16, space=["lr=1e-3,2e-3,3e-3"])
    assert asked == [3e-3] and len(result["trials"]) == 3


def test_the_command_line_answers_in_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["search", str(home / "colours.npz"), "--model", f"{home / 'net.py'}:net", "--epochs", "4"]
    words += ["--set", "lr=1e-3..1e-2", "--by", "halving", "--trials", "3", "--out", str(home / "cli")]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [t["epochs"] for t in result["trials"]] == [1, 1, 1, 4]
    assert result["best"]["name"] in {t["name"] for t in result["front"]}
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "best on val" in text and result["chart"] in text


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"by": "widths", "space": ["lr=1,2"]}, "search-by"),
        ({"by": "grid"}, "search-by"),
        ({"by": "guess", "space": ["lr=1,2"]}, "search-by"),
        ({"by": "optuna", "space": ["lr=1,2"]}, "search-by"),
        ({"by": "random", "space": ["lr=1,2"], "storage": "x"}, "search-by"),
        ({"cluster": "auto"}, "search-by"),
        ({"by": "grid", "space": ["lr=1..2"]}, "search-space"),
        ({"space": {"width": [2.0]}}, "search-space"),
        ({"budget": "latency=50%"}, "search-budget"),
        ({"budget": "params=50%"}, "search-budget"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    explore: Callable[..., dict[str, Any]], asked: dict[str, Any], code: str
) -> None:
    with pytest.raises(PlanError) as caught:
        explore("refused", **asked)
    assert caught.value.code == code


def test_every_way_is_explained() -> None:
    from niwaki.report.front import SAYS

    assert tuple(SAYS) == WAYS
