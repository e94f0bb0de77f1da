"""Pages of docs/ that are generated from the program: `python -m niwaki.cli.pages docs`.

A test holds the files equal to this text, so that the program and its pages cannot part.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from niwaki.cli import VERBS, parser
from niwaki.errors import CODES, NiwakiError

BY = "<!-- Generated from the program by `make docs`; do not edit. -->"

EXAMPLES = {
    "fit": (
        "niwaki fit photos/ --model timm:resnet18 --budget latency=50% --out runs/leaves",
        "niwaki fit cifar10 --weights resnet20.safetensors --model niwaki:resnet20 --epochs 0",
        "niwaki fit --show-plan > plan.toml",
    ),
    "search": (
        "niwaki search photos/ --model timm:resnet18 --budget macs=50%",
        "niwaki search photos/ --set lr=1e-3..1e-2 --set model=timm:resnet18,timm:mobilenetv3_small_100 "
        "--by halving --trials 12",
    ),
    "info": ("niwaki info runs/leaves/model.niwaki",),
    "predict": (
        "niwaki predict runs/leaves/model.niwaki img.jpg dir/ --top 3",
        "niwaki predict runs/fields/model.niwaki scene.tif -o mask.tif --memory 512MB",
    ),
    "bench": ("niwaki bench runs/leaves/model.niwaki --against runs/leaves/baseline.niwaki",),
    "export": (
        "niwaki export runs/leaves/model.niwaki --precision int8 --calib photos/",
        "niwaki export runs/leaves/model.niwaki --precision int8 --data photos/ --max-drop 1%",
        "niwaki export runs/leaves/model.niwaki --sensitivity layer --data photos/",
    ),
    "doctor": ("niwaki doctor", "niwaki doctor timm:resnet18 --budget macs=50%"),
    "report": ("niwaki report runs/leaves",),
}


def errors_page() -> str:
    """docs/errors.md: every stable code with what it means and what to do."""
    rows = [f"| `{code}` | {text.replace('|', chr(92) + '|')} |" for code, text in CODES.items()]
    classes = [
        f"| `{kind.__name__}` | {(kind.__doc__ or '').strip().splitlines()[0]} | {kind.exit_code} |"
        for kind in _kinds(NiwakiError)
    ]
    return "\n".join(
        [
            BY,
            "",
            "# Errors",
            "",
            "A message says what happened where, what came, what was expected and how to mend it. "
            "The code in brackets is stable: scripts may rely on it. With `--json` a failure is "
            '`{"error": {"code", "message"}}` on stdout.',
            "",
            "| code | meaning and mend |",
            "|---|---|",
            *rows,
            "",
            "## Classes",
            "",
            "All live in `niwaki.errors`; `error.code` holds the code.",
            "",
            "| class | meaning | exit code |",
            "|---|---|---|",
            *classes,
            "",
            "## Exit codes",
            "",
            "0 done · 1 user error · 2 usage · 3 budget or parity not met · 4 missing extra · 130 interrupted",
            "",
        ]
    )


def cli_page() -> str:
    """docs/cli.md: every verb with its arguments, from the parsers themselves."""
    verbs = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    parts = [
        BY,
        "",
        "# Command line",
        "",
        "Results go to stdout, all else to stderr. Every percentage and ratio is the share that "
        "**remains** of the uncompressed model. Exit codes: 0 done, 1 user error, 2 usage, 3 budget or "
        "parity not met, 4 missing extra, 130 interrupted.",
        "",
    ]
    for name in VERBS:
        parts += _verb(name, verbs.choices[name])
    return "\n".join(parts)


def _verb(name: str, verb: argparse.ArgumentParser) -> list[str]:
    says = verb.description or ""
    rows = [_row(action) for action in verb._actions if not isinstance(action, argparse._HelpAction)]
    return [
        f"## niwaki {name}",
        "",
        says[:1].upper() + says[1:],
        "",
        "```sh",
        *EXAMPLES[name],
        "```",
        "",
        "| argument | meaning |",
        "|---|---|",
        *rows,
        "",
    ]


def _row(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else action.metavar or ""
    if action.choices:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    names = ", ".join(action.option_strings)
    words = " ".join(str(word) for word in (names, value) if word).replace("|", "\\|")
    return f"| `{words}` | {(action.help or '').replace('%%', '%')} |"


def _kinds(kind: type[NiwakiError]) -> list[type[NiwakiError]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in _kinds(child))]


PAGES = {"errors.md": errors_page, "cli.md": cli_page}


def write(folder: Path) -> None:
    """Write every generated page into a docs folder."""
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
