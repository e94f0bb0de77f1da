"""A big GeoTIFF predicted within a memory budget: peak memory, speed against the bare model, and equality.

    python benchmarks/tiles.py                                    # 3000 x 3000, about a minute
    python benchmarks/tiles.py --side 30000 --memory 512 --rounds 1      # the scene of docs/tiles.md
    python benchmarks/tiles.py --peers                            # MONAI and pytorch-toolbelt, where installed

Each contender runs in a process of its own, so that its peak memory is its own, in turns, `--rounds` times;
ratios are of rounds. The scene (a tiled, deflated GeoTIFF of three channels) is made in a temporary folder.
The network is a small one of random weights, written here as ONNX; all contenders run it through the same
session, on the same tiles.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from niwaki import tile
from niwaki.tile import windows
from niwaki.tile.memory import peak_mb, resident_mb
from niwaki.tile.readers import open_source

CLASSES, BATCH = 6, 4
GEO = [
    (33550, 12, 3, (0.5, 0.5, 0.0), True),
    (33922, 12, 6, (0.0, 0.0, 0.0, 500000.0, 5000000.0, 0.0), True),
    (34735, 3, 16, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633), True),
]


def network(path: Path, side: int, width: int) -> None:
    """An ONNX file of seven convolutions at a quarter of the size: random weights of a fixed seed."""
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["t", "white"], ["x0"]),
    ]
    held = {"white": np.float32(255), "sizes": np.array([1, 1, 4, 4], np.float32)}
    widths = [3, width, *[2 * width] * 5, CLASSES]
    for k, (before, after) in enumerate(itertools.pairwise(widths)):
        held[f"w{k}"] = (draw.normal(size=(after, before, 3, 3)) / np.sqrt(4.5 * before)).astype(np.float32)
        stride = 2 if k < 2 else 1
        nodes.append(
            helper.make_node("Conv", [f"x{k}", f"w{k}"], [f"c{k}"], pads=[1] * 4, strides=[stride] * 2)
        )
        nodes.append(helper.make_node("Relu" if k < 6 else "Identity", [f"c{k}"], [f"x{k + 1}"]))
    nodes.append(helper.make_node("Softmax", ["x7"], ["s"], axis=1))
    nodes.append(helper.make_node("Resize", ["s", "", "sizes"], ["probabilities"], mode="linear"))
    graph = helper.make_graph(
        nodes,
        "tiles",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", side, side, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", CLASSES, side, side])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path.write_bytes(made.SerializeToString())


def blocks(side: int) -> Iterator[Any]:
    """Tiles of the scene: waves of several lengths and a little noise, the same whatever the machine."""
    noise = np.random.default_rng(0).integers(0, 16, (512, 512, 3), dtype=np.uint8)
    for y in range(0, side, 512):
        for x in range(0, side, 512):
            rows, columns = np.arange(y, y + 512)[:, None], np.arange(x, x + 512)
            waves = [np.sin(rows / a) + np.sin(columns / b) for a, b in ((37, 91), (140, 53), (19, 400))]
            yield (noise + (np.stack(waves, -1) * 50 + 110)).astype(np.uint8)


def scene(path: Path, side: int) -> None:
    """Writes the GeoTIFF, tile by tile."""
    import tifffile

    with tifffile.TiffWriter(path, bigtiff=side > 30000) as file:
        knobs: dict[str, Any] = {"compression": "zlib", "compressionargs": {"level": 1}, "extratags": GEO}
        shape = (side, side, 3)
        file.write(blocks(side), shape=shape, dtype=np.uint8, tile=(512, 512), photometric="rgb", **knobs)


def session(folder: Path) -> Any:
    from niwaki import runtimes

    return runtimes.load("onnx").open(folder / "model.onnx")


def bare(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """The model alone, on as many tiles as the scene has, in the same batches."""
    axis = windows.axis(args.side, tile=args.tile, overlap=args.overlap)
    predict, count = session(folder), len(axis.starts) ** 2
    images = np.random.default_rng(0).integers(0, 256, (BATCH, args.tile, args.tile, 3)).astype(np.uint8)
    predict(images)
    first, began = resident_mb(), time.perf_counter()
    for start in range(0, count, BATCH):
        predict(images[: min(BATCH, count - start)])
    return {"seconds": time.perf_counter() - began, "tiles": count, "first_mb": first}


def niwaki(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    knobs: dict[str, Any] = {
        "memory_mb": args.memory,
        "tile": args.tile,
        "overlap": args.overlap,
        "batch": BATCH,
    }
    stats = tile.predict(
        session(folder), folder / "scene.tif", folder / "out.tif", palette=tile.colours(CLASSES), **knobs
    )
    return {name: getattr(stats, name) for name in stats.__dataclass_fields__}


def monai(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """MONAI's sliding_window_inference, Gaussian weights; the image read whole, as its users do."""
    import torch
    from monai.inferers import sliding_window_inference
    from tifffile import imread, imwrite

    predict = session(folder)
    first, began = resident_mb(), time.perf_counter()
    image = (
        torch.from_numpy(imread(folder / "scene.tif")).permute(2, 0, 1)[None].float()
    )  # its weights ask for floats

    def call(patch: Any) -> Any:
        return torch.from_numpy(predict(patch.permute(0, 2, 3, 1).numpy().astype(np.uint8)))

    share = args.overlap / args.tile
    out = sliding_window_inference(image, (args.tile,) * 2, BATCH, call, overlap=share, mode="gaussian")
    imwrite(
        folder / "monai.tif", out.argmax(1)[0].numpy().astype(np.uint8), tile=(512, 512), compression="zlib"
    )
    return {"seconds": time.perf_counter() - began, "first_mb": first}


