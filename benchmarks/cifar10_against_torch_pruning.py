"""ResNet-20 on CIFAR-10 at half the multiply-adds, cut by Torch-Pruning 1.6.1 and niwaki, trained alike.

    pip install torch-pruning==1.6.1       # a development dependency of the comparing scripts alone
    NIWAKI_DATA=... python benchmarks/cifar10_against_torch_pruning.py --seeds 0 1 2 --epochs 8

Both start from the published checkpoint (91.73 % on test; it has seen all 50 000 training images, so nothing
can be chosen on it and only the test split is quoted). Fixed beforehand:

- Torch-Pruning: its README's recipe, `GroupMagnitudeImportance(p=2)`, the classifier ignored, one ratio for all
  layers, the smallest in steps of 0.005 that leaves at most half of the MACs.
- niwaki: widths in multiples of 8, the residual streams whole, L2, what was cut made up for by least squares
  on 256 training images (benchmarks/cifar10.py). `--plain` leaves the least squares out.
- Training, the same for both: distillation from the checkpoint in bfloat16 with niwaki's defaults, batch 128,
  the same seeds and so the same batches and augmentation; last epoch.
- Latency: both exported by niwaki to ONNX float32 and int8 (the same 256 images), all files timed in one
  interleaved run on ONNX Runtime, one thread; ratios to the checkpoint's float32 file.

Runs go on where they stopped, under --out.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

import niwaki as nw
from niwaki import evaluate, prune, search, surgery, timing
from niwaki.cost import Budget, params
from niwaki.runtimes import onnx
from niwaki.surgery.axes import Axes

STREAMS = ("bn1.weight", "layer2.0.bn2.weight", "layer3.0.bn2.weight")
SHARE = 0.5
Row = dict[str, Any]


def by_torch_pruning(net: nn.Module, axes: Axes, example: torch.Tensor) -> nn.Module:
    """The README's recipe, at the smallest ratio that leaves at most half of the MACs."""
    import copy

    import torch_pruning as tp

    before, _ = tp.utils.count_ops_and_params(net, example[:1])
    for step in range(1, 200):
        small = copy.deepcopy(net)
        pruner = tp.pruner.BasePruner(
            small,
            example[:1],
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.005 * step,
            ignored_layers=[m for m in small.modules() if isinstance(m, nn.Linear)],
        )
        pruner.step()
        if tp.utils.count_ops_and_params(small, example[:1])[0] <= SHARE * before:
            return small
    raise RuntimeError("no ratio leaves so little")


def by_niwaki(net: nn.Module, axes: Axes, example: torch.Tensor, images: Any) -> nn.Module:
    """Half of the MACs in multiples of 8, proven; compensated where there are images."""
    scores = prune.score(net, axes)
    budget = Budget.parse(f"macs={SHARE:.0%}")
    found = search.meet(budget, axes=axes, scores=scores, baseline=axes.cost({}), multiples=(8,), skip=STREAMS)
    done = prune.cut(net, axes, found.keep, example=example)
    if images is None:
        return done.model
    return prune.compensate(net, done.model, axes, done.keep, inputs=images, how="least-squares").model


def accuracy(predict: Any, data: Any, spec: nw.Spec) -> float:
    """Percent of the test split."""
    test = data.test
    return 100 * float((evaluate.probabilities(predict, test, spec, batch=250).argmax(1) == test.labels).mean())


