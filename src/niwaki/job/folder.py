"""A run's folder: whose it is, what is already done, and a lock so that two runs never share it.

    run.json          the arguments, the data's fingerprint, versions and thread count it belongs to
    journal.jsonl     measured decisions, each written before it is acted on
    stages/NAME.json  results of finished stages; stages/NAME.safetensors their weights
    result.json       what `fit` returns; once it is there the run is finished

All files are replaced in one step, so after a crash a stage is either done or not begun. Under `torchrun` the
first process owns the folder, and the others are told what it holds (`together.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from niwaki import files
from niwaki.errors import RunError
from niwaki.job import together
from niwaki.journal import Journal

if TYPE_CHECKING:
    from torch import nn


class _Shared(Journal):
    """A journal whose decisions the first process takes for all."""

    def decide(self, key: str, measure: Callable[[], Any]) -> Any:
        """As `Journal.decide`; the others are told."""
        return json.loads(together.told(lambda: json.dumps(super(_Shared, self).decide(key, measure)).encode()))


@dataclass(frozen=True)
class Folder:
    """An open run folder; made by `opened`."""

    path: Path
    run: dict[str, Any]
    journal: Journal
    notes: list[str] = field(default_factory=list)

    @property
    def result(self) -> dict[str, Any] | None:
        """What the finished run returned; None while it is not finished."""
        path = self.path / "result.json"
        held = together.told(lambda: path.read_bytes() if path.exists() else b"")
        return _parsed(held, path) if held else None

    def stage(self, name: str) -> Path:
        """Where a stage keeps its file of that name."""
        return self.path / "stages" / name

    def bytes_of(self, path: Path) -> int:
        """Size of a file that a stage has made."""
        return int(together.told(lambda: str(path.stat().st_size).encode()))

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """A stage's result: read back if it is there, else made and stored. It must be JSON."""
        path = self.stage(f"{name}.json")

        def stored() -> bytes:
            if not path.exists():
                files.write_json(path, make())
            return path.read_bytes()

        return _parsed(together.told(stored), path)

    def weights(self, name: str, model: Callable[[], nn.Module], make: Callable[[], nn.Module]) -> nn.Module:
        """A stage's model: `make()`, its tensors stored; or `model()` filled with the stored ones."""
        from safetensors.torch import load, save

        path = self.stage(f"{name}.safetensors")
        held = together.told(lambda: path.read_bytes() if path.exists() else b"")
        if not held:
            made = make()
            tensors = {key: value.contiguous() for key, value in made.state_dict().items()}
            held = together.told(lambda: save({k: v.clone() for k, v in tensors.items()}))
            files.write_bytes(path, held)
            return made
        filled, stored = model(), load(held)
        shapes = {key: tuple(value.shape) for key, value in filled.state_dict().items()}
        if shapes != {key: tuple(value.shape) for key, value in stored.items()}:
            filled = make()  # a step that cuts as it trains; its checkpoints make this short
        filled.load_state_dict(stored)
        return filled

    def note(self, text: str) -> None:
        """Remember something a reader must know; said once."""
        if text not in self.notes:
            self.notes.append(text)


def read_json(path: Path) -> Any:
    """A JSON file of a run folder.

    Raises:
        RunError: it is no JSON. [run-damaged]
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}. Give another --out.", code="run-damaged") from error
    return _parsed(data, path)


def _parsed(data: bytes, path: Path) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise RunError(
            f"{path}: cannot be read as JSON ({error}). Delete the run folder, or give another --out.",
            code="run-damaged",
        ) from error


@contextlib.contextmanager
def opened(path: Path, run: dict[str, Any]) -> Iterator[Folder]:
    """The run folder at `path`, locked while the block lasts; made when it is not there.

    Args:
        run: `arguments`, `data` (fingerprint), `versions`, `threads`: written to a new folder,
            compared in an old one.
    Raises:
        RunError: the folder is another run's, in use, damaged, or no run folder.
            [run-differs, run-locked, run-damaged, run-foreign]
    """
    with together.own_folder(path) as path, _locked(path):
        stored = _owned(path, run)
        folder = Folder(path, stored, _Shared(path / "journal.jsonl"))
        if stored["versions"] != run["versions"]:
            folder.note("library versions changed since this run began; see run.json")
        yield folder


def _check_foreign(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise RunError(f"--out: {path} is a file, expected a folder.", code="run-foreign")
    held = [item.name for item in path.iterdir()] if path.exists() else []
    if "run.json" not in held and any(not name.startswith(".") for name in held):
        raise RunError(
            f"--out: {path} is not empty and holds no run of niwaki. Give a new or empty folder.",
            code="run-foreign",
        )


def _owned(path: Path, run: dict[str, Any]) -> dict[str, Any]:
    """What run.json holds, after it was compared with this command; written if it is not there."""
    file = path / "run.json"
    if not file.exists():
        files.write_json(file, run)
    stored = read_json(file)
    if not isinstance(stored, dict) or stored.keys() != run.keys() or not isinstance(stored["arguments"], dict):
        raise RunError(f"{file}: not a run of this version. Give another --out.", code="run-damaged")
    now = json.loads(files.dump_json(run))
    differs = [
        _difference(name, stored["arguments"].get(name), now["arguments"].get(name))
        for name in sorted({*stored["arguments"], *now["arguments"]})
        if stored["arguments"].get(name) != now["arguments"].get(name)
    ]
    if stored["data"] != now["data"]:
        differs.append(f"the data's fingerprint was {stored['data'][:12]}, now {now['data'][:12]}")
    if differs:
        raise RunError(
            f"--out: {path} belongs to another run: {'; '.join(differs)}. "
            "Give another --out, or the same arguments and data.",
            code="run-differs",
        )
    return stored


def _difference(name: str, before: Any, now: Any) -> str:
    if len(repr(before)) + len(repr(now)) > 200:
        return f"{name} is another one"
    return f"{name} was {before!r}, now {now!r}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """An advisory lock that ends with the process, however it ends; the file holds the owner's pid."""
    _check_foreign(path)
    path.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _take(descriptor):
            owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise RunError(
                f"--out: {path} is in use by process {owner}. Wait for it, or give another --out.",
                code="run-locked",
            )
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: without flock two runs are not kept apart
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
