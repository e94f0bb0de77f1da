"""The ladder of int8 on the command line: what it is given, and its rungs as a table."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from niwaki.cli.screen import percent, table
from niwaki.errors import MissingExtra, ModelError

if TYPE_CHECKING:
    from niwaki.artifact import Artifact
    from niwaki.data import Samples
    from niwaki.search.ladder import Climbed, Step

CALIBRATION = 256
"""Training images that int8 is calibrated on."""


def check_runtime(args: argparse.Namespace) -> None:
    """Raises where no runtime has that name, or it cannot do what is asked for: before anything runs.

    Raises:
        RuntimeFailed: there is none of that name. [runtime-unknown]
        MissingExtra: the ladder is asked for, and what exports its file is not installed. [extra-missing]
        ModelError: the ladder is asked for, and the runtime takes no recipe. [export-recipe]
    """
    from niwaki import runtimes

    if args.all_runtimes:
        return
    made = None if args.runtime == "web" else runtimes.load(args.runtime)
    if args.max_drop is None:
        return
    if not getattr(made, "RECIPES", False):
        raise ModelError(
            f"export: --max-drop climbs the ladder of recipes, which {args.runtime} does not take, expected "
            "one of onnx, openvino, tensorrt. Leave it out, or give another --runtime.",
            code="export-recipe",
        )
    can = runtimes.support(args.runtime)
    if not can["export"]:
        raise MissingExtra(
            f"export: {args.runtime} cannot be exported here. Install: {can['install']}.", code="extra-missing"
        )


def check(args: argparse.Namespace) -> None:
    """Raises where arguments do not fit the ladder.

    Raises:
        ModelError: there is no --data, or it is not int8. [export-calib, export-precision]
    """
    if not args.data:
        raise ModelError(
            "export: --max-drop got no images to measure on. Give --data DATA, with a train and a val split.",
            code="export-calib",
        )
    if args.precision != "int8" or args.all_runtimes:
        got = "--all-runtimes" if args.all_runtimes else args.precision
        raise ModelError(
            f"export: --max-drop climbs the ladder of int8, got {got}. Leave it out, or use --precision int8.",
            code="export-precision",
        )


def images(samples: Samples, artifact: Artifact, *, seed: int = 0, count: int = CALIBRATION) -> Any:
    """Images of a split as the artifact reads them, uint8 `[N, H, W, C]`; at most `count`."""
    some = samples.take(count, seed=seed) if len(samples) > count else samples
    return some.batch(range(len(some)), artifact.spec)


def text(found: Climbed) -> str:
    """All rungs that were measured, and the one that is enough."""
    rows = [["rung", "val", "lost", "kept", "s"], *(cells(step) for step in found.steps)]
    return f"{table(rows)}\n\n{found.says()}"


def line(step: Step) -> str:
    """One rung while the climb goes on."""
    name, score, lost, kept, seconds = cells(step)
    return f"{name:24s} val {score}, loses {lost}{', kept' if kept else ''} ({seconds} s)"


def cells(step: Step) -> list[str]:
    """A rung's name, score, loss, whether it was kept, and seconds."""
    count = len(step.recipe.float_nodes)
    name = f"{step.rung} ({count} nodes)" if count else step.rung
    kept = "yes" if step.kept else ""
    return [name, percent(step.score, digits=2), percent(step.drop, digits=2), kept, f"{step.seconds:.1f}"]
