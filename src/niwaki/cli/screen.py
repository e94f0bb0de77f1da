"""What a command prints and where: results on stdout as text or JSON, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO


@dataclass(frozen=True)
class Answer:
    """What a verb found: `value` for machines, `text` for people, and the exit code."""

    value: dict[str, Any]
    text: str = ""
    exit_code: int = 0


class Out:
    """The real stdout of a command, while `sys.stdout` itself leads to stderr."""

    def __init__(self, stream: TextIO, *, as_json: bool) -> None:
        self.stream = stream
        self.as_json = as_json
        self.streamed = False

    def line(self, text: str) -> None:
        """Print one line at once; a broken pipe raises here."""
        self.stream.write(text + "\n")
        self.stream.flush()

    def row(self, value: dict[str, Any]) -> None:
        """Print one JSON object as a line of a stream."""
        self.streamed = True
        self.line(dumps(value))

    def answer(self, answer: Answer) -> None:
        """Print a verb's answer, unless it has streamed its rows."""
        if self.as_json and not self.streamed:
            self.line(dumps(answer.value, indent=2))
        elif answer.text and not self.streamed:
            self.line(answer.text)

    def error(self, message: str, *, code: str) -> None:
        """Print an error: JSON on stdout with --json, always a line on stderr."""
        print(f"niwaki: {message} [{code}]", file=sys.stderr)
        if self.as_json:
            self.row({"error": {"code": code, "message": message}})

    def close(self) -> None:
        """Nobody reads any more: let the interpreter's last flush go nowhere."""
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


@contextlib.contextmanager
def results(*, as_json: bool) -> Iterator[Out]:
    """The command's stdout; meanwhile whatever libraries print to `sys.stdout` goes to stderr.

    Under `torchrun` only the first process answers.
    """
    with contextlib.ExitStack() as stack:
        stream: TextIO = sys.stdout
        if os.environ.get("RANK", "0") != "0":
            stream = stack.enter_context(open(os.devnull, "w"))  # noqa: PTH123
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield Out(stream, as_json=as_json)


def dumps(value: Any, *, indent: int | None = None) -> str:
    """JSON that any parser takes: NaN and infinities become null, other types their text."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length as text columns, the first row being the head; numbers to the right."""
    if not rows:
        return ""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = []
    for row in rows:
        right = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        cells = [row[0].ljust(widths[0]), *right]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


STAGES = ("baseline", "unpruned int8", "pruned", "distilled", "int8")


def in_order(stages: Mapping[str, Any]) -> list[str]:
    """Names of stages in the order they come about, unknown ones last; stored JSON sorts them."""
    return sorted(stages, key=lambda name: STAGES.index(name) if name in STAGES else len(STAGES))


def count(value: float | None) -> str:
    """A number with k, M or G: `1.23 M`; an en dash for None."""
    if value is None:
        return "–"
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.4g}"


def percent(value: float | None, *, digits: int = 1) -> str:
    """A share 0..1 as `97.8 %`; an en dash for None."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"
