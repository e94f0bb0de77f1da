"""The programs in docs/gates.md and docs/slimming.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["gates", "slimming"])
def test_its_programs_run(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    if page == "gates":
        sizes = [sum(p.numel() for p in names[n].parameters()) for n in ("model", "small")]  # type: ignore[attr-defined]
        assert sizes[1] < sizes[0]
