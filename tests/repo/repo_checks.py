"""Checkers of the repository's rules: text in, faults out. Each has a test where it fails."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "niwaki"
TOP = ("cli", "__main__", "__init__")


def sources() -> dict[str, str]:
    """{path below src/niwaki: text} of every module."""
    return {str(path.relative_to(SOURCE)): path.read_text() for path in sorted(SOURCE.rglob("*.py"))}


def unit(path: str) -> str:
    """The module or package directly below niwaki that a file belongs to: `spec`, `data`, `cli`."""
    return Path(path).parts[0].removesuffix(".py")


def layers(architecture: str) -> tuple[list[list[str]], set[frozenset[str]]]:
    """Levels from the top down, and pairs of siblings, from the block in docs/architecture.md."""
    block = architecture.split("```")[1].strip("\n").splitlines()
    levels: list[list[str]] = []
    siblings: set[frozenset[str]] = set()
    for line in block:
        names = [name.strip("/ ") for name in re.split(r"[,|]", re.split(r"\s{2,}", line.strip())[0])]
        levels.append(names)
        if "|" in line:
            siblings |= {frozenset((a, b)) for a in names for b in names if a != b}
    return levels, siblings


def imported(text: str, *, package: str = "niwaki") -> Iterator[tuple[int, str]]:
    """(line, unit) of every import of niwaki, inside functions too, and import_module strings."""
    for node in ast.walk(ast.parse(text)):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == package:
            found = [f"{package}.{name.name}" for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = ["relative." if node.level else node.module or ""]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "import_module":
            first = node.args[0] if node.args else None
            found = [first.value] if isinstance(first, ast.Constant) else []
        for name in found:
            if name.startswith(f"{package}."):
                yield node.lineno, name.split(".")[1]
            elif name.startswith("relative."):
                yield node.lineno, "relative"


def upward_imports(files: Mapping[str, str], architecture: str) -> list[str]:
    """Imports that go up, between siblings, or of modules the architecture does not know."""
    levels, siblings = layers(architecture)
    level = {name: len(levels) - k for k, names in enumerate(levels) for name in names}
    level |= {name: len(levels) + 1 for name in ("__main__", "__init__")}
    faults = [f"{unit(path)}: not in docs/architecture.md" for path in files if unit(path) not in level]
    for path, text in files.items():
        here = unit(path)
        for line, there in imported(text):
            if there == "relative":
                faults.append(f"{path}:{line}: relative import")
            elif there not in level or here not in level:
                faults.append(f"{path}:{line}: imports {there}, which is not in docs/architecture.md")
            elif level[there] > level[here]:
                faults.append(f"{path}:{line}: {here} imports {there}, which lies above it")
            elif frozenset((here, there)) in siblings:
                faults.append(f"{path}:{line}: {here} and {there} are siblings")
    return sorted(set(faults))


def cycles(files: Mapping[str, str]) -> list[str]:
    """Units that import each other in a ring."""
    graph: dict[str, set[str]] = {}
    for path, text in files.items():
        graph.setdefault(unit(path), set()).update(name for _, name in imported(text))
    done: set[str] = set()
    faults: list[str] = []

    def walk(name: str, trail: list[str]) -> None:
        if name in trail:
            faults.append(" -> ".join([*trail[trail.index(name) :], name]))
            return
        if name in done:
            return
        for other in sorted(graph.get(name, set()) - {name}):
            walk(other, [*trail, name])
        done.add(name)

    for name in sorted(graph):
        walk(name, [])
    return faults


def missing_docstrings(path: str, text: str) -> list[str]:
    """Modules, public classes, functions and methods without a docstring."""
    tree = ast.parse(text)
    faults = [] if ast.get_docstring(tree) else [f"{path}: module without docstring"]
    for node in _public(tree):
        if not ast.get_docstring(node):
            faults.append(f"{path}:{node.lineno}: {node.name} without docstring")
    return faults


def _public(parent: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    for node in parent.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public(node)


def too_large(path: str, text: str, *, function: int = 60, file: int = 600) -> list[str]:
    """Functions above 60 lines (docstring apart) and files above 600."""
    faults = []
    count = len(text.splitlines())
    if count > file:
        faults.append(f"{path}: {count} lines, at most {file}")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1 - _docstring_lines(node)
            if lines > function:
                faults.append(f"{path}:{node.lineno}: {node.name} has {lines} lines, at most {function}")
    return faults


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    if ast.get_docstring(node) is None or first.end_lineno is None:
        return 0
    return first.end_lineno - first.lineno + 1


def codes_given(text: str) -> Iterator[tuple[int, str]]:
    """(line, code) of every `code="..."` that a call passes."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.keyword) and node.arg == "code":
            given = node.value
            for value in (given.body, given.orelse) if isinstance(given, ast.IfExp) else (given,):
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.lineno, value.value


