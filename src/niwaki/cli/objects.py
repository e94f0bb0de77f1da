"""`niwaki predict -o` with a model of the instances task: the objects of a scene, numbered, in one file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from niwaki.cli.scene import bar, scale_warning, source
from niwaki.cli.screen import Answer
from niwaki.errors import SpecError

if TYPE_CHECKING:
    from niwaki.artifact import Artifact


def run(args: argparse.Namespace, artifact: Artifact) -> Answer:
    """Find the objects of one scene and write them."""
    from niwaki import instances
    from niwaki.tile import objects

    _check(args, artifact)
    assert isinstance(artifact.task, instances.Instances)
    if said := scale_warning(artifact):
        print(said, file=sys.stderr)
    side, out = artifact.spec.size_hw[0], Path(args.out)
    scene = source(args.paths[0], artifact.spec.bands)
    context = side // 4 if args.overlap is None else args.overlap // 2
    scale = tuple(args.range) if args.range else artifact.spec.scale or "bits"
    asked: dict[str, Any] = {"memory_mb": args.memory, "scale": scale, "bands": args.bands, "level": args.level}
    with objects.opened(scene, channels=artifact.spec.channels, tile=side, **asked) as (pixels, raster):
        objects.check(out, scene, raster)
        predict = artifact.session(args.runtime, precision=args.precision, threads=args.threads)
        find = instances.finder(predict, artifact.task)
        with objects.label_map(raster.shape[:2], out, memory_mb=args.memory) as labels:
            with bar() as show:
                found = objects.found_in(find, pixels, out=labels, tile=side, context=context, show=show)
            written = objects.write(found, out, raster=raster, memory_mb=args.memory)
            page = _viewer(args, artifact, scene, found) if args.viewer else None
    answer = _answer(found, out, written, page, context)
    answer.value["warnings"] = [said] if said else []
    return answer


def _answer(found: Any, out: Path, written: Path, page: Path | None, context: int) -> Answer:
    """What is said of it; exit code 3 where the file asked for holds no such numbers."""
    value: dict[str, Any] = {"out": str(written), "objects": len(found.scores), "cut": found.cut}
    text = f"{written}: {len(found.scores)} objects"
    if found.cut:
        text += f", {found.cut} of them larger than the tiles' overlap and cut: --overlap {4 * context}"
    if written != out:
        text += f"\n{out} was not written: a PNG numbers 65535 objects"
    if page is not None:
        value["viewer"] = str(page)
        text += f"\n{page}"
    return Answer(value, text=text, exit_code=0 if written == out else 3)


def _viewer(args: argparse.Namespace, artifact: Artifact, scene: Any, found: Any) -> Path:
    """The page to look at scene and objects: filled, with the lines between them."""
    from niwaki import tile
    from niwaki.tile import objects

    shown = objects.kinds(found.labels)
    classes = ("background", "object", "outline")
    return tile.viewer(scene, shown, args.viewer, classes=classes, level=args.level, names=artifact.spec.bands)


def _check(args: argparse.Namespace, artifact: Artifact) -> None:
    """Raises where the words do not fit together, or are none of this task's. [tile-knob]"""
    side = artifact.spec.size_hw[0]
    # what a model of objects does not do, and is not to be thought done
    others = {
        "--with": args.others, "--turns": args.turns, "--weights": args.weights, "--exact": args.exact,
        "--probabilities": args.probabilities, "--nodata": args.nodata is not None, "--top": args.top,
        "--jsonl": args.jsonl, "--join": args.join != "mean", "--blend": args.blend != "hann",
        "--tile": args.tile not in (None, side, (side, side)),
    }  # fmt: skip
    given = [word for word, is_set in others.items() if is_set]
    fault = ""
    if not args.out or len(args.paths) != 1:
        fault = "a model of objects takes one image and -o FILE"
    elif given:
        fault = f"a model of objects has no {', '.join(given)}; leave it out"
        fault += f" (its tiles are {side} x {side})" if "--tile" in given else ""
    elif artifact.spec.size_hw[0] != artifact.spec.size_hw[1]:
        fault = f"objects need square tiles, and the model takes {artifact.spec.size_hw}"
    elif args.overlap is not None and args.overlap >= side:
        fault = f"--overlap must be below the tile's {side} pixels"
    if fault:
        raise SpecError(f"niwaki predict: {fault}.", code="tile-knob")
