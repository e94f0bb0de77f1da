"""Is a latency budget met at the first try? Networks x budgets x threads, timed by other code.

    python benchmarks/latency.py                       # 4 networks x 3 budgets x 1 and 2 threads
    python benchmarks/latency.py --networks resnet20 --budgets 50 --threads 1 --probes 8 --seconds 5

Weights are random (time does not see them), so the loss of a width is that of the scores' share;
`--scope local` is one ratio for all groups. niwaki answers once; its file is then timed here by plain ONNX
Runtime, a call of the unpruned file before each of its own: neither niwaki's sessions nor its timing are used
for that. Asked, said and measured are shares of the unpruned file's time, in float32. A budget that no width
reaches is said so: of MobileNetV3-small (`--networks mobilenetv3`, none of the default) the narrowest network
takes more than half of the time, at a twentieth of the multiply-adds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import timm
import torch
from torch import nn

from niwaki import nets, prune, runtimes, search, surgery
from niwaki.cost import Budget
from niwaki.errors import BudgetError
from niwaki.job import measure
from niwaki.search import Found, Keep
from niwaki.spec import Spec
from niwaki.tasks import Classify

WITHIN = 0.05
TASK = Classify(tuple("0123456789"))


def vit_tiny() -> nn.Module:
    """timm's ViT-Tiny for images of 64 pixels."""
    made: nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64)
    return made


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet20": (lambda: nets.build("niwaki:resnet20", classes=10), 32),
    "resnet18": (lambda: nets.build("timm:resnet18", classes=10), 64),
    "mobilenetv2": (lambda: nets.build("timm:mobilenetv2_100", classes=10), 160),
    "mobilenetv3": (lambda: nets.build("timm:mobilenetv3_small_050", classes=10), 96),
    "vit_tiny": (vit_tiny, 64),
}
DEFAULT = ["resnet20", "resnet18", "mobilenetv2", "vit_tiny"]


class Network:
    """A network laid open, its float file, and niwaki's own timings of candidates by threads."""

    def __init__(self, name: str, out: Path) -> None:
        build, size = NETWORKS[name]
        torch.manual_seed(0)
        self.name, self.model, self.spec = name, build().eval(), Spec(size_hw=(size, size))
        self.axes = surgery.analyse(self.model, torch.from_numpy(self.spec.example()))
        self.scores = prune.score(self.model, self.axes)
        self.folder = out / name
        self.whole = self.export({}, "whole")
        self.known: dict[tuple[int, str], float] = {}
        self.image = np.random.default_rng(1).integers(0, 256, (1, size, size, 3)).astype(np.uint8)

    def export(self, keep: Keep, name: str) -> Path:
        """The network's file at these widths."""
        small = surgery.shrink(self.model, self.axes, keep) if keep else self.model
        onnx = runtimes.load("onnx")
        path: Path = onnx.export(small, self.spec, self.folder / f"{name}.onnx", task=TASK, prove=False)
        return path

    def timed(self, keep: Keep, threads: int, asked: float) -> float:
        """As `niwaki fit` times a candidate: quickly, and longer where it may be chosen."""
        near = (threads, json.dumps(keep))
        if near not in self.known:
            paths = {measure.REFERENCE: self.whole, "candidate": self.export(keep, "candidate")}
            for seconds in (measure.QUICK, measure.FULL):
                taken = measure.timed(paths, self.image, threads=threads, seconds=seconds)["candidate"]
                self.known[near] = float(taken["ratio"]["median"])
                if self.known[near] / asked - 1 > 0.04 and taken["quiet"] >= 0.3:
                    break
        return self.known[near]

    def found(self, share: int, threads: int, scope: str, probes: int) -> Found:
        """niwaki's answer to a budget."""
        given: dict[str, Any] = {"axes": self.axes, "scores": self.scores, "baseline": self.axes.cost({})}
        given["measure"] = lambda keep: self.timed(keep, threads, share / 100)
        budget = Budget.parse(f"latency={share}%")
        if scope == search.SENSITIVITY:
            return search.allocate(budget, probes=probes, **given)
        return search.meet(budget, scope=scope, **given)


def session(path: Path, threads: int) -> Any:
    """A plain session of ONNX Runtime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or one would slow the other
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def independent(whole: Path, pruned: Path, image: Any, threads: int, seconds: float) -> float:
    """The pruned file's time over the unpruned one's: the median over pairs of calls, one after the other."""
    pair = [session(whole, threads), session(pruned, threads)]
    for one in pair:
        for _ in range(20):
            one.run(None, {"image": image})
    taken: list[list[float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < 50:
        row = []
        for one in pair:
            start = time.perf_counter()
            one.run(None, {"image": image})
            row.append(time.perf_counter() - start)
        taken.append(row)
    times = np.array(taken)
    quiet = (times <= 1.3 * np.quantile(times, 0.1, axis=0)).all(1)
    times = times[quiet] if quiet.sum() >= 50 else times
    return float(np.median(times[:, 1] / times[:, 0]))


def case(network: Network, share: int, threads: int, given: argparse.Namespace) -> dict[str, Any]:
    """One answer and its independent timing."""
    began = time.perf_counter()
    found = network.found(share, threads, given.scope, given.probes)
    took = time.perf_counter() - began
    pruned = network.export(found.keep, f"{given.scope}-{share}-{threads}")
    measured = independent(network.whole, pruned, network.image, threads, given.seconds)
    return {
        "scope": given.scope,
        "network": network.name,
        "threads": threads,
        "asked": share / 100,
        "said": found.got,
        "measured": measured,
        "off": measured / (share / 100) - 1,
        "within": abs(measured / (share / 100) - 1) <= WITHIN,
        "macs": (found.cost.macs or 0) / (network.axes.cost({}).macs or 1),
        "multiple": found.multiple,
        "files": len(found.tried) - 1,
        "seconds": took,
    }


def main() -> None:
    """One line a case, then how many are within 5 %; the same as JSON lines in the output folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=sorted(NETWORKS), default=DEFAULT)
    parser.add_argument("--budgets", type=int, nargs="+", default=[70, 50, 35])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--scope", default="sensitivity", choices=["sensitivity", "local", "global"])
    parser.add_argument("--probes", type=int, default=24, help="files timed for a table, at most")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each independent timing")
    parser.add_argument("--out", type=Path, default=Path("runs/latency"))
    given = parser.parse_args()
    rows = []
    print("network      threads  asked    said  measured     off   macs  multiple  files  seconds")
    for name in given.networks:
        network = Network(name, given.out)
        for threads in given.threads:
            for share in given.budgets:
                try:
                    row = case(network, share, threads, given)
                except BudgetError as error:
                    print(f"{name:12s} {threads:7d} {share:5d}%  {error}", flush=True)
                    continue
                rows.append(row)
                print(
                    f"{name:12s} {threads:7d} {row['asked']:6.0%} {row['said']:7.1%} {row['measured']:9.1%} "
                    f"{row['off']:+7.1%} {row['macs']:6.0%} {row['multiple']:9d} {row['files']:6d} "
                    f"{row['seconds']:8.0f}",
                    flush=True,
                )
                with (given.out / "latency.jsonl").open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print(f"within {WITHIN:.0%}: {sum(row['within'] for row in rows)} of {len(rows)}")


if __name__ == "__main__":
    main()