def trained(tool: str, seed: int, given: argparse.Namespace, shared: dict[str, Any]) -> Row:
    """One tool and seed: cut, trained, exported; accuracies and costs."""
    net, data, spec, task, axes, example = (
        shared[k] for k in ("net", "data", "spec", "task", "axes", "example")
    )
    calib = data.train.take(256, seed=seed)
    folder = given.out / f"{tool}-{seed}-{given.epochs}{'-plain' * given.plain}"
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "row.json").exists():
        return json.loads((folder / "row.json").read_text())
    if tool == "niwaki":
        small = by_niwaki(
            net,
            axes,
            example,
            None if given.plain else prune.calibration(calib, spec, device=torch.device("cpu")),
        )
    else:
        small = by_torch_pruning(net, axes, example)
    given_model = {"task": task, "spec": spec}
    row: Row = {"pruned": accuracy(evaluate.predictor(small, spec, task), data, spec), "params": params(small)}
    small = nw.distill.logits(
        small, **given_model, train=data.train, teacher=net, epochs=given.epochs, batch=128, seed=seed,
        flip=data.flip, precision="bfloat16", checkpoint=folder / "training",
    )  # fmt: skip
    row["trained"] = accuracy(evaluate.predictor(small, spec, task), data, spec)
    row["macs"] = surgery.analyse(small, example[:2]).cost({}).macs / axes.cost({}).macs
    images = calib.batch(range(len(calib)), spec)
    for precision in ("float32", "int8"):
        path = onnx.export(
            small, spec, folder / f"{precision}.onnx", task=task, precision=precision, calib=images
        )
        row[precision] = accuracy(onnx.open(path), data, spec)
    (folder / "row.json").write_text(json.dumps(row))
    return row


def latencies(paths: dict[str, Path], images: Any, rounds: int) -> dict[str, float]:
    """Median ratio to the checkpoint's float32 file, from one interleaved run."""
    sessions = {name: onnx.open(path, threads=1) for name, path in paths.items()}
    calls = {name: (lambda s=s: s(images)) for name, s in sessions.items()}
    samples = timing.interleave(calls, rounds=rounds, calls_per_sample=20)
    return {name: timing.ratio(ms, samples["checkpoint"])["median"] for name, ms in samples.items()}


def main() -> None:
    """Prints a line for each seed and tool, then means, then the ratios of latencies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--plain", action="store_true", help="niwaki without least squares")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10-tp"))
    given = parser.parse_args()
    root = os.environ.get("NIWAKI_DATA")
    if not root:
        print("skipped: NIWAKI_DATA is not set, and this needs cifar10/ and weights/ there")
        return
    data, spec = nw.data.read("cifar10", val=0.02), nw.Spec(size_hw=(32, 32))
    net = nw.nets.build("niwaki:resnet20", classes=10)
    nw.nets.load_weights(net, Path(root) / "weights" / "resnet20-12fca82f.th")
    example = prune.drawn((4, 3, 32, 32), torch.Generator().manual_seed(0))
    shared = {
        "net": net.eval(), "data": data, "spec": spec, "task": nw.Classify(data.classes),
        "axes": surgery.analyse(net, example[:2]), "example": example,
    }  # fmt: skip
    rows: dict[str, list[Row]] = {"torch-pruning": [], "niwaki": []}
    for seed in given.seeds:
        for tool, found in rows.items():
            found.append(trained(tool, seed, given, shared))
            print(tool, seed, json.dumps(found[-1]), flush=True)
    for tool, found in rows.items():
        for key in found[0]:
            values = [r[key] for r in found]
            spread = f" +- {stdev(values):.3f}" if len(values) > 1 else ""
            print(f"{tool:14s} {key:9s} {mean(values):10.3f}{spread}")
    baseline = given.out / "checkpoint.onnx"
    onnx.export(net, spec, baseline, task=shared["task"])
    last = f"{given.seeds[-1]}-{given.epochs}{'-plain' * given.plain}"
    paths = {"checkpoint": baseline} | {
        f"{tool} {p}": given.out / f"{tool}-{last}" / f"{p}.onnx" for tool in rows for p in ("float32", "int8")
    }
    for name, ratio in latencies(paths, data.test.batch([0], spec), given.rounds).items():
        print(f"latency {name:24s} {ratio:.3f} of the checkpoint's float32")


if __name__ == "__main__":
    main()
