"""niwaki predict: label images, folders searched and bad ones passed over; with -o, every pixel of a scene."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from niwaki.cli import objects, scene
from niwaki.cli.screen import Answer, Out, percent
from niwaki.cli.values import positive
from niwaki.errors import NiwakiError, SpecError

if TYPE_CHECKING:
    from niwaki.artifact import Artifact

# fmt: off
SUFFIXES = frozenset([
    ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".jpx", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif",
    ".tiff", ".webp", ".xbm",
])
# fmt: on
"""What counts as an image inside a folder; a file that is named itself is always tried."""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    arg = parser.add_argument
    arg("artifact", metavar="ARTIFACT", help="a NAME.niwaki folder")
    arg("paths", nargs="+", metavar="PATH", help="image files, and folders to search")
    arg("--jsonl", action="store_true", help="print one JSON object a line, as the images are done")
    arg("--top", type=positive, metavar="K", help="also give the K best labels")
    arg("--batch", type=positive, default=16, metavar="N", help="images at a time (default 16)")
    arg(
        "--threads",
        type=positive,
        default=1,
        metavar="N",
        help="threads of the runtime (default 1)",
    )
    arg(
        "--runtime", default="onnx", metavar="NAME", help="whose export to run (default onnx); docs/runtimes.md"
    )
    arg(
        "--precision",
        choices=("float32", "bfloat16", "float16", "int8"),
        help="the export to run (default: the artifact's own)",
    )
    scene.add(parser)


def run(args: argparse.Namespace, out: Out) -> Answer:
    """Predict every image; exit code 1 if one of them failed."""
    from niwaki.artifact import Artifact

    artifact = Artifact.open(args.artifact)
    if artifact.task.kind == "instances":
        return objects.run(args, artifact)
    if args.out:
        return scene.run(args, out)
    if artifact.task.dense:
        raise SpecError(
            f"{artifact.path.name}: gives a class for each pixel. Say where to: niwaki predict "
            f"{artifact.path.name} SCENE -o mask.tif.",
            code="tile-knob",
        )
    predict = artifact.session(args.runtime, precision=args.precision, threads=args.threads)
    entries: list[dict[str, Any]] = []
    failed = False
    paths = find(args.paths, artifact.spec.bands if artifact.spec.banded else None)
    while batch := list(islice(paths, args.batch)):
        for entry in _batch(batch, artifact, predict, top=args.top):
            failed |= "error" in entry
            if args.jsonl:
                out.row(entry)
            elif args.json:
                entries.append(entry)
            else:
                out.line(_text(entry))
    value = {"classes": list(artifact.task.classes), "predictions": entries}
    return Answer(value, exit_code=int(failed))


def find(paths: Iterable[str], bands: tuple[str, ...] | None = None) -> Iterator[Path]:
    """Image paths in order; a folder becomes the images below it, sorted, without hidden ones.

    Args:
        bands: names of the model's bands, where it takes any: .npy files are images then, and a folder with a
            file for each band is one image.
    """
    from niwaki.data import stacks

    wanted = SUFFIXES if bands is None else SUFFIXES | {".npy"}
    for path in map(Path, paths):
        if not path.is_dir():
            yield path
            continue
        for folder, folders, files in os.walk(path):
            if bands and stacks.of_folder(Path(folder), bands):
                folders[:] = []
                yield Path(folder)
                continue
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                if not name.startswith(".") and Path(name).suffix.lower() in wanted:
                    yield Path(folder, name)


def _batch(paths: list[Path], artifact: Artifact, predict: Any, *, top: int | None) -> list[dict[str, Any]]:
    """One entry a path, in order: a prediction, or the error that kept the image out."""
    import numpy as np

    images: list[Any] = []
    entries: list[dict[str, Any]] = []
    for path in paths:
        try:
            images.append(artifact.spec.read(scene.source(str(path), artifact.spec.bands)))
            entries.append({"path": str(path)})
        except NiwakiError as error:
            problem = {"code": error.code, "message": str(error)}
            entries.append({"path": str(path), "error": problem})
    if images:
        probabilities = predict(np.stack(images))
        good = (entry for entry in entries if "error" not in entry)
        for entry, row in zip(good, probabilities, strict=True):
            entry |= _labels(artifact, row, top)
    return entries


def _labels(artifact: Artifact, row: Any, top: int | None) -> dict[str, Any]:
    """The label of an image, from its probabilities `[K]`."""
    best = sorted(zip(artifact.task.classes, row.tolist(), strict=True), key=lambda one: -one[1])[: top or 1]
    found = {"label": best[0][0], "score": best[0][1], "probabilities": row.tolist()}
    if top:
        found["top"] = [{"label": label, "score": score} for label, score in best]
    return found


def _text(entry: dict[str, Any]) -> str:
    if "error" in entry:
        return f"{entry['path']}\terror\t{entry['error']['message']} [{entry['error']['code']}]"
    best = entry.get("top") or [entry]
    return "\t".join([entry["path"], *(f"{one['label']}\t{percent(one['score'])}" for one in best)])
