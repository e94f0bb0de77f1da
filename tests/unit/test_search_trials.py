"""Spaces, orders of trying and fronts, without a model; shared studies with Optuna's storage."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from niwaki import report
from niwaki.errors import PlanError
from niwaki.search import shared, trials
from niwaki.search.trials import Range, Setting, Trial


def trial(macs: float, accuracy: float, **more: Any) -> Trial:
    score = {"accuracy": accuracy, "low": accuracy - 0.1, "high": min(1, accuracy + 0.1)}
    cost = {"macs": macs, "params": -macs}
    return {"setting": {}, "epochs": 1, "cost": cost, "val": score, "test": score, "seconds": 1.0, **more}


def test_a_space_is_read_from_words() -> None:
    space = trials.parse(["lr=1e-4..1e-2", "width=0.5,1", "model=niwaki:small,timm:resnet18", "batch=32"])
    assert space == {
        "lr": Range(1e-4, 1e-2),
        "width": [0.5, 1.0],
        "model": ["niwaki:small", "timm:resnet18"],
        "batch": [32],
    }


@pytest.mark.parametrize(
    "words",
    [
        ["depth=1,2"],
        ["lr"],
        ["lr="],
        ["lr=a"],
        ["lr=1e-3", "lr=1e-2"],
        ["lr=1e-2..1e-4"],
        ["lr=0..1"],
        ["lr=1e-3,1e-3"],
        ["width=0,1"],
        ["width=0.5..2"],
        ["batch=8..64"],
        ["batch=8.5"],
    ],
)
def test_words_that_are_no_space_are_refused(words: list[str]) -> None:
    with pytest.raises(PlanError) as caught:
        trials.parse(words)
    assert caught.value.code == "search-space"


def test_a_grid_is_every_combination_once() -> None:
    found = trials.grid({"lr": [1, 2], "batch": [8, 16, 32]})
    assert found[:3] == [{"lr": 1, "batch": 8}, {"lr": 1, "batch": 16}, {"lr": 1, "batch": 32}]
    assert len(found) == 6
    with pytest.raises(PlanError, match="range of lr"):
        trials.grid({"lr": Range(1e-4, 1e-2)})


def test_samples_are_different_and_of_the_seed() -> None:
    space = {"lr": Range(1e-4, 1e-2), "width": [0.5, 1.0]}
    found = trials.sampled(space, count=40, seed=3)
    assert found == trials.sampled(space, count=40, seed=3)
    assert found != trials.sampled(space, count=40, seed=4)
    assert len({repr(setting) for setting in found}) == 40
    assert all(1e-4 <= setting["lr"] <= 1e-2 for setting in found)
    below = sum(setting["lr"] < 1e-3 for setting in found)
    assert 10 < below < 30  # evenly in the logarithm: half of them
    assert len(trials.sampled({"batch": [8, 16]}, count=9)) == 2
    narrow = trials.sampled({"lr": Range(1e-3, 1.001e-3)}, count=9)  # two numbers of four digits
    assert sorted(setting["lr"] for setting in narrow) == [1e-3, 1.001e-3]


def test_halving_gives_the_best_the_most_epochs() -> None:
    asked: list[tuple[int, int]] = []

    def run(settings: Sequence[Setting], epochs: int) -> list[Trial]:
        asked.append((len(settings), epochs))
        return [trial(10, s["lr"] / 10, setting=s, epochs=epochs) for s in settings]

    settings = [{"lr": lr} for lr in (3, 1, 4, 9, 5, 2, 6, 8, 7)]
    done = trials.halving(settings, run, epochs=9)
    assert asked == [(9, 1), (3, 3), (1, 9)]
    assert [t["setting"]["lr"] for t in done[9:]] == [9, 8, 7, 9]
    assert trials.rungs(9, epochs=9) == [1, 3, 9]
    assert trials.rungs(9, epochs=9, least=3) == [3, 9]
    assert trials.rungs(2, epochs=9) == [9]


def test_halving_goes_on_without_those_that_broke_down() -> None:
    def run(settings: Sequence[Setting], epochs: int) -> list[Trial]:
        return [trial(1, 0.5, setting=s) if s["lr"] < 2 else {"setting": s, "val": None} for s in settings]

    done = trials.halving([{"lr": lr} for lr in (3, 4, 1)], run, epochs=3)
    assert [t["setting"]["lr"] for t in done] == [3, 4, 1, 1]
    assert len(trials.halving([{"lr": 5}, {"lr": 6}, {"lr": 7}], run, epochs=3)) == 3


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20))
def test_the_front_is_what_none_beats(points: list[tuple[int, int]]) -> None:
    found = [trial(macs, hits / 10) for macs, hits in points]
    front = {(t["cost"]["macs"], t["val"]["accuracy"]) for t in trials.front(found)}

    def beaten(macs: int, hits: int) -> bool:
        return any((a <= macs and b >= hits and (a, b) != (macs, hits)) for a, b in points)

    assert front == {(macs, hits / 10) for macs, hits in points if not beaten(macs, hits)}
    ranked = trials.ranked(found)
    assert sorted(map(id, ranked)) == sorted(map(id, found))
    assert trials.accuracy(ranked[0]) == max(map(trials.accuracy, found))


def test_the_best_is_within_the_limit() -> None:
    found = [trial(10, 0.5), trial(20, 0.7), trial(30, 0.7), trial(40, 0.9)]
    assert trials.best(found, limit=35) is found[1]
    assert trials.best(found) is found[3]
    assert trials.best(found, limit=5) is None
    assert trials.best([{"val": None}]) is None
    assert trials.front(found, cost="params") == [found[3]]


def test_the_page_of_a_search(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    found = [
        trial(1e6 * k, 0.5 + 0.04 * (k % 6), name=f"t{k}", setting={"model": hostile}) for k in range(1, 9)
    ]
    found.append({**found[0], "name": "t9", "val": None, "test": None, "error": f"loss is nan {hostile}"})
    front = trials.front(found)
    result = {
        "name": hostile, "by": "grid", "model": hostile, "data": "digits", "cost": "macs",
        "budget": {"asked": "macs=50%", "limit": 4e6}, "trials": found, "front": front, "best": front[1],
    }  # fmt: skip
    page = report.search(result, tmp_path).read_text()
    assert "<script" not in page and page.count("<svg") == 1
    assert page.count('class="dot') == 8 and page.count('class="dot chosen"') == 1
    assert "loss is nan" in page and ">best<" in page
    nothing = {**result, "budget": None, "best": None, "front": [], "trials": found[-1:]}
    assert "No trial" in report.search(nothing, tmp_path).read_text()


needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="optuna is not installed")


@needs_optuna
def test_two_processes_share_a_study(tmp_path: Path) -> None:
    space = {"lr": Range(1e-4, 1e-2), "augment": ["weak", "strong"]}
    mine: list[Setting] = []

    def measure(setting: Setting, epochs: int) -> Trial:
        mine.append(setting)
        if len(mine) == 2:
            return {"setting": setting, "val": None}  # broke down: counts, and is kept
        return trial(1, random.Random(repr(setting)).random(), setting=setting, epochs=epochs)

    storage = str(tmp_path / "deep" / "study.log")
    known: dict[str, Any] = {"storage": storage, "study": "s", "epochs": 1}
    first = shared.optuna(space, measure, trials=3, **known)
    assert [t["setting"] for t in first] == mine and len(mine) == 3
    second = shared.optuna(space, measure, trials=5, **known)
    assert second[:3] == first and len(second) == 5 and len(mine) == 5
    assert shared.optuna(space, measure, trials=5, **known) == second and len(mine) == 5
    with pytest.raises(PlanError) as caught:
        shared.optuna({"lr": [1.0]}, measure, trials=6, **known)
    assert caught.value.code == "search-storage"
