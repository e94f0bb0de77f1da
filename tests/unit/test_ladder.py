"""The ladder stops at the rung that is needed, keeps only what helps, and says so when nothing is enough."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests import onnx_nets as nets

from niwaki.qdq.recipe import Recipe
from niwaki.runtimes import onnx_int8
from niwaki.search import ladder


def agreement(proto: Any, wanted: np.ndarray) -> float:
    return float((nets.run(proto).argmax(1) == wanted).mean())


def measured(proto: Any, wanted: np.ndarray) -> tuple[float, float, float]:
    score = agreement(proto, wanted)
    return score, 0.0, 1 - score


def climbed(proto: Any, *, max_drop: float = 0.0, **given: Any) -> ladder.Climbed:
    wanted = nets.run(proto).argmax(1)
    maker = onnx_int8.Maker(onnx_int8.prepare(proto, nets.SPEC), nets.IMAGES)
    return ladder.climb(
        lambda recipe: measured(maker.make(recipe), wanted),
        reference=1.0,
        max_drop=max_drop,
        sensitive=maker.sensitive,
        **given,
    )


def test_a_network_that_needs_nothing_stops_at_the_first_rung() -> None:
    found = climbed(nets.plain())
    assert (found.rung, found.held, len(found.steps)) == ("min-max", True, 1)
    assert found.recipe == Recipe() and "min-max is enough: it loses 0.00% ± 0.00%" in found.says()


def test_broken_ranges_need_equalisation() -> None:
    """Plain int8 collapses; every cheaper rung is tried before, and none of them is enough."""
    found = climbed(nets.depthwise(broken=1e5), max_drop=0.05)
    assert found.steps[0].drop > 0.3
    assert found.rung == "equalisation" and found.recipe.equalise and found.held
    tried = [step.rung for step in found.steps]
    assert tried == ["min-max", "percentile", "mse", "entropy", "bias correction", "equalisation"]


def test_where_only_floats_help_they_are_few() -> None:
    found = climbed(nets.depthwise(broken=1e4), max_drop=0.0, rungs=ladder.RUNGS[:1])
    assert found.rung == ladder.FLOAT and found.held
    assert 1 <= len(found.recipe.float_nodes) <= 4


def steps(scores: dict[str, float], noise: float = 0.0) -> Any:
    """A score by the words that a recipe's changes hold, a noise that is always the same, a distance alike."""

    def score(recipe: Recipe) -> tuple[float, float, float]:
        names = [recipe.calibration]
        names += ["bias"] if recipe.correct_bias else []
        names += ["equalise"] if recipe.equalise else []
        names += ["smooth"] if recipe.smooth is not None else []
        names += ["learned"] if recipe.rounding == "learned" else []
        names += [f"float{len(recipe.float_nodes)}"] if recipe.float_nodes else []
        found = sum(scores.get(name, 0.0) for name in names)
        return found, noise, 1 - found

    return score


def test_rungs_that_do_not_help_are_left_out() -> None:
    scores = {"min-max": 0.5, "percentile": 0.6, "mse": 0.6, "entropy": 0.2, "bias": -0.1, "equalise": 0.1}
    found = ladder.climb(steps({**scores, "learned": 0.3}), reference=1.0, max_drop=0.05)
    kept = [step.rung for step in found.steps if step.kept]
    assert kept == ["min-max", "percentile", "equalisation", "learned rounding"]
    assert found.recipe == Recipe(calibration="percentile", equalise=True, rounding="learned")
    assert found.rung == "learned rounding" and "on top of percentile, equalisation" in found.says()


def test_a_calibration_that_was_replaced_is_not_named() -> None:
    scores = {"min-max": 0.5, "percentile": 0.6, "entropy": 0.7, "bias": 0.3}
    found = ladder.climb(steps(scores), reference=1.0, max_drop=0.0)
    assert found.says() == "bias correction is enough (on top of entropy): it loses 0.00% ± 0.00%"


