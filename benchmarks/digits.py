"""The main job on the built-in digits, by its defaults: accuracy and latency, several seeds.

    python benchmarks/digits.py --seeds 0 1 2

Latencies of a run come from its one interleaved timing, one thread; ratios are what counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import niwaki as nw


def row(result: dict[str, Any]) -> dict[str, float]:
    """What the first issue asks of the demonstration, for one seed."""
    default = result["default"]
    accuracy = {stage: 100 * s["test"]["accuracy"] for stage, s in result["scores"].items()}
    ms = {stage: cost["ms"] for stage, cost in result["cost"].items()}
    return {
        "test baseline": accuracy["baseline"],
        "test default": accuracy[default],
        "points lost": accuracy["baseline"] - accuracy[default],
        "budget got": result["budget"]["got"],
        "default / float": ms[default] / ms["baseline"],
        "default / unpruned int8": ms[default] / ms["unpruned int8"],
        "flipped": result["flipped"],
        "proof error": result["proof_error"] or 0.0,
    }


def main() -> None:
    """One line a figure: the mean, then every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    given = parser.parse_args()
    rows = []
    for seed in given.seeds:
        result = nw.fit("digits", seed=seed, out=given.out / f"seed{seed}")
        print(f"seed {seed}: {json.dumps(result['budget'])} {result['notes']}", file=sys.stderr)
        rows.append(row(result))
    for name in rows[0]:
        values = [r[name] for r in rows]
        print(f"{name:24s} {mean(values):10.4g}   [{', '.join(f'{v:.4g}' for v in values)}]")


if __name__ == "__main__":
    main()