def toolbelt(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """pytorch-toolbelt's ImageSlicer and TileMerger, as its README has them."""
    import torch
    from pytorch_toolbelt.inference.tiles import ImageSlicer, TileMerger
    from tifffile import imread, imwrite

    predict = session(folder)
    first, began = resident_mb(), time.perf_counter()
    image = imread(folder / "scene.tif")
    slicer = ImageSlicer(
        image.shape, tile_size=(args.tile,) * 2, tile_step=(args.tile - args.overlap,) * 2, weight="pyramid"
    )
    merger = TileMerger(slicer.target_shape, CLASSES, slicer.weight)
    tiles = slicer.split(image)
    for start in range(0, len(tiles), BATCH):
        part = np.stack(tiles[start : start + BATCH])
        merger.integrate_batch(torch.from_numpy(predict(part)), slicer.crops[start : start + BATCH])
    out = slicer.crop_to_orignal_size(merger.merge().argmax(0).numpy().astype(np.uint8))
    imwrite(folder / "toolbelt.tif", out, tile=(512, 512), compression="zlib")
    return {"seconds": time.perf_counter() - began, "first_mb": first}


RUNS = {"bare": bare, "niwaki": niwaki, "monai": monai, "toolbelt": toolbelt}
PEERS = {"monai": "monai", "toolbelt": "pytorch_toolbelt"}


def equality(folder: Path, args: argparse.Namespace) -> tuple[float, float]:
    """Share of pixels whose class is that of a full canvas in float64, and of those that are clear."""
    from niwaki.rasters.raster import Windows
    from niwaki.rasters.tiff import open_tiff

    raster = open_source(folder / "scene.tif", memory=0)
    axis = windows.axis(args.side, tile=args.tile, overlap=args.overlap)
    reader, predict = Windows(raster, keep=256 << 20), session(folder)
    canvas = np.zeros((CLASSES, args.side, args.side))
    for y, down in zip(axis.starts, axis.weights, strict=True):
        for x, across in zip(axis.starts, axis.weights, strict=True):
            given = predict(reader.read(y, x, args.tile, args.tile)[None])[0]
            canvas[:, y : y + args.tile, x : x + args.tile] += given * np.outer(down, across)
    out = Windows(open_tiff(folder / "out.tif", coloured=False), keep=0).read(0, 0, args.side, args.side)[
        ..., 0
    ]
    top = np.partition(canvas, -2, axis=0)
    clear = top[-1] - top[-2] > 1e-5
    same = out == canvas.argmax(0)
    return float(same.mean()), float(same[clear].mean())


def measured(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One contender in a process of its own."""
    words = ["--one", name, "--folder", folder, "--side", args.side, "--memory", args.memory]
    words += ["--tile", args.tile, "--overlap", args.overlap]
    done = subprocess.run(
        [sys.executable, __file__, *map(str, words)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {
            "seconds": float("nan"),
            "peak_mb": float("nan"),
            "failed": (done.stderr.strip() or "killed")[-200:],
        }
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(folder: Path, args: argparse.Namespace) -> None:
    names = ["bare", "niwaki"]
    if args.peers:
        names += [name for name, module in PEERS.items() if importlib.util.find_spec(module)]
        for name in PEERS.keys() - set(names):
            print(f"{name}: {PEERS[name]} is not installed, left out")
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for k in range(args.rounds):
        for name in names if k % 2 == 0 else names[::-1]:
            rounds[name].append(measured(name, folder, args))
    for name, found in rounds.items():
        seconds = [one["seconds"] for one in found]
        share = statistics.median(
            b["seconds"] / one["seconds"] for b, one in zip(rounds["bare"], found, strict=True)
        )
        peak = max(one["peak_mb"] for one in found)
        print(
            f"{name:9} {statistics.median(seconds):8.1f} s   {share:5.2f} of the bare model's speed   peak "
            f"{peak:7.0f} MB, {peak - found[0].get('first_mb', 0):.0f} above its start"
        )
        if "failed" in found[0]:
            print(f"          failed: {found[0]['failed']}")
    ours = rounds["niwaki"][0]
    limit = 1.5 * args.memory + ours["first_mb"]
    print(
        f"tiles {ours['tiles']}, strips {ours['strips']}, batch {ours['batch']}, planned "
        f"{ours['need_mb']:.0f} MB of {args.memory:.0f}"
    )
    print(
        f"peak {ours['peak_mb']:.0f} MB, limit 1.5 x {args.memory:.0f} + {ours['first_mb']:.0f} (after the "
        f"first tile) = {limit:.0f} MB"
    )
    canvas = CLASSES * args.side**2 * 4 / 2**20
    print(
        f"a full float32 canvas alone: {canvas:.0f} MB; in the model: "
        f"{ours['model_s'] / ours['seconds']:.2f} of the time"
    )
    if CLASSES * args.side**2 * 8 < 2 << 30:
        every, clear = equality(folder, args)
        print(
            f"class as of a full float64 canvas: {every:.7f} of all pixels, {clear:.7f} where the best two "
            "differ by 1e-5"
        )
    if not ours["peak_mb"] <= limit:
        sys.exit("the peak is above the limit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=3000, help="pixels")
    parser.add_argument("--memory", type=float, default=64, help="MB")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--width", type=int, default=32, help="channels of the network's first layer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", action="store_true", help="MONAI and pytorch-toolbelt too")
    parser.add_argument("--folder", type=Path, help="keep scene and results there")
    parser.add_argument("--one", choices=RUNS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        found = RUNS[args.one](args.folder, args)
        print(json.dumps(found | {"peak_mb": peak_mb()}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        network(folder / "model.onnx", args.tile, args.width)
        if not (folder / "scene.tif").exists():
            scene(folder / "scene.tif", args.side)
        compare(folder, args)


if __name__ == "__main__":
    main()
