"""The processes of one job under `torchrun`: all of them train, the first alone decides, measures and writes.

Every process walks the same stages. Where a stage makes something that is no training, the first process makes
it while the others wait, and all go on with its bytes; so they agree on every decision, a resume included, and
nothing disturbs a timing. The others keep their files in a folder of their own that goes when they end.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from niwaki.errors import RunError

_making = False


def alone() -> bool:
    """Whether this is the job's only process, or in the midst of what the first one does alone."""
    return _making or int(os.environ.get("WORLD_SIZE", "1")) < 2


def first() -> bool:
    """Whether this process is the one that decides and writes."""
    return alone() or int(os.environ.get("RANK", "0")) == 0


def told(make: Callable[[], bytes]) -> bytes:
    """What `make` gives in the first process, in all of them; it begins when all have come so far.

    Raises:
        RunError: here in the others, when it failed in the first, which raises what went wrong. [run-first]
    """
    global _making
    if alone():
        return make()
    import torch

    from niwaki import parallel

    parallel.sum_([torch.zeros(1, device=parallel.device())])
    data: bytes | None = None
    if first():
        _making = True
        try:
            data = make()
        finally:
            _making = False
            parallel.bytes_from_first(data)
        return data
    data = parallel.bytes_from_first(None)
    if data is None:
        raise RunError(
            "fit: the first process failed, and this one ends with it. Its message says why.", code="run-first"
        )
    return data


@contextlib.contextmanager
def own_folder(path: Path) -> Iterator[Path]:
    """The run folder in the first process, a passing one in the others."""
    if first():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="niwaki-process-") as made:
        yield Path(made) / "run"
