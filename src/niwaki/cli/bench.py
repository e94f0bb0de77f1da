"""niwaki bench: time two artifacts in turn, or one artifact on all its runtimes, with parity and accuracy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from niwaki.cli.screen import Answer, Out, percent, table
from niwaki.cli.values import natural, positive


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arg = parser.add_argument
    arg("artifact", metavar="A", help="a NAME.niwaki folder")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--against", metavar="B", help="the artifact that A is compared with")
    way.add_argument("--all-runtimes", action="store_true", help="every export of A, one row each")
    arg("--data", metavar="DATA", help="with --all-runtimes: its test images give accuracy and agreement")
    arg("--chart", metavar="FILE.svg", help="with --all-runtimes: also draw it")
    arg(
        "--seed", type=natural, metavar="N", help="seed of the data's splits (default: that of A's fit, else 0)"
    )
    arg("--rounds", type=positive, metavar="N", help="timed samples of each (default 30; 20 of all runtimes)")
    arg(
        "--threads",
        type=positive,
        default=1,
        metavar="N",
        help="threads of the runtime (default 1)",
    )


def run(args: argparse.Namespace, out: Out) -> Answer:
    """Time A and B, or all of A, interleaved, one image a call."""
    if args.all_runtimes:
        return _all(args)
    from niwaki import bench

    result = bench.compare(args.artifact, args.against, threads=args.threads, rounds=args.rounds or 30)
    return Answer(result, _text(result))


def _all(args: argparse.Namespace) -> Answer:
    from niwaki import bench, bench_chart, bench_runtimes, files
    from niwaki.artifact import Artifact

    artifact, samples = Artifact.open(args.artifact), None
    if args.data:
        from niwaki.cli import given

        samples = given.labelled(artifact, args.data, seed=args.seed).test
    result = bench_runtimes.measure(artifact, data=samples, threads=args.threads, rounds=args.rounds or 20)
    result["warnings"] = bench.warnings(artifact)
    if args.chart:
        files.write_bytes(Path(args.chart), bench_chart.svg(result).encode())
    return Answer(result, _all_text(result))


def _all_text(result: dict[str, Any]) -> str:
    head = ["", "agreement", "max error", "accuracy", "ms", "p90 ms", "start ms", "MB", "peak MB"]
    rows = [head]
    for name, row in sorted(result["runtimes"].items(), key=lambda item: item[1]["ms"]):
        numbers = [f"{row[key]:.3g}" for key in ("ms", "p90_ms", "start_ms", "mb", "peak_mb")]
        shares = [percent(row["agreement"]), f"{row['max_error']:.1g}", percent(row["accuracy"])]
        rows.append([name, *shares, *numbers])
    best = result["fastest"]
    ratio, low, high = (best["ratio"][name] for name in ("median", "low", "high"))
    against = f", {ratio:.3f} of {best['against']}'s time (95 % interval {low:.3f} to {high:.3f})"
    lines = [
        table(rows),
        "",
        f"fastest: {best['name']}{against if best['name'] != best['against'] else ''}",
        f"agreement and error against {result['reference']} on {result['images']} images"
        + (f" of {result['of_images']}, as many as fit" if result["images"] < result["of_images"] else ""),
    ]
    lines += [
        f"not faster than its float32, so not to be chosen for speed: {name}" for name in result["slower"]
    ]
    lines += [f"{n} agrees with onnx:int8 on {percent(a)}" for n, a in result["same_numbers"].items()]
    lines += [f"does not run here: {name}: {why}" for name, why in result["failed"].items()]
    threads = result["threads"]
    lines.append(f"{result['cpu']}, {threads} thread{'s' if threads > 1 else ''}")
    return "\n".join([*lines, *result["warnings"]])


def _text(result: dict[str, Any]) -> str:
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    rows = [["", "median ms", "p90 ms", "precision"]]
    for name in ("a", "b"):
        times = (f"{result[key][name]:.4g}" for key in ("ms", "p90"))
        rows.append([name.upper(), *times, result["precision"][name]])
    lines = [result["verdict"], "", table(rows), "", f"{result['cpu']}, {threads}", *result["warnings"]]
    return "\n".join(lines)
