"""One network on all runtimes and precisions that work here, by the code of `niwaki bench --all-runtimes`.

    NIWAKI_DATA=... python benchmarks/runtimes.py                          # the published CIFAR-10 ResNet-20
    NIWAKI_DATA=... python benchmarks/runtimes.py --images 200 --rounds 3  # only to see that it works
    NIWAKI_DATA=... python benchmarks/runtimes.py --weights runs/ladder/mobilenetv3_small_100.safetensors

Two artifacts of the same weights. `float`: every precision that needs no training, int8 by plain min-max on 256
training images (onnx, openvino, tensorrt: niwaki's scales; litert: its own quantizer's). `quantized`: the
network with fake quantizers whose scales were taken from 256 images and not trained (`quantize.qat(epochs=0)`),
exported with those scales to every runtime that keeps them; agreement is with the fake-quantized torch model.
`web` is the same ONNX file in onnxruntime-web under node (no timing: WebAssembly in another process).
TensorRT's graph is run by ONNX Runtime, for its answers only. Accuracies are of test images that nothing was
chosen by. Times are of one interleaved run an artifact, one image a call; the table has ratios to onnx:float32
(`float`) and onnx:int8 (`quantized`). Artifacts lie under --out and are not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from niwaki import Artifact, Classify, Spec, bench_runtimes, data, metrics, nets, quantize, runtimes
from niwaki.errors import NiwakiError
from niwaki.runtimes import parity
from niwaki.runtimes.limits import compare

CALIBRATION = 256
WEB = Path("tests/node/node_modules/onnxruntime-web/dist/ort.wasm.min.mjs")
SCRIPT = """
import fs from 'node:fs'; import * as ort from 'ENGINE'; ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(fs.readFileSync('model.onnx'));
const [, , count, ...shape] = process.argv.map(Number); const size = shape.reduce((a, b) => a * b);
const pixels = fs.readFileSync('in.bin'); const out = fs.openSync('out.bin', 'w');
for (let at = 0; at < count; at += 48) {
  const n = Math.min(48, count - at);
  const some = Uint8Array.from(pixels.subarray(at * size, (at + n) * size));
  const image = new ort.Tensor('uint8', some, [n, ...shape]);
  const found = (await session.run({ image })).probabilities.data;
  fs.writeSync(out, Buffer.from(found.buffer, found.byteOffset, found.byteLength));
}
"""


def network(given: argparse.Namespace) -> tuple[Any, Spec]:
    """The network with its weights, and the images it takes."""
    if given.weights is None:
        path = Path(os.environ["NIWAKI_DATA"]) / "weights" / "resnet20-12fca82f.th"
        return nets.load_weights(nets.build("niwaki:resnet20", classes=10), path).eval(), Spec(size_hw=(32, 32))
    import timm
    from safetensors.torch import load_model

    name = given.weights.stem
    more = {"img_size": given.size, "patch_size": max(4, given.size // 4)} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=10, **more).eval()
    load_model(model, given.weights)
    return model, Spec(size_hw=(given.size, given.size))


def exported(artifact: Artifact, calib: np.ndarray | None) -> dict[str, str]:
    """All exports that work here added; why the others are left out."""
    left = {}
    for runtime in runtimes.NAMES:
        can = runtimes.support(runtime)
        for precision in can["precisions"]:
            if precision in artifact.exports.get(runtime, {}):
                continue
            if not can["export"]:
                left[f"{runtime}:{precision}"] = f"needs {can['install']}"
                continue
            try:
                artifact.export(runtime, precision=precision, calib=calib if precision == "int8" else None)
                print(f"  {artifact.path.stem}: {runtime}:{precision}", file=sys.stderr)
            except NiwakiError as error:
                left[f"{runtime}:{precision}"] = f"{error} [{error.code}]"
    return left


def in_node(file: Path, images: np.ndarray) -> np.ndarray | None:
    """What onnxruntime-web gives, or None where there is no node or no onnxruntime-web."""
    if shutil.which("node") is None or not WEB.is_file():
        return None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(file, folder / "model.onnx")
        images.tofile(folder / "in.bin")
        (folder / "run.mjs").write_text(SCRIPT.replace("ENGINE", str(WEB.resolve())))
        subprocess.run(["node", "run.mjs", *map(str, images.shape)], cwd=folder, check=True)
        return np.fromfile(folder / "out.bin", np.float32).reshape(len(images), -1)


def others(artifact: Artifact, images: np.ndarray, labels: np.ndarray) -> dict[str, dict[str, float]]:
    """Agreement and accuracy where there is no latency: the browser's engine, and TensorRT's graphs."""
    wanted = parity.reference(artifact.model(), artifact.spec, artifact.task, images)
    given: dict[str, np.ndarray | None] = {}
    for precision, entry in artifact.exports["onnx"].items():
        given[f"web:{precision}"] = in_node(artifact.path / entry["file"], images)
    for precision, entry in artifact.exports.get("tensorrt", {}).items():
        if precision != "float16":  # the same file as float32; 16 bits are chosen on the GPU
            given[f"tensorrt:{precision} (graph)"] = runtimes.load("onnx").open(artifact.path / entry["file"])(
                images
            )
    return {
        name: {
            "agreement": compare(wanted, got, name.split(":")[1].split()[0]).agreement,
            "max_error": float(np.abs(wanted - got).max()),
            "accuracy": metrics.main(artifact.task.score(got, labels)),
        }
        for name, got in given.items()
        if got is not None
    }


def table(name: str, found: dict[str, Any], base: str) -> str:
    """Rows of one artifact; milliseconds as ratios to `base`."""
    rows = {**found["runtimes"], **found["others"]}
    lines = [f"{name}: against {found['reference']} on {found['images']} images; ms relative to {base}"]
    lines.append(f"  {'':26s} {'agreement':>9s} {'max error':>9s} {'accuracy':>9s} {'ms':>7s} {'MB':>7s}")
    for one, row in rows.items():
        ratio = f"{row['ms'] / found['runtimes'][base]['ms']:7.2f}" if "ms" in row else f"{'':7s}"
        size = f"{row['mb']:7.2f}" if "mb" in row else ""
        shares = f"{row['agreement']:9.2%} {row['max_error']:9.1g} {row['accuracy']:9.2%}"
        lines.append(f"  {one:26s} {shares} {ratio} {size}")
    best = found["fastest"]
    low, high = best["ratio"]["low"], best["ratio"]["high"]
    lines.append(
        f"  fastest: {best['name']}, {best['ratio']['median']:.2f} ({low:.2f}-{high:.2f}) of {best['against']}"
    )
    lines += [f"  int8 not faster than float: {one}" for one in found["slower"]]
    lines += [f"  left out: {one}: {why}" for one, why in found["left"].items()]
    return "\n".join(lines)


def main() -> None:
    """Both tables, then all of it as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="of a timm network that benchmarks/ladder.py trained")
    parser.add_argument("--size", type=int, default=64, help="pixels of that network")
    parser.add_argument("--images", type=int, default=2000, help="test images")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/runtimes"))
    given = parser.parse_args()
    if not os.environ.get("NIWAKI_DATA"):
        print("skipped: NIWAKI_DATA is not set, and this needs cifar10/ and weights/ there")
        return
    held = data.read("cifar10", seed=0)
    task, test = Classify(held.classes), held.test.take(given.images, seed=0)
    model, spec = network(given)
    some = held.train.take(CALIBRATION, seed=0)
    calib, images = some.batch(range(len(some)), spec), test.batch(range(len(test)), spec)
    stem = given.weights.stem if given.weights else "resnet20"
    results = {}
    for kind, base in (("float", "onnx:float32"), ("quantized", "onnx:int8")):
        path = given.out / f"{stem}-{kind}.niwaki"
        if not path.exists():
            made = model
            if kind == "quantized":
                made = quantize.qat(model, task=task, spec=spec, train=some, teacher=model, epochs=0)
            # ncnn's converter takes strided shortcuts from the class, not from its graph
            builder = "niwaki:resnet20" if kind == "float" and given.weights is None else None
            Artifact.save(path, made, spec=spec, task=task, builder=builder)
        artifact = Artifact.open(path)
        left = exported(artifact, calib if kind == "float" else None)
        found = bench_runtimes.measure(artifact, data=test, threads=given.threads, rounds=given.rounds)
        found |= {"left": left, "others": others(artifact, images, test.labels)}
        results[kind] = found
        print(table(f"{stem}, {kind}", found, base))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
