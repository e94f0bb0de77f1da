"""Pages: generated ones equal the program, code on pages runs, and nothing private is committed."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from repo_checks import ROOT, code_blocks, leaks, run_page

from niwaki.cli import VERBS, pages

REQUIRED = (
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Makefile",
    "constraints.txt",
    ".ci/run",
    "docs/quickstart.md",
    "docs/architecture.md",
    "docs/errors.md",
    "docs/cli.md",
    "docs/status.md",
)
EXECUTED = (
    "README.md",
    "docs/quickstart.md",
    "docs/pruning.md",
    "docs/graph-results.md",
    "docs/recovery.md",
    "docs/quantization.md",
    "docs/segmentation.md",
    "docs/point-rend.md",
    "docs/sampling.md",
    "docs/instances.md",
    "docs/qat.md",
    "docs/instruction-sets.md",
    "docs/tiles.md",
    "docs/bands.md",
)


@pytest.mark.parametrize("name", pages.PAGES)
def test_generated_pages_are_fresh(name: str) -> None:
    written = (ROOT / "docs" / name).read_text()
    assert written == pages.PAGES[name](), "run `make docs`"


def test_a_stale_page_is_seen(tmp_path: Path) -> None:
    pages.write(tmp_path)
    page = tmp_path / "cli.md"
    assert page.read_text() == pages.cli_page()
    page.write_text(page.read_text().replace("--budget", "--bugdet"))
    assert page.read_text() != pages.cli_page()


def test_verbs_are_frozen() -> None:
    assert list(VERBS) == ["fit", "search", "info", "predict", "bench", "export", "doctor", "report"]


@pytest.mark.parametrize("name", REQUIRED)
def test_required_files_are_there(name: str) -> None:
    assert (ROOT / name).stat().st_size > 100


def committed() -> list[str]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_nothing_private_is_committed() -> None:
    names = committed()
    assert "pyproject.toml" in names
    faults = []
    for name in names:
        data = (ROOT / name).read_bytes()
        if b"\0" not in data[:8000]:
            faults += leaks(name, data.decode(errors="replace"))
    assert faults == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("a.txt", "see https://" + "pypi" + ".org/simple"),
        ("a.txt", "--extra-index" + "-url x"),
        ("b.py", 'open("/' + 'home/me/x")'),
        ("c/uv" + ".lock", ""),
        ("d.md", "run /" + "work/main/x"),
        ("constraints.txt", "numpy==2 --hash" + "=sha256:00"),
    ],
)
def test_leak_checker_sees(path: str, text: str) -> None:
    assert len(leaks(path, text)) == 1


def test_leak_checker_lets_plain_text_pass() -> None:
    assert leaks("a.md", "frame/work/x, ./home/y, https://example.com/opt/z") == []


def test_constraints_pin_every_dependency() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*", line) for line in lines)
    pinned = {line.partition("==")[0] for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["train"], *extras["dev"]]
    assert {re.split(r"[<>=!~ \[;]", name)[0] for name in asked} - pinned == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", EXECUTED)
def test_code_on_pages_runs(name: str, tmp_path: Path) -> None:
    page = ROOT / name
    assert code_blocks(page.read_text()), "a page without code proves nothing"
    runner = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
        "from pathlib import Path; "
        f"from repo_checks import run_page; run_page({name!r}, Path({str(page)!r}).read_text())"
    )
    done = subprocess.run(
        [sys.executable, "-c", runner], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_page_runner_sees_a_failure() -> None:
    with pytest.raises(ZeroDivisionError):
        run_page("x.md", "text\n```python\nx = 1\n```\nmore\n```python\nx / 0\n```\n")


def test_page_runner_leaves_out_only_what_says_why() -> None:
    assert code_blocks("<!-- not run: needs a camera -->\n```python\n1/0\n```\n") == []
    assert code_blocks("<!-- not run: -->\n```python\n1/0\n```\n") == [(3, "1/0\n")]


def test_readme_example_is_short() -> None:
    [(_, code), *_] = code_blocks((ROOT / "README.md").read_text())
    assert len(code.splitlines()) <= 30
