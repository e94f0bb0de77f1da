"""CIFAR-10, ResNet-20 from the published checkpoint (91.73 %), at half the multiply-adds: accuracy and latency.

    NIWAKI_DATA=... python benchmarks/cifar10.py --seeds 0 1 2 --epochs 15

The residual streams stay whole (their groups are skipped), widths are multiples of 8, what was cut is made up
for by least squares on 256 training images, and recovery is distillation from the checkpoint in bfloat16; last
epoch, 2 % of the training images held out as val.

How this was chosen. The checkpoint has seen all 50 000 training images, so nothing can be chosen on it: its
accuracy on val says nothing, no point is refused for it (`max_drop=1`), and only the test split is quoted.
Streams and multiples were fixed by latency and parameter counts, after one trial epoch of another setting
(multiples of 16, 81.4 % on test) on this checkpoint. The recovery was chosen on the val split of a ResNet-20
trained here from random weights (88.4 % of val): after 4 epochs of recovery batch 128 gave 86.9, batch 64 86.7,
half the learning rate 86.8, least squares before it 87.0 %. Two earlier single runs of this script had been
seen: without least squares, in float32, with 15 % held out: 90.33 % (15 epochs) and 90.18 % (8 epochs).
Runs go on where they stopped, under --out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import niwaki as nw

STREAMS = ("bn1.weight", "layer2.0.bn2.weight", "layer3.0.bn2.weight")


def run(seed: int, *, epochs: int, out: Path, weights: Path) -> dict[str, Any]:
    """One seed's result."""
    plan = nw.Plan(
        nw.step("prune.channels", multiple=8, skip=STREAMS, compensate="least-squares"),
        nw.step("distill.logits", epochs=epochs, batch=128, precision="bfloat16"),
    )
    return nw.fit(
        "cifar10",
        model="niwaki:resnet20",
        weights=weights,
        epochs=0,
        budget="macs=50%",
        max_drop=1.0,
        plan=plan,
        val=0.02,
        seed=seed,
        out=out / f"seed{seed}-epochs{epochs}",
        show=lambda p: p.epoch_ended and print(f"epoch {p.epoch}: loss {p.loss:.3f}", file=sys.stderr),
    )


def row(result: dict[str, Any]) -> dict[str, float]:
    """Test accuracies in percent, and ratios of latencies from the run's one interleaved timing."""
    accuracy = {stage: 100 * s["test"]["accuracy"] for stage, s in result["scores"].items()}
    ms = {stage: cost["ms"] for stage, cost in result["cost"].items()}
    return {
        "macs": result["budget"]["got"],
        **{f"test {stage}": accuracy[stage] for stage in ("baseline", "pruned", "distilled", "int8")},
        "loss float": accuracy["baseline"] - accuracy["distilled"],
        "loss int8": accuracy["distilled"] - accuracy["int8"],
        "float / float": ms["distilled"] / ms["baseline"],
        "int8 / float": ms["int8"] / ms["baseline"],
        "int8 / unpruned int8": ms["int8"] / ms["unpruned int8"],
    }


def main() -> None:
    """Prints one line a figure: every seed, then mean and standard deviation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"))
    given = parser.parse_args()
    root = os.environ.get("NIWAKI_DATA")
    if not root:
        print("skipped: NIWAKI_DATA is not set, and this needs cifar10/ and weights/ there")
        return
    weights = Path(root) / "weights" / "resnet20-12fca82f.th"
    rows = [row(run(seed, epochs=given.epochs, out=given.out, weights=weights)) for seed in given.seeds]
    for name in rows[0]:
        values = [r[name] for r in rows]
        spread = f" +- {stdev(values):.3f}" if len(values) > 1 else ""
        listed = ", ".join(f"{v:.3f}" for v in values)
        print(f"{name:22s} {mean(values):8.3f}{spread}   [{listed}]")
    print(json.dumps({"epochs": given.epochs, "seeds": given.seeds, "rows": rows}))


if __name__ == "__main__":
    main()
