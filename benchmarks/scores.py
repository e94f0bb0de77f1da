"""Scores x rankings at one share of the multiply-adds: accuracy right after pruning and after a short recovery.

    python benchmarks/scores.py                                     # digits, all scores, three seeds
    python benchmarks/scores.py --seeds 0 --scores l2 taylor --epochs 3 --recover 1
    NIWAKI_DATA=... python benchmarks/scores.py --data cifar10 --images 5000 --recover 1

For each seed one network is trained (digits: niwaki:small from scratch; CIFAR-10: the published ResNet-20,
which has seen all training images). Scores from data see 256 training images. Everything is pruned from that
network to the same share of multiply-adds and recovered with the same settings, last epoch. Accuracies in
percent: right after the cut, with batch norm statistics taken anew, after recovery; val may choose between
rows, test reports. Differences below the spread over seeds say nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

import niwaki as nw
from niwaki import data, evaluate, nets, prune, search, surgery
from niwaki.cost import Budget
from niwaki.prune.alike import keys

Row = dict[str, float]


def trained(given: argparse.Namespace, seed: int) -> tuple[nn.Module, nw.Spec, Any]:
    """The network to prune, its spec, and the data set."""
    found = data.read(given.data, seed=seed)
    if given.data == "cifar10":
        weights = Path(os.environ["NIWAKI_DATA"]) / "weights" / "resnet20-12fca82f.th"
        net = nets.load_weights(nets.build("niwaki:resnet20", classes=10), weights).eval()
        return net, nw.Spec(size_hw=(32, 32)), found
    spec = nw.Spec(size_hw=(16, 16), mean=(0.5,), std=(0.25,), channels=1)
    torch.manual_seed(seed)
    net = nets.build("niwaki:small", classes=10, channels=1)
    task = nw.Classify(found.classes)
    knobs = {"epochs": given.epochs, "seed": seed, "flip": found.flip}
    return nw.train.fit(net, task=task, spec=spec, train=found.train, **knobs), spec, found


def percent(net: nn.Module, samples: Any, spec: nw.Spec, task: Any) -> float:
    """Accuracy on a split."""
    said = evaluate.probabilities(evaluate.predictor(net, spec, task), samples, spec)
    return 100 * float(task.score(said, samples.labels)["accuracy"])


def rows(given: argparse.Namespace, seed: int) -> Iterator[tuple[tuple[str, str], Row]]:
    """((score, ranking), figures) of one seed."""
    net, spec, found = trained(given, seed)
    task = nw.Classify(found.classes)
    val, test = (split.take(given.images, seed=seed) for split in (found.val, found.test))
    train = found.train.take(given.images, seed=seed)
    axes = surgery.analyse(net, torch.from_numpy(spec.example()))
    began = time.perf_counter()
    evidence = prune.gather(net, axes, task=task, spec=spec, samples=found.train.take(256, seed=seed))
    seconds = time.perf_counter() - began
    if seed == given.seeds[0]:
        kinds = len(set(keys(axes).values()))
        print(f"# {len(axes.groups)} groups of {kinds} kinds; evidence took {seconds:.1f} s", flush=True)
    yield ("unpruned", ""), {"macs": 100.0, "cut": percent(net, test, spec, task)}
    budget, base = Budget.parse(f"macs={given.macs}%"), axes.cost({})
    for by in given.scores:
        scores = prune.score(net, axes, by=by, normalise=given.normalise, evidence=evidence)
        for scope in given.scopes:
            point = search.meet(
                budget, axes=axes, scores=scores, baseline=base, multiples=(given.multiple,), scope=scope
            )
            small = surgery.shrink(net, axes, point.keep)
            row = {"macs": 100 * point.got, "cut": percent(small, test, spec, task)}
            anew = nw.train.statistics(small, spec=spec, train=found.train, images=512, seed=seed)
            row["norms"] = percent(anew, test, spec, task)
            if given.recover:
                knobs = {"epochs": given.recover, "seed": seed, "flip": found.flip, "lr": 1e-3}
                small = nw.train.fit(small, task=task, spec=spec, train=train, **knobs)
                row |= {"val": percent(small, val, spec, task), "test": percent(small, test, spec, task)}
            yield (by, scope), row


def main() -> None:
    """One line for each score and ranking: mean and standard deviation over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "cifar10"), default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scores", nargs="+", choices=prune.SCORES, default=list(prune.SCORES))
    parser.add_argument("--scopes", nargs="+", choices=prune.SCOPES, default=list(prune.SCOPES))
    parser.add_argument("--normalise", choices=prune.NORMALISE, default="mean")
    parser.add_argument("--macs", type=float, default=70, help="percent of the multiply-adds that stay")
    parser.add_argument("--multiple", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=15, help="training of the digits network")
    parser.add_argument("--recover", type=int, default=2, help="epochs of recovery; 0: none")
    parser.add_argument("--images", type=int, default=10**9, help="at most so many of each split")
    given = parser.parse_args()
    if given.data == "cifar10" and not os.environ.get("NIWAKI_DATA"):
        print("skipped: NIWAKI_DATA is not set, and this needs cifar10/ and weights/ there")
        return
    table: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in given.seeds:
        for key, row in rows(given, seed):
            print(f"seed {seed}: {' '.join(key)} {row}", file=sys.stderr, flush=True)
            for name, value in row.items():
                table[key][name].append(value)
    heads = ("macs %", "test, cut", "test, norms", "val, rec.", "test, rec.")
    print(f"{'score':12s} {'ranking':11s} " + " ".join(f"{head:>14s}" for head in heads))
    for (by, scope), figures in table.items():
        cells = (spread(figures[name]) for name in ("macs", "cut", "norms", "val", "test"))
        print(f"{by:12s} {scope:11s} " + " ".join(f"{cell:>14s}" for cell in cells))


def spread(values: list[float]) -> str:
    """`98.21 +- 0.30`."""
    if not values:
        return "-"
    return f"{mean(values):.2f}" + (f" +- {stdev(values):.2f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
