"""Quantization-aware training on CIFAR-10 with ResNet-20 (91.73 % in float): 8 bits, 4 bits, mixed, in stages.

    NIWAKI_DATA=... python benchmarks/qat.py                                  # small: minutes
    NIWAKI_DATA=... python benchmarks/qat.py --images 50000 --epochs 6 --seeds 0 1 2

Rows, each exported for ONNX Runtime and measured there on test images: int8 with the first scales (nothing
trained), int8 by QAT; mixed 4- and 8-bit weights within --size of the int8 file, bits chosen by the noise of
each layer: nothing trained, one-shot QAT, and stages with the same number of epochs in all. Agreement: share of
test images on which the file and the fake-quantized torch model predict the same. All learns from the float
network's outputs, last epoch. The checkpoint has seen all training images, so no score could choose anything;
the learning rate (the step's default) was chosen of 2e-5, 5e-5, 1e-4, 2e-4 by the divergence from the float
network's outputs on 1500 held-out images, after 2 epochs on 3000. Runs go on where they stopped, under --out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import nn

from niwaki import Classify, Spec, data, evaluate, nets, quantize, runtimes
from niwaki.runtimes import onnx_export
from niwaki.search import precision

SPEC = Spec(size_hw=(32, 32))


class Bed:
    """What all rows share: the float network, the data, and what was measured already."""

    def __init__(self, given: argparse.Namespace, seed: int) -> None:
        root = Path(os.environ["NIWAKI_DATA"])
        held = data.read("cifar10", seed=0)
        self.given, self.seed, self.task = given, seed, Classify(held.classes)
        self.train = held.train.take(given.images, seed=seed) if given.images < len(held.train) else held.train
        self.test = held.test.take(given.test, seed=0) if given.test < len(held.test) else held.test
        fresh = nets.build("niwaki:resnet20", classes=10)
        self.model = nets.load_weights(fresh, root / "weights" / "resnet20-12fca82f.th").eval()
        self.folder = given.out / f"images{given.images}-epochs{given.epochs}-test{given.test}-seed{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def knobs(self, name: str, epochs: int) -> dict[str, Any]:
        """What a training step takes."""
        return {
            "task": self.task, "spec": SPEC, "train": self.train, "teacher": self.model, "epochs": epochs,
            "batch": self.given.batch, "seed": self.seed, "flip": True, "precision": self.given.precision,
            "checkpoint": self.folder / f"{name}.checkpoint" if epochs else None,
            "show": lambda p: p.epoch_ended and print(f"  {p.stage}, {p.epoch}: {p.loss:.4f}", file=sys.stderr),
        }  # fmt: skip

    def row(self, name: str, make: Any) -> dict[str, float]:
        """Bytes, accuracies and agreement of one model, measured once."""
        file = self.folder / f"{name}.json"
        if not file.exists():
            print(f"seed {self.seed}: {name}", file=sys.stderr)
            file.write_text(json.dumps(self.measure(name, make())))
        found: dict[str, float] = json.loads(file.read_text())
        return found

    def measure(self, name: str, model: nn.Module) -> dict[str, float]:
        """The file, in ONNX Runtime, and the torch model on the same images."""
        path = self.folder / f"{name}.onnx"
        onnx_export.export(model, SPEC, path, task=self.task, precision="int8")
        session = runtimes.load("onnx").open(path)
        torch_says = evaluate.probabilities(evaluate.predictor(model, SPEC, self.task), self.test, SPEC)
        onnx_says = evaluate.probabilities(session, self.test, SPEC)
        return {
            "bytes": path.stat().st_size,
            "torch": 100 * self.task.score(torch_says, self.test.labels)["accuracy"],
            "onnx": 100 * self.task.score(onnx_says, self.test.labels)["accuracy"],
            "agreement": 100 * float((torch_says.argmax(1) == onnx_says.argmax(1)).mean()),
        }


def run(given: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """All rows of one seed."""
    bed = Bed(given, seed)
    says = evaluate.probabilities(evaluate.predictor(bed.model, SPEC, bed.task), bed.test, SPEC)
    accuracy = 100 * bed.task.score(says, bed.test.labels)["accuracy"]
    rows = {"float": {"bytes": float("nan"), "torch": accuracy, "onnx": accuracy, "agreement": 100.0}}

    def qat(name: str, epochs: int, **knobs: Any) -> Any:
        return lambda: quantize.qat(bed.model, **bed.knobs(name, epochs), **knobs)

    rows["int8, not trained"] = bed.row("int8-start", qat("int8-start", 0))
    rows["int8, QAT"] = bed.row("int8-qat", qat("int8-qat", given.epochs))
    four = chosen(bed, rows["int8, not trained"]["bytes"])
    rows["mixed, not trained"] = bed.row("mixed-start", qat("mixed-start", 0, four=four))
    rows["mixed, one-shot QAT"] = bed.row("mixed-qat", qat("mixed-qat", given.epochs, four=four))
    rows["mixed, stages"] = bed.row(
        "mixed-stages",
        lambda: quantize.stages(
            bed.model, parts=given.parts, four=four, **bed.knobs("mixed-stages", given.epochs)
        ),
    )
    return rows


def chosen(bed: Bed, int8_bytes: float) -> tuple[str, ...]:
    """The layers with 4 bits: the least noise with which the file keeps to its share of the int8 file."""
    file = bed.folder / "four.json"
    if not file.exists():
        noise = quantize.noise(bed.model, spec=SPEC, samples=bed.train, bits=(4, 8))
        sizes = precision.weight_bytes(bed.model)
        rest = int8_bytes - sum(sizes[name][8] for name in noise)
        limit = bed.given.size * int8_bytes - rest - 100 * len(noise)  # a node and a name more for 4 bits
        choice = precision.within(sizes, noise, limit=limit)
        print(f"  8 bits: {', '.join(choice.of(8))}", file=sys.stderr)
        file.write_text(json.dumps(choice.of(4)))
    return tuple(json.loads(file.read_text()))


def show(rows: list[dict[str, dict[str, float]]]) -> None:
    """A line a row: means over seeds, and every seed's accuracy."""
    base = mean(row["int8, not trained"]["bytes"] for row in rows)
    print(
        f"{'':22s} {'KB':>7s} {'of int8':>8s} {'torch':>7s} {'onnx':>7s} {'+-':>5s} {'loss':>6s} {'agree':>7s}"
    )
    for name in rows[0]:
        onnx = [row[name]["onnx"] for row in rows]
        size, torch_mean, same = (
            mean(row[name][key] for row in rows) for key in ("bytes", "torch", "agreement")
        )
        loss = mean(row["float"]["onnx"] - row[name]["onnx"] for row in rows)
        spread = stdev(onnx) if len(onnx) > 1 else float("nan")
        print(
            f"{name:22s} {size / 1e3:7.1f} {size / base:8.3f} {torch_mean:7.2f} {mean(onnx):7.2f}",
            f"{spread:5.2f}",
            f"{loss:6.2f} {same:7.2f}   {[round(a, 2) for a in onnx]}",
        )
    gains = [row["mixed, stages"]["onnx"] - row["mixed, one-shot QAT"]["onnx"] for row in rows]
    verdict = "stages beat one-shot QAT" if min(gains) > 0 else "stages did not beat one-shot QAT in every run"
    print(f"{verdict}: {np.mean(gains):+.2f} points, each {[round(g, 2) for g in gains]}")


def main() -> None:
    """A table, and all rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000, help="training images used")
    parser.add_argument("--test", type=int, default=10000, help="test images measured on")
    parser.add_argument("--epochs", type=int, default=3, help="of every trained row, over all its stages")
    parser.add_argument("--parts", type=int, default=3, help="stages")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=float, default=0.6, help="share of the int8 file that mixed may take")
    parser.add_argument("--precision", default="bfloat16", help="of the training's products")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/qat"))
    given = parser.parse_args()
    if not os.environ.get("NIWAKI_DATA"):
        print("skipped: NIWAKI_DATA is not set, and this needs cifar10/ and weights/ there")
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    rows = [run(given, seed) for seed in given.seeds]
    show(rows)
    print(json.dumps({"given": {k: str(v) for k, v in vars(given).items()}, "rows": rows}))


if __name__ == "__main__":
    main()
