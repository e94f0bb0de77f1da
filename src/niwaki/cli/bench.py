"""niwaki bench: time two artifacts in turn, and give their ratio with its interval."""

from __future__ import annotations

import argparse
from typing import Any

from niwaki.cli.screen import Answer, Out
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
    ratio, ms = result["ratio"], result["ms"]
    low, high = ratio["low"], ratio["high"]
    verdict = "A is faster" if high < 1 else "A is SLOWER" if low > 1 else "no gain"
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    return "\n".join(
        [
            f"A / B   {ratio['median']:.3f}  (95 % interval {low:.3f} to {high:.3f}): {verdict}",
            f"A       {_ms(ms['a'])}",
            f"B       {_ms(ms['b'])}",
            f"on      {result['cpu']}, {threads}",
        ]
    )


def _ms(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.4g} ms  (p90 {value['p90']:.4g} ms)"
    return f"{value:.4g} ms"
