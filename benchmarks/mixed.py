"""Weights of 4 and 8 bits after training, within a size: what every file of the front scores, and its time.

    NIWAKI_DATA=... python benchmarks/mixed.py                # ResNet-20 from the checkpoint, CIFAR-10
    NIWAKI_DATA=... python benchmarks/mixed.py --weights runs/ladder --network mobilenetv3_small_100

The second form takes a network that benchmarks/ladder.py trained. Sensitivities and ranges come from 256
training images, val shows the front, test only reports. The checkpoint has seen all training images, val among
them, so its scores of val say nothing, and nothing was chosen by them: bits go by the expected losses. Times
are ratios to the plain int8 file from one interleaved run of ONNX Runtime, one thread, one image a call.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from niwaki import Classify, Spec, data, evaluate, metrics, nets, runtimes, timing
from niwaki.runtimes import onnx_export
from niwaki.search import mixed
from niwaki.search.int8_files import Files


def network(given: argparse.Namespace) -> tuple[Any, Spec]:
    """The float network and what enters it."""
    if given.weights is None:
        stored = Path(os.environ["NIWAKI_DATA"]) / "weights" / "resnet20-12fca82f.th"
        return nets.load_weights(nets.build("niwaki:resnet20", classes=10), stored).eval(), Spec(
            size_hw=(32, 32)
        )
    import timm
    from safetensors.torch import load_model

    vit = given.network.startswith("vit")
    more = {"img_size": given.size_px, "patch_size": max(4, given.size_px // 4)} if vit else {}
    model = timm.create_model(given.network, num_classes=10, **more).eval()
    load_model(model, given.weights / f"{given.network}.safetensors")
    return model, Spec(size_hw=(given.size_px, given.size_px))


def measured(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All points with their scores on test and times, and the float score."""
    held = data.read("cifar10", val=0.1)
    (model, spec), task = network(given), Classify(held.classes)
    calib = held.train.take(256, seed=0)
    test = held.test.take(given.test, seed=0) if given.test < len(held.test) else held.test
    files = Files(
        model,
        spec=spec,
        task=task,
        calib=calib.batch(range(len(calib)), spec),
        val=held.val.take(given.val, seed=0),
    )

    def told(point: mixed.Point) -> None:
        print(f"  {point.share:.3f}: {point.count(4)} layers of 4 bits, val {point.score:.2%}", file=sys.stderr)

    def score(predict: Any) -> float:
        return metrics.main(evaluate.tally(predict, test, spec, task, detail=False).score())

    found = mixed.search(files, size=given.share, points=given.points, show=told)
    image = np.random.default_rng(0).integers(0, 256, (1, *spec.size_hw, 3), np.uint8)
    paths = [
        onnx_export.save_int8(files.maker, point.recipe, folder / f"{place}.onnx")
        for place, point in enumerate(found.points)
    ]
    sessions = [runtimes.load("onnx").open(path) for path in paths]
    calls = {str(k): (lambda run=run: run(image)) for k, run in enumerate(sessions)}
    times = timing.interleave(calls, rounds=given.rounds, calls_per_sample=20)
    plain = str(len(paths) - 1)
    rows = [
        {
            "share": point.share,
            "four": point.count(4),
            "eight": point.count(8),
            "val": point.score,
            "test": score(run),
            "time": timing.ratio(times[str(place)], times[plain])["median"],
            "chosen": point == found.chosen,
        }
        for place, (point, run) in enumerate(zip(found.points, sessions, strict=True))
    ]
    return {"float": score(evaluate.predictor(model, spec, task)), "test": len(test), "rows": rows}


def main() -> None:
    """A table, then all of it as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder of NETWORK.safetensors")
    parser.add_argument("--network", default="resnet18", help="with --weights")
    parser.add_argument("--size-px", type=int, default=64, help="with --weights")
    parser.add_argument("--share", type=float, default=0.6, help="of the int8 file's bytes")
    parser.add_argument("--points", type=int, default=5, help="sizes measured beside it")
    parser.add_argument("--val", type=int, default=1000)
    parser.add_argument("--test", type=int, default=10000)
    parser.add_argument("--rounds", type=int, default=40, help="of the timing")
    given = parser.parse_args()
    if not os.environ.get("NIWAKI_DATA"):
        print("skipped: NIWAKI_DATA is not set, and this needs cifar10/ there")
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measured(given, Path(folder))
    name = given.network if given.weights else "resnet20"
    print(f"{name}: float {result['float']:.2%} of {result['test']} images")
    print(f"{'of int8':>8s} {'4 bits':>7s} {'8 bits':>7s} {'val':>8s} {'test':>8s} {'lost':>7s} {'time':>6s}")
    for row in result["rows"]:
        lost = result["float"] - row["test"]
        print(
            f"{row['share']:8.3f} {row['four']:7d} {row['eight']:7d} {row['val']:8.2%} {row['test']:8.2%}",
            f"{lost:7.2%} {row['time']:6.2f}{'  chosen' if row['chosen'] else ''}",
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
