"""Every runtime that works here, on one network of all operators known as traps: exact, in ragged batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.parity.operators import CASES, LACKS, SPEC, TASK, Around, Call, Together, build, errors
from torch import nn

from niwaki import runtimes
from niwaki.errors import ModelError
from niwaki.runtimes import parity
from niwaki.tasks import Classify

torch.set_num_threads(1)
NAMES = tuple(CASES)
RUNS = [name for name in runtimes.NAMES if name != "tensorrt"]  # it has no CPU
OWN_TORCH = ("torch", "executorch")
EXACT = 5e-5
"""Largest relative difference of a probability: float32 sums in another order."""


def cases(runtime: str) -> list[str]:
    return [name for name in NAMES if name not in LACKS.get(runtime, ())]


def task(names: list[str]) -> Classify:
    return Classify(tuple(f"{name} {k}" for name in names for k in TASK.classes))


@pytest.fixture(scope="module", params=[pytest.param(n, marks=pytest.mark.slow) for n in RUNS])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(runtime's name, network of all its operators, exported file)."""
    name = request.param
    can = runtimes.support(name)
    if not (can["run"] and can["export"]):
        pytest.skip(f"{name} is not installed: {can['install']}")
    made = runtimes.load(name)
    path = tmp_path_factory.mktemp(name) / f"float32.{made.SUFFIX}"
    model = Together(cases(name)).eval()
    return name, model, made.export(model, SPEC, path, task=task(cases(name)), prove=False)


def test_every_operator_is_exact_in_ragged_batches(exported) -> None:
    name, model, path = exported
    names = cases(name)
    session = runtimes.load(name).open(path)
    images = parity.noise(SPEC, 3, seed=4)
    wanted = parity.reference(model, SPEC, task(names), images)
    for got in (session(images), np.concatenate([session(images[:2]), session(images[2:])])):
        found = errors(wanted, got, names)
        assert {case: error for case, error in found.items() if not error < EXACT} == {}
    assert (session.size_hw, session.channels, session.classes) == (
        SPEC.size_hw,
        3,
        len(names) * len(TASK.classes),
    )


def test_opening_loads_no_torch(exported) -> None:
    name, _, path = exported
    code = (
        "import sys, numpy as np; from niwaki import runtimes; "
        f"runtimes.load({name!r}).open({str(path)!r})(np.zeros((1, 14, 18, 3), np.uint8)); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(name in OWN_TORCH)


def test_the_comparison_names_the_operator_that_is_off() -> None:
    names = ["gelu", "silu"]
    right, wrong = Together(names).eval(), Together(names).eval()
    wrong.parts[1].inner = nn.ReLU()
    images = parity.noise(SPEC, 2)
    found = errors(*(parity.reference(m, SPEC, task(names), images) for m in (right, wrong)), names)
    assert found["silu"] > 100 * EXACT


def test_what_ncnn_lacks_is_refused_by_name(tmp_path: Path) -> None:
    if not runtimes.support("ncnn")["export"]:
        pytest.skip("ncnn is not installed")
    torch.manual_seed(0)
    odd = Around(Call(lambda x: torch.fft.fft2(x).abs()))
    odd(torch.from_numpy(SPEC.example(2)))
    with pytest.raises(ModelError) as caught:
        runtimes.load("ncnn").export(odd, SPEC, tmp_path / "x.param", task=TASK)
    assert caught.value.code == "export-failed"
    assert "fft" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.bench
@pytest.mark.parametrize("runtime", RUNS)
@pytest.mark.parametrize("case", NAMES)
def test_each_operator_by_itself(case: str, runtime: str, tmp_path: Path) -> None:
    can = runtimes.support(runtime)
    if not (can["run"] and can["export"]):
        pytest.skip(f"{runtime} is not installed")
    made = runtimes.load(runtime)
    if case in LACKS.get(runtime, ()):
        with pytest.raises(ModelError):
            made.export(build(case), SPEC, tmp_path / f"float32.{made.SUFFIX}", task=TASK)
        return
    made.export(build(case), SPEC, tmp_path / f"float32.{made.SUFFIX}", task=TASK)  # proves itself
