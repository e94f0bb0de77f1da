"""niwaki export: add an export to an artifact, checked against the model it comes from."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from niwaki.cli.screen import Answer, Out
from niwaki.cli.values import natural

if TYPE_CHECKING:
    from niwaki.artifact import Artifact, Builder


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arg = parser.add_argument
    arg("artifact", metavar="ARTIFACT", help="a NAME.niwaki folder")
    arg(
        "--precision",
        choices=("float32", "int8"),
        default="int8",
        help="numbers inside (default int8)",
    )
    arg("--runtime", default="onnx", metavar="NAME", help="the runtime it is for (default onnx)")
    arg("--calib", metavar="DATA", help="images that int8 is calibrated on; a data set as for fit")
    arg("--builder", metavar="FILE:FUNCTION", help="runs it: what made a model of your own code")
    arg("--seed", type=natural, default=0, metavar="N", help="seed of their choice (default 0)")


def run(args: argparse.Namespace, out: Out) -> Answer:
    """Export, run the file again, and compare."""
    from niwaki.artifact import Artifact

    artifact = Artifact.open(args.artifact)
    calib = None
    if args.calib:
        from niwaki import data

        samples = data.read(args.calib, seed=args.seed).train.take(256, seed=args.seed)
        calib = samples.batch(range(len(samples)), artifact.spec)
    artifact.export(
        args.runtime,
        precision=args.precision,
        calib=calib,
        builder=_builder(args.builder, artifact),
    )
    exports = artifact.exports
    text = f"{args.artifact}: {args.runtime} {args.precision} added"
    return Answer({"artifact": args.artifact, "exports": exports}, text)


def _builder(name: str | None, artifact: Artifact) -> Builder | None:
    """The user's own function as the artifact wants it; it runs because the user named it."""
    if name is None:
        return None
    from niwaki import nets

    classes, channels = len(artifact.task.classes), artifact.spec.channels
    return lambda: nets.build_user(name, classes=classes, channels=channels)
