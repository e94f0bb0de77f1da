"""Recovery without training: how much of the accuracy that pruning took is given back in closed form.

    python benchmarks/recovery.py --seeds 0 1 2                       # digits: niwaki:small and a small ViT
    NIWAKI_DATA=... python benchmarks/recovery.py --data cifar10 --networks resnet20 --checkpoint
    NIWAKI_DATA=... python benchmarks/recovery.py --data cifar10 --networks vit --epochs 30

Each network is trained here (or taken from the published checkpoint, which has seen all training images), 30 %
of its multiply-adds are pruned away by the L2 norm with one ratio for all groups, and each recovery starts from
that same cut. Calibration images are training images; no labels are used and no gradient is taken. Share given
back: (recovered - pruned) / (before - pruned), on test; from sums over seeds, so that a seed that lost nothing
counts for nothing. Val accuracy stands beside: it alone may choose a recovery.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from niwaki import Classify, Spec, data, evaluate, nets, prune, search, surgery, train

EPOCHS = {
    "digits": {"small": 12, "resnet20": 12, "vit": 40},
    "cifar10": {"small": 10, "resnet20": 10, "vit": 20},
}
SPECS = {
    "digits": Spec(size_hw=(16, 16), mean=(0.5,), std=(0.25,), channels=1),
    "cifar10": Spec(size_hw=(32, 32)),
}


def build(name: str, spec: Spec, classes: int, *, seed: int) -> nn.Module:
    """A fresh network: niwaki's own by name, or timm's vision transformer built small."""
    torch.manual_seed(seed)
    if name != "vit":
        return nets.build(f"niwaki:{name}", classes=classes, channels=spec.channels)
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=spec.size_hw[0], patch_size=4, in_chans=spec.channels, num_classes=classes,
        embed_dim=96, depth=4, num_heads=4,
    )  # fmt: skip


def trained(name: str, spec: Spec, held: data.DataSet, *, seed: int, given: argparse.Namespace) -> nn.Module:
    """The network before pruning."""
    model = build(name, spec, len(held.classes), seed=seed)
    if given.checkpoint:
        path = Path(os.environ["NIWAKI_DATA"]) / "weights" / "resnet20-12fca82f.th"
        return nets.load_weights(model, path).eval()
    epochs = given.epochs or EPOCHS[given.data][name]
    return train.fit(
        model, task=Classify(held.classes), spec=spec, train=held.train, epochs=epochs, seed=seed,
        flip=held.flip, lr=1e-3 if name == "vit" else 3e-3,
    )  # fmt: skip


def recoveries(
    model: nn.Module,
    pruned: nn.Module,
    axes: surgery.Axes,
    keep: Any,
    held: data.DataSet,
    spec: Spec,
    *,
    images: int,
    seed: int,
) -> dict[str, nn.Module]:
    """Every way back from the same cut."""
    calib = held.train.take(images, seed=seed)
    inputs = prune.calibration(calib, spec, device=torch.device("cpu"), images=images)
    made = {"pruned": pruned}
    for how in ("mean", "least-squares"):
        began = time.perf_counter()
        done = prune.compensate(model, pruned, axes, keep, inputs=inputs, how=how)
        print(
            f"  {how}: {time.perf_counter() - began:.1f} s, {len(done.layers)} layers, left {dict(done.left)}",
            file=sys.stderr,
        )
        made[how] = done.model
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        again = {
            name: train.statistics(net, spec=spec, train=calib, images=images) for name, net in made.items()
        }
        made |= {("" if name == "pruned" else f"{name}, ") + "statistics": net for name, net in again.items()}
    return made


def seed_row(
    name: str, held: data.DataSet, *, seed: int, given: argparse.Namespace
) -> dict[str, tuple[float, float]]:
    """(val, test) accuracy in percent before pruning and after each recovery, and the share of MACs left."""
    spec, task = SPECS[given.data], Classify(held.classes)
    model = trained(name, spec, held, seed=seed, given=given)
    example = torch.from_numpy(spec.example())
    axes = surgery.analyse(model, example)
    full = axes.cost({}).macs or 0
    scores = prune.score(model, axes, by=given.score)
    keep = search.widest(axes, scores, kind="macs", limit=given.macs * full, multiple=1, scope=given.scope).keep
    cut = prune.cut(model, axes, keep, example=example)
    left = (axes.cost(cut.keep).macs or 0) / full
    print(f"{name}, seed {seed}: {left:.3f} of the MACs left, proof {cut.error:.1e}", file=sys.stderr)
    nets_by = {"before": model} | recoveries(
        model, cut.model, axes, cut.keep, held, spec, images=given.images, seed=seed
    )

    def accuracy(net: nn.Module, split: data.Samples) -> float:
        found = evaluate.probabilities(evaluate.predictor(net, spec, task), split, spec)
        return 100 * task.score(found, split.labels)["accuracy"]

    return {way: (accuracy(net, held.val), accuracy(net, held.test)) for way, net in nets_by.items()}


def show(name: str, rows: list[dict[str, tuple[float, float]]]) -> None:
    """One line a way: means, share given back, every seed's test accuracy."""
    total = {way: [sum(row[way][i] for row in rows) / len(rows) for i in (0, 1)] for way in rows[0]}
    lost = total["before"][1] - total["pruned"][1]
    print(f"{name}\n  {'':28s}   val    test   given back   test by seed")
    for way, (val, test) in total.items():
        counted = lost > 0 and way not in ("before", "pruned")
        share = f"{(test - total['pruned'][1]) / lost:10.0%}" if counted else " " * 10
        print(f"  {way:28s} {val:6.2f}  {test:6.2f}  {share}   {[round(row[way][1], 2) for row in rows]}")


def main() -> None:
    """A table a network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(SPECS), default="digits")
    parser.add_argument("--networks", nargs="+", choices=["small", "resnet20", "vit"], default=["small", "vit"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="of training; by default the network's own")
    parser.add_argument(
        "--checkpoint", action="store_true", help="resnet20 on cifar10 from the published weights"
    )
    parser.add_argument("--macs", type=float, default=0.7, help="share of the multiply-adds that is left")
    parser.add_argument("--images", type=int, default=256, help="for calibration")
    parser.add_argument("--score", default="l2")
    parser.add_argument("--scope", default="local")
    given = parser.parse_args()
    if given.data == "cifar10" and not os.environ.get("NIWAKI_DATA"):
        print("skipped: NIWAKI_DATA is not set, and cifar10 needs it")
        return
    record = {}
    for name in given.networks:
        rows = []
        for seed in given.seeds:
            held = data.read(given.data, seed=seed)
            rows.append(seed_row(name, held, seed=seed, given=given))
        show(f"{name} on {given.data}, {given.macs:.0%} of the multiply-adds left, {given.images} images", rows)
        record[name] = rows
    print(json.dumps({**vars(given), "rows": record}))


if __name__ == "__main__":
    main()
