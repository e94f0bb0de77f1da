"""niwaki info: what an artifact is: its input, classes, costs, scores and exports."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from niwaki.cli.screen import Answer, Out, count, in_order, percent, table

if TYPE_CHECKING:
    from niwaki.artifact import Artifact
    from niwaki.spec import Spec


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("artifact", metavar="ARTIFACT", help="a NAME.niwaki folder")


def run(args: argparse.Namespace, out: Out) -> Answer:
    """Open the artifact, checksums and all, and print its manifest."""
    from niwaki.artifact import Artifact

    artifact = Artifact.open(args.artifact)
    facts = {"default": artifact.default, "result": _result(artifact)}
    return Answer({**artifact.manifest, **facts}, _text(artifact))


def _channels(spec: Spec) -> str:
    if not spec.banded:
        return "RGB" if spec.channels == 3 else "grey"
    if spec.scale is None or set(spec.scale) == {(0.0, 255.0)}:
        return f"{spec.channels} bands{spec.named}"
    ranges = ", ".join(f"{low:.6g}..{high:.6g}" for low, high in spec.scale[:6])
    return f"{spec.channels} bands{spec.named}, black to white {ranges}{' ...' if spec.channels > 6 else ''}"


def _result(artifact: Artifact) -> str:
    """ "module": the class that its builder makes; "graph": the graph that is saved with it."""
    return "graph" if artifact.manifest["builder"] is None else "module"


def _text(artifact: Artifact) -> str:
    """What people ask of an artifact first; --json holds all."""
    from niwaki import metrics

    spec, manifest = artifact.spec, artifact.manifest
    (height, width), classes = spec.size_hw, artifact.task.classes
    rows = [["stage", "MACs", "params", "kB", "ms", f"test {artifact.task.metric}"]]
    costs = manifest.get("cost") or {}
    for stage in in_order(costs):
        cost = costs[stage]
        score = ((manifest.get("scores") or {}).get(stage) or {}).get("test") or {}
        numbers = [count(cost.get("macs")), count(cost.get("params"))]
        numbers += [
            f"{cost['bytes'] / 1e3:.4g}" if cost.get("bytes") else "–",
            count(cost.get("ms")),
        ]
        rows.append([stage, *numbers, percent(metrics.main(score) if score else None)])
    exports = [
        f"{runtime} {precision} ({entry['bytes'] / 1e3:.4g} kB)"
        for runtime, made in artifact.exports.items()
        for precision, entry in made.items()
    ]
    shown = ", ".join(classes[:12]) + (" …" if len(classes) > 12 else "")
    lines = [
        f"task     {artifact.task.kind}, {len(classes)} classes: {shown}",
        f"input    {height} x {width} pixels, {_channels(spec)}",
        f"model    {manifest['builder'] or 'its own graph'}, result: {_result(artifact)}",
        f"exports  {', '.join(exports) or 'none'}; default: {artifact.default}",
    ]
    return "\n".join([*lines, "", table(rows)] if len(rows) > 1 else lines)
