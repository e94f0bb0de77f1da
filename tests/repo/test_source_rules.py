"""Rules of the source: imports go down, public things are explained, sizes, error codes."""

from __future__ import annotations

import pytest
from repo_checks import (
    ROOT,
    cycles,
    layers,
    missing_docstrings,
    sources,
    too_large,
    unit,
    unknown_raises,
    upward_imports,
    wrong_codes,
)

from niwaki import errors

FILES = sources()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def test_imports_go_down() -> None:
    assert upward_imports(FILES, ARCHITECTURE) == []


def test_no_ring_of_imports() -> None:
    assert cycles(FILES) == []


def test_architecture_names_what_exists() -> None:
    known = {name for names in layers(ARCHITECTURE)[0] for name in names}
    assert known - {unit(path) for path in FILES} == set()


@pytest.mark.parametrize(
    ("path", "text", "fault"),
    [
        ("spec.py", "from niwaki.plan import Plan", "lies above"),
        ("spec.py", "def f():\n    from niwaki import job", "lies above"),
        ("spec.py", "import niwaki.cli.fit", "lies above"),
        ("spec.py", "import importlib\nimportlib.import_module('niwaki.job')", "lies above"),
        ("train/__init__.py", "def f():\n    from niwaki.prune import score", "siblings"),
        ("runtimes/onnx.py", "import niwaki.distill", "siblings"),
        ("cli/fit.py", "from . import info", "relative"),
        ("cli/fit.py", "from niwaki import nowhere", "not in docs/architecture.md"),
        ("helpers.py", "import os", "not in docs/architecture.md"),
    ],
)
def test_import_checker_sees(path: str, text: str, fault: str) -> None:
    assert any(fault in found for found in upward_imports({path: text}, ARCHITECTURE))


def test_import_checker_lets_downward_imports_pass() -> None:
    good = {
        "cli/fit.py": "from niwaki import job\nfrom niwaki.cli.screen import Out",
        "plan.py": "import niwaki.spec",
    }
    assert upward_imports(good, ARCHITECTURE) == []


def test_ring_checker_sees_a_ring() -> None:
    ring = {
        "a.py": "import niwaki.b",
        "b.py": "def f():\n    import niwaki.c",
        "c.py": "from niwaki import a",
    }
    assert cycles(ring) == ["a -> b -> c -> a"]
    assert cycles({"a.py": "import niwaki.b", "b.py": ""}) == []


@pytest.mark.parametrize("path", FILES)
def test_public_things_have_docstrings(path: str) -> None:
    assert missing_docstrings(path, FILES[path]) == []


def test_docstring_checker_sees() -> None:
    text = '"""M."""\ndef f(): ...\nclass A:\n    """A."""\n'
    text += "    def g(self): ...\n    def _h(self): ...\n"
    assert missing_docstrings("x.py", text) == [
        "x.py:2: f without docstring",
        "x.py:5: g without docstring",
    ]
    assert missing_docstrings("x.py", "x = 1") == ["x.py: module without docstring"]


@pytest.mark.parametrize("path", FILES)
def test_sizes(path: str) -> None:
    assert too_large(path, FILES[path]) == []


def test_size_checker_sees() -> None:
    long = "def f():\n" + "    x = 1\n" * 60
    assert too_large("x.py", long) == ["x.py:1: f has 61 lines, at most 60"]
    explained = 'def f():\n    """One.\n\n    Two.\n    """\n' + "    x = 1\n" * 59
    assert too_large("x.py", explained) == []
    assert too_large("x.py", "x = 1\n" * 601) == ["x.py: 601 lines, at most 600"]


def test_error_codes_are_listed_and_raised() -> None:
    assert wrong_codes(FILES, errors.CODES) == []


def test_code_checker_sees() -> None:
    files = {"a.py": "raise E('x', code='b-two')\nraise E('x', code='a-one' if y else 'c-three')"}
    listed = {"b-two": "", "a-one": "", "d-four": ""}
    faults = wrong_codes(files, listed)
    assert "errors.CODES is not sorted" in faults
    assert "a.py:2: 'c-three' is not in errors.CODES" in faults
    assert "errors.CODES lists 'd-four', which nothing raises" in faults
    assert len(faults) == 3


@pytest.mark.parametrize("path", FILES)
def test_docstrings_promise_codes_that_exist(path: str) -> None:
    assert unknown_raises(path, FILES[path], errors.CODES) == []


def test_raises_checker_sees() -> None:
    text = 'def f():\n    """F.\n\n    Raises:\n        E: bad. [spec-size, image-*, no-such]\n'
    text += '    """\n'
    codes = {"spec-size": "", "image-empty": ""}
    assert unknown_raises("x.py", text, codes) == [
        "x.py:1: docstring names [no-such], which is not in errors.CODES"
    ]
