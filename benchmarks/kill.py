"""Kill -9 `fit` at random moments, resume it, and compare the final weights with an uninterrupted run.

    python benchmarks/kill.py --kills 50 [--budget macs=50%] [--seed 0]

Each trial is a fresh run folder that is killed one to three times and then finished by the same
command. Bytes of the weights and of both exports must equal those of a run that nothing disturbed.
For a latency budget the uninterrupted run is given the journal of measured decisions first, which
is what the promise says. Prints one JSON object; exit 1 when a run differs or fails.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CHILD = """
import sys
from niwaki import job
print("ready", flush=True)
job.fit(
    sys.argv[1], model=sys.argv[2], budget=sys.argv[3], out=sys.argv[4], epochs=3, recover_epochs=2,
    max_drop=1.0, seed=1,
)
"""
NET = """
from torch import nn

def make(classes, channels):
    return nn.Sequential(
        nn.Conv2d(channels, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Conv2d(24, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes),
    )
"""
COMPARED = ("weights.safetensors", "exports/onnx/float32.onnx", "exports/onnx/int8.onnx")


def make_inputs(folder: Path) -> tuple[Path, Path]:
    """A small data set of coloured noise in three classes, and a small network."""
    draw = np.random.default_rng(0)
    labels = np.arange(240) % 3
    base = draw.integers(60, 200, (3, 8, 8, 3))
    images = np.clip(base[labels] + draw.integers(-60, 60, (240, 8, 8, 3)), 0, 255)
    np.savez(folder / "noise.npz", images=images.astype(np.uint8), labels=labels)
    (folder / "net.py").write_text(NET)
    return folder / "noise.npz", folder / "net.py"


def start(data: Path, net: Path, budget: str, out: Path) -> subprocess.Popen[str]:
    """The job in a process of its own, at the moment its imports are done."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(data), f"{net}:make", budget, str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert child.stdout is not None
    child.stdout.readline()
    return child


def finish(data: Path, net: Path, budget: str, out: Path) -> float:
    """Seconds that the job took to its end."""
    began = time.perf_counter()
    child = start(data, net, budget, out)
    _, errors = child.communicate()
    if child.returncode:
        raise RuntimeError(f"{out.name} exited {child.returncode}: {errors[-2000:]}")
    return time.perf_counter() - began


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of what must be the same."""
    model = out / "model.niwaki"
    return {name: hashlib.sha256((model / name).read_bytes()).hexdigest() for name in COMPARED}


def trial(
    data: Path, net: Path, budget: str, out: Path, *, kills: int, within_s: float, draw: random.Random
) -> int:
    """How often the run was killed before it was let finish."""
    killed = 0
    for _ in range(kills):
        child = start(data, net, budget, out)
        try:
            child.wait(draw.uniform(0, within_s))
        except subprocess.TimeoutExpired:
            child.kill()
            killed += 1
        child.communicate()
        if killed == 0 or (out / "result.json").exists():
            break
    finish(data, net, budget, out)
    return killed


def reference(data: Path, net: Path, budget: str, out: Path, journal: Path | None) -> float:
    """An undisturbed run, in a folder that holds at most a journal."""
    if journal is not None:
        out.mkdir()
        shutil.copy(journal / "run.json", out)
        shutil.copy(journal / "journal.jsonl", out)
    return finish(data, net, budget, out)


def main() -> int:
    """Run the trials and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--budget", default="macs=50%")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    measured = args.budget.startswith("latency")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, net = make_inputs(folder)
        seconds = reference(data, net, args.budget, folder / "whole", None)
        expected, killed, trials, differ = digests(folder / "whole"), 0, 0, []
        while killed < args.kills:
            out = folder / f"trial-{trials}"
            killed += trial(
                data, net, args.budget, out,
                kills=min(draw.randint(1, 3), args.kills - killed), within_s=seconds, draw=draw,
            )  # fmt: skip
            if measured:
                reference(data, net, args.budget, folder / f"again-{trials}", out)
                expected = digests(folder / f"again-{trials}")
            differ += [out.name] if digests(out) != expected else []
            trials += 1
    print(json.dumps({"kills": killed, "trials": trials, "differ": differ, "run_s": round(seconds, 1)}))
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
