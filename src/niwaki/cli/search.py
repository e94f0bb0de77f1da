"""niwaki search: try widths or settings on one data set and show the front of accuracy and cost."""

from __future__ import annotations

import argparse
from typing import Any

from niwaki.cli.screen import Answer, Out, count, percent, table
from niwaki.cli.values import natural, positive, share, size


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arg = parser.add_argument
    arg(
        "data",
        nargs="?",
        default="digits",
        metavar="DATA",
        help="folder of class folders, zip, .npz, .csv or .jsonl; digits (default) or cifar10",
    )
    arg(
        "--by",
        choices=("widths", "grid", "random", "halving", "optuna"),
        help="widths: networks cut out of one supernet (the default); the others try what --set names",
    )
    arg("--model", metavar="NAME", help="timm:NAME, niwaki:NAME or file.py:function")
    arg(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="values to try, as lr=1e-3,3e-3 or lr=1e-4..1e-2; lr, width, augment, model, batch, weight_decay, "
        "ema, seed; once for each name",
    )
    arg("--trials", type=positive, default=16, metavar="N", help="widths or settings tried (default 16)")
    arg("--epochs", type=positive, metavar="N", help="epochs of each training")
    arg("--tune", type=natural, default=0, metavar="N", help="epochs that the best widths are trained further")
    arg("--cost", choices=("macs", "params"), default="macs", help="the front's other axis (default macs)")
    arg("--budget", metavar="KIND=VALUE", help="macs=50%% or params=1M: the best must be within")
    arg("--out", metavar="DIR", help="run folder (default runs/NAME-search)")
    arg("--weights", metavar="FILE", help="start from these weights (.safetensors or a torch file)")
    arg("--seed", type=natural, default=0, metavar="N", help="seed of every draw (default 0)")
    arg(
        "--val",
        type=share,
        default=0.15,
        metavar="SHARE",
        help="share of the images that chooses, where DATA names no split for it (default 0.15)",
    )
    arg("--size", type=size, metavar="N|HxW", help="pixels of the model's input")
    arg("--pretrained", action="store_true", help="start from the builder's published weights")
    arg("--storage", metavar="FILE|URL", help="Optuna's storage: processes that share it share the trials")
    arg("--cluster", metavar="ADDRESS", help="run trials on this Ray cluster (auto, local or its address)")


def run(args: argparse.Namespace, out: Out) -> Answer:
    """Search, and print the front."""
    from niwaki import job
    from niwaki.cli.progress import bars

    with bars() as show:
        result = job.explore(
            args.data,
            by=args.by,
            model=args.model,
            space=args.set,
            trials=args.trials,
            epochs=args.epochs,
            tune=args.tune,
            cost=args.cost,
            budget=args.budget,
            out=args.out,
            weights=args.weights,
            seed=args.seed,
            val=args.val,
            size=args.size,
            pretrained=args.pretrained,
            storage=args.storage,
            cluster=args.cluster,
            show=show,
        )
    return Answer(result, _text(result), 3 if result["best"] is None else 0)


def _text(result: dict[str, Any]) -> str:
    """The front as people read it, and where things lie."""
    from niwaki import metrics

    rows = [["", "MACs", "params", "val accuracy", "test accuracy", "setting"]]
    for trial in result["front"]:
        best = result["best"] is not None and trial["name"] == result["best"]["name"]
        rows.append(
            [
                trial["name"] + (" *" if best else ""),
                count(trial["cost"]["macs"]),
                count(trial["cost"]["params"]),
                percent(metrics.main(trial["val"])),
                percent(metrics.main(trial["test"])),
                _setting(trial["setting"]),
            ]
        )
    within = "" if result["budget"] is None else f" within {result['budget']['asked']}"
    found = f"* best on val{within}" if result["best"] is not None else f"no trial{within}"
    tuned = (result["best"] or {}).get("tuned")
    lines = [
        table(rows),
        "",
        f"{found}; {len(result['front'])} of {len(result['trials'])} trials are the front",
    ]
    if tuned:
        lines.append(
            f"tuned     val {percent(metrics.main(tuned['val']))}, test {percent(metrics.main(tuned['test']))}"
        )
    return "\n".join([*lines, f"artifact  {result['artifact'] or 'none'}", f"chart     {result['chart']}"])


def _setting(setting: dict[str, Any]) -> str:
    if "widths" in setting:
        return " ".join(str(width) for width in setting["widths"].values())
    return ", ".join(f"{name}={value}" for name, value in setting.items())