def test_no_rung_is_enough() -> None:
    found = ladder.climb(steps({"min-max": 0.4, "mse": 0.7}), reference=1.0, max_drop=0.1)
    assert (found.rung, found.held) == (None, False)
    assert found.score == 0.7 and found.drop == pytest.approx(0.3)
    assert found.says() == "no rung is enough: the best loses 30.00% ± 0.00%"


def test_float_layers_double_until_enough() -> None:
    scores = {"min-max": 0.5, "float1": 0.1, "float2": 0.05, "float4": 0.2, "float8": 0.5}
    order = [(f"n{k}",) for k in range(20)]
    found = ladder.climb(steps(scores), reference=1.0, max_drop=0.0, sensitive=lambda best: order)
    assert [len(s.recipe.float_nodes) for s in found.steps if s.rung == ladder.FLOAT] == [1, 2, 4, 8]
    assert found.recipe.float_nodes == tuple(f"n{k}" for k in range(8)) and found.rung == ladder.FLOAT


def test_a_rung_that_may_be_luck_is_not_the_last() -> None:
    """0.6 points of val lost, give or take 0.5, may be more than 1 of other images: the climb goes on."""
    scores = {"min-max": 0.994, "percentile": 0.995, "mse": 0.999}
    seen = [step.rung for step in ladder.climb(steps(scores), reference=1.0, max_drop=0.01).steps]
    assert seen == ["min-max"]
    found = ladder.climb(steps(scores, noise=0.005), reference=1.0, max_drop=0.01)
    assert [step.rung for step in found.steps] == ["min-max", "percentile", "mse"]
    assert found.rung == "mse" and found.sure and "0.10% ± 0.50%" in found.says()


def test_of_rungs_within_the_limit_the_nearest_to_float_is_taken() -> None:
    """A score is luck of a few images; `entropy` moves all outputs least, though `mse` scores more."""
    found = ladder.climb(
        lambda recipe: {
            "min-max": (0.993, 0.01, 0.04),
            "percentile": (0.995, 0.01, 0.05),
            "mse": (0.999, 0.01, 0.03),
            "entropy": (0.994, 0.01, 0.02 if recipe == Recipe(calibration="entropy") else 0.06),
        }[recipe.calibration],
        reference=1.0,
        max_drop=0.01,
    )
    assert [step.rung for step in found.steps if step.kept] == ["min-max", "mse", "entropy"]
    assert found.rung == "entropy" and found.held and not found.sure
    assert found.says().startswith("entropy is enough: ")
    lossy = ladder.climb(
        lambda recipe: (0.9 if recipe.calibration == "mse" else 0.8, 0.01, 0.1), reference=1.0, max_drop=0.01
    )
    assert lossy.rung is None and lossy.drop == pytest.approx(0.1)


def test_without_certainty_the_best_of_all_is_taken_and_nothing_is_left_in_float() -> None:
    scores = {"min-max": 0.994, "percentile": 0.993, "entropy": 0.996}
    order = [(f"n{k}",) for k in range(20)]
    found = ladder.climb(steps(scores, noise=0.02), reference=1.0, max_drop=0.01, sensitive=lambda best: order)
    assert found.held and not found.sure and found.rung == "entropy"
    assert found.recipe == Recipe(calibration="entropy") and len(found.steps) == len(ladder.RUNGS)
    assert "val is too small to be sure" in found.says()


def test_floats_are_taken_as_soon_as_they_are_within_the_limit() -> None:
    """More of them would only be slower, and no surer."""
    scores = {"min-max": 0.5, "float1": 0.1, "float2": 0.495, "float4": 0.5}
    order = [(f"n{k}",) for k in range(20)]
    found = ladder.climb(steps(scores, noise=0.02), reference=1.0, max_drop=0.01, sensitive=lambda best: order)
    assert found.held and not found.sure and len(found.recipe.float_nodes) == 2


def test_a_climb_is_json() -> None:
    import json

    seen: list[ladder.Step] = []
    found = ladder.climb(steps({"min-max": 1.0}), reference=1.0, max_drop=0.0, show=seen.append)
    assert json.loads(json.dumps(found.to_json()))["rung"] == "min-max" and len(seen) == 1
