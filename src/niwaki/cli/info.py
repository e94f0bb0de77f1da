"""niwaki info: what an artifact is: its input, classes, costs, scores and exports."""

from __future__ import annotations

import argparse

from niwaki.cli.screen import Answer, Out


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("artifact", metavar="ARTIFACT", help="a NAME.niwaki folder")


def run(args: argparse.Namespace, out: Out) -> Answer:
    """Open the artifact, checksums and all, and print its manifest."""
    from niwaki.artifact import Artifact

    manifest = Artifact.open(args.artifact).manifest
    lines = [f"{key:<12} {_short(value)}" for key, value in manifest.items()]
    return Answer(dict(manifest), "\n".join(lines))


def _short(value: object) -> str:
    if isinstance(value, dict):
        text = ", ".join(f"{k}: {_short(v)}" for k, v in value.items())
    elif isinstance(value, list):
        text = ", ".join(map(str, value))
    else:
        text = str(value)
    return text if len(text) <= 200 else text[:199] + "…"
