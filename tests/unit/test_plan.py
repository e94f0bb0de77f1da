"""Plan and Step: checked when made, run in order, kept as TOML."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from niwaki import plan
from niwaki.errors import PlanError
from niwaki.plan import Bench, Plan, check_effect, is_step, step
from niwaki.spec import Spec


def scale(model: nn.Linear, *, by: float = 2.0) -> nn.Module:
    """A step: all weights multiplied."""
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled.weight.mul_(by)
    return scaled


def needy(model: nn.Module, *, teacher: nn.Module, example: Any, by: float = 3.0) -> nn.Module:
    """A step with two needs."""
    assert example.shape == (1, 3, 4, 4)
    return scale(teacher, by=by)  # type: ignore[arg-type]


def no_step(model: nn.Module, other: int, *, by: float = 2.0) -> nn.Module:
    """Two positional parameters: not a step's shape."""
    return model


def code_of(call: Any) -> str:
    with pytest.raises(PlanError) as caught:
        call()
    return caught.value.code


def test_steps_run_in_order_and_leave_the_input_alone() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    out = Plan(step(scale), step(scale, by=5.0)).run(model, Bench())
    assert torch.equal(out.weight, before * 10)
    assert torch.equal(model.weight, before)


def test_needs_come_from_the_bench() -> None:
    model, teacher = nn.Linear(2, 2), nn.Linear(2, 2)
    bench = Bench(teacher=teacher, spec=Spec(size_hw=(4, 4)))
    out = Plan(step(needy)).run(model, bench)
    assert torch.equal(out.weight, teacher.weight * 3)


def test_a_need_the_bench_lacks_is_named() -> None:
    with pytest.raises(PlanError, match="teacher=") as caught:
        Plan(step(needy)).run(nn.Linear(2, 2), Bench())
    assert caught.value.code == "plan-need"


def test_an_unknown_knob_names_the_nearest() -> None:
    with pytest.raises(PlanError, match="Did you mean 'epochs'") as caught:
        step("distill.logits", epoch=3)
    assert caught.value.code == "plan-knob"


def test_a_need_is_no_knob() -> None:
    with pytest.raises(PlanError, match="given by the Bench"):
        step("distill.logits", teacher=None)


def test_an_unknown_step_names_the_nearest() -> None:
    with pytest.raises(PlanError, match=r"Did you mean 'distill\.logits'") as caught:
        step("distill.logit")
    assert caught.value.code == "plan-step"


@pytest.mark.parametrize("name", ["os.system", "job.fit", "distill", "distill._private", ""])
def test_only_steps_of_the_families_can_be_named(name: str) -> None:
    assert code_of(lambda: step(name)) == "plan-step"


def test_a_function_of_another_shape_is_refused() -> None:
    assert not is_step(no_step)
    assert code_of(lambda: step(no_step)) == "plan-step"


def test_a_step_that_changes_nothing_is_an_error() -> None:
    assert code_of(lambda: Plan(step(scale, by=1.0)).run(nn.Linear(2, 2), Bench())) == "step-no-effect"


def test_check_effect_sees_values_shapes_and_names() -> None:
    model = nn.Linear(2, 2)
    check_effect("x", model, scale(model))
    check_effect("x", model, nn.Linear(2, 3))
    check_effect("x", model, nn.Sequential(copy.deepcopy(model)))
    assert code_of(lambda: check_effect("x", model, copy.deepcopy(model))) == "step-no-effect"


def test_with_changes_one_knob_and_checks_it() -> None:
    assert step(scale, by=3.0).with_(by=4.0).knobs == {"by": 4.0}
    assert code_of(lambda: step(scale).with_(bye=4.0)) == "plan-knob"


def test_toml_reads_back_equal() -> None:
    made = Plan(step("distill.logits", epochs=3, t=2.5, augment="strong"), step("train.fit"))
    assert Plan.from_toml(made.to_toml()) == made


def test_a_function_of_ones_own_cannot_stand_in_toml() -> None:
    assert code_of(lambda: Plan(step(scale)).to_toml()) == "plan-toml"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[[step]", "plan-toml"),
        ("steps = 1", "plan-toml"),
        ("step = 1", "plan-toml"),
        ("[[step]]\nepochs = 3", "plan-toml"),
        ('[[step]]\ndo = "distill.logits"\nepoch = 3', "plan-knob"),
        ('[[step]]\ndo = "distill.logits"\nt = inf', "plan-toml"),
        ('[[step]]\ndo = "distill.logits"\nt = {a = 1}', "plan-toml"),
        ('[[step]]\ndo = "os.system"', "plan-step"),
        ('[other]\ndo = "train.fit"', "plan-toml"),
    ],
)
def test_wrong_toml_is_an_error(text: str, code: str) -> None:
    assert code_of(lambda: Plan.from_toml(text)) == code


def test_load_reads_a_file_and_names_a_missing_one(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(Plan(step("train.fit", epochs=2)).to_toml())
    assert Plan.load(file) == Plan(step("train.fit", epochs=2))
    assert code_of(lambda: Plan.load(tmp_path / "none.toml")) == "plan-file"


def test_the_default_plan_prunes_then_distills() -> None:
    assert [item.do for item in plan.default()] == ["prune.channels", "distill.logits"]
    assert Plan.from_toml(plan.default().to_toml()) == plan.default()


def test_checkpoints_lie_apart_by_place_and_name(tmp_path: Path) -> None:
    seen: list[Path] = []

    def keeps(model: nn.Linear, *, checkpoint: Path | None = None) -> nn.Module:
        assert checkpoint is not None
        seen.append(checkpoint)
        return scale(model)

    Plan(step(keeps), step(keeps)).run(nn.Linear(1, 1), Bench(checkpoint=tmp_path))
    assert len(set(seen)) == 2 and all(path.parent == tmp_path for path in seen)
