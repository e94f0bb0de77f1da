"""`import niwaki`, the CLI's help and all that runs an artifact: no torch, and quick."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

import niwaki

LIMIT_S = 0.3
RUNTIME_SIDE = (
    "artifact",
    "bench",
    "cost",
    "data",
    "errors",
    "evaluate",
    "images",
    "job",
    "metrics",
    "plan",
    "report",
    "runtimes",
    "search",
    "spec",
    "tasks",
    "tile",
    "timing",
    "cli.pages",
    "cli.progress",
)
HEAVY = ("torch", "torchvision", "timm", "onnx", "onnxscript", "sklearn", "scipy")


def loads(code: str) -> list[str]:
    """Which heavy packages a fresh interpreter has loaded after some code."""
    ask = f"{code}\nimport sys\nprint(' '.join(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split() if done.stdout.strip() else []


def quickest(*command: str, rounds: int = 5) -> float:
    """Seconds of processor time of the quickest of several runs: on an idle machine, what it takes.

    Wall time would measure how busy the machine is; these commands use one thread and wait for
    nothing.
    """
    times = []
    for _ in range(rounds):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_import_loads_nothing_heavy() -> None:
    assert loads("import niwaki") == []


def test_help_loads_nothing_heavy() -> None:
    assert loads("from niwaki.cli import main\nmain(['--help'])\nmain(['fit', '--help'])") == []


@pytest.mark.parametrize("module", RUNTIME_SIDE)
def test_the_runtime_side_imports_no_torch(module: str) -> None:
    assert loads(f"import niwaki.{module}") == []


def test_the_check_can_fail() -> None:
    assert "onnx" in loads("import onnx")


def test_import_is_quick() -> None:
    assert quickest(sys.executable, "-c", "import niwaki") < LIMIT_S


def test_help_is_quick() -> None:
    assert quickest(sys.executable, "-m", "niwaki", "--help") < LIMIT_S


def test_the_clock_can_fail() -> None:
    busy = f"import time\nwhile time.process_time() < {LIMIT_S}: pass"
    assert quickest(sys.executable, "-c", busy, rounds=1) > LIMIT_S


@pytest.mark.parametrize("name", niwaki.__all__)
def test_public_names_resolve(name: str) -> None:
    assert getattr(niwaki, name) is not None


def test_public_names_are_sorted_and_unknown_ones_refused() -> None:
    assert niwaki.__all__ == sorted(niwaki.__all__)
    assert dir(niwaki) == niwaki.__all__
    with pytest.raises(AttributeError):
        niwaki.no_such_name  # noqa: B018
