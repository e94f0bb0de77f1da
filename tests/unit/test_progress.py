"""Progress: a line an epoch where nobody watches, bars with loss, score, time on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from niwaki.cli import progress

SHOWN = """
from types import SimpleNamespace
from niwaki.cli.progress import bars
with bars() as show:
    for step in range(1, 11):
        show(SimpleNamespace(
            stage="train", step=step, steps=10, epoch=1 + (step > 5), epochs=2, loss=0.5,
            epoch_ended=step % 5 == 0, score=0.9, lr=0.1, seconds=1.0, eta=65.0,
        ))
"""


def now(**more: Any) -> Any:
    fields: dict[str, Any] = {"stage": "train", "step": 5, "steps": 10, "epoch": 1, "epochs": 2}
    fields |= {"epoch_ended": True, "loss": 0.25, "score": None, "lr": 0.1}
    fields |= {"seconds": 1.0, "eta": 1.0}
    return SimpleNamespace(**{**fields, **more})


def test_fields_are_those_of_the_loop() -> None:
    from dataclasses import fields

    loop = pytest.importorskip("niwaki.loop")
    assert {field.name for field in fields(loop.Progress)} == set(vars(now()))


def test_one_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    show = progress.lines()
    show(now(epoch_ended=False))
    show(now(score=0.5))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "train: epoch 1/2  loss 0.2500  val 50.0 %\n"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65.4, "1:05"), (7200, "2:00:00"), (-1, "0:00")])
def test_clock(seconds: float, text: str) -> None:
    assert progress.clock(seconds) == text


def test_bars_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    command = [sys.executable, "-c", SHOWN]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    try:
        while part := os.read(ours, 4096):
            seen += part
    except OSError:  # the other end is closed
        pass
    assert process.wait(60) == 0
    assert process.stdout is not None and process.stdout.read() == b""
    text = seen.decode(errors="replace")
    for words in ("train", "100 %", "loss 0.5000", "val 90.0 %", "1:05 left"):
        assert words in text, words


def test_no_bars_into_a_file() -> None:
    done = subprocess.run([sys.executable, "-c", SHOWN], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [f"train: epoch {k}/2  loss 0.5000  val 90.0 %" for k in (1, 2)]
