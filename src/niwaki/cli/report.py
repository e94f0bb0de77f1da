"""niwaki report: draw the report of a run again from its record."""

from __future__ import annotations

import argparse

from niwaki.cli.screen import Answer, Out


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("run_dir", metavar="RUN_DIR", help="what niwaki fit wrote (--out)")


def run(args: argparse.Namespace, out: Out) -> Answer:
    """Write report.html from report.json."""
    from niwaki import report

    page = report.rebuild(args.run_dir)
    return Answer({"report": str(page)}, str(page))
