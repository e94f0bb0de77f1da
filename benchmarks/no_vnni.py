"""int8 on CPUs without VNNI: accuracy predicted by emulation, and the emulation held against ONNX Runtime.

    NIWAKI_DATA=... python benchmarks/no_vnni.py                 # CIFAR-10, ResNet-20 from the checkpoint
    python benchmarks/no_vnni.py --data digits                   # without data: a small network trained here

Two files of the same network: 8-bit weights, and 7-bit ones (recipe narrow). Each is emulated on --test images
as it runs with VNNI and without. Then ONNX Runtime runs both under a user-mode emulator of a CPU without VNNI
(Debian: apt-get install qemu-user) on --few images, as it is and in its exact mode; its outputs must equal
niwaki's emulation, and the exact ones, to the bit. Without that program this part is said to be left out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import nn

from niwaki import Classify, Spec, data, evaluate, nets, train
from niwaki.qdq import saturate
from niwaki.qdq.recipe import Recipe
from niwaki.runtimes import onnx_export

CPU = "Haswell"
"""AVX2 and no VNNI; what QEMU calls it."""
CHILD = """
import sys, numpy as np, onnxruntime as ort
file, images, out, exact = sys.argv[1:]
options = ort.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 4
options.add_session_config_entry("session.x64quantprecision", exact)
session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
np.save(out, session.run(None, {"image": np.load(images)})[0])
"""


def network(name: str, seed: int) -> tuple[nn.Module, Spec, data.DataSet]:
    """The float network and its data."""
    held = data.read(name, seed=seed)
    if name == "cifar10":
        weights = Path(os.environ["NIWAKI_DATA"]) / "weights" / "resnet20-12fca82f.th"
        model = nets.load_weights(nets.build("niwaki:resnet20", classes=10), weights)
        return model.eval(), Spec(size_hw=(32, 32)), held
    spec = Spec(size_hw=(16, 16), mean=(0.5,), std=(0.25,), channels=1)
    model = nets.build("niwaki:small", classes=len(held.classes), channels=1)
    task = Classify(held.classes)
    return train.fit(model, task=task, spec=spec, train=held.train, epochs=8, seed=seed), spec, held


def in_qemu(file: Path, images: Any, *, exact: bool, cpu: str, limit_s: float) -> Any:
    """What ONNX Runtime gives under QEMU; None where it took longer than the limit."""
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "images.npy", Path(folder) / "out.npy"
        np.save(given, images)
        line = [
            "qemu-x86_64",
            "-cpu",
            cpu,
            sys.executable,
            "-c",
            CHILD,
            file,
            given,
            out,
            "1" if exact else "0",
        ]
        try:
            subprocess.run(list(map(str, line)), check=True, capture_output=True, timeout=limit_s)
        except subprocess.TimeoutExpired:
            return None
        return np.load(out)


def against_qemu(name: str, file: Path, some: Any, given: argparse.Namespace) -> None:
    """Prints whether the emulation gives ONNX Runtime's own outputs."""
    proto = onnx.load(file)
    for exact in (False, True):
        wanted = saturate.emulator(proto, saturates=not exact)(some)
        got = in_qemu(file, some, exact=exact, cpu=given.cpu, limit_s=given.limit)
        mode = "exact mode" if exact else "as it is"
        if got is None:
            print(f"  {name}, {mode}: took more than {given.limit:.0f} s, left out")
            continue
        same = "equal to the bit" if np.array_equal(wanted, got) else f"OFF by {np.abs(wanted - got).max():.3g}"
        print(f"  {name}, {mode}: {same} on {len(some)} images")


def main() -> None:
    """Accuracies with and without VNNI, then the emulator's run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["cifar10", "digits"], default="cifar10")
    parser.add_argument("--test", type=int, default=1000, help="test images emulated")
    parser.add_argument("--few", type=int, default=8, help="images under QEMU")
    parser.add_argument("--cpu", default=CPU)
    parser.add_argument("--limit", type=float, default=170, help="seconds of a run under QEMU")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.data == "cifar10" and not os.environ.get("NIWAKI_DATA"):
        print("skipped: NIWAKI_DATA is not set; --data digits needs nothing")
        return
    model, spec, held = network(given.data, given.seed)
    task = Classify(held.classes)
    test = held.test.take(min(given.test, len(held.test)), seed=given.seed)
    calib = held.train.take(256, seed=given.seed)
    pixels = calib.batch(range(len(calib)), spec)
    files: dict[str, Path] = {}
    with tempfile.TemporaryDirectory() as folder:
        print(f"{given.data}, {len(test)} test images: accuracy, and predictions that stay without VNNI")
        for name, narrow in (("8 bits", False), ("7 bits", True)):
            files[name] = Path(folder) / f"{name[0]}.onnx"
            onnx_export.export(
                model,
                spec,
                files[name],
                task=task,
                precision="int8",
                calib=pixels,
                recipe=Recipe(narrow=narrow),
            )
            proto = onnx.load(files[name])
            both = [
                evaluate.probabilities(saturate.emulator(proto, saturates=saturates), test, spec)
                for saturates in (False, True)
            ]
            scores = [100 * task.score(one, test.labels)["accuracy"] for one in both]
            stay = 100 * float((both[0].argmax(1) == both[1].argmax(1)).mean())
            safe = "safe by its weights" if saturate.safe(proto) else "can saturate"
            print(f"  {name}: with VNNI {scores[0]:.2f}, without {scores[1]:.2f}, stay {stay:.2f} %; {safe}")
        if shutil.which("qemu-x86_64") is None:
            print(
                "qemu-x86_64 is not there, so nothing was held against ONNX Runtime: apt-get install qemu-user"
            )
            return
        print(f"ONNX Runtime under QEMU as {given.cpu}, against the emulation:")
        for name, file in files.items():
            against_qemu(name, file, test.batch(range(min(given.few, len(test))), spec), given)


if __name__ == "__main__":
    main()
