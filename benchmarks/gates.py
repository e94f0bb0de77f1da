"""Learned sparsity against magnitude at equal training cost: gates on a small ViT, slimming on ResNet-20.

    python benchmarks/gates.py --digits                                   a minute, on the built-in digits
    NIWAKI_DATA=... python benchmarks/gates.py --seeds 0 1 2              CIFAR-10, a small vision transformer
    NIWAKI_DATA=... python benchmarks/gates.py --slimming --seeds 0 1 2   CIFAR-10, ResNet-20, norm scales

Each seed trains one base network; every method then gets that network and the same number of epochs (those of
gates and slimming before the cut are epochs of the whole network, and so take longer):
    gates         prune.gates for a half of them, then train.fit on the smaller network for the rest
    magnitude     prune.channels, one ratio for all groups, widest within the budget, then train.fit for all
    blocks only   the same, but the stream between the blocks stays whole, as it does under the gates
    slimming      prune.slimming for a half, then the lowest scales of all groups go, then train.fit
    l2            train.fit for a half, then the lowest norms of all groups go, then train.fit
Settings were fixed before the first run on CIFAR-10. The last epoch counts; only the test split is quoted.
Layers of ResNet-20's streams stay whole in both of its methods.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from niwaki import data, evaluate, nets, prune, search, surgery
from niwaki import train as training
from niwaki.data import DataSet
from niwaki.spec import Spec
from niwaki.tasks import Classify

STREAMS = ("bn1.weight", "layer2.0.bn2.weight", "layer3.0.bn2.weight")
Given = dict[str, Any]


def vit(given: argparse.Namespace, size: int, classes: int) -> nn.Module:
    """A plain vision transformer for small images."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=size, patch_size=given.patch, num_classes=classes,
        embed_dim=given.dim, depth=given.depth, num_heads=given.dim // 32 if given.dim >= 64 else 4,
    )  # fmt: skip


def narrowed(model: nn.Module, example: torch.Tensor, limit: float, **choose: Any) -> nn.Module:
    """The widest network within the multiply-adds, by the norms or scales of its channels."""
    axes = surgery.analyse(model, example)
    by = choose.pop("by", "l2")  # of scales the plain values count, as slimming has it
    scores = prune.score(model, axes, by=by, normalise="none" if by == "bn" else "mean")
    keep = search.widest(axes, scores, kind="macs", limit=limit, **choose).keep
    return prune.cut(model, axes, keep, example=example).model


def transformer(base: nn.Module, steps: Given, example: torch.Tensor, epochs: int, budget: float) -> Given:
    """Each method's network of one seed, the same base and epochs for all."""
    axes = surgery.analyse(base, example)
    limit = budget * (axes.cost({}).macs or 0)
    stream = max(axes.groups, key=lambda group: len(group.members)).name

    def gates() -> nn.Module:
        half = epochs - epochs // 2
        small = prune.gates(base, example=example, budget=f"macs={100 * budget:g}%", epochs=half, **steps)
        return training.fit(small, epochs=epochs - half, **steps)

    def magnitude(*skip: str) -> nn.Module:
        return training.fit(narrowed(base, example, limit, skip=skip), epochs=epochs, **steps)

    return {"gates": gates, "magnitude": magnitude, "blocks only": lambda: magnitude(stream)}


def slimmed(base: nn.Module, steps: Given, example: torch.Tensor, epochs: int, budget: float) -> Given:
    """The same for batch norm scales."""
    limit = budget * (surgery.analyse(base, example).cost({}).macs or 0)
    half = epochs // 2
    choose = {"scope": "global", "skip": STREAMS}

    def slimming() -> nn.Module:
        sparse = prune.slimming(base, example=example, epochs=half, **steps)
        return training.fit(narrowed(sparse, example, limit, by="bn", **choose), epochs=epochs - half, **steps)

    def l2() -> nn.Module:
        trained = training.fit(base, epochs=half, **steps)
        return training.fit(narrowed(trained, example, limit, **choose), epochs=epochs - half, **steps)

    return {"slimming": slimming, "l2": l2}