def wrong_codes(files: Mapping[str, str], codes: Mapping[str, str]) -> list[str]:
    """Codes that are raised but not listed, listed but not raised, or out of order."""
    faults = [] if list(codes) == sorted(codes) else ["errors.CODES is not sorted"]
    strings: set[str] = set()
    for path, text in files.items():
        if path == "errors.py":
            continue
        faults += [
            f"{path}:{n}: {code!r} is not in errors.CODES" for n, code in codes_given(text) if code not in codes
        ]
        strings |= {
            node.value
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
    return faults + [
        f"errors.CODES lists {code!r}, which nothing raises" for code in codes if code not in strings
    ]


def named_in_raises(text: str) -> Iterator[tuple[int, str]]:
    """(line, code) of the codes in brackets in docstrings' Raises lines: `[spec-size, image-*]`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            raises = (ast.get_docstring(node) or "").partition("Raises:")[2]
            for group in re.findall(r"\[([a-z][a-z0-9*]*-[a-z0-9*, -]*)\]", raises):
                for code in group.split(","):
                    yield node.lineno, code.strip()


def unknown_raises(path: str, text: str, codes: Mapping[str, str]) -> list[str]:
    """Codes that a docstring promises and errors.CODES lacks; a star stands for any ending."""
    return [
        f"{path}:{line}: docstring names [{code}], which is not in errors.CODES"
        for line, code in named_in_raises(text)
        if not any(re.fullmatch(code.replace("*", ".*"), known) for known in codes)
    ]


# Put together from pieces, so that this file does not trip its own check.
LEAKS = {
    "a package registry": re.compile(
        "|".join(
            (
                "pypi" + r"\.org",
                "python" + r"hosted\.org",
                "npm" + r"js\.(org|com)",
                "--(extra-)?index" + "-url",
                "--find" + "-links",
            )
        )
    ),
    "a machine's path": re.compile(
        r"(?<![\w.])/(" + "|".join(("work", "root", "home", "Users", "opt")) + r")/\w"
    ),
    "a hash of a package": re.compile("--hash" + "=sha256"),
}
LOCKS = (
    "uv.lock",
    "poetry.lock",
    "package-lock.json",
    "yarn.lock",
    "pnpm-lock.yaml",
    "Pipfile.lock",
)


def leaks(path: str, text: str) -> list[str]:
    """What must not be committed: registry addresses, machine paths, lock files."""
    faults = [f"{path}: a lock file"] if Path(path).name in LOCKS else []
    for number, line in enumerate(text.splitlines(), 1):
        faults += [
            f"{path}:{number}: {what}: {line.strip()[:80]}"
            for what, found in LEAKS.items()
            if found.search(line)
        ]
    return faults


def code_blocks(text: str, language: str = "python") -> list[tuple[int, str]]:
    """(line, code) of a page's fenced blocks; `<!-- not run: why -->` above one leaves it out."""
    blocks = []
    for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if not re.search(r"<!-- not run: .+ -->\s*$", text[: match.start()]):
            blocks.append((text[: match.start()].count("\n") + 2, match[1]))
    return blocks


def run_page(name: str, text: str) -> None:
    """Execute a page's Python blocks in order in one namespace; a failure has the page's line."""
    space: dict[str, object] = {"__name__": "__main__"}
    for line, code in code_blocks(text):
        exec(compile("\n" * (line - 1) + code, name, "exec"), space)
