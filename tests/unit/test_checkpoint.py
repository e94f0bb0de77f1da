"""Resume: the bits of an uninterrupted training, whatever stopped it; no other training's file."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training import SPEC, TASK, knobs, net, same, samples

from niwaki import distill, loop, train
from niwaki.batches import Batch
from niwaki.errors import RunError

KILLED = """
import sys, time, torch
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from training import SPEC, TASK, net, samples
from niwaki import train
torch.set_num_threads(1)
def show(progress):
    print(progress.step, flush=True)
    time.sleep(float(sys.argv[3]))
model = train.fit(net(dropout=0.3), task=TASK, spec=SPEC, train=samples(), epochs=3, batch=16,
                  checkpoint=Path(sys.argv[2]) / "c", every_s=0.0, show=show)
torch.save(model.state_dict(), Path(sys.argv[2]) / "done.pt")
"""


def objective(model: nn.Module, batch: Batch) -> torch.Tensor:
    return TASK.loss(model(batch.images), batch.target)


def walk(model: nn.Module, path: Path | None, **changed: Any) -> Any:
    return loop.steps(
        model, objective, train=samples(), spec=SPEC, knobs=knobs(**changed), checkpoint=path,
    )  # fmt: skip


def whole(model: nn.Module, **changed: Any) -> nn.Module:
    model = copy.deepcopy(model)
    for _ in walk(model, None, **changed):
        pass
    return model


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 8, 11])
def test_broken_off_and_resumed_gives_the_same_bits(tmp_path: Path, stop: int) -> None:
    start = net(dropout=0.3)
    first = copy.deepcopy(start)
    generator = walk(first, tmp_path / "c")
    for progress in generator:
        if progress.step == stop:
            generator.close()
    second = copy.deepcopy(start)
    seen = [progress.step for progress in walk(second, tmp_path / "c")]
    assert seen[0] == stop + 1 and seen[-1] == 12
    assert same(second, whole(start)) and not same(first, second)


def test_history_survives_and_is_whole(tmp_path: Path) -> None:
    start, path = net(), tmp_path / "c"
    generator = walk(copy.deepcopy(start), path)
    for progress in generator:
        if progress.step == 6:
            generator.close()
    assert [entry["epoch"] for entry in loop.history(path)] == [1]
    losses = [p.loss for p in walk(copy.deepcopy(start), None) if p.epoch_ended]
    assert [p.epoch for p in walk(copy.deepcopy(start), path) if p.epoch_ended] == [2, 3]
    assert [entry["loss"] for entry in loop.history(path)] == losses


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    start = net()
    for _ in walk(copy.deepcopy(start), tmp_path / "c"):
        pass
    again = copy.deepcopy(start)
    assert list(walk(again, tmp_path / "c")) == []
    assert same(again, whole(start))


def test_ctrl_c_in_the_middle_of_a_step_leaves_a_whole_one(tmp_path: Path) -> None:
    calls = 0
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it

    def pressing(model: nn.Module, batch: Batch) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return objective(model, batch)

    start = net(dropout=0.3)
    path = tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        for _ in loop.steps(
            copy.deepcopy(start),
            pressing,
            train=samples(),
            spec=SPEC,
            knobs=knobs(),
            checkpoint=path,
        ):
            pass
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
    resumed = copy.deepcopy(start)
    assert next(iter(p.step for p in walk(copy.deepcopy(start), path))) == 6
    for _ in walk(resumed, path):
        pass
    assert same(resumed, whole(start))


def test_ctrl_c_while_showing(tmp_path: Path) -> None:
    def show(progress: loop.Progress) -> None:
        if progress.step == 7:
            raise KeyboardInterrupt

    start, path = net(), tmp_path / "c"
    common: dict[str, Any] = {
        "task": TASK,
        "spec": SPEC,
        "train": samples(),
        "epochs": 3,
        "batch": 16,
    }
    with pytest.raises(KeyboardInterrupt):
        train.fit(start, checkpoint=path, show=show, **common)
    assert same(train.fit(start, checkpoint=path, **common), train.fit(start, **common))


def test_distillation_resumes_too(tmp_path: Path) -> None:
    start, path = net(), tmp_path / "c"
    common: dict[str, Any] = {
        "task": TASK, "spec": SPEC, "train": samples(), "epochs": 2, "batch": 16,
        "teacher": net(seed=3),
    }  # fmt: skip

    def stop(progress: loop.Progress) -> None:
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill.logits(start, checkpoint=path, show=stop, **common)
    assert same(distill.logits(start, checkpoint=path, **common), distill.logits(start, **common))
    for other in ({"t": 2.0}, {"teacher": net(seed=4)}):
        with pytest.raises(RunError, match=next(iter(other))) as caught:
            distill.logits(start, checkpoint=path, **{**common, **other})
        assert caught.value.code == "checkpoint-other"


@pytest.mark.parametrize("name", ["epochs", "batch", "lr", "seed", "augment", "class_weights"])
def test_other_knobs_are_refused_by_name(tmp_path: Path, name: str) -> None:
    next(walk(net(), tmp_path / "c"))
    other = {"epochs": 4, "batch": 17, "lr": 1e-3, "seed": 1, "augment": "none",
             "class_weights": (1.0, 2.0, 3.0)}  # fmt: skip
    with pytest.raises(RunError, match=name) as caught:
        next(walk(net(), tmp_path / "c", **{name: other[name]}))
    assert caught.value.code == "checkpoint-other"


def test_other_data_or_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    next(walk(net(), path))
    for model, data, word in (
        (net(), samples(49), "data"),
        (net(), samples(50, seed=1), "data"),
        (net(norm=False), samples(), "model shapes"),
        (net(seed=1), samples(), "starting weights"),
    ):
        with pytest.raises(RunError, match=word):
            next(loop.steps(model, objective, train=data, spec=SPEC, knobs=knobs(), checkpoint=path))


@pytest.mark.parametrize("where", [0, 4, 9, 40, 2000, -1])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, where: int) -> None:
    path = tmp_path / "c"
    next(walk(net(), path))
    data = path.read_bytes()
    path.write_bytes(data[:where] if where else b"")
    with pytest.raises(RunError) as caught:
        next(walk(net(), path))
    assert caught.value.code == "checkpoint-damaged"


def test_history_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        loop.history(tmp_path / "none")


@pytest.mark.slow
def test_killed_again_and_again_gives_the_same_bits(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)

    def start(folder: Path, pause: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", KILLED, here, str(folder), str(pause)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    straight, broken = tmp_path / "straight", tmp_path / "broken"
    straight.mkdir()
    broken.mkdir()
    reference = start(straight, 0)
    for _ in range(2):
        process = start(broken, 0.02)
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        time.sleep(0.01)
        process.kill()
        process.wait()
    assert not (broken / "done.pt").exists()
    last = start(broken, 0)
    steps = [int(line) for line in last.communicate()[0].split()]
    assert last.returncode == 0 and reference.wait() == 0 and 1 < len(steps) < 12
    ends = [torch.load(f / "done.pt", weights_only=True) for f in (straight, broken)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
