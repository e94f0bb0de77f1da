"""int8 by the ladder and within a size, on the command line: what it is given, and its rungs as a table."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from niwaki.cli import given, mixed
from niwaki.cli.screen import Answer, percent, table
from niwaki.errors import MissingExtra, ModelError

if TYPE_CHECKING:
    from niwaki.artifact import Artifact, Builder
    from niwaki.data import Samples
    from niwaki.qdq.recipe import Recipe
    from niwaki.search.ladder import Climbed, Step


def asked(args: argparse.Namespace) -> bool:
    """Whether int8 is to be measured on val: held to a drop, or to a size."""
    return args.max_drop is not None or args.size is not None


def export(artifact: Artifact, args: argparse.Namespace, builder: Builder | None) -> Answer:
    """The cheapest recipe of int8 within --size that holds val's score, exported; exit 3 where none does."""
    from niwaki.qdq.recipe import Recipe
    from niwaki.search.int8_files import Files

    _check(args)
    held = given.labelled(artifact, args.data, seed=args.seed)
    calib = images(held.train, artifact, seed=args.seed or 0)
    files = Files(
        artifact.model(builder),
        spec=artifact.spec,
        task=artifact.task,
        calib=calib,
        val=held.val,
        runtime=args.runtime,
    )
    start, exit_code = Recipe(narrow=args.narrow), 0
    lines: list[str] = []
    extra: dict[str, Any] = {}
    if args.size is not None:
        found, lines, page = mixed.measure(files, artifact, args, start)
        start, extra = found.chosen.recipe, {"mixed": found.to_json(), "page": page}
    recipe = start
    if args.max_drop is not None:
        climbed = _climb(files, args, start)
        recipe, exit_code = climbed.recipe, 0 if climbed.held else 3
        lines, extra = [*lines, text(climbed)], {**extra, "ladder": climbed.to_json()}
        if args.size is not None and not climbed.held:
            says = "Training with those bits may hold it (niwaki fit --plan; docs/qat.md):"
            lines.append(f"{says}\n\n{mixed.trained(found)}")
    if exit_code == 0:
        artifact.export(args.runtime, precision="int8", calib=calib, recipe=recipe, builder=builder)
        artifact.update(
            ladder=extra.get("ladder"), mixed=extra.get("mixed")
        )  # of this export, not an older one
        lines.append(f"{args.artifact}: {args.runtime} int8 added")
    value = {"artifact": args.artifact, "exports": artifact.exports, **extra}
    return Answer(value, "\n".join(lines), exit_code)


def _climb(files: Any, args: argparse.Namespace, start: Recipe) -> Climbed:
    """The ladder from a recipe on. Within a size no rung is tried that makes the file larger."""
    from niwaki.search import ladder, recipes

    within = args.size is not None
    return recipes.climb(
        files,
        max_drop=args.max_drop,
        start=start,
        floats=not within,
        rungs=[rung for rung in ladder.RUNGS if not (within and rung.grows)],
        show=lambda step: print(line(step), file=sys.stderr),
    )


def check_runtime(args: argparse.Namespace) -> None:
    """Raises where no runtime has that name, or it cannot do what is asked for: before anything runs.

    Raises:
        RuntimeFailed: there is none of that name. [runtime-unknown]
        MissingExtra: a recipe is looked for, and what exports its file is not installed. [extra-missing]
        ModelError: a recipe is looked for, and the runtime takes none. [export-recipe]
    """
    from niwaki import runtimes

    if args.all_runtimes:
        return
    made = None if args.runtime == "web" else runtimes.load(args.runtime)
    if not asked(args):
        return
    if not getattr(made, "RECIPES", False):
        raise ModelError(
            f"export: --max-drop and --size look for a recipe, which {args.runtime} does not take, expected "
            "one of onnx, openvino, tensorrt. Leave them out, or give another --runtime.",
            code="export-recipe",
        )
    can = runtimes.support(args.runtime)
    if not can["export"]:
        raise MissingExtra(
            f"export: {args.runtime} cannot be exported here. Install: {can['install']}.", code="extra-missing"
        )


def _check(args: argparse.Namespace) -> None:
    """Raises where arguments do not fit.

    Raises:
        ModelError: there is no --data, it is not int8, or not niwaki's own.
            [export-calib, export-precision, export-recipe]
    """
    knob = "--max-drop" if args.max_drop is not None else "--size"
    if args.quantizer != "niwaki":
        raise ModelError(
            f"export: {knob} came with --quantizer {args.quantizer}, expected one of them: recipes are "
            "niwaki's own. Leave one out.",
            code="export-recipe",
        )
    if not args.data:
        raise ModelError(
            f"export: {knob} got no images to measure on. Give --data DATA, with a train and a val split.",
            code="export-calib",
        )
    if args.sensitivity:
        raise ModelError(
            f"export: {knob} came with --sensitivity, which exports nothing, expected one of them. "
            "Leave one out.",
            code="export-recipe",
        )
    if args.precision != "int8" or args.all_runtimes:
        got = "--all-runtimes" if args.all_runtimes else args.precision
        raise ModelError(
            f"export: {knob} is of int8, got {got}. Leave it out, or use --precision int8.",
            code="export-precision",
        )


def images(samples: Samples, artifact: Artifact, *, seed: int = 0, count: int = given.CALIBRATION) -> Any:
    """Images of a split as the artifact reads them, uint8 `[N, H, W, C]`; at most `count`."""
    some = samples.take(count, seed=seed) if len(samples) > count else samples
    return some.batch(range(len(some)), artifact.spec)


def text(found: Climbed) -> str:
    """All rungs that were measured, and the one that is enough."""
    rows = [["rung", "val", "lost", "±", "kept", "s"], *(cells(step) for step in found.steps)]
    return f"{table(rows)}\n\n{found.says()}"


def line(step: Step) -> str:
    """One rung while the climb goes on."""
    name, score, lost, noise, kept, seconds = cells(step)
    return f"{name:24s} val {score}, loses {lost} ± {noise}{', kept' if kept else ''} ({seconds} s)"


def cells(step: Step) -> list[str]:
    """A rung's name, score, loss and its standard error, whether it was kept, and seconds."""
    count = len(step.recipe.float_nodes)
    name = f"{step.rung} ({count} nodes)" if count else step.rung
    kept = "yes" if step.kept else ""
    shares = [percent(value, digits=2) for value in (step.score, step.drop, step.noise)]
    return [name, *shares, kept, f"{step.seconds:.1f}"]
