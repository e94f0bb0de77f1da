"""What int8 costs each layer of an artifact, as a table, a page and JSON: `niwaki export --sensitivity`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from niwaki.cli import rungs
from niwaki.cli.screen import Answer, percent, table
from niwaki.errors import ModelError

if TYPE_CHECKING:
    from niwaki.artifact import Artifact, Builder

FEW = 16
"""Images of the cheap figure, at most half of them: the others say what it is worth."""


def measure(artifact: Artifact, args: argparse.Namespace, builder: Builder | None) -> Answer:
    """The sensitivity of each layer or block, on images of the val split of --data.

    Raises:
        ModelError: there is no --data. [export-calib]
    """
    if not args.data:
        raise ModelError(
            "export: --sensitivity got no images to measure on. Give --data DATA, with a train and val split.",
            code="export-calib",
        )
    from niwaki import report
    from niwaki.cli import given
    from niwaki.search import recipes

    held = given.labelled(artifact, args.data, seed=args.seed)
    val = held.val.take(args.images, seed=args.seed or 0) if len(held.val) > args.images else held.val
    found = recipes.sensitivities(
        artifact.model(builder),
        spec=artifact.spec,
        task=artifact.task,
        calib=rungs.images(held.train, artifact, seed=args.seed or 0),
        images=val.batch(range(len(val)), artifact.spec),
        targets=val.targets(range(len(val)), artifact.spec),
        by=args.sensitivity,
        few=min(FEW, max(1, len(val) // 2)),
    )
    found["name"] = artifact.path.stem
    page = report.sensitivity(found, args.out or artifact.path.resolve().parent)
    return Answer({**found, "page": str(page)}, _text(found, str(page)))


def _text(found: dict[str, Any], page: str) -> str:
    rows = sorted(found["rows"], key=lambda row: -row["alone"]["kl"])
    whole, rank = found["all"], found["rank"]
    heads = ("KL alone", "SQNR alone", "score alone", "score all others", "weights", "activations")
    lines = [[str(found["by"]), *heads]]
    for row in rows:
        kinds = ["–" if row[k] is None else f"{row[k]['kl']:.3g}" for k in ("weights", "inputs")]
        shares = [percent(row[k]["score"], digits=2) for k in ("alone", "others")]
        noise = row["alone"]["sqnr"]
        ratio = "–" if noise is None else f"{noise:.1f} dB"
        lines.append([row["name"], f"{row['alone']['kl']:.3g}", ratio, *shares, *kinds])
    return "\n".join(
        [
            table(lines),
            "",
            f"float {percent(found['float']['score'], digits=2)}, "
            f"all in int8 {percent(whole['score'], digits=2)}",
            f"rank correlation with KL alone: {found['few']} images "
            f"{'–' if rank['few images'] is None else format(rank['few images'], '.3f')} (on the "
            f"{found['images'] - found['few']} others), each layer's own output {rank['own output']:.3f}",
            f"page  {page}",
        ]
    )
