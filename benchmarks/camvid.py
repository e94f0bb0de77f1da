"""CamVid: a real-time network trained through `fit`, then pruned and int8; and a table of all networks.

    python benchmarks/camvid.py                       trains, prunes, distils, exports; goes on where it stopped
    python benchmarks/camvid.py --minutes 10          stops after ten minutes; the same command goes on
    python benchmarks/camvid.py --table               MACs, parameters and milliseconds of every network

Needs $NIWAKI_DATA/camvid. The defaults are for two cores; on a GPU: --size 360x480 --epochs 300 --batch 16.
Val chooses, test reports; the last epoch's averaged weights. The images in NIWAKI_DATA are WebP of quality 82.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from niwaki import Plan, Segment, Spec, job, metrics, nets, runtimes, step, surgery, timing
from niwaki.data.class_names import CAMVID

NETWORKS = tuple(f"niwaki:{name}" for name in nets.SEGMENTATION)


class Enough(Exception):
    """The minutes are over."""


def main() -> None:
    """Run what the command line asks for."""
    given = _given()
    torch.set_num_threads(given.threads)
    if given.table:
        table(given.size, given.networks, rounds=given.rounds)
        return
    try:
        report(fitted(given), given)
    except Enough:
        print(f"stopped after {given.minutes} minutes; the same command goes on")


def fitted(given: argparse.Namespace) -> dict[str, Any]:
    """The result of the main job on CamVid."""
    plan = Plan(
        step(
            "train.fit", loss=given.loss, epochs=given.epochs, batch=given.batch, lr=given.lr, seed=given.seed,
            flip=True, augment=given.augment, auxiliary=tuple(given.auxiliary), precision=given.precision,
        ),
        step("prune.channels", score=given.score, multiple=given.multiple),
        step(
            "distill.logits", epochs=given.recover, batch=given.batch, lr=given.lr, seed=given.seed,
            flip=True, t=2.0, precision=given.precision,
        ),
    )  # fmt: skip
    return job.fit(
        "camvid", model=given.model, size=given.size, epochs=0, plan=plan, budget=given.budget,
        max_drop=0.01, out=given.out, seed=given.seed, threads=given.threads, ledger=0, show=_clock(given),
    )  # fmt: skip


def _clock(given: argparse.Namespace) -> Callable[[Any], None]:
    """Prints an epoch's end; ends the run when the minutes are over."""
    began = time.monotonic()

    def show(progress: Any) -> None:
        if progress.epoch_ended:
            print(
                f"{progress.stage} {progress.epoch}/{progress.epochs}: loss {progress.loss:.3f}, "
                f"val mIoU {100 * (progress.score or 0):.1f}, {progress.seconds:.0f} s",
                flush=True,
            )
        if given.minutes and time.monotonic() - began > 60 * given.minutes:
            raise Enough

    return show


def report(result: dict[str, Any], given: argparse.Namespace) -> None:
    """Every stage: test mIoU with interval, what it lost on val and test, its share of MACs and latency."""
    base, scores = result["cost"]["baseline"], result["scores"]
    height, width = given.size
    print(f"{given.model}, {height} x {width}, {given.epochs} + {given.recover} epochs, seed {given.seed}")
    heads = f"{'test mIoU':>20} {'val drop':>9} {'test drop':>9} {'MACs':>7} {'latency':>8} {'kB':>7}"
    print(f"{'stage':14} {heads}")
    for name, cost in result["cost"].items():
        found = scores[name]
        drops = [metrics.main(scores["baseline"][s]) - metrics.main(found[s]) for s in ("val", "test")]
        test = found["test"]
        interval = f"{100 * test['miou']:.1f} [{100 * test['low']:.1f}, {100 * test['high']:.1f}]"
        print(
            f"{name:14} {interval:>20} {100 * drops[0]:8.1f}p {100 * drops[1]:8.1f}p "
            f"{cost['macs'] / base['macs']:7.2f} {cost['ms'] / base['ms']:8.2f} {cost['bytes'] / 1e3:7.0f}"
        )
    best = scores[result["default"]]["test"]
    print(f"default {result['default']}, proof error {result['proof_error']}")
    print("IoU by class:", json.dumps({k: round(100 * v, 1) for k, v in best["iou"].items() if v is not None}))
    print(f"boundary F {best['boundary_f']:.3f}, Dice {best['dice']:.3f}, pixels {best['pixel_accuracy']:.3f}")
    for note in result["notes"]:
        print("note:", note)


def table(size: tuple[int, int], names: list[str], *, rounds: int) -> None:
    """MACs and parameters of every network with CamVid's classes, and its float file's ms, interleaved."""
    spec, task = Spec(size_hw=size), Segment(CAMVID.classes)
    image = np.zeros((1, *size, 3), np.uint8)
    onnx, calls, costs = runtimes.load("onnx"), {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for place, name in enumerate(names):
            torch.manual_seed(0)
            model = nets.build(name, classes=len(task.classes)).eval()
            costs[name] = surgery.analyse(model, torch.from_numpy(spec.example(1))).cost({})
            path = onnx.export(model, spec, Path(folder) / f"{place}.onnx", task=task, prove=False)
            session = onnx.open(path)
            calls[name] = lambda run=session: run(image)
        taken = timing.interleave(calls, rounds=rounds, calls_per_sample=1)
    print(f"{size[0]} x {size[1]}, one core, {timing.cpu()}")
    print(f"{'network':28} {'GMACs':>8} {'M params':>9} {'ms':>8}")
    for name, cost in sorted(costs.items(), key=lambda item: item[1].macs or 0):
        ms = float(np.median(taken[name]))
        print(f"{name:28} {(cost.macs or 0) / 1e9:8.3f} {(cost.params or 0) / 1e6:9.3f} {ms:8.2f}")


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = parser.add_argument
    arg("--model", default="niwaki:fast_scnn")
    arg("--size", default=(180, 240), type=lambda text: tuple(map(int, text.split("x"))))
    arg("--epochs", default=30, type=int)
    arg("--recover", default=10, type=int)
    arg("--batch", default=8, type=int)
    arg("--lr", default=8e-3, type=float, help="at a batch of 128; scaled by the root of the ratio")
    arg("--augment", default="weak")
    arg("--precision", default="float32", help="of training: float32 or bfloat16")
    arg("--loss", default="cross-entropy")
    arg("--auxiliary", nargs="*", default=[], help="modules that get heads in training")
    arg("--score", default="l2")
    arg("--multiple", default=8, type=int)
    arg("--budget", default="macs=35%")
    arg("--seed", default=0, type=int)
    arg("--threads", default=1, type=int)
    arg("--minutes", default=0.0, type=float, help="stop after so many; 0: never")
    arg("--out", default="runs/camvid")
    arg("--table", action="store_true")
    arg("--networks", nargs="*", default=list(NETWORKS))
    arg("--rounds", default=30, type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()
