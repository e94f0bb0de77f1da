"""`niwaki predict -o`: a scene of any size within a stated memory. What niwaki.tile does, in words of the
shell."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from niwaki.cli.progress import clock
from niwaki.cli.screen import Answer, Out
from niwaki.cli.values import natural, size
from niwaki.errors import SpecError

OTHER_SCALE = 1.5
"""From which factor on training images were resized so much that a scene at its own scale is told of."""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that go with -o."""
    group = parser.add_argument_group("scenes of any size, with -o (segmentation, objects)")
    arg = group.add_argument
    arg(
        "-o",
        "--out",
        metavar="FILE",
        help="write the whole prediction: .tif (COG), .zarr, .npy, .png, .geojson; of objects .json (COCO) too",
    )
    arg("--memory", type=megabytes, default=512.0, metavar="SIZE", help="e.g. 512MB, 2GB (default 512MB)")
    arg("--tile", type=size, metavar="PX", help="tile's side or HxW (default: the model's)")
    arg("--overlap", type=natural, metavar="PX", help="pixels shared by neighbours (default: a quarter)")
    arg("--blend", choices=("hann", "gauss", "linear", "mean", "crop"), default="hann", help="(default hann)")
    arg("--exact", action="store_true", help="give what the whole image would, or refuse (needs onnx)")
    arg("--probabilities", action="store_true", help="write probabilities, not classes")
    arg("--range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="pixel values that are black and white")
    arg(
        "--bands",
        type=numbers,
        default=(),
        metavar="N,N",
        help="bands of the scene that the model takes, from 1",
    )
    arg("--nodata", type=float, metavar="VALUE", help="pixels without data (default: the file says)")
    arg("--level", type=natural, default=0, metavar="N", help="of a pyramid (default 0, the full size)")
    arg("--turns", metavar="NAMES", help="test-time augmentation: hflip,vflip,rot180,rot90,rot270,...")
    arg("--with", dest="others", action="append", default=[], metavar="ARTIFACT", help="one more model; repeat")
    arg("--join", choices=("mean", "vote"), default="mean", help="how models are joined (default mean)")
    arg("--weights", metavar="W,W", help="one for each model, the first one's first")
    arg("--viewer", metavar="FOLDER", help="also write a page to look at scene and prediction")
    arg("--no-resume", action="store_true", help="begin anew where a run was killed")


def numbers(text: str) -> tuple[int, ...]:
    """`4,3,2` as numbers from 1 on."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise argparse.ArgumentTypeError(f"expected numbers such as 4,3,2, got {text!r}")
    return tuple(map(int, text.split(",")))


def source(path: str, bands: tuple[str, ...]) -> Any:
    """A scene's path, or the files of its bands where it is a folder of them.

    Raises:
        SpecError: it is another folder. [tile-knob]
    """
    from niwaki.data import stacks

    folder = Path(path)
    if not folder.is_dir() or any((folder / name).exists() for name in ("zarr.json", ".zarray", ".zgroup")):
        return path
    found = stacks.of_folder(folder, bands)
    if found is None:
        raise SpecError(
            f"niwaki predict: {path} is a folder without {', '.join(bands) or 'files of bands'}; -o takes one "
            "scene.",
            code="tile-knob",
        )
    return found


def scale_warning(artifact: Any) -> str:
    """What to say where training images were resized much, as scenes are not; or nothing."""
    images, (height, width) = artifact.manifest.get("images"), artifact.spec.size_hw
    known: list[Any] = [images.get(side) for side in ("height", "width")] if isinstance(images, dict) else [0]
    if not all(isinstance(side, int) and side > 0 for side in known):
        return ""
    # longer by longer side: photographs may be stored lying
    pairs = zip(sorted(known), sorted((height, width)), strict=True)
    shrunk = max(stored / size for stored, size in pairs)
    if 1 / OTHER_SCALE < shrunk < OTHER_SCALE:
        return ""
    how = f"{shrunk:.1f} times smaller" if shrunk > 1 else f"{1 / shrunk:.1f} times larger"
    return (
        f"warning: {artifact.path.name} was trained on images of about {images['width']} x {images['height']} "
        f"pixels, made {how} ({width} x {height}); the scene is predicted at its own scale. Where its things "
        f"are as large as in those images, bring it to {100 / shrunk:.0f} % first; or train on crops "
        "(docs/tiles.md)."
    )


def megabytes(text: str) -> float:
    """`512MB`, `2GB` or a number of MB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(k|m|g|t)?i?b?", text.strip().lower())
    units = {"k": 1 / 1024, "m": 1, "g": 1024, "t": 1024**2}
    value = float(found[1]) * units[found[2] or "m"] if found else 0.0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected a size such as 512MB, got {text!r}")
    return value


def run(args: argparse.Namespace, out: Out) -> Answer:
    """Predict one scene into one file."""
    from dataclasses import asdict

    from niwaki import tile
    from niwaki.artifact import Artifact

    artifacts = [Artifact.open(path) for path in (args.artifact, *args.others)]
    first = artifacts[0]
    _check(args, artifacts)
    if said := scale_warning(first):
        print(said, file=sys.stderr)
    scene = source(args.paths[0], first.spec.bands)
    predictor, sums = _predictor(args, artifacts)
    field = None
    if args.exact:
        field = tile.widest([tile.receptive_field(_graph(a, args.precision)) for a in artifacts])
        tile.prove(predictor, field, channels=first.spec.channels)
    with bar() as show:
        stats = tile.predict(
            predictor,
            scene,
            args.out,
            memory_mb=args.memory,
            tile=args.tile,
            overlap=args.overlap,
            blend=args.blend,
            output="probabilities" if args.probabilities else "classes",
            batch=args.batch,
            scale=tuple(args.range) if args.range else first.spec.scale or "bits",
            nodata=args.nodata,
            bands=args.bands,
            level=args.level,
            exact=field,
            resume="" if args.no_resume else sums,
            palette=tile.colours(len(first.task.classes)),
            show=show,
        )
    if args.viewer:
        tile.viewer(
            scene, args.out, args.viewer, classes=first.task.classes, level=args.level, names=first.spec.bands
        )
    found = asdict(stats)
    text = (
        f"{args.out}: {stats.tiles} tiles, {stats.skipped} empty, {clock(stats.seconds)}; "
        f"{stats.need_mb:.0f} MB of {args.memory:.0f} planned, {stats.peak_mb:.0f} MB held at most"
    )
    warnings = [said] if said else []
    told = {"out": str(args.out), "classes": list(first.task.classes), "warnings": warnings}
    return Answer(told | found, text=text)


def _check(args: argparse.Namespace, artifacts: list[Any]) -> None:
    """Raises where the words do not fit together. [tile-knob]"""
    fault = ""
    if len(args.paths) != 1:
        fault = "-o takes one scene"
    elif not all(getattr(a.task, "dense", False) for a in artifacts):
        fault = "-o takes models that give a class for each pixel"
    elif len({a.task.classes for a in artifacts}) > 1:
        fault = "the models do not have the same classes"
    elif len({(a.spec.channels, a.spec.scale) for a in artifacts}) > 1:
        fault = "the models do not take the same bands in the same range"
    elif args.top or args.jsonl:
        fault = "--top and --jsonl are for labels of images"
    elif args.viewer and (args.probabilities or Path(args.out).suffix.lower() in (".geojson", ".png")):
        fault = "--viewer shows classes in .tif, .zarr or .npy"
    if fault:
        raise SpecError(f"niwaki predict: {fault}.", code="tile-knob")


def _files(artifact: Any, args: argparse.Namespace) -> list[Path]:
    """What a session of the artifact runs."""
    entry = artifact.exports[args.runtime][args.precision or artifact.default]
    return [Path(artifact.path, name) for name in (entry["file"], *entry.get("parts", ()))]


def _graph(artifact: Any, precision: str | None) -> Path:
    """The ONNX file that tells how far a network sees, which is the same on every runtime.

    Raises:
        SpecError: it has none. [tile-knob]
    """
    held = artifact.exports.get("onnx", {})
    entry = held.get(precision or artifact.default) or next(iter(held.values()), None)
    if entry is None:
        raise SpecError(
            "niwaki predict: --exact reads how far the network sees from its onnx export, and "
            f"{artifact.path.name} has none. Add it: niwaki export {artifact.path.name} --precision float32.",
            code="tile-knob",
        )
    return Path(artifact.path, entry["file"])


def _predictor(args: argparse.Namespace, artifacts: list[Any]) -> tuple[Any, str]:
    """One predictor of all models and turns, and a text that tells it from others."""
    from niwaki import files, tile

    sessions = [a.session(args.runtime, precision=args.precision, threads=args.threads) for a in artifacts]
    weights = [float(word) for word in args.weights.split(",")] if args.weights else []
    predictor = sessions[0]
    if len(sessions) > 1 or weights:
        predictor = tile.together(sessions, how=args.join, weights=weights)
    if args.turns:
        turns = ["none", *(word for word in args.turns.split(",") if word != "none")]
        predictor = tile.turned(predictor, turns)
    names = [files.sha256(file) for a in artifacts for file in _files(a, args)]
    return predictor, f"{names} {args.join} {weights} {args.turns}"


@contextlib.contextmanager
def bar() -> Iterator[Callable[[Any], None]]:
    """A bar on a terminal, else a line for each tenth."""
    if not sys.stderr.isatty():
        said = [-1]

        def line(now: Any) -> None:
            tenth = 10 * now.done // now.tiles
            if tenth > said[0]:
                said[0] = tenth
                text = f"{now.done}/{now.tiles} tiles  {clock(now.eta)} left"
                print(text, file=sys.stderr, flush=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.fields[says]}"))
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("tiles", total=None, says="")

        def show(now: Any) -> None:
            bars.update(
                task, total=now.tiles, completed=now.done, says=f"{now.tiles} tiles  {clock(now.eta)} left"
            )

        yield show
