"""niwaki sensitivity: what int8 costs each layer of an artifact, as a table, a page and JSON."""

from __future__ import annotations

import argparse
from typing import Any

from niwaki.cli.screen import Answer, Out, percent, table
from niwaki.cli.values import natural, positive


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arg = parser.add_argument
    arg("artifact", metavar="ARTIFACT", help="a NAME.niwaki folder")
    arg("--data", required=True, metavar="DATA", help="its train split calibrates, its val split is measured")
    arg("--by", choices=("layer", "block"), default="layer", help="what is rounded alone (default layer)")
    arg("--images", type=positive, default=256, metavar="N", help="images of val (default 256)")
    arg("--few", type=positive, default=16, metavar="N", help="images of the cheap figure (default 16)")
    arg("--out", metavar="FOLDER", help="where sensitivity.html and .json go (default: beside the artifact)")
    arg("--builder", metavar="FILE:FUNCTION", help="runs it: what made a model of your own code")
    arg("--seed", type=natural, default=0, metavar="N", help="seed of the choice of images (default 0)")


def run(args: argparse.Namespace, out: Out) -> Answer:
    """Measure, write the page, print the table."""
    from niwaki import data, nets, report
    from niwaki.artifact import Artifact
    from niwaki.cli import rungs
    from niwaki.search import recipes

    artifact = Artifact.open(args.artifact)
    held = data.read(args.data, seed=args.seed)
    val = held.val.take(args.images, seed=args.seed) if len(held.val) > args.images else held.val
    counts = {"classes": len(artifact.task.classes), "channels": artifact.spec.channels}
    builder = (lambda: nets.build_user(args.builder, **counts)) if args.builder else None
    found = recipes.sensitivities(
        artifact.model(builder),
        spec=artifact.spec,
        task=artifact.task,
        calib=rungs.images(held.train, artifact, seed=args.seed),
        images=rungs.images(val, artifact, count=args.images),
        targets=val.targets(range(len(val)), artifact.spec),
        by=args.by,
        few=args.few,
    )
    found["name"] = artifact.path.stem
    page = report.sensitivity(found, args.out or artifact.path.resolve().parent)
    return Answer({**found, "page": str(page)}, _text(found, str(page)))


def _text(found: dict[str, Any], page: str) -> str:
    rows = sorted(found["rows"], key=lambda row: -row["alone"]["kl"])
    whole, rank = found["all"], found["rank"]
    lines = [[str(found["by"]), "KL alone", "score alone", "score all others", "weights", "activations"]]
    for row in rows:
        kinds = ["–" if row[k] is None else f"{row[k]['kl']:.3g}" for k in ("weights", "inputs")]
        shares = [percent(row[k]["score"], digits=2) for k in ("alone", "others")]
        lines.append([row["name"], f"{row['alone']['kl']:.3g}", *shares, *kinds])
    return "\n".join(
        [
            table(lines),
            "",
            f"float {percent(found['float']['score'], digits=2)}, "
            f"all in int8 {percent(whole['score'], digits=2)}",
            f"rank correlation with these: {found['few']} images {rank['few images']:.3f}, "
            f"each layer's own output {rank['own output']:.3f}",
            f"page  {page}",
        ]
    )
