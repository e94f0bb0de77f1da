"""Progress on stderr: bars with loss, score and time left on a terminal, else one line an epoch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from niwaki.loop import Progress

    Show = Callable[[Progress], None]


@contextlib.contextmanager
def bars() -> Iterator[Show]:
    """A `show(progress)` for the training loops; what it draws is closed at the end."""
    if not sys.stderr.isatty():
        yield lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[says]}"),
    )
    with Bars(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, Any] = {}

        def show(now: Progress) -> None:
            if now.stage not in tasks:
                tasks[now.stage] = progress.add_task(now.stage, total=now.steps, says="")
            progress.update(
                tasks[now.stage],
                completed=now.step,
                total=now.steps,
                says=f"{says(now)}  {clock(now.eta)} left",
            )

        yield show


def lines() -> Show:
    """A `show(progress)` that prints a line for every epoch that has ended."""

    def show(now: Progress) -> None:
        if now.epoch_ended:
            text = f"{now.stage}: epoch {now.epoch}/{now.epochs}  {says(now)}"
            print(text, file=sys.stderr, flush=True)

    return show


def says(now: Progress) -> str:
    """Loss and score of a Progress, in words."""
    words = [f"loss {now.loss:.4f}"]
    if now.score is not None:
        words.append(f"val {100 * now.score:.1f} %")
    return "  ".join(words)


def clock(seconds: float) -> str:
    """Seconds as `1:05` or `2:00:00`."""
    minutes, left = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"
