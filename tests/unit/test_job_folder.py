"""A run's folder: stages kept, other arguments named, two runs kept apart."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from niwaki.errors import RunError
from niwaki.job.folder import opened

RUN: dict[str, Any] = {
    "arguments": {"budget": "macs=50%", "size": (8, 8), "seed": 0},
    "data": "0123456789abcdef",
    "versions": {"torch": "2"},
    "threads": 1,
}


def other(**arguments: Any) -> dict[str, Any]:
    return {**RUN, "arguments": {**RUN["arguments"], **arguments}}


def code_of(path: Path, run: dict[str, Any] = RUN) -> RunError:
    with pytest.raises(RunError) as caught, opened(path, run):
        pass
    return caught.value


def test_a_stage_is_made_once(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, int]:
        made.append(1)
        return {"a": len(made)}

    for _ in range(2):
        with opened(tmp_path / "run", RUN) as folder:
            assert folder.once("stage", make) == {"a": 1}
    assert made == [1]


def test_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with opened(tmp_path / "run", RUN) as folder:
        first = folder.weights("w", lambda: copy.deepcopy(model), lambda: model)
    fresh = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with opened(tmp_path / "run", RUN) as folder:
        again = folder.weights("w", lambda: fresh, lambda: pytest.fail("made again"))
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])


def test_other_arguments_are_named(tmp_path: Path) -> None:
    with opened(tmp_path / "run", RUN):
        pass
    error = code_of(tmp_path / "run", other(budget="macs=40%", seed=1))
    assert error.code == "run-differs"
    assert "budget was 'macs=50%', now 'macs=40%'" in str(error)
    assert "seed was 0, now 1" in str(error) and "size" not in str(error)


def test_other_data_is_named(tmp_path: Path) -> None:
    with opened(tmp_path / "run", RUN):
        pass
    error = code_of(tmp_path / "run", {**RUN, "data": "fedcba9876543210"})
    assert error.code == "run-differs" and "data's fingerprint" in str(error)


def test_other_versions_are_noted_and_the_thread_count_is_kept(tmp_path: Path) -> None:
    with opened(tmp_path / "run", RUN):
        pass
    with opened(tmp_path / "run", {**RUN, "versions": {"torch": "3"}, "threads": 9}) as folder:
        assert folder.notes and folder.run["threads"] == 1


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert code_of(tmp_path).code == "run-foreign"
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.txt"]
    assert code_of(tmp_path / "thesis.txt").code == "run-foreign"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"arguments": 1}'])
def test_a_damaged_run_file_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    assert code_of(tmp_path).code == "run-damaged"


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from niwaki.job.folder import opened\n"
        f"with opened(Path(sys.argv[1]), {RUN!r}): print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        error = code_of(tmp_path)
        assert error.code == "run-locked" and str(child.pid) in str(error)
    finally:
        child.kill()
        child.communicate()
    with opened(tmp_path, RUN):  # the lock died with its owner
        pass


@pytest.mark.parametrize(("size", "alone"), [((32, 32), True), ((32, 64), False)])
def test_small_images_are_trained_on_one_thread(
    size: tuple[int, int], alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch 2.14.1 crashed with two threads in the backward pass of a cut network of 16 pixels."""
    from types import SimpleNamespace

    torch = pytest.importorskip("torch")
    from niwaki.job import run

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    arguments: Any = SimpleNamespace(size=size, to_json=dict)
    read: Any = SimpleNamespace(fingerprint="x")
    assert run.identity(arguments, read)["threads"] == (1 if alone else 2)
