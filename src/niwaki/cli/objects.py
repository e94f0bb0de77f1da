"""`niwaki predict -o` with a model of the instances task: the objects of an image, numbered, in one file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from niwaki.cli.scene import source
from niwaki.cli.screen import Answer
from niwaki.errors import SpecError

if TYPE_CHECKING:
    from niwaki.artifact import Artifact

ENDINGS = (".npy", ".png", ".json", ".geojson")


def run(args: argparse.Namespace, artifact: Artifact) -> Answer:
    """Find the objects of one image and write them."""
    from niwaki import instances

    _check(args, artifact)
    assert isinstance(artifact.task, instances.Instances)
    side = artifact.spec.size_hw[0]
    image = artifact.spec.pixels(source(args.paths[0], artifact.spec.bands))
    predict = artifact.session("onnx", precision=args.precision, threads=args.threads)
    context = side // 4 if args.overlap is None else args.overlap // 2
    found = instances.tiled(
        instances.finder(predict, artifact.task), image, tile=side, context=context, slack=min(8, context)
    )
    if Path(args.out).suffix.lower() == ".geojson":
        _geojson(args, found)
    else:
        _write(Path(args.out), found)
    value: dict[str, Any] = {"out": str(args.out), "objects": len(found.scores), "cut": found.cut}
    text = f"{args.out}: {len(found.scores)} objects"
    if found.cut:
        text += f", {found.cut} of them larger than the tiles' overlap and cut: --overlap {4 * context}"
    if args.viewer:
        value["viewer"] = str(_viewer(args, found))
        text += f"\n{value['viewer']}"
    return Answer(value, text=text)


def _geojson(args: argparse.Namespace, found: Any) -> None:
    """Objects as polygons in WGS 84, where the scene says where it lies; a whole file or none."""
    import numpy as np

    from niwaki import files, instances
    from niwaki.tile import geojson
    from niwaki.tile.readers import open_source

    scene = open_source(args.paths[0], memory=64 << 20)
    try:
        project = geojson.projection(scene.geo)
    finally:
        scene.close()
    scores = [float(found.scores[int(k) - 1]) for k in np.unique(found.labels) if k]
    files.write_json(Path(args.out), instances.to_geojson(found.labels, scores=scores, project=project))


def _viewer(args: argparse.Namespace, found: Any) -> Path:
    """The page to look at scene and objects: filled, with the lines between them."""
    import numpy as np

    from niwaki import overlays, tile

    here = found.labels > 0
    kinds = np.where(overlays.borders(found.labels) & here, 2, here).astype(np.uint8)
    return tile.viewer(args.paths[0], kinds, args.viewer, classes=("background", "object", "outline"))


def _check(args: argparse.Namespace, artifact: Artifact) -> None:
    """Raises where the words do not fit together. [tile-knob]"""
    fault = ""
    if not args.out or len(args.paths) != 1:
        fault = "a model of objects takes one image and -o FILE"
    elif Path(args.out).suffix.lower() not in ENDINGS:
        fault = f"objects are written to a file ending in {', '.join(ENDINGS)}"
    elif artifact.spec.size_hw[0] != artifact.spec.size_hw[1]:
        fault = f"objects need square tiles, and the model takes {artifact.spec.size_hw}"
    elif args.overlap is not None and args.overlap >= artifact.spec.size_hw[0]:
        fault = f"--overlap must be below the tile's {artifact.spec.size_hw[0]} pixels"
    if fault:
        raise SpecError(f"niwaki predict: {fault}.", code="tile-knob")


def _write(path: Path, found: Any) -> None:
    """Numbers as .npy int64 or .png of 16 bits, or COCO results as .json; a whole file or none."""
    import io

    import numpy as np
    from PIL import Image

    from niwaki import files, instances

    if path.suffix.lower() == ".json":
        # of an object that others cover whole there is nothing to write
        shown = [int(k) for k in np.unique(found.labels) if k]
        scores = [float(found.scores[k - 1]) for k in shown]
        files.write_json(path, instances.to_coco(found.labels, image=0, scores=scores))
        return
    buffer = io.BytesIO()
    if path.suffix.lower() == ".npy":
        np.save(buffer, found.labels)
    elif len(found.scores) < 2**16:
        Image.fromarray(found.labels.astype(np.uint16)).save(buffer, "PNG")
    else:
        raise SpecError(
            f"niwaki predict: {path.name}: a PNG holds 65535 objects, and there are {len(found.scores)}. "
            "Write .npy or .json.",
            code="tile-knob",
        )
    files.write_bytes(path, buffer.getvalue())
