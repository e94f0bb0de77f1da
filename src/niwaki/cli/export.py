"""niwaki export: add an export to an artifact, checked against the model; or write a page for browsers."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from niwaki.cli import given, rungs, sensitivity
from niwaki.cli.screen import Answer, Out, percent
from niwaki.cli.values import natural, positive, positive_share, share
from niwaki.errors import ModelError
from niwaki.lazy import require

if TYPE_CHECKING:
    from niwaki.artifact import Artifact, Builder
    from niwaki.qdq.recipe import Recipe


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arg = parser.add_argument
    arg("artifact", metavar="ARTIFACT", help="a NAME.niwaki folder")
    arg(
        "--precision",
        choices=("float32", "bfloat16", "float16", "int8"),
        help="numbers inside (default int8; with --runtime web those that the artifact runs by default)",
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--runtime",
        default="onnx",
        metavar="NAME",
        help="the runtime it is for (default onnx), or web: a folder for browsers; docs/runtimes.md has all",
    )
    way.add_argument("--all-runtimes", action="store_true", help="every runtime and precision that works here")
    arg(
        "--out",
        metavar="FOLDER",
        help="with --runtime web, --sensitivity, --size: where the page goes (default NAME-web, or beside it)",
    )
    _int8(parser)
    arg("--builder", metavar="FILE:FUNCTION", help="runs it: what made a model of your own code")
    arg(
        "--seed",
        type=natural,
        metavar="N",
        help="seed of what is drawn (default 0) and of the data's splits (default: that of the artifact's fit)",
    )


def _int8(parser: argparse.ArgumentParser) -> None:
    """Declare what says how int8 is made, or what it costs."""
    arg = parser.add_argument
    arg("--calib", metavar="DATA", help="images that int8 is calibrated on: a folder, or a data set as for fit")
    arg(
        "--data",
        metavar="DATA",
        help="with --max-drop or --size: its train split calibrates int8, its val split chooses",
    )
    arg(
        "--max-drop",
        type=share,
        metavar="SHARE",
        help="climb the ladder of int8 recipes until val loses no more: 0.01 or 1%%; docs/quantization.md",
    )
    arg(
        "--size",
        type=positive_share,
        metavar="SHARE",
        help="4-bit weights where they cost least, until the int8 file has at most this share of its bytes, "
        "say 60%%; writes mixed.html, .json; with --max-drop it also has to hold the score",
    )
    arg("--floats", action="store_true", help="with --size: layers may also stay float, which costs time")
    arg(
        "--quantizer",
        choices=("niwaki", "nncf"),
        default="niwaki",
        help="who makes int8 of onnx, openvino or tensorrt; nncf needs niwaki[nncf] and takes no --max-drop",
    )
    arg(
        "--sensitivity",
        choices=("layer", "block"),
        help="export nothing: measure what int8 costs each of them on --data; writes sensitivity.html, .json",
    )
    arg("--images", type=positive, default=256, metavar="N", help="with --sensitivity: of val (default 256)")
    arg(
        "--narrow",
        action="store_true",
        help="int8 of 7-bit weights: the same answers on CPUs without VNNI; docs/instruction-sets.md",
    )


def run(args: argparse.Namespace, out: Out) -> Answer:
    """Export, run the file again, and compare."""
    from niwaki.artifact import Artifact

    rungs.check_runtime(args)
    artifact = Artifact.open(args.artifact)
    if args.runtime == "web" and not args.all_runtimes:
        return _web(artifact, args)
    require("torch", extra="train")  # said before data are read
    args.precision = args.precision or "int8"
    if args.sensitivity and not rungs.asked(args):
        return sensitivity.measure(artifact, args, _builder(args.builder, artifact))
    if args.floats and args.size is None:
        raise ModelError(
            "export: --floats came without --size, whose files it is for. Add --size, or leave it out.",
            code="export-recipe",
        )
    if rungs.asked(args):
        return rungs.export(artifact, args, _builder(args.builder, artifact))
    calib = given.calibration(artifact, args.calib, seed=args.seed) if args.calib else None
    builder, recipe = _builder(args.builder, artifact), _recipe(args)
    if args.all_runtimes:
        return _all(artifact, args.artifact, calib, builder, recipe, out)
    artifact.export(args.runtime, precision=args.precision, calib=calib, recipe=recipe, builder=builder)
    text = _added(artifact, args.artifact, args.runtime, args.precision)
    return Answer({"artifact": args.artifact, "exports": artifact.exports}, text)


def _recipe(args: argparse.Namespace) -> Recipe | None:
    """How int8 is made, where something is asked of it."""
    from niwaki.qdq.recipe import Recipe

    asked = Recipe(by=args.quantizer, narrow=args.narrow)
    return None if asked.plain else asked


def _added(artifact: Artifact, name: str, runtime: str, precision: str) -> str:
    """What was added, and how it compares with the model."""
    entry = artifact.exports[runtime][precision]
    parity = entry["parity"]
    images = f"{parity['images']} image{'' if parity['images'] == 1 else 's'}"
    return (
        f"{name}: {runtime} {precision} added, {entry['bytes'] / 1e6:.3g} MB; agrees with the model on "
        f"{percent(parity['agreement'])} of {images}, largest error {parity['error']:.1g}"
    )


def _all(
    artifact: Artifact, name: str, calib: Any, builder: Builder | None, recipe: Recipe | None, out: Out
) -> Answer:
    """Every export that is not there yet, told as it is made; one that fails is told and stops no other."""
    from niwaki import runtimes
    from niwaki.errors import NiwakiError, ParityError

    left, exit_code = {}, 0
    ranges = calib is not None or _trained(artifact, builder)
    for runtime in runtimes.NAMES:
        can = runtimes.support(runtime)
        for precision in can["precisions"]:
            one = f"{runtime}:{precision}"
            if precision in artifact.exports.get(runtime, {}):
                continue
            if not (can["run"] and can["export"]) or (precision == "int8" and not ranges):
                left[one] = f"needs {can['install']}" if can["install"] else "needs --calib DATA"
                continue
            try:
                takes = precision == "int8" and getattr(runtimes.load(runtime), "RECIPES", False)
                by = recipe if takes else None
                artifact.export(runtime, precision=precision, calib=calib, recipe=by, builder=builder)
                _tell(out, _added(artifact, name, runtime, precision))
            except NiwakiError as error:
                left[one] = f"{error} [{error.code}]"
                exit_code = 3 if isinstance(error, ParityError) else exit_code
    text = "\n".join(f"left out: {one}: {why}" for one, why in left.items())
    return Answer({"artifact": name, "exports": artifact.exports, "left": left}, text, exit_code)


def _tell(out: Out, line: str) -> None:
    """A line at once, for making all takes minutes."""
    if out.as_json:
        print(line, file=sys.stderr)
    else:
        out.line(line)


def _trained(artifact: Artifact, builder: Builder | None) -> bool:
    """Whether the model holds its ranges itself, so that int8 needs no images."""
    from niwaki.surgery import fake_quantize

    return bool(fake_quantize.quantizers(artifact.model(builder)))


def _web(artifact: Artifact, args: argparse.Namespace) -> Answer:
    from niwaki import web

    folder = args.out or f"{artifact.path.with_suffix('')}-web"
    precision = args.precision or artifact.default
    made = web.write(artifact, folder, precision=precision)
    text = f"{made}: {precision}; any static server serves it, for example\n"
    text += f"  python -m http.server -d {made} 8000   and open http://localhost:8000"
    return Answer({"artifact": args.artifact, "web": str(made), "precision": precision}, text)


def _builder(name: str | None, artifact: Artifact) -> Builder | None:
    """The user's own function as the artifact wants it; it runs because the user named it."""
    if name is None:
        return None
    from niwaki import nets

    classes, channels = len(artifact.task.classes), artifact.spec.channels
    return lambda: nets.build_user(name, classes=classes, channels=channels)
