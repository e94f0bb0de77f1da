"""A run's journal: decisions that were measured are written down before they are acted on.

One JSON object a line, flushed to disk at once. A resumed run reads them back instead of measuring again,
so it walks the same way. A last line torn by a crash is dropped: nothing was done on its account yet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Journal:
    """Append-only decisions of one run, by key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._decided: dict[str, Any] = {}
        if path.exists():
            self._replay()

    def _replay(self) -> None:
        whole = 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            self._decided[entry["key"]] = entry["value"]
            whole += len(line)
        if whole != self.path.stat().st_size:
            os.truncate(self.path, whole)

    def __contains__(self, key: str) -> bool:
        return key in self._decided

    def decide(self, key: str, measure: Callable[[], Any]) -> Any:
        """The decision of that name: read back if it was taken before, else measured and written down.

        Args:
            key: the decision's name, one for each decision of a run.
            measure: called at most once; what it returns must be JSON.
        """
        if key not in self._decided:
            value = json.loads(json.dumps(measure(), allow_nan=False))
            line = json.dumps({"key": key, "value": value}, ensure_ascii=False) + "\n"
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
            self._decided[key] = value
        return self._decided[key]
