"""niwaki bench: time two artifacts in turn, and give their ratio with its interval."""

from __future__ import annotations

import argparse
from typing import Any

from niwaki.cli.screen import Answer, Out, table
from niwaki.cli.values import positive


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arg = parser.add_argument
    arg("artifact", metavar="A", help="a NAME.niwaki folder")
    arg("--against", required=True, metavar="B", help="the artifact that A is compared with")
    arg(
        "--threads",
        type=positive,
        default=1,
        metavar="N",
        help="threads of the runtime (default 1)",
    )


def run(args: argparse.Namespace, out: Out) -> Answer:
    """Time A and B interleaved, one image a call."""
    from niwaki import bench

    result = bench.compare(args.artifact, args.against, threads=args.threads)
    return Answer(result, _text(result))


def _text(result: dict[str, Any]) -> str:
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    rows = [["", "median ms", "p90 ms", "precision"]]
    for name in ("a", "b"):
        times = (f"{result[key][name]:.4g}" for key in ("ms", "p90"))
        rows.append([name.upper(), *times, result["precision"][name]])
    return "\n".join([result["verdict"], "", table(rows), "", f"{result['cpu']}, {threads}"])
