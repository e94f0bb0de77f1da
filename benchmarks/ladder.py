"""int8 of four networks on CIFAR-10: our ladder beside the defaults of ONNX Runtime's quantizer and of NNCF.

    NIWAKI_DATA=... python benchmarks/ladder.py
    NIWAKI_DATA=... python benchmarks/ladder.py --only resnet18 --images 500 --epochs 1 --val 200 --test 200

ResNet-18, MobileNetV3-small, EfficientNet-B0 and ViT-tiny of timm are trained here from random weights on a
part of CIFAR-10 (64 pixels unless told), in bfloat16, last epoch. Then each becomes int8 three ways, from the
same 256 training images: the ladder (rungs are kept or dropped by val), `quantize_static` of ONNX Runtime
with its defaults after its own pre-processing (without the optimisation in it where ONNX Runtime refuses the
result), and `nncf.quantize` with its defaults (`pip install niwaki[nncf]`; left out with a line where it is
not installed; its telemetry is off). NNCF is told that ViT is a transformer, as its documentation asks.
Accuracies are of test images that no step has seen. Latencies are ratios to float from one interleaved run of
ONNX Runtime, one thread, one image a call: `latency` of medians of quiet rounds, `fastest` of the fastest
calls, which a busy machine disturbs least; --time-again takes them once more.

Goes on where it stopped: trained weights and each network's result lie under --out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

NETWORKS = ("resnet18", "mobilenetv3_small_100", "efficientnet_b0", "vit_tiny_patch16_224")
CALIBRATION = 256


def network(name: str, size: int, seed: int) -> Any:
    """A timm network of that name for images of that size, seeded random weights, 10 classes."""
    import timm
    import torch

    torch.manual_seed(seed)
    given = {"img_size": size, "patch_size": max(4, size // 4)} if name.startswith("vit") else {}
    return timm.create_model(name, num_classes=10, **given).eval()


def trained(name: str, spec: Any, data: Any, given: argparse.Namespace) -> Any:
    """The network after training, or its stored weights."""
    from safetensors.torch import load_model, save_model

    from niwaki import train
    from niwaki.tasks import Classify

    path = given.out / f"{name}.safetensors"
    model = network(name, given.size, given.seed)
    if path.exists():
        load_model(model, path)
        return model
    model = train.fit(
        model,
        task=Classify(data.classes),
        spec=spec,
        train=data.train.take(given.images, seed=given.seed),
        epochs=given.epochs,
        seed=given.seed,
        lr=1e-3 if name.startswith("vit") else 3e-3,
        batch=64,
        flip=True,
        precision=given.precision,
        checkpoint=given.out / f"{name}.checkpoint",
        show=lambda p: p.epoch_ended and print(f"{name} epoch {p.epoch}: loss {p.loss:.3f}", file=sys.stderr),
    )
    save_model(model, str(path))
    return model


def float_file(model: Any, spec: Any, task: Any, path: Path) -> Path:
    """The float32 ONNX file, which the other tools start from."""
    from niwaki import runtimes

    if not path.exists():
        runtimes.load("onnx").export(model, spec, path, task=task)
    return path


class Reader:
    """Calibration images as ONNX Runtime's quantizer asks for them."""

    def __init__(self, images: np.ndarray) -> None:
        self._batches: Iterator[np.ndarray] = iter(np.array_split(images, max(1, len(images) // 16)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


def by_onnx_runtime(source: Path, calib: np.ndarray, path: Path, name: str) -> None:
    """ONNX Runtime's `quantize_static` with all its defaults, after its own pre-processing."""
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from niwaki import runtimes
    from niwaki.errors import RuntimeFailed

    ready = path.with_suffix(".ready.onnx")
    for plain in (False, True):
        quant_pre_process(source, ready, skip_symbolic_shape=True, skip_optimization=plain)
        quantize_static(ready, path, Reader(calib))
        ready.unlink()
        try:
            runtimes.load("onnx").open(path)
            return
        except RuntimeFailed as error:  # of ViT it refuses what its own optimiser and quantizer made
            print(f"  onnxruntime, optimised before: {error}", file=sys.stderr)
            reason = error
    raise reason


def by_nncf(source: Path, calib: np.ndarray, path: Path, name: str) -> None:
    """NNCF's `quantize` with its defaults, on the ONNX graph."""
    import onnx

    from niwaki.qdq import by_nncf

    onnx.save(by_nncf.quantize(onnx.load(source), calib), path)


def by_ladder(
    files: Any,
    limit: float,
    path: Path,
) -> dict[str, Any]:
    """The ladder climbed; its winner's file lies at `path`."""
    from niwaki.runtimes import onnx_export
    from niwaki.search import recipes

    found = recipes.climb(
        files,
        max_drop=limit,
        show=lambda s: print(
            f"  {s.rung}: loses {s.drop:.2%} ± {s.noise:.2%}, {s.distance:.4f} nats, {s.seconds:.0f} s",
            file=sys.stderr,
        ),
    )
    onnx_export.save_int8(files.maker, found.recipe, path)
    return found.to_json() | {"says": found.says()}


def timed(files: dict[str, Path], given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Latencies over float's in one interleaved run: medians of quiet rounds, and the fastest calls."""
    from niwaki.job import measure

    named = {measure.REFERENCE if way == "float" else way: path for way, path in files.items()}
    pooled: dict[str, list[float]] = {}
    image = np.random.default_rng(0).integers(0, 256, (1, given.size, given.size, 3), np.uint8)
    found = measure.timed(named, image, threads=1, seconds=given.seconds, pooled=pooled)
    least = {name: min(samples) for name, samples in pooled.items()}
    return {
        way: {
            "latency": found[name]["ratio"]["median"],
            "fastest": least[name] / least[measure.REFERENCE],
        }
        for way, name in zip(files, named, strict=True)
    }


def measured(name: str, model: Any, spec: Any, data: Any, given: argparse.Namespace) -> dict[str, Any]:
    """Accuracies on test, drops, and ratios of latency of float and every way to int8."""
    import niwaki
    from niwaki import evaluate, metrics, runtimes
    from niwaki.search.int8_files import Files
    from niwaki.tasks import Classify

    folder, task = given.out / name, Classify(data.classes)
    folder.mkdir(parents=True, exist_ok=True)
    calib = data.train.take(CALIBRATION, seed=0)
    images = calib.batch(range(len(calib)), spec)
    splits = {"val": data.val.take(given.val, seed=0), "test": data.test.take(given.test, seed=0)}

    def tally(path: Path) -> Any:
        return evaluate.tally(runtimes.load("onnx").open(path), splits["test"], spec, task, detail=False)

    def lost(path: Path) -> tuple[float, float]:
        """The score on test, and the standard error of its difference to float's."""
        found = tally(path)
        change = found.each() - whole.each()
        return metrics.main(found.score()), float(change.std() / len(change) ** 0.5)

    limit = given.max_drop if given.max_drop is not None else 0.005 if name.startswith("vit") else 0.01
    files = {"float": float_file(model, spec, task, folder / "float.onnx")}
    whole = tally(files["float"])
    made = Files(model, spec=spec, task=task, calib=images, val=splits["val"])
    climbed = by_ladder(made, limit, folder / "ladder.onnx")
    files["ladder"] = folder / "ladder.onnx"
    left = {}
    for way, make in (("onnxruntime", by_onnx_runtime), ("nncf", by_nncf)):
        try:
            make(files["float"], images, folder / f"{way}.onnx", name)
            files[way] = folder / f"{way}.onnx"
        except niwaki.errors.MissingExtra as error:
            left[way] = f"not installed: {error}"
        except niwaki.errors.RuntimeFailed as error:
            left[way] = str(error)
    tests = {way: lost(path) for way, path in files.items()}
    times = timed(files, given)
    rows = {
        way: {
            "test": tests[way][0],
            "drop": tests["float"][0] - tests[way][0],
            "noise": tests[way][1],
            **times[way],
            "bytes": path.stat().st_size,
        }
        for way, path in files.items()
    }
    kept = {"limit": limit, "val": len(splits["val"]), "test": len(splits["test"])}
    return {"network": name, **kept, "rows": rows, "ladder": climbed, "left": left}


def table(result: dict[str, Any]) -> str:
    """A network's rows as text."""
    lines = [f"{result['network']}: {result['ladder']['says']} on val ({result['val']} images)"]
    heads = f"{'test':>8s} {'drop':>8s} {'+-':>6s} {'latency':>8s} {'fastest':>8s} {'MB':>7s}"
    lines.append(f"  {'':12s} {heads}")
    for way, row in result["rows"].items():
        shares = f"{row['test']:8.2%} {row['drop']:8.2%} {row['noise']:6.2%}"
        lines.append(
            f"  {way:12s} {shares} {row['latency']:8.2f} {row['fastest']:8.2f} {row['bytes'] / 1e6:7.2f}"
        )
    lines += [f"  {way}: left out, {why}" for way, why in result["left"].items()]
    slow = result["rows"]["ladder"]["fastest"] >= 1
    return "\n".join([*lines, "  no gain: int8 is slower than float here"] if slow else lines)


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=4000, help="training images")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="of weights, images, training; give --out too")
    parser.add_argument("--val", type=int, default=1000, help="images that choose")
    parser.add_argument("--test", type=int, default=2000, help="images that report")
    parser.add_argument("--max-drop", type=float, default=None, help="default 0.01, and 0.005 for ViT")
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--seconds", type=float, default=3.0, help="of each interleaved timing")
    parser.add_argument("--time-again", action="store_true", help="time the files that are there once more")
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/ladder"))
    return parser.parse_args()


def main() -> None:
    """Prints a table for each network, then all of it as one line of JSON."""
    given = arguments()
    if not os.environ.get("NIWAKI_DATA"):
        print("skipped: NIWAKI_DATA is not set, and this needs cifar10/ there")
        return
    from niwaki import data
    from niwaki.spec import Spec

    given.out.mkdir(parents=True, exist_ok=True)
    images = data.read("cifar10", val=0.1)
    spec = Spec(size_hw=(given.size, given.size))
    results = []
    for name in given.only:
        kept = given.out / f"{name}.json"
        if not kept.exists():
            model = trained(name, spec, images, given)
            if given.train_only:
                continue
            kept.write_text(json.dumps(measured(name, model, spec, images, given)))
        result = json.loads(kept.read_text())
        if given.time_again:
            times = timed({way: given.out / name / f"{way}.onnx" for way in result["rows"]}, given)
            result["rows"] = {way: {**row, **times[way]} for way, row in result["rows"].items()}
            kept.write_text(json.dumps(result))
        results.append(result)
        print(table(results[-1]))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
