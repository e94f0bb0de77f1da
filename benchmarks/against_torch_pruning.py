"""Torch-Pruning 1.6.1 by its README's recipe and niwaki, side by side on the models of timm_smallest.txt.

    pip install torch-pruning==1.6.1       # a development dependency of this script alone
    python benchmarks/against_torch_pruning.py [--out FILE.json] [--only NAME ...] [--limit 60]

Each model and tool runs in a process of its own with `--limit` seconds. Torch-Pruning gets the classifier as
ignored layer, `num_heads` of every attention that has `qkv`, and afterwards the attention's sizes mended by
hand, as its README's examples do; its ratio (0.3 of the channels) is about half of the MACs. niwaki removes
0.3 of every group. A result counts when its forward pass gives the right shape: whether it computes the right
numbers is proven for niwaki by benchmarks/coverage.py, and Torch-Pruning has no such proof.
Seconds: export (niwaki) apart; then analysis and surgery. Resumable.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

LIST = Path(__file__).with_name("timm_smallest.txt")
RATIO = 0.3
Row = dict[str, Any]


def _model(name: str) -> tuple[Any, Any]:
    import timm
    import torch

    torch.manual_seed(0)
    net: Any = timm.create_model(name).eval()
    return net, torch.randn(2, *net.pretrained_cfg["input_size"])


def torch_pruning(name: str) -> Row:
    """Torch-Pruning's way: its README, examples/timm_models."""
    import torch
    import torch_pruning as tp

    net, x = _model(name)
    before, _ = tp.utils.count_ops_and_params(net, x[:1])
    start = time.monotonic()
    classifiers = [
        m for m in net.modules() if isinstance(m, torch.nn.Linear) and m.out_features == net.num_classes
    ]
    heads = {m.qkv: m.num_heads for m in net.modules() if hasattr(m, "qkv") and hasattr(m, "num_heads")}
    pruner = tp.pruner.BasePruner(
        net,
        x[:1],
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=classifiers,
        num_heads=heads,
    )
    pruner.step()
    for m in net.modules():
        if hasattr(m, "qkv") and hasattr(m, "num_heads") and m.qkv in pruner.num_heads:
            m.num_heads = pruner.num_heads[m.qkv]
            width = getattr(m.qkv, "out_features", None) or m.qkv.out_channels
            m.head_dim = width // (3 * m.num_heads)
    seconds = time.monotonic() - start
    with torch.no_grad():
        shape = list(net(x).shape)
    after, _ = tp.utils.count_ops_and_params(net, x[:1])
    return {"shape": shape, "seconds": {"all": seconds}, "macs": after / before}


def niwaki(name: str) -> Row:
    """niwaki's way, without its proof."""
    import torch

    from niwaki import prune, surgery
    from niwaki.errors import NiwakiError
    from niwaki.surgery.axes import walk

    net, x = _model(name)
    start = time.monotonic()
    traced = surgery.trace(net, x)
    exported = time.monotonic()
    axes = walk(traced)
    keep = prune.choose(axes, prune.score(net, axes), ratio=RATIO)
    try:
        small = surgery.shrink(net, axes, keep, example=x)
    except NiwakiError:
        small = surgery.rewrite(net, axes, keep, example=x)
    seconds = {"export": exported - start, "all": time.monotonic() - exported}
    with torch.no_grad():
        shape = list(small(x).shape)
    share = (axes.cost(keep).macs or 0) / (axes.cost({}).macs or 1)
    return {"shape": shape, "seconds": seconds, "macs": share}


TOOLS = {"torch-pruning": torch_pruning, "niwaki": niwaki}


def child(tool: str, name: str, limit: float) -> Row:
    """One model by one tool in a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--one", tool, name], capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return {"slow": limit}
    try:
        row: Row = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or [str(done.returncode)])[-1]
        return {"raised": last[:200]}
    return row


def word(row: Row) -> str:
    """pruned, same (nothing became smaller), raised or slow."""
    if "slow" in row or "raised" in row:
        return "slow" if "slow" in row else "raised"
    return "pruned" if row["macs"] < 0.97 else "same"


def summary(rows: dict[str, dict[str, Row]]) -> None:
    """Counts, and medians of seconds over the models that both can do."""
    for tool in TOOLS:
        words = [word(row[tool]) for row in rows.values()]
        print(f"{tool:14s}", {w: words.count(w) for w in sorted(set(words))}, "of", len(rows))
    both = [r for r in rows.values() if all(word(r[tool]) == "pruned" for tool in TOOLS)]
    if both:
        for tool in TOOLS:
            for part in both[0][tool]["seconds"]:
                print(f"{tool:14s} {part:7s} median {median(r[tool]['seconds'][part] for r in both):6.2f} s")
        ratios = [r["niwaki"]["seconds"]["all"] / r["torch-pruning"]["seconds"]["all"] for r in both]
        print(f"niwaki over Torch-Pruning, analysis and surgery, median of the ratios {median(ratios):.2f}")
        share = sum(r["niwaki"]["seconds"]["all"] <= r["torch-pruning"]["seconds"]["all"] for r in both)
        print(f"niwaki's analysis and surgery take no longer on {share} of the {len(both)} models both can do")


def main() -> None:
    """See the head of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("runs/against_torch_pruning.json"))
    parser.add_argument("--limit", type=float, default=60.0)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.one:
        print(json.dumps(TOOLS[given.one[0]](given.one[1])))
        return
    rows: dict[str, dict[str, Row]] = json.loads(given.out.read_text()) if given.out.exists() else {}
    for name in given.only or LIST.read_text().split():
        if name not in rows:
            rows[name] = {tool: child(tool, name, given.limit) for tool in TOOLS}
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(rows, indent=1))
            said = {
                t: (word(r), {k: round(v, 2) for k, v in r.get("seconds", {}).items()})
                for t, r in rows[name].items()
            }
            print(f"{name:36s}", said, rows[name]["torch-pruning"].get("raised", ""), flush=True)
    summary({name: rows[name] for name in given.only or rows})


if __name__ == "__main__":
    main()