def seed_row(given: argparse.Namespace, dataset: DataSet, seed: int) -> dict[str, float]:
    """Test accuracy in percent, multiply-adds as a share, and seconds of each method, for one seed."""
    size = 8 if given.digits else 32
    spec, task = Spec(size_hw=(size, size)), Classify(dataset.classes)
    example = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(seed)
    fresh = nets.build("niwaki:resnet20", classes=len(dataset.classes)) if given.slimming else None
    samples = dataset.train
    if 0 < given.train_images < len(samples):
        samples = samples.take(given.train_images, seed=seed)
    steps: Given = {
        "task": task, "spec": spec, "train": samples, "flip": dataset.flip, "seed": seed,
        "batch": given.batch, "lr": given.lr, "augment": "none" if given.digits else "weak",
        "precision": given.precision,
    }  # fmt: skip
    fresh = fresh or vit(given, size, len(dataset.classes))
    base = training.fit(fresh, epochs=given.base_epochs, **steps)
    full = surgery.analyse(base, example).cost({}).macs or 1
    row = {"base": 100 * accuracy(base, dataset, spec, task)}
    methods: dict[str, Callable[[], nn.Module]] = (slimmed if given.slimming else transformer)(
        base, {**steps, "lr": given.tune_lr or given.lr}, example, given.epochs, given.budget
    )
    for name, method in methods.items():
        began = time.perf_counter()
        small = method()
        row[name] = 100 * accuracy(small, dataset, spec, task)
        row[f"{name}: macs"] = (surgery.analyse(small, example).cost({}).macs or 0) / full
        row[f"{name}: seconds"] = time.perf_counter() - began
    print(json.dumps({"seed": seed, **row}), flush=True)
    return row


def accuracy(model: nn.Module, dataset: DataSet, spec: Spec, task: Classify) -> float:
    """Share of the test split that is right, 0..1."""
    found = evaluate.probabilities(evaluate.predictor(model, spec, task), dataset.test, spec)
    return float(task.score(found, dataset.test.labels)["accuracy"])


def main() -> None:
    """One JSON line a seed, then every figure's mean, standard deviation and seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", action="store_true", help="the built-in digits and a very small network")
    parser.add_argument("--slimming", action="store_true", help="ResNet-20 and batch norm scales")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--base-epochs", type=int, help="default 20")
    parser.add_argument("--epochs", type=int, help="of every method after that; default 12")
    parser.add_argument("--train-images", type=int, default=8000, help="0: all")
    parser.add_argument("--budget", type=float, default=0.5, help="share of the multiply-adds that remains")
    parser.add_argument("--dim", type=int, help="default 96")
    parser.add_argument("--depth", type=int, help="default 6")
    parser.add_argument("--patch", type=int, help="default 4")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, help="default 2e-3")
    parser.add_argument("--tune-lr", type=float, help="of every method; default: as the base network's")
    parser.add_argument("--precision", default="float32", help="of training: float32 or bfloat16")
    given = parser.parse_args()
    usual = (24, 12, 48, 3, 2, 5e-3) if given.digits else (20, 12, 96, 6, 4, 2e-3)
    for name, value in zip(("base_epochs", "epochs", "dim", "depth", "patch", "lr"), usual, strict=True):
        if getattr(given, name) is None:
            setattr(given, name, value)
    torch.set_num_threads(1)
    dataset = data.read("digits" if given.digits else "cifar10")
    rows = [seed_row(given, dataset, seed) for seed in given.seeds]
    for name in rows[0]:
        values = [row[name] for row in rows]
        spread = f" +- {stdev(values):.3f}" if len(values) > 1 else ""
        print(f"{name:22s} {mean(values):9.3f}{spread}   [{', '.join(f'{v:.3f}' for v in values)}]")


if __name__ == "__main__":
    main()
