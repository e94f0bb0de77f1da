"""niwaki fit: train a model on a folder of images and fit it to a budget, ready to deploy."""

from __future__ import annotations

import argparse
from typing import Any

from niwaki.cli.screen import Answer, Out, count, in_order, percent, table
from niwaki.cli.values import natural, positive, share, size


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arg = parser.add_argument
    arg(
        "data",
        nargs="?",
        default="digits",
        metavar="DATA",
        help="folder of class folders or of images with masks, zip, .npz, .csv or .jsonl; or digits (default), "
        "cifar10, camvid, dsb2018",
    )
    arg("--model", metavar="NAME", help="timm:NAME, niwaki:NAME or file.py:function")
    arg(
        "--budget",
        default="latency=50%",
        metavar="KIND=VALUE",
        help="latency=50%% (default) or 4ms, macs=40%%, params=1.2M, size=3MB; %% is what remains",
    )
    arg(
        "--max-drop",
        type=share,
        default=0.01,
        metavar="SHARE",
        help="accuracy (of masks: mIoU) on val that may be lost, 0..1 (default 0.01)",
    )
    arg("--out", metavar="DIR", help="run folder (default runs/NAME)")
    arg("--weights", metavar="FILE", help="start from these weights (.safetensors or a torch file)")
    arg(
        "--epochs",
        type=natural,
        metavar="N",
        help="epochs of training; 0: take --weights as they are",
    )
    arg("--seed", type=natural, default=0, metavar="N", help="seed of every draw (default 0)")
    arg(
        "--val",
        type=share,
        default=0.15,
        metavar="SHARE",
        help="share of the images that chooses, where DATA names no split for it (default 0.15)",
    )
    arg(
        "--threads",
        type=positive,
        default=1,
        metavar="N",
        help="threads that latency is measured with (default 1)",
    )
    arg("--size", type=size, metavar="N|HxW", help="pixels of the model's input")
    arg("--pretrained", action="store_true", help="start from the builder's published weights")
    arg("--plan", metavar="FILE", help="compress by this plan (TOML) instead of the default")
    arg(
        "--ledger",
        type=natural,
        default=128,
        metavar="N",
        help="test images that are corrupted and, half of them, attacked for the report (default 128; 0: none)",
    )
    arg("--show-plan", action="store_true", help="print the plan as TOML and stop")


def run(args: argparse.Namespace, out: Out) -> Answer:
    """Do the main job, or print its plan."""
    if args.show_plan:
        return _plan(args)
    from niwaki import job
    from niwaki.cli.progress import bars

    with bars() as show:
        result = job.fit(
            args.data,
            model=args.model,
            budget=args.budget,
            max_drop=args.max_drop,
            out=args.out,
            weights=args.weights,
            epochs=args.epochs,
            seed=args.seed,
            val=args.val,
            threads=args.threads,
            size=args.size,
            pretrained=args.pretrained,
            plan=args.plan,
            ledger=args.ledger,
            show=show,
        )
    return Answer(result, _text(result), 0 if result["budget"]["met"] else 3)


def _plan(args: argparse.Namespace) -> Answer:
    from niwaki.plan import Plan, default

    plan = Plan.load(args.plan) if args.plan else default()
    text = plan.to_toml()
    return Answer({"plan": text}, text.rstrip("\n"))


def _text(result: dict[str, Any]) -> str:
    """The result as people read it: a table of stages, the budget and where things lie."""
    from niwaki import metrics

    rows = [["", "MACs", "params", "MB", "ms", f"test {_metric(result)}"]]
    for stage in in_order(result["cost"]):
        cost = result["cost"][stage]
        score = result["scores"].get(stage, {}).get("test") or {}
        megabytes = None if cost.get("bytes") is None else cost["bytes"] / 1e6
        interval = f" ({percent(score['low'])} to {percent(score['high'])})" if score else ""
        rows.append(
            [
                stage,
                count(cost.get("macs")),
                count(cost.get("params")),
                count(megabytes),
                count(cost.get("ms")),
                percent(metrics.main(score) if score else None) + interval,
            ]
        )
    budget = result["budget"]
    verdict = "met" if budget["met"] else "NOT met"
    return "\n".join(
        [
            table(rows),
            "",
            f"budget    {budget['asked']}: got {budget['got']:.4g}, {verdict}",
            f"artifact  {result['artifact'] or 'none; the points tried lie under points/'}",
            f"baseline  {result['baseline']}",
            *(f"note      {note}" for note in result.get("notes", ())),
        ]
    )


def _metric(result: dict[str, Any]) -> str:
    """The main score's name."""
    from niwaki import metrics

    scores = [found["test"] for found in result["scores"].values() if found.get("test")]
    return metrics.named(scores[0]) if scores else metrics.MAIN[0]
