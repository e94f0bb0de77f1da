"""The command line: one file a verb with `add(parser)` and `run(args, out)`.

Nothing heavy is imported here or at the top of a verb's file: `niwaki --help` must stay quick and
free of torch. Results go to stdout, all else to stderr. Exit codes: 0 done, 1 user error, 2 usage,
3 budget or parity not met, 4 missing extra, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from niwaki._version import __version__
from niwaki.cli import bench, doctor, export, fit, info, predict, report, search
from niwaki.cli.screen import Answer, Out, results
from niwaki.errors import NiwakiError

VERBS = {
    "fit": fit,
    "search": search,
    "info": info,
    "predict": predict,
    "bench": bench,
    "export": export,
    "doctor": doctor,
    "report": report,
}
INTERRUPTED = 130
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a write says of a full disk: it names no file."""


class _Usage(Exception):
    """The command line does not parse."""


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of leaving, so that `--json` can answer in JSON."""

    def error(self, message: str) -> NoReturn:
        raise _Usage(f"{self.prog}: {message}. Try '{self.prog} --help'.")


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, one subparser a verb."""
    top = _Parser(
        prog="niwaki",
        description="Train, prune and fit vision models to where they must run.",
        epilog="Percentages and ratios are the share that REMAINS of the uncompressed model.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"niwaki {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    for name, module in VERBS.items():
        says = (module.__doc__ or "").splitlines()[0].split(": ", 1)[1]
        verb = verbs.add_parser(name, help=says, description=says, allow_abbrev=False)
        module.add(verb)
        verb.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code.

    Args:
        argv: arguments after the program's name; `sys.argv` unless given.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with results(as_json="--json" in words) as out, warnings.catch_warnings():
        warnings.showwarning = _warned
        try:
            return _run(words, out)
        except BrokenPipeError:
            out.close()
            return 1


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: Any = None,
) -> None:
    """A warning of niwaki's own as one line; those of libraries as Python shows them."""
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        print(f"niwaki: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=sys.stderr)


def _run(words: list[str], out: Out) -> int:
    try:
        with contextlib.redirect_stdout(out.stream):  # --help and --version are results
            args = parser().parse_args(words)
        answer: Answer = VERBS[args.verb].run(args, out)
        out.answer(answer)
        return answer.exit_code
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except BrokenPipeError:
        raise
    except BaseException as error:
        if "--debug" in words:
            traceback.print_exc(file=sys.stderr)
        message, code, exit_code = _explain(error)
        out.error(message, code=code)
        return exit_code


def _explain(error: BaseException) -> tuple[str, str, int]:
    """What to tell of an error: message, stable code, exit code."""
    if isinstance(error, NiwakiError):
        return str(error), error.code, error.exit_code
    if isinstance(error, _Usage):
        return str(error), "usage", 2
    if isinstance(error, KeyboardInterrupt):
        says = "interrupted; the same command goes on from the last checkpoint."
        return says, "interrupted", INTERRUPTED
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}", "file-access", 1
    if isinstance(error, OSError) and error.errno in FULL:
        return f"{error.strerror}. Make room; the same command does the rest.", "file-access", 1
    kind = type(error).__name__
    says = f"{kind}: {error}. This is a bug in niwaki: run again with --debug and report it."
    return says, "internal", 1
