"""Two real gloo processes started by torchrun against one process on the same global batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

UNIT = Path(__file__).parents[1] / "unit"

WORKER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from training import SPEC, TASK, knobs, net, samples
from niwaki import loop, parallel

CASES = {
    "plain": ({}, 50, False),
    "weighted": (
        {"class_weights": (1.0, 4.0, 0.5), "accumulate": 2, "augment": "strong"}, 50, False),
    "thin": ({"batch": 1, "epochs": 1}, 5, False),  # the second process has nothing to do
    "norm": ({}, 50, True),
}
folder, rank = Path(sys.argv[2]), int(os.environ.get("RANK", "0"))
world = os.environ.get("WORLD_SIZE", "1")

def objective(model, batch):
    return TASK.loss(model(batch.images), batch.target)

for name, (changed, count, norm) in CASES.items():
    def walk(model, path):
        return loop.steps(model, objective, train=samples(count), spec=SPEC, knobs=knobs(**changed),
                          checkpoint=path)
    model = net(norm=norm, seed=rank)  # only the first process's start may count
    unused = torch.nn.Parameter(torch.ones(2, 2) * (rank + 1))  # must not even decay
    model.register_parameter("unused", unused)
    losses = [p.loss for p in walk(model, None)]
    torch.save({"losses": losses, **model.state_dict()}, folder / f"{name}-{world}-{rank}.pt")
model, path = net(norm=True), folder / f"{world}-{rank}" / "c"  # own folders
for progress in (broken := walk(model, path)):
    if progress.step == 5:
        broken.close()
model = net(norm=True)
first = [p.step for p in walk(model, path)][0]
torch.save({"losses": [first], **model.state_dict()},
           folder / f"resumed-{world}-{rank}.pt")
assert path.exists() == (rank == 0)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each process of a world of one and of two ended with, by file name."""
    folder = tmp_path_factory.mktemp("processes")
    script = folder / "worker.py"
    script.write_text(WORKER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for launcher in ([], two):
        command = [sys.executable, *launcher, str(script), str(UNIT), str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[:3000]
    return {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}


def distance(a: dict[str, Any], b: dict[str, Any]) -> float:
    names = [name for name in a if name != "losses"]
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "weighted", "thin"])
def test_without_batch_statistics_the_same_weights(results: dict[str, Any], name: str) -> None:
    one, two = results[f"{name}-1-0"], results[f"{name}-2-0"]
    assert two["unused"].eq(1).all()
    assert distance(one, two) < 2e-5
    assert one["losses"] == pytest.approx(two["losses"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "weighted", "thin", "norm", "resumed"])
def test_all_processes_end_alike(results: dict[str, Any], name: str) -> None:
    assert distance(results[f"{name}-2-0"], results[f"{name}-2-1"]) == 0


@pytest.mark.slow
def test_batch_norm_does_differ_and_the_comparison_sees_it(results: dict[str, Any]) -> None:
    assert 1e-4 < distance(results["norm-1-0"], results["norm-2-0"]) < 1


@pytest.mark.slow
def test_resume_by_the_first_process_file_alone(results: dict[str, Any]) -> None:
    assert distance(results["resumed-2-0"], results["norm-2-0"]) == 0
    assert results["resumed-2-1"]["losses"] == [6]
